//! What a run makes, and the run itself: exit codes 6 and 7.

use std::fs;

use liftplan::checkpoint::RunLock;

use crate::Case;

const TRAIN: &[&str] = &["train", "c.toml"];
const RESUME: &[&str] = &["train", "c.toml", "--resume"];

/// The checkpoint that training leaves.
const CHECKPOINT: &str = "run/checkpoints/step-2";

pub const CASES: [Case; 19] = [
    Case {
        name: "a directory that holds something else",
        arrange: |f| f.write("run/thesis.tex", "x"),
        arguments: TRAIN,
        code: 7,
        message: "error: {dir}/run is not empty and holds no run\n  \
                  help: choose another directory with --out",
    },
    Case {
        name: "a directory that holds a run",
        arrange: |f| f.train(),
        arguments: TRAIN,
        code: 7,
        message: "error: {dir}/run holds a run already\n  \
                  help: go on with it by --resume, or choose another directory with --out",
    },
    Case {
        name: "a directory that is a file",
        arrange: |f| f.write("run", "x"),
        arguments: TRAIN,
        code: 7,
        message: "error: cannot use as the run's directory {dir}/run: Not a directory (os error 20)\n  \
                  help: a file stands where a directory should; choose another place",
    },
    Case {
        name: "a directory below a file",
        arrange: |f| f.write("runs", "x"),
        arguments: &["train", "c.toml", "--out", "runs/first"],
        code: 7,
        message: "error: cannot make the run's directory runs/first: Not a directory (os error 20)\n  \
                  help: a file stands where a directory should; choose another place",
    },
    Case {
        name: "nothing to resume",
        arrange: |_| {},
        arguments: RESUME,
        code: 7,
        message: "error: there is no run to resume in {dir}/run\n  \
                  help: leave --resume out to start one, or name the run's directory with --out",
    },
    Case {
        name: "a run without checkpoints",
        arrange: |f| {
            f.train();
            fs::remove_dir_all(f.path().join("run/checkpoints")).unwrap()
        },
        arguments: &["eval", "run", "--data", "train.jsonl"],
        code: 7,
        message: "error: there is no checkpoint in {dir}/run/checkpoints\n  \
                  help: train first: a checkpoint is written at the end, when interrupted, and every `checkpoint_every` steps",
    },
    Case {
        name: "a truncated checkpoint",
        arrange: |f| {
            f.train();
            f.change(&format!("{CHECKPOINT}/trainable.safetensors"), |b| b.truncate(1000))
        },
        arguments: &["generate", "run", "--prompt", "the"],
        code: 7,
        message: "error: run/checkpoints/step-2/trainable.safetensors: damaged: it has 1000 bytes, and 19336 were written\n  \
                  help: there is no earlier checkpoint: start the run anew",
    },
    Case {
        name: "a checkpoint with a flipped bit",
        arrange: |f| {
            f.train();
            f.change(&format!("{CHECKPOINT}/optimizer.safetensors"), |b| {
                let last = b.len() - 1;
                b[last] ^= 1
            })
        },
        arguments: &["train", "c.toml", "--resume", "--set", "train.steps=3"],
        code: 7,
        message: "error: {dir}/run/checkpoints/step-2/optimizer.safetensors: damaged: its content is not what state.json says was written\n  \
                  help: there is no earlier checkpoint: start the run anew",
    },
    Case {
        name: "a checkpoint's state that is no JSON",
        arrange: |f| {
            f.train();
            f.write(&format!("{CHECKPOINT}/state.json"), "{")
        },
        arguments: &["generate", "run", "--prompt", "the"],
        code: 7,
        message: "error: run/checkpoints/step-2/state.json: damaged: EOF while parsing an object at line 1 column 1\n  \
                  help: there is no earlier checkpoint: start the run anew",
    },
    Case {
        name: "a checkpoint that isn't there",
        arrange: |f| f.train(),
        arguments: &["generate", "run", "--prompt", "the", "--step", "7"],
        code: 7,
        message: "error: there is no checkpoint of step 7 in run/checkpoints\n  \
                  help: there are checkpoints of the steps 2",
    },
    Case {
        name: "a run whose model has changed",
        arrange: |f| {
            f.train();
            f.change("model/model.safetensors", |b| {
                let last = b.len() - 1;
                b[last] ^= 1
            })
        },
        arguments: &["generate", "run", "--prompt", "the"],
        code: 7,
        message: "error: the checkpoint run/checkpoints/step-2 was made with another model (sha256 2cabd7e1d542 there, 1a2fa1295e63 here)\n  \
                  help: name the model that the run was started with, or start a new run with --out",
    },
    Case {
        name: "an export of what is no run",
        arrange: |_| {},
        arguments: &["export", "model", "--format", "peft", "--out", "adapter"],
        code: 7,
        message: "error: model is not a run: it has no config.toml\n  \
                  help: give the directory that `liftplan train` made",
    },
    Case {
        name: "an export over something else",
        arrange: |f| {
            f.train();
            f.write("adapter/thesis.tex", "x")
        },
        arguments: &["export", "run", "--format", "peft", "--out", "adapter"],
        code: 7,
        message: "error: the directory adapter is not empty\n  \
                  help: choose another with --out, or replace an earlier export with --force",
    },
    Case {
        name: "an export in a type that its format hasn't",
        arrange: |f| f.train(),
        arguments: &["export", "run", "--format", "gguf", "--dtype", "bf16", "--out", "m"],
        code: 2,
        message: "error: the format gguf can't be written as bf16\n  \
                  help: choose f16 or q8_0",
    },
    Case {
        name: "a sampling that has no effect",
        arrange: |_| {},
        arguments: &["generate", "model", "--prompt", "the", "--top-k", "4"],
        code: 2,
        message: "error: top-p and top-k have no effect at temperature 0\n  \
                  help: set a temperature above 0, or leave them out",
    },
    Case {
        name: "an evaluation without data",
        arrange: |_| {},
        arguments: &["eval", "model"],
        code: 2,
        message: "error: there is no data to judge the model on\n  \
                  help: name some with --data FILE",
    },
    Case {
        name: "a directory in use",
        arrange: |f| {
            f.train();
            std::mem::forget(RunLock::acquire(&f.path().join("run")).unwrap())
        },
        arguments: RESUME,
        code: 7,
        message: "error: the run directory {dir}/run is in use by process {pid}\n  \
                  help: wait for it to end or stop it, or choose another directory with --out",
    },
    Case {
        name: "a plan that was edited",
        arrange: |f| {
            f.train();
            f.replace("run/plan.json", "\"rank\":2", "\"rank\":3")
        },
        arguments: &["export", "run", "--format", "hf", "--out", "m"],
        code: 7,
        message: "error: run/plan.json: the plan is not the one that was written: its hash has changed\n  \
                  help: the file was damaged or edited; make the plan again with `liftplan plan`",
    },
    Case {
        name: "a run's configuration that was damaged",
        arrange: |f| {
            f.train();
            f.replace("run/config.toml", "model = ", "model ")
        },
        arguments: &["export", "run", "--format", "hf", "--out", "m"],
        code: 2,
        message: "error: run/config.toml:1:7: not valid TOML: key with no value, expected `=`\n  \
                  help: strings need quotes, and each `key = value` stands on its own line; see https://toml.io",
    },
];
