#![allow(clippy::unwrap_used)]

use std::path::Path;

use super::*;
use crate::plan::tests::inventory;
use crate::stats::NoStatistics;

/// The plan for a model of three blocks, from the lines of `[policy]`.
fn plan_of(lines: &str, tied: bool) -> Result<Plan> {
    let text = format!("model = \"m\"\n[data]\ntrain = \"a.jsonl\"\n[policy]\n{lines}\n");
    let config = Config::parse(&text, Path::new("/here/c.toml"), "c.toml", &[])?;
    plan(&config, &inventory(3, tied), &NoStatistics)
}

#[track_caller]
fn refused(lines: &str, expected: &str, exit_code: i32) {
    let error = plan_of(lines, true).unwrap_err();
    assert_eq!(error.to_string(), expected);
    assert_eq!(error.exit_code(), exit_code);
}

fn treated(plan: &Plan) -> Vec<&str> {
    plan.trained().map(|entry| entry.tensor.trim_start_matches("model.").trim_end_matches(".weight")).collect()
}

fn adapter(plan: &Plan, name: &str) -> crate::plan::AdapterSpec {
    match &plan.get(name).unwrap().treatment {
        Treatment::Adapt(adapter) => adapter.clone(),
        other => panic!("{name} is {other:?}"),
    }
}

#[test]
fn lora_adapts_every_linear_layer_unless_told_otherwise() {
    let plan = plan_of("name = \"lora\"", true).unwrap();
    assert_eq!(plan.trained().count(), 3 * 7);
    let spec = adapter(&plan, "model.layers.2.mlp.down_proj.weight");
    assert_eq!((spec.rank, spec.alpha, spec.scale()), (8, 16.0, 2.0));
    assert_eq!(plan.origin.settings["targets"], serde_json::json!(["all-linear"]));
    assert!(plan.entries.iter().all(|entry| entry.storage == Storage::F32 && entry.lr_scale_b == 1.0));
}

#[test]
fn targets_are_roles_ends_globs_or_expressions() {
    for (targets, expected) in [
        ("\"q_proj\"", vec!["layers.0.self_attn.q_proj", "layers.1.self_attn.q_proj", "layers.2.self_attn.q_proj"]),
        ("[\"model.layers.[0-1].mlp.up*\"]", vec!["layers.0.mlp.up_proj", "layers.1.mlp.up_proj"]),
        (
            "[\"layers.1.mlp.up_proj\", \"re:.*2.*(gate|down)_proj\"]",
            vec!["layers.1.mlp.up_proj", "layers.2.mlp.gate_proj", "layers.2.mlp.down_proj"],
        ),
        ("[\"re:model\\\\.layers\\\\.0\\\\.mlp\\\\.up_proj\\\\.weight\"]", vec!["layers.0.mlp.up_proj"]),
    ] {
        let plan = plan_of(&format!("name = \"lora\"\ntargets = {targets}"), true).unwrap();
        assert_eq!(treated(&plan), expected, "{targets}");
    }
    let plan = plan_of("name = \"lora\"\nblocks = \"1-2\"\nexclude = [\"mlp.*\", \"*.mlp.*\", \"k_proj\"]", true);
    assert!(plan.is_err(), "`mlp.*` is a glob over whole names and matches none");
    let plan = plan_of("name = \"lora\"\nblocks = [2]\nexclude = [\"*.mlp.*\", \"k_proj\"]", true).unwrap();
    assert_eq!(treated(&plan), ["layers.2.self_attn.q_proj", "layers.2.self_attn.v_proj", "layers.2.self_attn.o_proj"]);
}

#[test]
fn ranks_alphas_and_variants_reach_the_plan() {
    let plan = plan_of(
        "name = \"lora\"\nrank = 4\ndropout = 0.1\nrslora = true\ndora = true\nlora_plus_ratio = 16\n\
         ranks = { \"*.mlp.*\" = 2, \"model.layers.0.mlp.up_proj\" = 2 }\nalphas = { q_proj = 5 }",
        true,
    )
    .unwrap();
    let up = adapter(&plan, "model.layers.0.mlp.up_proj.weight");
    assert_eq!((up.rank, up.alpha, up.dropout, up.rslora, up.dora), (2, 4.0, 0.1, true, true));
    let q = adapter(&plan, "model.layers.0.self_attn.q_proj.weight");
    assert_eq!((q.rank, q.alpha, q.scale()), (4, 5.0, 2.5));
    let entry = plan.get("model.layers.0.mlp.up_proj.weight").unwrap();
    assert_eq!((entry.lr_scale, entry.lr_scale_b), (1.0, 16.0));
}

