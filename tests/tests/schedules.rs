//! Runs whose policy revises its plan: what trains changes between steps, and the result holds all that ever trained.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use liftplan::config::Config;
use liftplan::export::{self, Format};
use liftplan::report::{Record, Silent, Summary, metrics};
use liftplan::train::{self, RunOptions};
use liftplan_tests::plugins::{compiled, model};
use safetensors::SafeTensors;

fn run(dir: &Path, policy: &str) -> Summary {
    let row = |i: usize| format!("{{\"text\": \"{}{i}\"}}\n", "the weaver lifts thread ".repeat(1 + i % 5));
    fs::write(dir.join("train.jsonl"), (0..40).map(row).collect::<String>()).unwrap();
    let text = format!(
        "model = {:?}\nseed = 3\n[data]\ntrain = \"train.jsonl\"\nformat = \"text\"\n[policy]\n{policy}\n\
         [train]\nsteps = 12\nbatch_size = 4\n[optimizer]\nlr = 0.01\n[schedule]\nname = \"constant\"\n",
        model("qwen3")
    );
    let config = Config::parse(&text, &dir.join("config.toml"), "config.toml", &[]).unwrap();
    let options = RunOptions { out: Some(dir.join("run")), ..RunOptions::default() };
    train::run(&config, &options, &mut Silent).unwrap()
}

/// The names of the tensors that differ between two files of the same tensors.
fn different(before: &Path, after: &Path) -> BTreeSet<String> {
    let (before, after) = (fs::read(before).unwrap(), fs::read(after).unwrap());
    let (before, after) = (SafeTensors::deserialize(&before).unwrap(), SafeTensors::deserialize(&after).unwrap());
    before
        .tensors()
        .into_iter()
        .filter(|(name, tensor)| tensor.data() != after.tensor(name).unwrap().data())
        .map(|(name, _)| name)
        .collect()
}

fn names(file: &Path) -> BTreeSet<String> {
    let bytes = fs::read(file).unwrap();
    SafeTensors::deserialize(&bytes).unwrap().names().into_iter().map(str::to_string).collect()
}

#[test]
fn badam_trains_one_block_after_the_other_and_exports_all_of_them() {
    let dir = tempfile::tempdir().unwrap();
    let policy = format!("plugin = {:?}\nevery = 4\norder = \"ascending\"", compiled("badam"));
    let summary = run(dir.path(), &policy);
    let run = dir.path().join("run");
    let blocks = 2;
    assert_eq!((summary.steps, summary.picks), (12, 2));
    assert!(summary.plugin_s > 0.0 && summary.hashes.plugin.is_some());

    let picks: Vec<_> = metrics::read(&run.join("metrics.jsonl"))
        .unwrap()
        .into_iter()
        .filter_map(|record| match record {
            Record::Pick(pick) => Some((pick.step, pick.pick, pick.trained_tensors)),
            _ => None,
        })
        .collect();
    let of_block = (summary.trained.trained_tensors / blocks, summary.trained.trained_tensors % blocks);
    assert_eq!(of_block.1, 0);
    assert_eq!(picks, [(5, 1, of_block.0), (9, 2, of_block.0)]);

    // Both blocks are in the checkpoint, and the optimiser knows the one that trained last.
    let checkpoint = run.join("checkpoints/step-12");
    let trained = names(&checkpoint.join("trainable.safetensors"));
    assert_eq!(trained.len(), summary.trained.trained_tensors);
    let states = names(&checkpoint.join("optimizer.safetensors"));
    assert!(states.iter().all(|name| name.contains(".layers.0.")), "{states:?}");

    let out = dir.path().join("exported");
    export::export(&run, None, Format::Hf, &out, &export::Options::default(), &mut Silent).unwrap();
    let changed = different(&model("qwen3").join("model.safetensors"), &out.join("model.safetensors"));
    assert_eq!(changed, trained, "what is exported differs from the base exactly where it trained");
    assert!(changed.iter().any(|name| name.contains(".layers.1.")));

    // The run opens again with what every block learned.
    let reopened = train::reopen(&run, None, None, &mut Silent).unwrap();
    assert_eq!(reopened.step, Some(12));
}

#[test]
fn lisa_keeps_the_embedding_training_and_draws_blocks() {
    let dir = tempfile::tempdir().unwrap();
    let summary = run(dir.path(), &format!("plugin = {:?}\nblocks = 1\nevery = 1", compiled("lisa")));
    assert_eq!(summary.picks, 11);
    let states = names(&dir.path().join("run/checkpoints/step-12/optimizer.safetensors"));
    let blocks: BTreeSet<&str> =
        states.iter().filter_map(|name| name.split('.').nth(2)).filter(|part| part.parse::<u32>().is_ok()).collect();
    assert_eq!(blocks.len(), 1, "the optimiser keeps states of what trains now: {states:?}");
    assert!(states.iter().any(|name| name.starts_with("model.embed_tokens.weight:")));
}

#[test]
fn ladder_keeps_each_block_finely_in_its_turn() {
    let dir = tempfile::tempdir().unwrap();
    let settings = "every = 6\nrank = 2\nstorage = \"int8\"";
    let summary = run(dir.path(), &format!("plugin = {:?}\n{settings}", compiled("ladder")));
    assert_eq!((summary.picks, summary.trained.adapted_tensors), (1, 8));
    // What the run came to: the adapters of both blocks over 8 bits, and the feed-forward part in them only where it is the turn's.
    let state = fs::read_to_string(dir.path().join("run/checkpoints/step-12/state.json")).unwrap();
    let state: serde_json::Value = serde_json::from_str(&state).unwrap();
    let kept = |block: usize, role: &str| {
        let entries = state["policy"]["plan"]["entries"].as_array().unwrap().iter();
        let name = format!("layers.{block}.{role}.weight");
        let entry = entries.clone().find(|entry| entry["tensor"].as_str().unwrap().ends_with(&name)).unwrap();
        let storage = &entry["storage"];
        storage.as_str().map_or_else(|| storage.as_object().unwrap().keys().next().unwrap().clone(), str::to_string)
    };
    let found =
        [0, 1].map(|block| ["self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj"].map(|role| kept(block, role)));
    assert_eq!(found, [["int8"; 3], ["int8", "int8", "nf4"]]);
}
