//! The plugins of `plugins/`, compiled to WebAssembly: the same plans as the built-in policies that some of them are, and
//! the same plans for ever.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;

use liftplan::Result;
use liftplan::model::BaseModel;
use liftplan::plan::{Plan, Treatment};
use liftplan::plugin::Limits;
use liftplan::plugin::wasm::WasmPlugin;
use liftplan::policy;
use liftplan::report::Silent;
use liftplan::stats::ModelStatistics;
use liftplan_tests::plugins::{compiled, model};
use liftplan_tests::setup;

mod contract;

fn plan(base: &BaseModel, tables: &str, seed: u64) -> Result<Plan> {
    let mut config = setup::config(&base.path, tables)?;
    config.seed = seed;
    policy::plan(&config, &base.inventory, &ModelStatistics::new(base, &mut Silent))
}

fn by_plugin(name: &str, settings: &str) -> String {
    format!("[policy]\nplugin = {:?}\n{settings}\n", compiled(name))
}

#[test]
fn a_component_plans_as_the_built_in_policy_does() {
    let cases = [
        ("lora", ""),
        ("lora", "rank = 4\nalpha = 3\ndropout = 0.25\nblocks = [1]"),
        ("lora", "targets = [\"q_proj\", \"*.mlp.*_proj\"]\nexclude = [\"re:.*layers.0.*up_proj\"]"),
        ("lora", "rslora = true\ndora = true\nlora_plus_ratio = 16\n[policy.ranks]\nv_proj = 2\n\"*.0.*.q_proj\" = 3"),
        ("full", ""),
        ("full", "targets = [\"v_proj\", \"norm\"]\nexclude = [\"model.norm\"]"),
        ("full", "blocks = [0, 1]\nembeddings = true"),
    ];
    for family in ["qwen3", "llama"] {
        let base = setup::open(&model(family)).unwrap();
        for (name, settings) in cases {
            let built_in = plan(&base, &format!("[policy]\nname = {name:?}\n{settings}\n"), 3);
            let built_in = built_in.unwrap_or_else(|error| panic!("{family} {name} {settings}: {error}"));
            for _ in 0..5 {
                let plugin = plan(&base, &by_plugin(name, settings), 3).unwrap();
                assert_eq!(plugin, built_in, "{family} {name} {settings}");
                assert_eq!(plugin.hash(), built_in.hash());
            }
        }
    }
}

#[test]
fn errors_in_settings_name_file_and_line_and_those_of_the_host_reach_the_user() {
    let base = setup::open(&model("qwen3")).unwrap();
    for (name, settings, expected) in [
        ("lora", "rank = 0", "test.toml:7: `policy.rank` must be at least 1, not 0"),
        (
            "lora",
            "rnak = 4",
            "test.toml:7: `policy.rnak` is not a setting of the plugin\n  help: did you mean `policy.rank`?",
        ),
        (
            "lora",
            "targets = [\"q_porj\"]",
            "plugin lora 1.0.0: `policy.targets`: `q_porj` matches no tensor of the model\n  help: did you mean `q_proj`?",
        ),
        (
            "lora",
            "targets = [\"re:(\"]",
            "test.toml:7: `policy.targets`: `re:(` is not a regular expression: unclosed group",
        ),
        (
            "lora",
            "rank = 4096",
            "plugin lora 1.0.0: rank 4096 does not fit `model.layers.0.self_attn.q_proj.weight` of shape [96, 64]: \
             it must be between 1 and 64\n  help: lower the rank to at most 64, or leave this tensor out",
        ),
        ("lisa", "blocks = 9", "test.toml:7: `policy.blocks` = 9, and the model has 2 blocks"),
    ] {
        let error = plan(&base, &by_plugin(name, settings), 0).unwrap_err().to_string();
        assert_eq!(error, expected);
    }
}

#[test]
fn a_component_says_the_same_of_itself_as_its_file() {
    for name in ["lora", "full", "lisa", "badam", "ladder"] {
        let plugin = WasmPlugin::open(&compiled(name), &Limits::default()).unwrap();
        let said = liftplan::plugin::Metadata::parse(plugin.describe().unwrap().as_bytes()).unwrap();
        assert_eq!(&said, plugin.metadata());
        assert_eq!(said.name, name);
    }
}

/// Plans that must never change: the same plugin, model, settings and seed give the same plan on every machine.
#[test]
fn golden_plans() {
    let base = setup::open(&model("qwen3")).unwrap();
    let mut found = Vec::new();
    let goldens = [
        ("lora", "rank = 4", 0, "096710d6feb618d9c0c6195993f7c531fd20c2202aaba2c7e2a8f1d3c6c66e56"),
        ("full", "targets = [\"v_proj\"]", 0, "cffe0cbfb5d2934f688c131505abe5f1881c297f74e79c899ae2aa00d8ef8ca5"),
        ("lisa", "blocks = 1\nevery = 5", 7, "35bd592a40f4132e064bf7fd69127f767f9303ff5938a415b47077042f92af25"),
        ("badam", "every = 3", 7, "f8a96a3d2e2dfb45b3c6aa687d3237a96e4fe7ac282cb258cf88c11d60126cc0"),
        ("ladder", "every = 5\nrank = 4", 0, "de31717fad7944b25cfc2a6f95a868c4fc731470eb39b39b1cc25c5928afc831"),
    ];
    for (name, settings, seed, _) in goldens {
        found.push((name, plan(&base, &by_plugin(name, settings), seed).unwrap().hash()));
    }
    let expected = goldens.map(|(name, _, _, hash)| (name, hash.to_string()));
    assert_eq!(found, expected);
}

#[test]
fn lisa_draws_other_blocks_by_other_seeds_and_keeps_what_it_is_told_to() {
    let base = setup::open(&model("qwen3")).unwrap();
    let mut drawn = BTreeSet::new();
    for seed in 0..12 {
        let plan = plan(&base, &by_plugin("lisa", "blocks = 1\nhead = false\nnorms = true"), seed).unwrap();
        let mut blocks = BTreeSet::new();
        for (entry, info) in plan.entries.iter().zip(&base.inventory.tensors) {
            let trains = entry.treatment == Treatment::Train;
            match info.kind {
                liftplan::model::inventory::Kind::Norm | liftplan::model::inventory::Kind::Embedding => assert!(trains),
                liftplan::model::inventory::Kind::Head => assert!(!trains),
                _ if trains => drop(blocks.insert(info.block)),
                _ => {}
            }
        }
        assert_eq!(blocks.len(), 1);
        drawn.extend(blocks);
    }
    assert_eq!(drawn.len(), base.inventory.blocks, "each block is drawn by one of twelve seeds");
}