#[test]
fn equal_settings_give_the_same_plan_whatever_their_order() {
    let a = plan_of("name = \"lora\"\nrank = 4\nalpha = 8\n[policy.ranks]\nq_proj = 2\nv_proj = 1", true).unwrap();
    let b = plan_of("alpha = 8.0\nname = \"lora\"\nrank = 4\n[policy.ranks]\nv_proj = 1\nq_proj = 2", true).unwrap();
    assert_eq!(a.hash(), b.hash());
}

#[test]
fn full_trains_everything_or_what_is_chosen() {
    let everything = plan_of("name = \"full\"", true).unwrap();
    assert!(everything.entries.iter().all(|entry| entry.treatment == Treatment::Train));
    let chosen = plan_of("name = \"full\"\ntargets = \"re:.*norm\"\nblocks = \"1\"\nhead = true", true).unwrap();
    assert_eq!(treated(&chosen), ["embed_tokens", "layers.1.input_layernorm"], "the head is tied to the embedding");
    let chosen = plan_of("name = \"full\"\ntargets = \"norm\"\nhead = true", false).unwrap();
    assert_eq!(treated(&chosen), ["norm", "lm_head"]);
    let without = plan_of("name = \"full\"\nembeddings = false", true).unwrap();
    assert_eq!(without.entries[0].treatment, Treatment::Frozen);
    assert_eq!(without.trained().count(), without.entries.len() - 1);
}

#[test]
fn bad_settings_are_refused_with_the_place() {
    refused(
        "name = \"lroa\"",
        "c.toml:5: `policy.name`: there is no policy \"lroa\"\n  help: did you mean \"lora\"? There are lora, full, spectrum, random, mixed, qlora and qspectrum",
        2,
    );
    refused(
        "name = \"lora\"\nrnak = 4",
        "c.toml:6: `policy.rnak` is not a setting of policy `lora`\n  help: did you mean `policy.rank`?",
        2,
    );
    refused(
        "name = \"lora\"\nr = 4",
        "c.toml:6: `policy.r` is not a setting of policy `lora`\n  help: did you mean `policy.rank`?",
        2,
    );
    refused(
        "name = \"full\"\nrank = 4",
        "c.toml:6: `policy.rank` is not a setting of policy `full`\n  \
         help: it can be `targets`, `exclude`, `blocks`, `embeddings` and `head`",
        2,
    );
    refused(
        "name = \"lora\"\nrank = 0",
        "c.toml:6: `policy.rank` must be at least 1\n  help: to leave tensors out, use policy.targets or policy.exclude",
        2,
    );
    refused("name = \"lora\"\nrank = 1.5", "c.toml:6: `policy.rank` must be a whole number of at least 0, not 1.5", 2);
    refused(
        "name = \"lora\"\ntargets = 3",
        "c.toml:6: `policy.targets` must be a pattern or a list of patterns, not 3",
        2,
    );
    refused("name = \"lora\"\ndropout = 1.0", "c.toml:6: `policy.dropout` must be in [0, 1), not 1", 2);
    refused(
        "name = \"lora\"\nblocks = \"3-1\"",
        "c.toml:6: `policy.blocks` must be blocks such as \"0-3,8\", or a list of whole numbers, not the string \"3-1\"",
        2,
    );
    refused(
        "name = \"lora\"\ntargets = \"re:(\"",
        "c.toml:6: `policy.targets`: `re:(` is not a regular expression: unclosed group",
        2,
    );
    refused(
        "name = \"lora\"\n[policy.ranks]\nq_proj = \"x\"",
        "c.toml:7: `policy.ranks.q_proj` must be a whole number of at least 0, not the string \"x\"",
        2,
    );
}

