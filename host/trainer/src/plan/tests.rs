#![allow(clippy::unwrap_used)]

use super::*;
use crate::model::inventory::{Inventory, Kind, TensorInfo};

/// A model of `blocks` blocks with hidden width 8 and inner width 16, heads tied or not.
pub(crate) fn inventory(blocks: usize, tied: bool) -> Inventory {
    let mut tensors = Vec::new();
    let mut add = |name: String, role: &str, kind, block, shape: &[usize]| {
        tensors.push(TensorInfo { name, role: role.into(), kind, block, shape: shape.into(), dtype: "f32".into() });
    };
    add("model.embed_tokens.weight".into(), "embed_tokens", Kind::Embedding, None, &[32, 8]);
    for block in 0..blocks {
        let prefix = format!("model.layers.{block}");
        add(format!("{prefix}.input_layernorm.weight"), "input_layernorm", Kind::Norm, Some(block), &[8]);
        for role in ["q_proj", "k_proj", "v_proj", "o_proj"] {
            add(format!("{prefix}.self_attn.{role}.weight"), role, Kind::Linear, Some(block), &[8, 8]);
        }
        add(format!("{prefix}.self_attn.q_proj.bias"), "q_proj", Kind::Bias, Some(block), &[8]);
        for (role, shape) in [("gate_proj", [16, 8]), ("up_proj", [16, 8]), ("down_proj", [8, 16])] {
            add(format!("{prefix}.mlp.{role}.weight"), role, Kind::Linear, Some(block), &shape);
        }
    }
    add("model.norm.weight".into(), "norm", Kind::Norm, None, &[8]);
    if !tied {
        add("lm_head.weight".into(), "lm_head", Kind::Head, None, &[32, 8]);
    }
    Inventory { architecture: "llama".into(), tensors, tied, blocks }
}

const Q0: &str = "model.layers.0.self_attn.q_proj.weight";

fn origin() -> Origin {
    Origin { policy: "test".into(), version: "1".into(), settings: serde_json::json!({}) }
}

fn adapter(rank: usize) -> AdapterSpec {
    AdapterSpec { rank, alpha: 16.0, dropout: 0.0, rslora: false, dora: false }
}

#[track_caller]
fn refused(result: crate::Result<()>, expected: &str) {
    assert_eq!(result.unwrap_err().to_string(), expected);
}

#[test]
fn each_call_is_checked() {
    let inventory = inventory(2, true);
    let mut b = PlanBuilder::new(&inventory, Storage::F32);
    refused(
        b.train("model.layers.0.self_attn.q_prj.weight"),
        "the model has no tensor `model.layers.0.self_attn.q_prj.weight`\n  \
         help: did you mean `model.layers.0.self_attn.q_proj.weight`?",
    );
    refused(
        b.train("lm_head.weight"),
        "the model has no tensor `lm_head.weight`\n  help: its output head is tied: it is `model.embed_tokens.weight`",
    );
    refused(
        b.adapt(Q0, adapter(9)),
        "rank 9 does not fit `model.layers.0.self_attn.q_proj.weight` of shape [8, 8]: it must be between 1 and 8\n  \
         help: lower the rank to at most 8, or leave this tensor out",
    );
    assert!(b.adapt(Q0, adapter(0)).is_err());
    assert!(b.adapt(Q0, AdapterSpec { alpha: f64::NAN, ..adapter(2) }).is_err());
    assert!(b.adapt(Q0, AdapterSpec { dropout: 1.0, ..adapter(2) }).is_err());
    refused(
        b.adapt("model.norm.weight", adapter(2)),
        "cannot adapt `model.norm.weight`: it is a normalisation's scale, and only linear layers' weights take an adapter\n  \
         help: train it whole, or leave it frozen",
    );
    refused(
        b.lr_scale(Q0, 2.0),
        "the learning-rate factor of `model.layers.0.self_attn.q_proj.weight` has no effect: the tensor is frozen\n  \
         help: train or adapt the tensor first",
    );
    b.train(Q0).unwrap();
    refused(
        b.adapt(Q0, adapter(2)),
        "`model.layers.0.self_attn.q_proj.weight` is treated twice: first trained, then adapted",
    );
    assert!(b.lr_scale(Q0, f64::INFINITY).is_err());
    assert!(b.lr_scale_b(Q0, 2.0).is_err(), "nothing adapted there");
    b.lr_scale(Q0, 2.0).unwrap();
    assert!(b.lr_scale(Q0, 2.0).is_err(), "twice");
    assert!(b.score(Q0, f64::NAN).is_err());
    assert!(b.pick_every(0).is_err());
    assert!(b.pick_at(1).is_err());
}

#[test]
fn an_empty_plan_is_an_error() {
    let inventory = inventory(1, true);
    let mut b = PlanBuilder::new(&inventory, Storage::F32);
    b.freeze(Q0).unwrap();
    let error = b.build(origin()).unwrap_err();
    assert_eq!(error.message(), "policy `test` made an empty plan: no tensor trains");
}

fn plan(inventory: &Inventory) -> Plan {
    let mut b = PlanBuilder::new(inventory, Storage::Bf16);
    b.adapt(Q0, adapter(2)).unwrap();
    b.lr_scale_b(Q0, 16.0).unwrap();
    b.train("model.norm.weight").unwrap();
    b.storage("model.norm.weight", Storage::F32).unwrap();
    b.score(Q0, 0.5).unwrap();
    b.pick_at(9).unwrap();
    b.pick_at(4).unwrap();
    b.build(origin()).unwrap()
}

