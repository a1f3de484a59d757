//! Spectrum: scores and ranking against NumPy's on SmolLM2, and a run by the policy from configuration to checkpoint.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use liftplan::model::inventory::Kind;
use liftplan::plan::{self, Plan};
use liftplan::report::{Record, Silent, metrics};
use liftplan::stats::{Cache, ModelStatistics, Statistic, scan};
use liftplan_tests::command::{Ran, liftplan};
use liftplan_tests::golden::folder;
use liftplan_tests::{setup, smollm2};
use serde::Deserialize;
use serde_json::Value;

#[derive(Deserialize)]
struct Golden {
    top_25: BTreeMap<String, Vec<String>>,
    weights: BTreeMap<String, Weight>,
}

#[derive(Deserialize)]
struct Weight {
    shape: Vec<usize>,
    snr: f64,
    largest: f64,
}

/// `tests/golden/spectrum/make.py` decomposed every matrix in f64 by LAPACK.
#[test]
fn smollm2_is_ranked_as_numpy_ranks_it() {
    let Some(path) = smollm2::model_or_skip() else { return };
    let golden = fs::read_to_string(folder().join("spectrum/smollm2.json")).unwrap();
    let golden: Golden = serde_json::from_str(&golden).unwrap();
    let base = setup::open(&path).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let mut observer = Silent;
    let statistics = ModelStatistics::with_cache(&base, Some(Cache::in_directory(dir.path())), &mut observer);

    let found = scan(&base.inventory, &statistics, Statistic::Snr, 25.0).unwrap();
    assert_eq!(found.rows.len(), golden.weights.len());
    for row in &found.rows {
        let expected = &golden.weights[&row.tensor];
        assert_eq!(row.shape, expected.shape);
        let off = (row.score / expected.snr - 1.0).abs();
        assert!(off < 1e-4, "{}: {}, NumPy has {}", row.tensor, row.score, expected.snr);
    }
    for (role, expected) in &golden.top_25 {
        let top = found.rows.iter().filter(|row| row.role == *role && row.top);
        assert!(top.map(|row| &row.tensor).eq(expected), "{role}");
    }
    let norms = scan(&base.inventory, &statistics, Statistic::SpectralNorm, 25.0).unwrap();
    for row in &norms.rows {
        assert!((row.score / golden.weights[&row.tensor].largest - 1.0).abs() < 1e-5, "{}", row.tensor);
    }
}

#[track_caller]
fn done(folder: &Path, arguments: &[&str]) -> Ran {
    let ran = liftplan(folder, arguments);
    assert_eq!(ran.code, Some(0), "{arguments:?}: {}", ran.stderr);
    ran
}

#[test]
fn what_scan_writes_spectrum_takes() {
    let dir = tempfile::tempdir().unwrap();
    let model = folder().join("families/qwen2/model").canonicalize().unwrap();
    let model = model.to_str().unwrap();
    let config = format!("model = {model:?}\n[data]\ntrain = \"rows.jsonl\"\n[policy]\nname = \"spectrum\"\n");
    fs::write(dir.path().join("c.toml"), config).unwrap();
    let trained = |settings: &[&str]| -> (Vec<String>, Plan) {
        let mut arguments = vec!["plan", "c.toml", "--out", "plan.json"];
        settings.iter().for_each(|setting| arguments.extend(["--set", setting]));
        done(dir.path(), &arguments);
        let plan = plan::file::read(&dir.path().join("plan.json")).unwrap();
        (plan.trained().map(|entry| entry.tensor.clone()).collect(), plan)
    };
    let (chosen, computed) = trained(&["policy.percent=50"]);
    assert!(!chosen.is_empty() && chosen.iter().any(|name| name.ends_with(".bias")));

    let found: Value = serde_json::from_str(&done(dir.path(), &["scan", model, "--json"]).stdout).unwrap();
    let rows = found["rows"].as_array().unwrap();
    assert_eq!(rows.len(), computed.scores.len());
    assert!(
        rows.iter().all(|row| row["score"].as_f64() == computed.scores.get(row["tensor"].as_str().unwrap()).copied())
    );

    done(dir.path(), &["scan", model, "--percent", "50", "--format", "yaml", "--out", "unfrozen.yaml"]);
    assert_eq!(trained(&["policy.unfrozen=unfrozen.yaml"]).0, chosen);
    done(dir.path(), &["scan", model, "--format", "json", "--out", "scores.json"]);
    assert_eq!(trained(&["policy.scores=scores.json", "policy.percent=50"]).0, chosen);

    assert!(done(dir.path(), &["scan", model]).stdout.contains("q_proj: "));
    assert!(done(dir.path(), &["scan", model, "--format", "heat"]).stdout.contains('█'));
    assert!(done(dir.path(), &["scan", model, "--format", "svg"]).stdout.starts_with("<svg "));
    assert_eq!(liftplan(dir.path(), &["scan", model, "--format", "picture"]).code, Some(2));
    assert_eq!(liftplan(dir.path(), &["scan", model, "--percent", "101"]).code, Some(2));
}

#[test]
fn the_chosen_weights_train_and_no_others() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let dir = tempfile::tempdir().unwrap();
    let text = format!(
        "model = {:?}\nseed = 3\nout = \"run\"\n[data]\ntrain = {:?}\nformat = \"label\"\nprompt = \"{{text}}\"\n\
         [policy]\nname = \"spectrum\"\npercent = 50\n[train]\nsteps = 3\nbatch_size = 4\ncheckpoint_every = 3\n\
         [optimizer]\nlr = 0.001\n",
        root.join("examples/models/tiny"),
        root.join("examples/data/tickets/train.jsonl"),
    );
    fs::write(dir.path().join("c.toml"), text).unwrap();
    let run = dir.path().join("run");
    done(dir.path(), &["train", "c.toml"]);

    let plan: Plan = plan::file::read(&run.join("plan.json")).unwrap();
    let base = setup::open(&root.join("examples/models/tiny")).unwrap();
    let linear = base.inventory.tensors.iter().filter(|info| info.kind == Kind::Linear).count();
    assert_eq!((plan.scores.len(), plan.trained().count()), (linear, linear / 2));
    let losses: Vec<f64> = metrics::read(&run.join("metrics.jsonl"))
        .unwrap()
        .into_iter()
        .filter_map(|record| match record {
            Record::Step(step) => Some(step.loss),
            Record::Eval(_) | Record::Pick(_) => None,
        })
        .collect();
    assert_eq!(losses.len(), 3);
    assert!(losses.iter().all(|loss| loss.is_finite()), "{losses:?}");

    let saved =
        candle_core::safetensors::load(run.join("checkpoints/step-3/trainable.safetensors"), &candle_core::Device::Cpu)
            .unwrap();
    let mut names: Vec<&str> = saved.keys().map(String::as_str).collect();
    names.sort_unstable();
    let mut trained: Vec<&str> = plan.trained().map(|entry| entry.tensor.as_str()).collect();
    trained.sort_unstable();
    assert_eq!(names, trained);
    for (name, tensor) in &saved {
        let after = tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_ne!(after, base.read_f32(name).unwrap(), "{name} did not move");
    }
}