#[test]
fn settings_that_do_not_fit_the_model_are_refused() {
    refused(
        "name = \"lora\"\ntargets = [\"q_proj\", \"q_porj\"]",
        "c.toml:6: `policy.targets`: `q_porj` matches no tensor of the model\n  help: did you mean `q_proj`?",
        5,
    );
    refused(
        "name = \"lora\"\ntargets = \"model.layer.*.up_proj\"",
        "c.toml:6: `policy.targets`: `model.layer.*.up_proj` matches no tensor of the model\n  \
         help: a glob must match a whole name, such as `model.layers.0.mlp.up_proj`",
        5,
    );
    refused(
        "name = \"lora\"\ntargets = \"lm_head\"",
        "c.toml:6: `policy.targets`: `lm_head` matches no tensor of the model\n  \
         help: its output head is tied: it is the embedding, `model.embed_tokens.weight`",
        5,
    );
    refused(
        "name = \"lora\"\ntargets = \"embed_tokens\"",
        "c.toml:6: `policy.targets`: `embed_tokens` matches `model.embed_tokens.weight`, which is the token embedding, \
         but no linear layer's weight",
        5,
    );
    refused(
        "name = \"lora\"\ntargets = \"q_proj\"\nexclude = \"k_proj\"",
        "c.toml:7: `policy.exclude`: `k_proj` matches none of the tensors that are chosen\n  \
         help: leave it out, or choose more with policy.targets",
        5,
    );
    refused(
        "name = \"lora\"\nexclude = \"all-linear\"",
        "c.toml:6: `policy.exclude` leaves nothing to adapt: it takes away every target\n  \
         help: narrow policy.exclude, or widen policy.targets",
        5,
    );
    refused(
        "name = \"lora\"\nblocks = \"2-3\"",
        "c.toml:6: `policy.blocks` names block 3, and the model's blocks are 0 to 2\n  help: leave it out for all blocks",
        5,
    );
    refused(
        "name = \"lora\"\nranks = { q_proj = 2, \"*.self_attn.*\" = 4 }",
        "c.toml:6: `policy.ranks`: `*.self_attn.*` gives 4 to `model.layers.0.self_attn.q_proj.weight`, and `q_proj` gives it 2\n  \
         help: narrow one of the patterns, so that each tensor has one value",
        5,
    );
    refused(
        "name = \"lora\"\nrank = 64",
        "rank 64 does not fit `model.layers.0.self_attn.q_proj.weight` of shape [8, 8]: it must be between 1 and 8\n  \
         help: lower the rank to at most 8, or leave this tensor out",
        5,
    );
    refused(
        "name = \"full\"\nembeddings = true\nhead = false",
        "c.toml:7: `policy.head` = false contradicts policy.embeddings = true: this model's output head is its embedding\n  \
         help: leave one of them out, or set both the same",
        5,
    );
    refused(
        "name = \"full\"\ntargets = \"norm\"\nembeddings = false",
        "c.toml:7: `policy.embeddings` = false has no effect: it isn't among what is chosen\n  help: leave it out",
        5,
    );
    refused(
        "name = \"lora\"\n[train]\nweights = \"bf16\"\nbf16_update = \"master\"",
        "c.toml:8: `train.bf16_update` has no effect: policy `lora` trains no weight that is kept in bf16\n  \
         help: leave it out; adapters are always kept in f32",
        5,
    );
}

#[test]
fn every_described_setting_is_one_and_the_other_way_round() {
    for policy in built_in() {
        let info = policy.describe();
        let error = policy.resolve(&serde_json::json!({ "zzzzzzzz": 1 })).unwrap_err().to_string();
        for setting in &info.settings {
            assert!(error.contains(&format!("`{}`", setting.name)), "{} of {}: {error}", setting.name, info.name);
        }
        assert_eq!(error.matches('`').count() / 2, info.settings.len() + 2, "{error}");
    }
}

#[test]
fn resolving_twice_changes_nothing() {
    let settings = serde_json::json!({ "blocks": "0-2,1", "targets": "q_proj" });
    for policy in built_in().into_iter().filter(|policy| policy.describe().name != "mixed") {
        let once = policy.resolve(&settings).unwrap();
        assert_eq!(once["blocks"], serde_json::json!([0, 1, 2]));
        assert_eq!(policy.resolve(&once).unwrap(), once);
    }
    let part = |name: &str| serde_json::json!({ "name": name, "blocks": "0-2,1", "targets": "q_proj" });
    let mixed = find("mixed").unwrap();
    let once = mixed.resolve(&serde_json::json!({ "parts": [part("full"), part("lora")] })).unwrap();
    assert_eq!(once["parts"][1]["blocks"], serde_json::json!([0, 1, 2]));
    assert_eq!(mixed.resolve(&once).unwrap(), once);
}

/// A policy of the kind that needs picks: one block at a time, at random, remembering which it had.
struct OneBlock;

impl Policy for OneBlock {
    fn describe(&self) -> PolicyInfo {
        PolicyInfo { name: "one-block".into(), version: "1".into(), about: String::new(), settings: Vec::new() }
    }

    fn resolve(&self, settings: &Value) -> Result<Value> {
        Ok(settings.clone())
    }

