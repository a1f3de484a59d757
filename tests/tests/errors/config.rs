//! The command line and the configuration: exit code 2.

use crate::Case;

const TRAIN: &[&str] = &["train", "c.toml"];

pub const CASES: [Case; 28] = [
    Case {
        name: "no configuration",
        arrange: |_| {},
        arguments: &["train", "d.toml"],
        code: 2,
        message: "error: cannot read the configuration d.toml: No such file or directory (os error 2)\n  \
                  help: give the path of a TOML file; see examples/",
    },
    Case {
        name: "configuration is a directory",
        arrange: |_| {},
        arguments: &["plan", "model"],
        code: 2,
        message: "error: cannot read the configuration model: Is a directory (os error 21)",
    },
    Case {
        name: "configuration is no UTF-8",
        arrange: |f| f.write("c.toml", b"model = \"\xff\""),
        arguments: TRAIN,
        code: 2,
        message: "error: cannot read the configuration c.toml: stream did not contain valid UTF-8",
    },
    Case {
        name: "configuration is no TOML",
        arrange: |f| f.set("train", "recompute = yes"),
        arguments: TRAIN,
        code: 2,
        message: "error: c.toml:12:13: not valid TOML: string values must be quoted, expected literal string\n  \
                  help: strings need quotes, and each `key = value` stands on its own line; see https://toml.io",
    },
    Case {
        name: "key written twice",
        arrange: |f| f.set("train", "steps = 3"),
        arguments: TRAIN,
        code: 2,
        message: "error: c.toml:13:1: not valid TOML: duplicate key\n  \
                  help: strings need quotes, and each `key = value` stands on its own line; see https://toml.io",
    },
    Case {
        name: "unknown key",
        arrange: |f| f.set("train", "batchsize = 4"),
        arguments: TRAIN,
        code: 2,
        message: "error: c.toml:12: `train.batchsize` is not a known setting\n  help: did you mean `train.batch_size`?",
    },
    Case {
        name: "unknown section",
        arrange: |f| f.set("optimiser", "lr = 1e-4"),
        arguments: TRAIN,
        code: 2,
        message: "error: c.toml:18: `optimiser` is not a known setting\n  help: did you mean `optimizer`?",
    },
    Case {
        name: "key in the wrong section",
        arrange: |f| f.set("train", "lr = 1e-4"),
        arguments: TRAIN,
        code: 2,
        message: "error: c.toml:12: `train.lr` is not a known setting\n  help: did you mean `optimizer.lr`?",
    },
    Case {
        name: "another trainer's name",
        arrange: |f| f.set("train", "gradient_checkpointing = true"),
        arguments: TRAIN,
        code: 2,
        message: "error: c.toml:12: `train.gradient_checkpointing` is not a known setting\n  \
                  help: did you mean `train.recompute`?",
    },
    Case {
        name: "text for a number",
        arrange: |f| f.replace("c.toml", "steps = 2", "steps = \"two\""),
        arguments: TRAIN,
        code: 2,
        message: "error: c.toml:12: `train.steps` must be a whole number of at least 0, not the string \"two\"",
    },
    Case {
        name: "negative steps",
        arrange: |f| f.replace("c.toml", "steps = 2", "steps = -2"),
        arguments: TRAIN,
        code: 2,
        message: "error: c.toml:12: `train.steps` must be a whole number of at least 0, not -2",
    },
    Case {
        name: "infinite learning rate",
        arrange: |f| f.replace("c.toml", "lr = 1e-3", "lr = inf"),
        arguments: TRAIN,
        code: 2,
        message: "error: c.toml:16: `optimizer.lr` must be a finite number, not inf",
    },
    Case {
        name: "steps and epochs",
        arrange: |f| f.set("train", "epochs = 1"),
        arguments: TRAIN,
        code: 2,
        message: "error: c.toml:13: `train.steps` and `train.epochs` are both set, and each says how long to train\n  \
                  help: keep one of them",
    },
    Case {
        name: "two warm-ups",
        arrange: |f| f.set("schedule", "warmup_steps = 1\nwarmup_ratio = 0.1"),
        arguments: TRAIN,
        code: 2,
        message: "error: c.toml:19: `schedule.warmup_steps` = 1 and `schedule.warmup_ratio` = 0.1 are both set\n  \
                  help: keep one of them",
    },
    Case {
        name: "warm-up longer than training",
        arrange: |f| f.set("schedule", "warmup_steps = 2"),
        arguments: TRAIN,
        code: 2,
        message: "error: c.toml:19: `schedule.warmup_steps` = 2 never ends: training has 2 steps\n  help: set it below 2",
    },
    Case {
        name: "decay without wsd",
        arrange: |f| f.set("schedule", "name = \"linear\"\ndecay_ratio = 0.1"),
        arguments: TRAIN,
        code: 2,
        message: "error: c.toml:20: `schedule.decay_ratio` has no effect: only the schedule \"wsd\" has a decay phase\n  \
                  help: leave it out, or choose name = \"wsd\"",
    },
    Case {
        name: "unknown schedule",
        arrange: |f| f.set("schedule", "name = \"cosin\""),
        arguments: TRAIN,
        code: 2,
        message: "error: c.toml:19: `schedule.name` cannot be \"cosin\"\n  \
                  help: did you mean \"cosine\"? It can be \"constant\", \"linear\", \"cosine\" and \"wsd\"",
    },
    Case {
        name: "bf16 updates of f32 weights",
        arrange: |f| f.set("train", "bf16_update = \"stochastic\""),
        arguments: TRAIN,
        code: 2,
        message: "error: c.toml:12: `train.bf16_update` = \"stochastic\" has no effect: the weights are kept in f32\n  \
                  help: leave it out, or set train.weights = \"bf16\"",
    },
    Case {
        name: "evaluation without data",
        arrange: |f| f.set("train", "eval_every = 1"),
        arguments: TRAIN,
        code: 2,
        message: "error: c.toml:12: `train.eval_every` has no effect: there is no validation data\n  \
                  help: set data.validation or data.validation_split, or leave eval_every out",
    },
    Case {
        name: "early stopping without evaluation",
        arrange: |f| f.set("train", "early_stopping = { patience = 3 }"),
        arguments: TRAIN,
        code: 2,
        message: "error: c.toml:12: `train.early_stopping` has no effect: there are no evaluations for its patience of 3 \
                  to count\n  help: set train.eval_every to the number of steps between evaluations",
    },
    Case {
        name: "unknown policy",
        arrange: |f| f.replace("c.toml", "\"lora\"", "\"lorra\""),
        arguments: TRAIN,
        code: 2,
        message: "error: c.toml:8: `policy.name`: there is no policy \"lorra\"\n  \
                  help: did you mean \"lora\"? There are lora, full, spectrum, random, mixed, qlora and qspectrum",
    },
    Case {
        name: "unknown policy setting",
        arrange: |f| f.set("policy", "dropot = 0.1"),
        arguments: TRAIN,
        code: 2,
        message: "error: c.toml:8: `policy.dropot` is not a setting of policy `lora`\n  \
                  help: did you mean `policy.dropout`?",
    },
    Case {
        name: "a regular expression that is none",
        arrange: |f| f.set("policy", "targets = \"re:mlp.(up|down\""),
        arguments: TRAIN,
        code: 2,
        message: "error: c.toml:8: `policy.targets`: `re:mlp.(up|down` is not a regular expression: unclosed group",
    },
    Case {
        name: "override without a value",
        arrange: |_| {},
        arguments: &["train", "c.toml", "--set", "train.steps"],
        code: 2,
        message: "error: --set train.steps: there is no `=` in it\n  \
                  help: write it as path=value, for example --set train.steps=20",
    },
    Case {
        name: "recomputing asked for where the least memory is shown",
        arrange: |_| {},
        arguments: &["plan", "--shape", "qwen3-8b", "--device", "cuda", "--recompute"],
        code: 2,
        message: "error: --recompute has no effect with --device cuda: the least memory is what is shown\n  help: leave it out",
    },
    Case {
        name: "override whose text looks like a table",
        arrange: |_| {},
        arguments: &["train", "c.toml", "--set", "data.prompt={text}"],
        code: 2,
        message: "error: --set data.prompt={text}: the value is not valid TOML\n  \
                  help: a text that begins with `{` needs quotes, and these the shell's: --set 'data.prompt=\"{text}\"'",
    },
    Case {
        name: "override of what doesn't exist",
        arrange: |_| {},
        arguments: &["train", "c.toml", "--set", "train.seed=1"],
        code: 2,
        message: "error: --set train.seed=1: `train.seed` is not a known setting\n  help: did you mean `seed`?",
    },
    Case {
        name: "no model named",
        arrange: |f| f.replace("c.toml", "model = \"model\"\n", ""),
        arguments: TRAIN,
        code: 2,
        message: "error: `model` is missing\n  \
                  help: name a Hugging Face directory, a .gguf file or a hub id: model = \"org/name\"",
    },
];
