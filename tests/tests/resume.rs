//! A run that is stopped and resumed, at any step, is the run that was never stopped: the same losses, the same weights
//! and the same optimiser states, bit for bit.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use liftplan::ErrorKind;
use liftplan::config::Config;
use liftplan::report::{Event, Observer, Record, metrics};
use liftplan::train::{self, RunOptions};

const STEPS: u64 = 12;

/// Asks to stop after a step, as Ctrl-C does.
struct StopAfter {
    step: u64,
    stop: Arc<AtomicBool>,
}

impl Observer for StopAfter {
    fn on(&mut self, event: &Event<'_>) {
        if matches!(event, Event::Step { record, .. } if record.step == self.step) {
            self.stop.store(true, Ordering::Relaxed);
        }
    }
}

struct Case {
    dir: tempfile::TempDir,
    config: Config,
}

impl Case {
    fn new(settings: &str) -> Self {
        Self::with_optimizer("adamw", settings)
    }

    fn with_optimizer(optimizer: &str, settings: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let row =
            |i: usize| format!("{{\"text\": \"{}\"}}\n", "the weaver lifts thread ".repeat(1 + i % 5) + &i.to_string());
        fs::write(dir.path().join("train.jsonl"), (0..40).map(row).collect::<String>()).unwrap();
        fs::write(dir.path().join("validation.jsonl"), (40..46).map(row).collect::<String>()).unwrap();
        let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/families/qwen3/model");
        let text = format!(
            "model = {model:?}\nseed = 5\n\
             [data]\ntrain = \"train.jsonl\"\nvalidation = \"validation.jsonl\"\nformat = \"text\"\n\
             {settings}\n\
             [optimizer]\nname = {optimizer:?}\nlr = 0.01\nweight_decay = 0.01\n[schedule]\nname = \"cosine\"\nwarmup_steps = 3\n"
        );
        let file = dir.path().join("config.toml");
        let config = Config::parse(&text, &file, "config.toml", &[]).unwrap();
        Self { dir, config }
    }

    fn out(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Trains into the directory `name` until `stop_after`, or to the end.
    fn train(&self, name: &str, resume: bool, stop_after: Option<u64>) {
        let options = RunOptions { out: Some(self.out(name)), resume, stop: Arc::default() };
        let mut observer = StopAfter { step: stop_after.unwrap_or(0), stop: options.stop.clone() };
        match train::run(&self.config, &options, &mut observer) {
            Ok(summary) => {
                assert_eq!(stop_after, None);
                assert_eq!(summary.steps, STEPS);
            }
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Interrupted, "{error}");
                assert_eq!(error.message(), format!("stopped after step {} of {STEPS}", stop_after.unwrap()));
            }
        }
    }

    fn tensors(&self, name: &str) -> [Vec<u8>; 2] {
        let checkpoint = self.out(name).join(format!("checkpoints/step-{STEPS}"));
        ["trainable.safetensors", "optimizer.safetensors"].map(|file| fs::read(checkpoint.join(file)).unwrap())
    }

    /// Losses, rates and norms of the steps, and the losses of the evaluations.
    fn numbers(&self, name: &str) -> Vec<[f64; 4]> {
        let records = metrics::read(&self.out(name).join("metrics.jsonl")).unwrap();
        let numbers = |record: Record| match record {
            Record::Step(step) => [step.step as f64, step.loss, step.lr, step.grad_norm],
            Record::Eval(eval) => [eval.step as f64, eval.eval_loss, -1.0, -1.0],
            Record::Pick(pick) => {
                let plan = u64::from_str_radix(&pick.plan[..12], 16).unwrap();
                [pick.step as f64, pick.trainable_parameters as f64, -1.0, plan as f64]
            }
        };
        records.into_iter().map(numbers).collect()
    }
}

fn check(settings: &str) {
    check_case(Case::new(settings));
}

fn check_case(case: Case) {
    case.train("whole", false, None);
    let (tensors, numbers) = (case.tensors("whole"), case.numbers("whole"));
    assert_eq!(numbers.iter().filter(|n| n[2] >= 0.0).count() as u64, STEPS);
    for step in 1..STEPS {
        let name = format!("stopped-{step}");
        case.train(&name, false, Some(step));
        case.train(&name, true, None);
        assert_eq!(case.numbers(&name), numbers, "stopped after step {step}");
        assert!(case.tensors(&name) == tensors, "weights or states differ when stopped after step {step}");
    }
    // Stopped again and again.
    case.train("often", false, Some(1));
    for step in 2..STEPS {
        case.train("often", true, Some(step));
    }
    case.train("often", true, None);
    assert_eq!(case.numbers("often"), numbers);
    assert!(case.tensors("often") == tensors);
}