#[test]
fn building_fills_in_the_rest_in_the_inventorys_order() {
    let inventory = inventory(2, true);
    let plan = plan(&inventory);
    plan.check_against(&inventory).unwrap();
    assert_eq!(plan.trained().map(|entry| entry.tensor.as_str()).collect::<Vec<_>>(), [Q0, "model.norm.weight"]);
    let q = plan.get(Q0).unwrap();
    assert_eq!((q.storage, q.lr_scale, q.lr_scale_b), (Storage::Bf16, 1.0, 16.0));
    assert_eq!(plan.get("model.norm.weight").unwrap().storage, Storage::F32);
    assert_eq!(plan.picks.at, [4, 9]);
    assert!(plan.check_against(&self::inventory(1, true)).is_err());
    assert!(plan.check_against(&self::inventory(2, false)).is_err());
}

#[test]
fn a_revision_keeps_what_it_does_not_name() {
    let inventory = inventory(2, true);
    let first = plan(&inventory);
    let mut b = PlanBuilder::revising(&inventory, &first, Storage::F32);
    b.freeze("model.norm.weight").unwrap();
    b.train("model.layers.1.mlp.up_proj.weight").unwrap();
    let second = b.build(origin()).unwrap();
    assert_eq!(second.get(Q0), first.get(Q0));
    assert_eq!(second.get("model.norm.weight").unwrap().treatment, Treatment::Frozen);
    assert_eq!(second.picks, first.picks);
    assert_ne!(second.hash(), first.hash());
}

#[test]
fn picks_fall_between_steps() {
    let picks = Picks { every: Some(4), at: vec![2, 7] };
    let asked: Vec<u64> = (1..=10).filter(|step| picks.includes(*step)).collect();
    assert_eq!(asked, [2, 5, 7, 9]);
}

#[test]
fn canonical_text_sorts_keys_and_hash_follows_the_value_only() {
    let value = serde_json::json!({"b": 1.0, "a": [2, -0.0, 1e-8, "é\n"], "c": {"z": null, "y": true}});
    assert_eq!(canonical::to_string(&value), r#"{"a":[2,0.0,1e-8,"é\n"],"b":1.0,"c":{"y":true,"z":null}}"#);
    let other = serde_json::json!({"c": {"y": true, "z": null}, "a": [2, 0.0, 1e-8, "é\n"], "b": 1.0});
    assert_eq!(canonical::hash(&value), canonical::hash(&other));
}

#[test]
fn a_plans_hash_is_pinned() {
    // A change here means that every stored plan gets a new hash: raise `Plan::VERSION` with it.
    assert_eq!(plan(&inventory(1, true)).hash(), "c5a73c207c07e5c65cbd1c0c2dfa339c73d4b97244da7effb70f68e3ff95e5e7");
}

#[test]
fn plan_json_reads_back_and_notices_damage() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("plan.json");
    let inventory = inventory(2, true);
    let plan = plan(&inventory);
    file::write(&plan, &path).unwrap();
    assert_eq!(file::read(&path).unwrap(), plan);
    let names: Vec<_> = std::fs::read_dir(directory.path()).unwrap().map(|f| f.unwrap().file_name()).collect();
    assert_eq!(names, ["plan.json"]);

    let text = std::fs::read_to_string(&path).unwrap();
    assert_eq!(text.lines().filter(|line| line.starts_with("  {")).count(), inventory.tensors.len());
    for (from, to, message) in [
        ("\"rank\":2", "\"rank\":3", "the plan is not the one that was written"),
        ("\"version\": 1", "\"version\": 2", "a plan of version 2, and this Liftplan reads version 1"),
        ("\"frozen\"", "\"melted\"", "not a plan: "),
    ] {
        assert!(text.contains(from), "{from} is not in\n{text}");
        std::fs::write(&path, text.replacen(from, to, 1)).unwrap();
        let error = file::read(&path).unwrap_err();
        let expected = format!("{}: {message}", path.display());
        assert!(error.message().starts_with(&expected), "{error}");
        assert_eq!(error.exit_code(), 7);
    }
    std::fs::write(&path, &text[..text.len() / 2]).unwrap();
    assert!(file::read(&path).unwrap_err().message().contains("not a plan: "));
}

#[test]
fn the_summary_counts_by_role() {
    let inventory = inventory(2, true);
    let mut b = PlanBuilder::new(&inventory, Storage::F32);
    b.adapt(Q0, AdapterSpec { dora: true, ..adapter(2) }).unwrap();
    b.train("model.layers.1.self_attn.q_proj.bias").unwrap();
    let summary = b.build(origin()).unwrap().summary(&inventory);
    let row = |role: &str| summary.roles.iter().find(|row| row.role == role).unwrap().clone();
    let q = row("q_proj");
    assert_eq!((q.tensors, q.frozen, q.adapted, q.trained, q.ranks), (2, 1, 1, 0, vec![2]));
    assert_eq!(q.trainable_parameters, 2 * (8 + 8) + 8);
    assert_eq!(row("q_proj.bias").trained, 1);
    assert_eq!(summary.trainable_parameters, 40 + 8);
    let shown = summary.to_string();
    assert!(shown.contains("48 of 1,576 parameters train (3.05 %)"), "{shown}");
    let bytes = &summary.memory;
    assert_eq!((bytes.weights_bytes, bytes.adapters_bytes, bytes.gradients_bytes), (4 * 1576, 4 * 40, 4 * 48));
    assert_eq!(bytes.total(), 4 * 1576 + 4 * 40 + 12 * 48);
}
