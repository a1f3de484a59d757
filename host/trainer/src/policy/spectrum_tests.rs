#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;

use std::sync::Arc;

use super::*;
use crate::model::inventory::Kind;
use crate::model::inventory::TensorInfo;
use crate::plan::tests::inventory;
use crate::stats::NoStatistics;

/// Every weight of block `b` has the score `[0.1, 0.4, 0.2, 0.4, …][b]` by its largest singular value.
struct Made;

const OF_BLOCK: [f64; 8] = [0.1, 0.4, 0.2, 0.4, 0.3, 0.05, 0.6, 0.5];

impl Statistics for Made {
    fn singular_values(&self, tensors: &[&TensorInfo]) -> Result<Vec<Arc<[f64]>>> {
        // down_proj lies above all others, for the ranking of all together.
        let scale = |info: &TensorInfo| if info.role == "down_proj" { 10.0 } else { 1.0 };
        Ok(tensors.iter().map(|info| [scale(info) * OF_BLOCK[info.block.unwrap()], 0.01].into()).collect())
    }
}

fn plan_in(dir: &Path, lines: &str, tied: bool) -> Result<Plan> {
    let text = format!("model = \"m\"\n[data]\ntrain = \"a.jsonl\"\n[policy]\nname = \"spectrum\"\n{lines}\n");
    let config = Config::parse(&text, &dir.join("c.toml"), "c.toml", &[])?;
    plan(&config, &inventory(8, tied), &Made)
}

fn planned(lines: &str) -> Plan {
    plan_in(Path::new("/here"), &format!("statistic = \"spectral_norm\"\n{lines}"), true).unwrap()
}

fn blocks_of(plan: &Plan, role: &str) -> Vec<usize> {
    let inventory = inventory(8, true);
    let trained = plan.trained().filter_map(|entry| inventory.get(&entry.tensor));
    trained.filter(|info| info.role == role && info.kind != Kind::Bias).map(|info| info.block.unwrap_or(99)).collect()
}

#[track_caller]
fn refused(lines: &str, expected: &str) {
    assert_eq!(plan_in(Path::new("/here"), lines, true).unwrap_err().to_string(), expected);
}

#[test]
fn the_top_of_each_role_trains_and_ties_go_to_the_earlier_block() {
    let plan = planned("");
    for role in ["q_proj", "down_proj", "up_proj"] {
        assert_eq!(blocks_of(&plan, role), [6, 7], "25 % of 8");
    }
    assert_eq!(plan.trained().count(), 7 * 2 + 2, "and q_proj's biases");
    let plan = planned("percent = 49\nbiases = false");
    assert_eq!(blocks_of(&plan, "k_proj"), [1, 6, 7], "3.92 is rounded down, and 1 comes before 3");
    assert_eq!(plan.trained().count(), 7 * 3);
    assert_eq!(plan.scores.len(), 7 * 8);
    assert_eq!(plan.scores["model.layers.3.mlp.up_proj.weight"], 0.4);
    let plan = planned("percent = 0\nnorms = true\nembeddings = true\nlr_scales = { norm = 0.5 }");
    assert_eq!(plan.trained().count(), 8 + 1 + 1);
    assert_eq!(plan.get("model.norm.weight").unwrap().lr_scale, 0.5);
}

#[test]
fn percentages_by_role_other_groups_and_choices() {
    let plan = planned("percents = { q_proj = 100, up_proj = 0 }");
    assert_eq!(blocks_of(&plan, "q_proj").len(), 8);
    assert_eq!((blocks_of(&plan, "up_proj").len(), blocks_of(&plan, "k_proj").len()), (0, 2));
    let plan = planned("by = \"global\"\npercent = 15\nbiases = false");
    assert_eq!(plan.trained().count(), 8, "15 % of 56");
    assert_eq!(
        blocks_of(&plan, "down_proj"),
        [0, 1, 2, 3, 4, 6, 7],
        "0.5 in block 5 lies below 0.6 of q_proj in block 6"
    );
    assert_eq!(blocks_of(&plan, "q_proj"), [6]);
    let plan = planned("targets = \"*.mlp.*\"\nexclude = \"gate_proj\"\nblocks = \"0-3\"");
    assert_eq!((plan.trained().count(), blocks_of(&plan, "down_proj")), (2, vec![1]));
    let plan = plan_in(Path::new("/here"), "head = true", false).unwrap();
    assert_eq!(plan.get("lm_head.weight").unwrap().treatment, Treatment::Train);
    assert_eq!(plan.get("model.embed_tokens.weight").unwrap().treatment, Treatment::Frozen);
}

