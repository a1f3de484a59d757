//! What policies can measure on data: the same numbers as training computes, block by block.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;

use liftplan::config::{Bytes, Config};
use liftplan::model::inventory::{Kind, TensorInfo};
use liftplan::plan::Plan;
use liftplan::report::Silent;
use liftplan::stats::{Calibration, Statistics};
use liftplan::train::calibrate::Measured;
use liftplan::{data, train};
use liftplan_engine::{Keep, StepOptions};
use liftplan_tests::plugins::{compiled, model, trains};
use liftplan_tests::setup;
use serde_json::json;

fn config(dir: &Path) -> Config {
    let row = |i: usize| format!("{{\"text\": \"{}{i}\"}}\n", "the weaver lifts thread ".repeat(1 + i % 5));
    fs::write(dir.join("train.jsonl"), (0..8).map(row).collect::<String>()).unwrap();
    let text = format!(
        "model = {:?}\n[data]\ntrain = \"train.jsonl\"\nformat = \"text\"\n[policy]\nname = \"full\"\n\
         [train]\nsteps = 2\nbatch_size = 4\n",
        model("qwen3")
    );
    Config::parse(&text, &dir.join("config.toml"), "config.toml", &[]).unwrap()
}

fn close(a: f64, b: f64) -> bool {
    (a - b).abs() <= 1e-4 * b.abs().max(1e-6)
}

#[test]
fn gradients_losses_and_inputs_are_those_of_the_model() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path());
    let base = setup::open(&model("qwen3")).unwrap();
    let splits = data::load_splits(&config.data, config.seed, &base, &mut Silent).unwrap();
    let mut silent = Silent;
    let statistics = Measured::new(&base, &config, &splits.train, &mut silent);
    // Two batches of four: all eight rows.
    let measured = statistics.calibration(2).unwrap();

    let (_, mut stepper) = setup::stepper(&base, &config).unwrap();
    let all = data::collate(&splits.train.examples.iter().collect::<Vec<_>>());
    let targets = all.target_count();
    assert_eq!(measured.tokens(), targets as u64);
    let options = StepOptions { grad_scale: 1.0 / targets as f32, keep: Keep::Activations, dropout: None };
    let loss = stepper.decoder.accumulate(&all, options).unwrap().mean();
    assert!(close(measured.loss().unwrap(), loss));
    let mut checked = 0;
    for param in stepper.decoder.params() {
        let gradient = param.grad().unwrap();
        let norm = gradient.iter().map(|g| f64::from(*g).powi(2)).sum::<f64>().sqrt();
        let found = measured.gradient_norm(param.name()).unwrap();
        assert!(close(found, norm), "{}: {found} and {norm}", param.name());
        let weight = param.value.as_f32();
        let by_weight: f64 = gradient.iter().zip(weight.iter()).map(|(g, w)| f64::from(g * w).abs()).sum();
        assert!(close(measured.weight_gradient(param.name()).unwrap(), by_weight), "{}", param.name());
        // The mean of squares is never below the square of the mean.
        assert!(measured.squared_gradient(param.name()).unwrap() >= norm * norm * 0.2, "{}", param.name());
        checked += 1;
    }
    assert_eq!(checked, base.inventory.tensors.len());

    // One batch: its squared gradient is the square of the gradient's norm.
    let one = statistics.calibration(1).unwrap();
    let name = &base.inventory.tensors[4].name;
    assert!(close(one.squared_gradient(name).unwrap(), one.gradient_norm(name).unwrap().powi(2)));

    let skipped = stepper.decoder.blocks.remove(1);
    let without = stepper.decoder.loss(&all).unwrap().mean();
    stepper.decoder.blocks.insert(1, skipped);
    assert!(close(measured.loss_without_block(1).unwrap(), without));
    assert!(close(measured.loss().unwrap(), loss), "the block is back");
    for block in 0..base.inventory.blocks {
        let cosine = measured.block_cosine(block).unwrap();
        assert!((-1.0..=1.0).contains(&cosine) && cosine != 0.0, "{cosine}");
    }
    let inputs = |role: &str| measured.input_moments(&format!("model.layers.0.{role}.weight")).unwrap();
    assert_eq!(inputs("self_attn.q_proj"), inputs("self_attn.v_proj"), "they read the same rows");
    assert_ne!(inputs("self_attn.q_proj"), inputs("self_attn.o_proj"));
    let [mean, square, magnitude, largest] = inputs("mlp.down_proj");
    assert!(mean.abs() <= magnitude && magnitude * magnitude <= square && square <= largest * largest);
    for wrong in
        [measured.loss_without_block(2).unwrap_err().to_string(), measured.block_cosine(2).unwrap_err().to_string()]
    {
        assert_eq!(wrong, "the model has no block 2: its blocks are 0 to 1");
    }
    let error = measured.input_moments("model.norm.weight").unwrap_err().to_string();
    assert_eq!(error, "`model.norm.weight` is no linear layer's weight, which alone has an input");
}