#[test]
fn adapters_with_dropout_and_evaluations() {
    check(
        "[policy]\nname = \"lora\"\nrank = 4\ndropout = 0.2\n\
         [train]\nsteps = 12\nbatch_size = 5\nmicro_batch_tokens = 64\neval_every = 4",
    );
}

#[test]
fn bf16_weights_rounded_stochastically() {
    check(
        "[policy]\nname = \"full\"\n[train]\nsteps = 12\nbatch_size = 4\nweights = \"bf16\"\nbf16_update = \"stochastic\"",
    );
}

#[test]
fn bf16_weights_with_a_master_copy() {
    check(
        "[policy]\nname = \"full\"\n[train]\nsteps = 12\nbatch_size = 4\nweights = \"bf16\"\nbf16_update = \"master\"",
    );
}

#[test]
fn adapters_over_4_bit_weights_with_8_bit_states() {
    // Of the adapters' matrices some have 4096 elements, whose moments are in 8 bits, and some fewer.
    let settings = "[policy]\nname = \"qlora\"\nrank = 48\ndropout = 0.1\n[train]\nsteps = 12\nbatch_size = 4";
    let case = Case::with_optimizer("adamw8bit", settings);
    check_case(case);
}

#[test]
fn whole_weights_beside_4_bit_ones_with_paged_8_bit_states() {
    let settings =
        "[policy]\nname = \"qspectrum\"\npercent = 50\nembeddings = true\n[train]\nsteps = 12\nbatch_size = 4";
    check_case(Case::with_optimizer("paged_adamw8bit", settings));
}

#[test]
fn a_master_copy_with_8_bit_states() {
    check_case(Case::with_optimizer(
        "adamw8bit",
        "[policy]\nname = \"full\"\n[train]\nsteps = 12\nbatch_size = 4\nweights = \"bf16\"\nbf16_update = \"master\"",
    ));
}

#[test]
fn paging_states_changes_nothing() {
    let settings = "[policy]\nname = \"full\"\n[train]\nsteps = 12\nbatch_size = 4";
    let (memory, paged) = (Case::new(settings), Case::with_optimizer("paged_adamw", settings));
    memory.train("whole", false, None);
    paged.train("whole", false, Some(5));
    paged.train("whole", true, None);
    assert_eq!(memory.numbers("whole"), paged.numbers("whole"));
    assert!(memory.tensors("whole") == paged.tensors("whole"));
}

#[test]
fn picks_of_lisa() {
    check(&format!(
        "[policy]\nplugin = {:?}\nblocks = 1\nevery = 2\nhead = false\n[train]\nsteps = 12\nbatch_size = 4\neval_every = 5",
        liftplan_tests::plugins::compiled("lisa")
    ));
}

#[test]
fn picks_of_badam_on_bf16_weights() {
    check(&format!(
        "[policy]\nplugin = {:?}\nevery = 3\n[train]\nsteps = 12\nbatch_size = 4\nweights = \"bf16\"",
        liftplan_tests::plugins::compiled("badam")
    ));
}

#[test]
fn picks_that_keep_weights_in_another_storage() {
    check(&format!(
        "[policy]\nplugin = {:?}\nevery = 5\nrank = 2\ndora = true\n[train]\nsteps = 12\nbatch_size = 4",
        liftplan_tests::plugins::compiled("ladder")
    ));
}

#[test]
fn the_same_run_twice_gives_the_same_bits() {
    let settings = "[policy]\nname = \"lora\"\ndora = true\ndropout = 0.1\n[train]\nsteps = 12\nbatch_size = 6";
    let case = Case::new(settings);
    case.train("once", false, None);
    case.train("twice", false, None);
    assert_eq!(case.numbers("once"), case.numbers("twice"));
    assert!(case.tensors("once") == case.tensors("twice"));
}

#[test]
fn a_run_that_ended_before_its_first_checkpoint_starts_again() {
    let case = Case::new("[policy]\nname = \"lora\"\n[train]\nsteps = 12\nbatch_size = 6");
    case.train("whole", false, None);
    let (tensors, numbers) = (case.tensors("whole"), case.numbers("whole"));
    fs::remove_dir_all(case.out("whole").join("checkpoints")).unwrap();
    case.train("whole", true, None);
    assert_eq!(case.numbers("whole"), numbers);
    assert!(case.tensors("whole") == tensors);
}
