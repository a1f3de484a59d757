//! Storage, presets, policies of several parts, and exports of them.

use crate::Case;

const TRAIN: &[&str] = &["train", "c.toml"];

pub const CASES: [Case; 11] = [
    Case {
        name: "a block size of nothing",
        arrange: |f| f.set("storage", "block_size = 128"),
        arguments: TRAIN,
        code: 2,
        message: "error: c.toml:19: `storage.block_size` has no effect: storage.frozen is not \"nf4\"\n  \
                  help: leave it out, or set storage.frozen = \"nf4\"",
    },
    Case {
        name: "a block size that isn't one",
        arrange: |f| f.set("storage", "frozen = \"nf4\"\nblock_size = 100"),
        arguments: TRAIN,
        code: 2,
        message: "error: c.toml:20: `storage.block_size` cannot be 100\n  \
                  help: it can be 32, 64, 128, 256, 512, 1024, 2048, 4096",
    },
    Case {
        name: "a storage that isn't one",
        arrange: |f| f.set("storage", "frozen = \"int4\""),
        arguments: TRAIN,
        code: 2,
        message: "error: c.toml:19: `storage.frozen` cannot be \"int4\"\n  \
                  help: did you mean \"int8\"? It can be \"f32\", \"bf16\", \"nf4\" and \"int8\"",
    },
    Case {
        name: "an exception where all is the same",
        arrange: |f| f.set("storage", "exclude = [\"q_proj\"]"),
        arguments: TRAIN,
        code: 2,
        message: "error: c.toml:19: `storage.exclude` has no effect: all frozen tensors are kept the same\n  \
                  help: leave it out, or let storage.frozen and storage.others differ",
    },
    Case {
        name: "a storage that no tensor has",
        arrange: |f| {
            f.replace("c.toml", "\"lora\"\nrank = 2", "\"full\"");
            f.set("storage", "frozen = \"nf4\"")
        },
        arguments: TRAIN,
        code: 5,
        message: "error: c.toml:18: `storage.frozen` = \"nf4\" has no effect: policy `full` leaves none of these weights \
                  frozen\n  help: leave it out",
    },
    Case {
        name: "a preset and another storage",
        arrange: |f| {
            f.replace("c.toml", "\"lora\"", "\"qlora\"");
            f.set("storage", "frozen = \"int8\"")
        },
        arguments: TRAIN,
        code: 2,
        message: "error: c.toml:19: `storage.frozen` contradicts the preset \"qlora\", which keeps frozen weights as nf4\n  \
                  help: leave it out, or set policy.name = \"lora\"",
    },
    Case {
        name: "a mixture of one",
        arrange: |f| f.replace("c.toml", "\"lora\"\nrank = 2", "\"mixed\"\nparts = [{ name = \"lora\" }]"),
        arguments: TRAIN,
        code: 2,
        message: "error: c.toml:9: `policy.parts` must list at least two policies, not 1\n  \
                  help: add tables [[policy.parts]] with name = \"spectrum\", name = \"lora\" …, or set policy.name to the \
                  only one",
    },
    Case {
        name: "a part that is left nothing",
        arrange: |f| {
            let parts = "\"mixed\"\nparts = [{ name = \"full\" }, { name = \"lora\" }]";
            f.replace("c.toml", "\"lora\"\nrank = 2", parts)
        },
        arguments: TRAIN,
        code: 5,
        message: "error: c.toml:9: `policy.parts`: part 2, `lora` has no effect: the parts before it treat all that it would\n  \
                  help: leave it out, or put it first",
    },
    Case {
        name: "packed weights of a run that has none",
        arrange: |f| f.train(),
        arguments: &["export", "run", "--format", "hf", "--out", "model-of-run", "--base", "packed"],
        code: 2,
        message: "error: --base packed has no effect: the run kept no weight in nf4 or int8\n  help: leave it out",
    },
    Case {
        name: "a base model for a run",
        arrange: |f| f.train(),
        arguments: &["export", "run", "--format", "hf", "--out", "model-of-run", "--model", "model"],
        code: 2,
        message: "error: --model model has no effect: run is not a delta\n  \
                  help: a run knows its model; leave --model out",
    },
    Case {
        name: "adapters in packed weights",
        arrange: |f| {
            f.replace("c.toml", "\"lora\"", "\"qlora\"");
            f.train()
        },
        arguments: &["export", "run", "--format", "hf", "--out", "model-of-run", "--base", "packed"],
        code: 5,
        message: "error: `model.layers.0.self_attn.q_proj.weight` has an adapter, which can't be merged into nf4 weights \
                  without quantising them anew\n  help: export the adapter with --format peft, or leave --base packed out",
    },
];