    fn make_plan(&self, _: &Value, view: &ModelView<'_>, builder: &mut PlanBuilder<'_>) -> Result<()> {
        builder.pick_every(2)?;
        for info in view.tensors().iter().filter(|info| info.block == Some(0)) {
            builder.train(&info.name)?;
        }
        Ok(())
    }

    fn revise(&self, moment: &Moment<'_>, builder: &mut PlanBuilder<'_>) -> Result<()> {
        let block = (moment.random(0) % moment.view.blocks() as u64) as usize;
        moment.view.state_mut().insert("block".into(), vec![block as u8]);
        for info in moment.view.tensors() {
            if info.block == Some(block) { builder.train(&info.name)? } else { builder.freeze(&info.name)? }
        }
        Ok(())
    }
}

#[test]
fn a_policy_can_revise_its_plan_at_picks() {
    let inventory = inventory(3, true);
    let view = ModelView::new(&inventory, 7);
    let origin = || Origin { policy: "one-block".into(), version: "1".into(), settings: Value::Null };
    let mut builder = PlanBuilder::new(&inventory, Storage::F32);
    OneBlock.make_plan(&Value::Null, &view, &mut builder).unwrap();
    let first = builder.build(origin()).unwrap();
    assert!(first.picks.includes(3) && !first.picks.includes(2));

    let mut blocks = Vec::new();
    for step in [3, 5, 7, 9, 11, 13] {
        let norms = Norms::default();
        let (losses, settings) = (&[], &Value::Null);
        let moment = Moment { step, total_steps: 20, since: step - 2, losses, norms: &norms, settings, view: &view };
        let mut builder = PlanBuilder::revising(&inventory, &first, Storage::F32);
        OneBlock.revise(&moment, &mut builder).unwrap();
        let plan = builder.build(origin()).unwrap();
        let block = usize::from(view.state()["block"][0]);
        assert!(plan.trained().all(|entry| inventory.get(&entry.tensor).unwrap().block == Some(block)));
        blocks.push(block);
    }
    blocks.dedup();
    assert!(blocks.len() > 1, "the draws differ from pick to pick: {blocks:?}");
}

/// What a comparison relies on where it plans once for several storages.
#[test]
fn a_policy_that_does_not_heed_storage_makes_the_same_choice_over_any() {
    let heed: Vec<String> = built_in().iter().filter(|p| p.heeds_storage()).map(|p| p.describe().name).collect();
    assert_eq!(heed, [CONTROL]);
    let policies = [
        "name = \"lora\"\nrank = 4\nlora_plus_ratio = 16\nblocks = \"1-2\"",
        "name = \"full\"\ntargets = [\"up_proj\", \"norm\"]",
        "name = \"spectrum\"\nunfrozen = [\"model.layers.1.mlp.up_proj\"]\nnorms = true",
        "name = \"mixed\"\n[[policy.parts]]\nname = \"full\"\ntargets = [\"v_proj\"]\n[[policy.parts]]\nname = \"lora\"",
    ];
    let storages = [
        "",
        "[train]\nweights = \"bf16\"",
        "[train]\nweights = \"bf16\"\nbf16_update = \"master\"",
        "[storage]\nfrozen = \"int8\"",
        "[storage]\nfrozen = \"nf4\"\nblock_size = 32\nembeddings = true\nexclude = [\"o_proj\"]",
        "[storage]\nfrozen = \"nf4\"\nhead = true",
        "[storage]\nfrozen = \"nf4\"\nexclude = [\"nowhere\"]",
    ];
    let (inventory, mut refused) = (inventory(3, true), 0);
    for policy in policies {
        for storage in storages {
            let text = format!("model = \"m\"\n[data]\ntrain = \"a.jsonl\"\n[policy]\n{policy}\n{storage}\n");
            let config = Config::parse(&text, Path::new("/here/c.toml"), "c.toml", &[]).unwrap();
            let made = plan(&config.with_defaults(&["storage", "train"]).unwrap(), &inventory, &NoStatistics).unwrap();
            let kept = kept_otherwise(&config, &inventory, &made);
            match plan(&config, &inventory, &NoStatistics) {
                Ok(plan) => assert_eq!(kept.unwrap(), plan, "{policy}\n{storage}"),
                Err(error) => {
                    refused += 1;
                    assert_eq!(kept.unwrap_err().to_string(), error.to_string(), "{policy}\n{storage}");
                }
            }
        }
    }
    assert!((8..20).contains(&refused), "{refused}");
}
