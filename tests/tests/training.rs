//! What training promises: early stopping keeps the best, a number that is not finite stops before the update, and
//! settings that change speed or memory change nothing else.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use liftplan::config::Config;
use liftplan::report::{Ending, Record, Silent, Summary, metrics};
use liftplan::train::{self, RunOptions};
use liftplan::{Error, ErrorKind};

struct Case {
    dir: tempfile::TempDir,
    base: String,
}

impl Case {
    fn new(settings: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let row = |i: usize| format!("{{\"text\": \"{} {i}\"}}\n", "warp and weft ".repeat(1 + i % 4));
        fs::write(dir.path().join("train.jsonl"), (0..32).map(row).collect::<String>()).unwrap();
        fs::write(dir.path().join("validation.jsonl"), (32..40).map(row).collect::<String>()).unwrap();
        let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/families/llama/model");
        let base = format!(
            "model = {model:?}\n[data]\ntrain = \"train.jsonl\"\nvalidation = \"validation.jsonl\"\nformat = \"text\"\n{settings}\n"
        );
        Self { dir, base }
    }

    fn out(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn train(&self, name: &str, overrides: &[&str]) -> Result<Summary, Error> {
        let overrides: Vec<String> = overrides.iter().map(|set| set.to_string()).collect();
        let config = Config::parse(&self.base, &self.dir.path().join("config.toml"), "config.toml", &overrides)?;
        let options = RunOptions { out: Some(self.out(name)), resume: false, stop: Arc::default() };
        train::run(&config, &options, &mut Silent)
    }

    fn losses(&self, name: &str) -> Vec<f64> {
        let records = metrics::read(&self.out(name).join("metrics.jsonl")).unwrap();
        records
            .into_iter()
            .filter_map(|record| match record {
                Record::Step(step) => Some(step.loss),
                Record::Eval(_) | Record::Pick(_) => None,
            })
            .collect()
    }
}

const LORA: &str = "[policy]\nname = \"lora\"\nrank = 4\n[train]\nsteps = 8\nbatch_size = 8\n[optimizer]\nlr = 0.01";

/// Largest relative difference.
fn difference(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| ((a - b) / a).abs()).fold(0.0, f64::max)
}

#[test]
fn micro_batches_packing_and_recomputing_change_no_loss() {
    let case = Case::new(LORA);
    case.train("whole", &[]).unwrap();
    let whole = case.losses("whole");
    assert!(whole[7] < whole[0], "the loss falls: {whole:?}");
    for (name, set) in [
        ("small", "train.micro_batch_tokens=24"),
        ("unpacked", "data.packing=false"),
        ("recomputed", "train.recompute=true"),
    ] {
        case.train(name, &[set]).unwrap();
        let difference = difference(&whole, &case.losses(name));
        assert!(difference < 1e-5, "{set}: {difference:e}");
    }
}

#[test]
fn bf16_weights_train_much_like_f32() {
    let settings = "[policy]\nname = \"full\"\n[train]\nsteps = 8\nbatch_size = 8\n[optimizer]\nlr = 0.003";
    let case = Case::new(settings);
    case.train("f32", &[]).unwrap();
    let f32_losses = case.losses("f32");
    for update in ["stochastic", "master"] {
        let set = format!("train.bf16_update=\"{update}\"");
        case.train(update, &["train.weights=\"bf16\"", &set]).unwrap();
        let losses = case.losses(update);
        assert!(losses[7] < 0.97 * losses[0], "{update}: {losses:?}");
        assert!(difference(&f32_losses, &losses) < 0.03, "{update}: {losses:?} against {f32_losses:?}");
    }
}

#[test]
fn early_stopping_keeps_the_best_step_as_the_result() {
    // A rate so high that evaluations soon get worse.
    let case = Case::new(
        "[policy]\nname = \"full\"\n[train]\nsteps = 60\nbatch_size = 8\neval_every = 2\nkeep_checkpoints = 1\n\
         early_stopping = { patience = 3 }\n[optimizer]\nlr = 0.05\n[schedule]\nname = \"constant\"",
    );
    let summary = case.train("run", &[]).unwrap();
    let Ending::EarlyStopped { best_step } = summary.ended else { panic!("{:?}", summary.ended) };
    assert!(summary.steps < 60);
    assert_eq!(summary.steps, best_step + 6, "three evaluations without gain");
    let best = summary.best_eval_loss.unwrap();
    assert_eq!(best.step, best_step);
    // The evaluation after training is that of the best step, and so is what is opened afterwards.
    let after = summary.eval_after.unwrap();
    assert!((after.eval_loss - best.loss).abs() < 1e-9, "{} against {}", after.eval_loss, best.loss);
    let reopened = train::reopen(&case.out("run"), None, None, &mut Silent).unwrap();
    assert_eq!(reopened.step, Some(best_step));
}

#[test]
fn a_loss_that_is_not_finite_stops_before_the_update() {
    let case = Case::new(
        "[policy]\nname = \"full\"\n[train]\nsteps = 40\nbatch_size = 8\nmax_grad_norm = 0\ncheckpoint_every = 1\n\
         keep_checkpoints = 50\n[optimizer]\nlr = 1e30\n[schedule]\nname = \"constant\"",
    );
    let error = case.train("run", &[]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Train);
    let message = error.message();
    assert!(message.starts_with("step ") && message.contains("not finite") && message.ends_with("nothing was updated"));
    let help = "lower optimizer.lr, set train.max_grad_norm, or look for damaged rows in the data";
    assert_eq!(error.help_text(), Some(help));
    let summary = Summary::read(&case.out("run")).unwrap();
    assert!(matches!(summary.ended, Ending::Failed { .. }));
    // The step that failed is not among those done, and has no checkpoint.
    assert!(!case.out("run").join(format!("checkpoints/step-{}", summary.steps + 1)).exists());
}

#[test]
fn a_run_leaves_all_its_records() {
    let case = Case::new(LORA);
    let summary = case.train("run", &["train.eval_every=4"]).unwrap();
    let run = case.out("run");
    for file in ["config.toml", "plan.json", "metrics.jsonl", "summary.json", "adapter/adapter_model.safetensors"] {
        assert!(run.join(file).is_file(), "{file}");
    }
    assert_eq!(fs::read_dir(run.join("tensorboard")).unwrap().count(), 1);
    assert_eq!(Summary::read(&run).unwrap(), summary);
    assert_eq!(case.losses("run").len(), 8);
    assert!(summary.eval_after.unwrap().eval_loss < summary.eval_before.unwrap().eval_loss);
    let again = case.train("run", &[]).unwrap_err();
    assert_eq!(again.kind(), ErrorKind::Output);
    assert!(again.message().ends_with("holds a run already"), "{again}");
}
