//! One LoRA step of SmolLM2-135M on the CPU, through the library, as a run does it: rank 8 on all linear layers, f32,
//! AdamW. Prints one JSON line with the same fields as `tests/bench/peer_cpu.py`, its peer; `tests/bench/cpu.sh` runs both.
//!
//!     cargo bench -p liftplan-tests --bench lora_step -- [--model FILE] [--tokens FILE] [--steps N]
//!
//! `--tokens` is a JSON list of lists of ids, one batch; without it, two documents of 256 ids. The model is by default
//! SmolLM2-135M-Instruct, fetched when it is absent. `RAYON_NUM_THREADS` sets the number of threads.
#![allow(clippy::unwrap_used)]

use std::path::PathBuf;
use std::time::Instant;

use liftplan::report::process;
use liftplan_engine::Batch;
use liftplan_tests::{setup, smollm2};
use serde_json::json;

struct Args {
    model: PathBuf,
    documents: Vec<Vec<u32>>,
    steps: usize,
}

fn main() {
    let Some(args) = args() else { return };
    let tables = "[policy]\nname = \"lora\"\nrank = 8\nalpha = 16.0\n[train]\nsteps = 100\nmax_grad_norm = 0.0\n\
                  [optimizer]\nlr = 1e-4\nweight_decay = 0.01\n[schedule]\nname = \"constant\"\n";
    let base = setup::open(&args.model).unwrap();
    let config = setup::config(&args.model, tables).unwrap();
    let (_, mut stepper) = setup::stepper(&base, &config).unwrap();
    let flags: Vec<Vec<bool>> = args.documents.iter().map(|ids| vec![true; ids.len()]).collect();
    let batch = Batch::pack(args.documents.iter().zip(&flags).map(|(ids, flags)| (ids.as_slice(), flags.as_slice())));

    let (mut seconds, mut losses, mut first_step_s) = (Vec::new(), Vec::new(), None);
    for step in 0..=args.steps as u64 {
        let started = Instant::now();
        let outcome = stepper.step(step + 1, std::slice::from_ref(&batch), config.optimizer.lr).unwrap();
        losses.push(outcome.loss.mean());
        match first_step_s {
            None => first_step_s = process::seconds_since_start(),
            Some(_) => seconds.push(started.elapsed().as_secs_f64()),
        }
    }
    seconds.sort_by(f64::total_cmp);
    let step_s = median(&seconds);
    let report = json!({
        "name": "liftplan",
        "version": env!("CARGO_PKG_VERSION"),
        "threads": std::env::var("RAYON_NUM_THREADS").ok().and_then(|n| n.parse::<usize>().ok()),
        "first_step_s": first_step_s,
        "step_s": step_s,
        "tokens_per_s": batch.tokens() as f64 / step_s,
        "peak_mib": process::peak_bytes().map(|bytes| bytes >> 20),
        "losses": losses,
    });
    println!("{report}");
}

/// The middle of sorted numbers.
fn median(sorted: &[f64]) -> f64 {
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => sorted[middle],
        _ => 0.5 * (sorted[middle - 1] + sorted[middle]),
    }
}

fn args() -> Option<Args> {
    let (mut model, mut tokens, mut steps) = (None, None, 6);
    let mut given = std::env::args().skip(1);
    while let Some(name) = given.next() {
        let mut value = || given.next().unwrap_or_else(|| panic!("{name} needs a value"));
        match name.as_str() {
            "--model" => model = Some(PathBuf::from(value())),
            "--tokens" => tokens = Some(value()),
            "--steps" => steps = value().parse().unwrap(),
            // `cargo bench` adds this itself.
            "--bench" => {}
            _ => panic!("unknown argument {name}"),
        }
    }
    let documents = match tokens {
        Some(path) => serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap(),
        None => {
            (0..2).map(|document| (0..256).map(|i| 17 + (i * 7919 + document * 104_729) % 49_000).collect()).collect()
        }
    };
    Some(Args { model: model.or_else(smollm2::model_or_skip)?, documents, steps })
}
