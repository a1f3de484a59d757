//! The commands one after the other, as a user would type them, on the tiny model of the golden numbers.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;

use liftplan_tests::command::{Ran, command, liftplan};
use liftplan_tests::golden;
use serde_json::Value;
use tempfile::TempDir;

const ROWS: &str = r#"{"text": "the cat sat on the mat", "label": "calm"}
{"text": "the dog ran to the door", "label": "busy"}
{"text": "a bird sings in the tree", "label": "calm"}
{"text": "the train is late again", "label": "busy"}
"#;

/// A folder with a configuration that trains for `steps` steps.
fn folder(steps: usize) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let model = golden::folder().join("families/llama/model").canonicalize().unwrap();
    let config = format!(
        "model = {model:?}\nout = \"run\"\n[data]\ntrain = \"rows.jsonl\"\ntest = \"rows.jsonl\"\n\
         chat_template = \"none\"\n[policy]\nname = \"lora\"\nrank = 2\n[train]\nsteps = {steps}\nbatch_size = 2\n\
         [optimizer]\nlr = 1e-3\n[eval]\ntask = \"classification\"\n"
    );
    fs::write(folder.path().join("c.toml"), config).unwrap();
    fs::write(folder.path().join("rows.jsonl"), ROWS).unwrap();
    folder
}

#[track_caller]
fn done(folder: &Path, arguments: &[&str]) -> Ran {
    let ran = liftplan(folder, arguments);
    assert_eq!(ran.code, Some(0), "{arguments:?}: {}", ran.stderr);
    ran
}

#[track_caller]
fn json(folder: &Path, arguments: &[&str]) -> Value {
    serde_json::from_str(&done(folder, arguments).stdout).unwrap()
}

#[test]
fn from_a_model_to_an_export() {
    let folder = folder(4);
    let dir = folder.path();
    let model = golden::folder().join("families/llama/model");

    let inspected = json(dir, &["inspect", model.to_str().unwrap(), "--json"]);
    assert_eq!(inspected["model"]["architecture"], "llama");
    assert_eq!(inspected["methods"][1]["trainable_parameters"], inspected["model"]["parameters"], "full trains all");

    let plan = json(dir, &["plan", "c.toml", "--json", "--set", "policy.rank=3"]);
    assert!(plan["entries"].as_array().unwrap().iter().any(|entry| entry["rank"] == 3));
    assert!(done(dir, &["plan", "c.toml"]).stdout.contains("parameters train"));

    let data = done(dir, &["data", "c.toml", "--show", "2"]).stdout;
    assert_eq!(data.matches("⟦").count(), 3, "two examples and the legend:\n{data}");
    assert_eq!(json(dir, &["data", "c.toml", "--show", "1", "--split", "test", "--json"])["total_examples"], 4);

    let trained = done(dir, &["train", "c.toml"]);
    for words in ["Trained: ", "accuracy", "before", "after", "Next: "] {
        assert!(trained.stdout.contains(words), "{words} is not in\n{}", trained.stdout);
    }
    assert!(trained.stderr.contains("step 4 of 4: loss "), "progress is on standard error: {}", trained.stderr);
    let made = json(dir, &["plan", "c.toml", "--json"]);
    let kept: Value = serde_json::from_slice(&fs::read(dir.join("run/plan.json")).unwrap()).unwrap();
    assert_eq!(made, kept, "the plan that is shown is the plan that is carried out");

    let summary: Value = serde_json::from_slice(&fs::read(dir.join("run/summary.json")).unwrap()).unwrap();
    let judged = json(dir, &["eval", "run", "--json"]);
    assert_eq!(judged["eval_loss"], summary["eval_after"]["eval_loss"], "the checkpoint is what was trained");
    let untouched = json(
        dir,
        &[
            "eval",
            model.to_str().unwrap(),
            "--data",
            "rows.jsonl",
            "--json",
            "--set",
            "eval.task=classification",
            "--set",
            "data.chat_template=none",
        ],
    );
    assert_eq!(
        untouched["eval_loss"], summary["eval_before"]["eval_loss"],
        "evaluation before training is of the model"
    );

    let prompt = ["generate", "run", "--prompt", "the cat", "--max-tokens", "5", "--json"];
    let text = json(dir, &prompt);
    assert!(text["tokens"].as_u64().unwrap() <= 5);
    assert_eq!(text["text"], json(dir, &prompt)["text"], "the likeliest tokens are always the same");

    for (format, file) in [("peft", "adapter_model.safetensors"), ("hf", "model.safetensors"), ("gguf", ".gguf")] {
        let exported = json(dir, &["export", "run", "--format", format, "--out", format, "--json"]);
        let files = exported["files"].as_array().unwrap();
        assert!(files.iter().any(|written| written["name"].as_str().unwrap().ends_with(file)), "{exported}");
    }
    let again = json(dir, &["inspect", "hf", "--json"]);
    assert_eq!(again["model"]["parameters"], inspected["model"]["parameters"]);
}

#[test]
fn the_configuration_of_a_run_starts_the_same_run_again() {
    let folder = folder(3);
    let dir = folder.path();
    done(dir, &["train", "c.toml"]);
    done(dir, &["train", "run/config.toml", "--out", "again"]);
    let weights = |run: &str| fs::read(dir.join(run).join("checkpoints/step-3/trainable.safetensors")).unwrap();
    assert!(weights("run") == weights("again"));
}

#[cfg(unix)]
#[test]
fn ctrl_c_saves_a_checkpoint_from_which_the_run_goes_on() {
    use std::io::{BufRead, BufReader, Read};
    use std::process::{Command, Stdio};

    let folder = folder(3000);
    let dir = folder.path();
    let mut child = command(dir, &["train", "c.toml"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    let mut said = String::new();
    while !said.contains("step 1 of 3,000") {
        assert!(stderr.read_line(&mut said).unwrap() > 0, "it ended too early: {said}");
    }
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    stderr.read_to_string(&mut said).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130), "{said}");
    assert!(said.contains("stopping after this step"), "{said}");
    assert!(said.contains("--resume"), "says how to go on: {said}");
    let checkpoints = fs::read_dir(dir.join("run/checkpoints")).unwrap().count();
    assert_eq!(checkpoints, 1);

    let resumed = done(dir, &["train", "c.toml", "--resume"]);
    assert!(resumed.stderr.contains("step 3,000 of 3,000"), "{}", resumed.stderr);
    assert!(!resumed.stderr.contains("step 1 of"), "it does not start anew: {}", resumed.stderr);
}