#[test]
fn what_has_no_effect_or_no_sense_is_refused() {
    refused("percent = 101", "c.toml:6: `policy.percent` must be between 0 and 100, not 101");
    refused(
        "percent = 12",
        "c.toml:6: `policy.percent` = 12 leaves nothing to train: no role has more than 8 weights, and the number kept is \
         rounded down\n  help: raise it to 13 or more",
    );
    refused(
        "percents = { q_porj = 5 }",
        "c.toml:6: `policy.percents.q_porj`: no weight that is ranked has this role\n  help: did you mean `q_proj`?",
    );
    refused(
        "by = \"global\"\npercents = { q_proj = 5 }",
        "c.toml:7: `policy.percents` has no effect: policy.by = \"global\" ranks all roles together\n  help: keep one of them",
    );
    refused(
        "unfrozen = [\"model.layers.1.mlp\"]\npercent = 5",
        "c.toml:7: `policy.percent` has no effect: policy.unfrozen says what trains\n  help: keep one of them",
    );
    refused(
        "scores = { q_proj = 1 }\nstatistic = \"snr\"",
        "c.toml:7: `policy.statistic` has no effect: the scores come from policy.scores\n  help: keep one of them",
    );
    refused(
        "statistic = \"snrr\"",
        "c.toml:6: `policy.statistic` cannot be \"snrr\"\n  help: did you mean \"snr\"? It can be \"snr\", \"spectral_norm\", \
         \"nuclear_norm\", \"stable_rank\" and \"effective_rank\"",
    );
    refused(
        "head = true",
        "c.toml:6: `policy.head` = true: this model's output head is its embedding\n  \
         help: set policy.embeddings = true to train it, or leave policy.head out",
    );
    refused("lr_scales = { q_proj = 0.0 }", "c.toml:6: `policy.lr_scales.q_proj` must be above 0, not 0");
    refused("unfrozen = 3", "c.toml:6: `policy.unfrozen` must be a file or a list of names, not 3");
    let error = plan_in(Path::new("/here"), "unfrozen = \"none.yaml\"", true).unwrap_err();
    assert!(error.message().starts_with("c.toml:6: `policy.unfrozen`: cannot read /here/none.yaml"), "{error}");
    let config = "model = \"m\"\n[data]\ntrain = \"a.jsonl\"\n[policy]\nname = \"spectrum\"\n";
    let config = Config::parse(config, Path::new("/here/c.toml"), "c.toml", &[]).unwrap();
    assert_eq!(plan(&config, &inventory(8, true), &NoStatistics).unwrap_err().exit_code(), 5);
}

#[test]
fn spectrum_s_yaml_says_what_trains() {
    let dir = tempfile::tempdir().unwrap();
    let yaml = "unfrozen_parameters:\n- ^lm_head.weight$\n- ^model.embed_tokens.weight$\n# mlp.up_proj layers\n\
                - model.layers.1.mlp.up_proj\n# self_attn.q_proj layers\n- model.layers.2.self_attn.q_proj\n";
    fs::write(dir.path().join("u.yaml"), yaml).unwrap();
    let plan = plan_in(dir.path(), "unfrozen = \"u.yaml\"", false).unwrap();
    let names: Vec<_> = plan.trained().map(|entry| entry.tensor.as_str()).collect();
    assert_eq!(
        names,
        [
            "model.layers.1.mlp.up_proj.weight",
            "model.layers.2.self_attn.q_proj.weight",
            "model.layers.2.self_attn.q_proj.bias"
        ],
        "the two lines that are always there count only when asked for"
    );
    assert!(plan.scores.is_empty());
    // The plan holds the list, not the file, so that it is the same wherever the file lies.
    assert_eq!(plan.origin.settings["unfrozen"].as_array().unwrap().len(), 4);
    let with = plan_in(dir.path(), "unfrozen = \"u.yaml\"\nembeddings = true\nhead = true", false).unwrap();
    assert_eq!(with.trained().count(), 5);

    fs::write(dir.path().join("u.yaml"), "unfrozen_parameters:\n- model.layers.11.mlp.up_proj\n").unwrap();
    let error = plan_in(dir.path(), "unfrozen = \"u.yaml\"", true).unwrap_err();
    assert!(error.message().contains("`model.layers.11.mlp.up_proj` matches no tensor of the model"), "{error}");
    fs::write(dir.path().join("u.yaml"), "unfrozen: x\n").unwrap();
    let error = plan_in(dir.path(), "unfrozen = \"u.yaml\"", true).unwrap_err();
    assert!(error.message().contains("u.yaml: line 1: expected `unfrozen_parameters:`"), "{error}");
}

#[test]
fn published_scores_stand_in_for_computed_ones() {
    let dir = tempfile::tempdir().unwrap();
    let scores: Vec<String> = (0..8)
        .map(|block| {
            let score = if block == 5 { "Infinity".to_string() } else { format!("0.{}", 9 - block) };
            format!("\"model.layers.{block}.mlp.up_proj\": {{\"snr\": {score}, \"type\": \"mlp.up_proj\"}}")
        })
        .collect();
    fs::write(dir.path().join("s.json"), format!("{{{}}}", scores.join(","))).unwrap();
    let plan = plan_in(dir.path(), "scores = \"s.json\"\ntargets = \"up_proj\"", true).unwrap();
    assert_eq!(blocks_of(&plan, "up_proj"), [0, 5]);
    let error = plan_in(dir.path(), "scores = \"s.json\"", true).unwrap_err();
    assert!(error.message().contains("`policy.scores` has no score for `model.layers.0.self_attn.q_proj`"), "{error}");
}