/// What the plugin `salience` ranks each linear weight by.
fn by_salience(by: &str, measured: &dyn Calibration, info: &TensorInfo) -> f64 {
    let (name, block, elements) = (info.name.as_str(), info.block.unwrap(), info.len() as f64);
    match by {
        "weight_gradient" => measured.weight_gradient(name).unwrap() / elements,
        "squared_gradient" => measured.squared_gradient(name).unwrap() / elements,
        "gradient_norm" => measured.gradient_norm(name).unwrap(),
        "input" => measured.input_moments(name).unwrap()[2],
        "block_change" => 1.0 - measured.block_cosine(block).unwrap(),
        "block_loss" => measured.loss_without_block(block).unwrap() - measured.loss().unwrap(),
        other => panic!("{other}"),
    }
}

#[test]
fn a_component_measures_what_the_host_does_and_trains_the_top() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path());
    config.policy.plugin = Some(compiled("salience"));
    let base = setup::open(&model("qwen3")).unwrap();
    let measured_by_host = {
        let splits = data::load_splits(&config.data, config.seed, &base, &mut Silent).unwrap();
        let mut silent = Silent;
        Measured::new(&base, &config, &splits.train, &mut silent).calibration(2).unwrap()
    };
    let linear: Vec<_> = base.inventory.tensors.iter().filter(|info| info.kind == Kind::Linear).collect();
    for by in ["weight_gradient", "squared_gradient", "gradient_norm", "input", "block_change", "block_loss"] {
        config.policy.settings = [("by", json!(by)), ("batches", json!(2)), ("percent", json!(30))]
            .map(|(key, value)| (key.to_string(), value))
            .into_iter()
            .collect();
        let plan = train::plan(&config, &base, &mut Silent).unwrap();
        assert_eq!(plan.scores.len(), linear.len());
        for info in &linear {
            let (found, expected) = (plan.scores[&info.name], by_salience(by, measured_by_host.as_ref(), info));
            assert!((found - expected).abs() <= 1e-5 * expected.abs(), "{by}, {}: {found} and {expected}", info.name);
        }
        let trained: Vec<&str> = plan.trained().map(|entry| entry.tensor.as_str()).collect();
        assert_eq!(trained.len(), linear.len() * 30 / 100, "{by}");
        let least = trained.iter().map(|name| plan.scores[*name]).fold(f64::INFINITY, f64::min);
        let left = linear.iter().filter(|info| !trained.contains(&info.name.as_str()));
        assert!(left.map(|info| plan.scores[&info.name]).all(|score| score <= least), "{by}");
    }
}

#[test]
fn a_component_knows_how_much_memory_the_run_may_use() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path());
    config.policy.plugin = Some(compiled("salience"));
    config.policy.settings = [("percent".to_string(), json!(100))].into_iter().collect();
    let base = setup::open(&model("qwen3")).unwrap();
    let needs = |plan: &Plan| (plan.trained().count(), plan.summary(&base.inventory).memory.total());
    let all = train::plan(&config, &base, &mut Silent).unwrap();
    let (count, most) = needs(&all);
    assert_eq!(count, base.inventory.tensors.iter().filter(|info| info.kind == Kind::Linear).count());

    // A byte less than all of them take.
    config.vram = Some(Bytes(most - 1));
    let (fewer, bytes) = needs(&train::plan(&config, &base, &mut Silent).unwrap());
    assert!(fewer < count && bytes < most, "{fewer} of {count} train, in {bytes} of {most} bytes");
    config.vram = Some(Bytes(most));
    assert_eq!(train::plan(&config, &base, &mut Silent).unwrap().hash(), all.hash());
    config.vram = Some(Bytes(1 << 16));
    let error = train::plan(&config, &base, &mut Silent).unwrap_err().to_string();
    assert!(error.contains("plugin salience 1.0.0: the model and one trained weight take "), "{error}");
    assert!(error.contains(" bytes, and the run may use 65536"), "{error}");
}

#[test]
fn what_may_be_measured_is_limited_and_must_be_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path());
    config.policy.plugin = Some(compiled("salience"));
    config.policy.settings = [("batches".to_string(), json!(17))].into_iter().collect();
    let base = setup::open(&model("qwen3")).unwrap();
    let error = train::plan(&config, &base, &mut Silent).unwrap_err().to_string();
    let expected = "calibration takes 1 to 16 batches (`plugins.calibration_batches`), not 17";
    assert!(error.contains(expected), "{error}");
    config.plugins.calibration_batches = 17;
    train::plan(&config, &base, &mut Silent).unwrap();
    assert_eq!(trains(&compiled("salience")).unwrap(), 2);
}
