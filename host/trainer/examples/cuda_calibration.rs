//! What policies measure on data, on the card at hand, checked against the processor's.
//!
//!     cargo run --release -p liftplan --example cuda_calibration -- [CONFIG, examples/quickstart.toml]
//!
//! Every number of [`liftplan::stats::Calibration`] for every block and tensor: the card's are of bf16 products, and the same to the
//! bit when they are measured again.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::time::Instant;

use liftplan::config::{Config, Device};
use liftplan::report::Silent;
use liftplan::stats::{Calibration, Statistics};
use liftplan::train::calibrate::Measured;
use liftplan::{data, device, model};

/// What may differ, relative to a number, or to the largest of its kind where it is much smaller than that.
const KINDS: [(&str, f64); 10] = [
    ("loss", 2e-3),
    ("loss without a block", 1e-2),
    ("cosine of a block", 5e-3),
    ("norm of a gradient", 3e-2),
    ("squared gradient", 6e-2),
    ("weight times gradient", 3e-2),
    // What is positive and what is negative cancel.
    ("mean of an input", 1e-1),
    ("mean square of an input", 2e-2),
    ("mean magnitude of an input", 1e-2),
    ("largest magnitude of an input", 2e-2),
];

fn main() {
    let path = std::env::args().nth(1).unwrap_or_else(|| "examples/quickstart.toml".into());
    let mut config = Config::load(Path::new(&path), &[]).unwrap_or_else(|error| {
        eprintln!("{error}");
        std::process::exit(2)
    });
    if let Err(error) = device::choose(Device::Cuda(0)) {
        eprintln!("{error}");
        std::process::exit(2)
    }
    let base = model::open(&config.model, Path::new(""), &mut Silent).unwrap();
    let splits = data::load_splits(&config.data, config.seed, &base, &mut Silent).unwrap();
    let mut on = |device: Device| {
        config.device = device;
        let started = Instant::now();
        let mut silent = Silent;
        let statistics = Measured::new(&base, &config, &splits.train, &mut silent);
        let measured = statistics.calibration(2).unwrap();
        let numbers = all(&base, measured.as_ref());
        println!("{device}: {} numbers in {:.1} s", numbers.len(), started.elapsed().as_secs_f64());
        numbers
    };
    let (host, card, again) = (on(Device::Cpu), on(Device::Cuda(0)), on(Device::Cuda(0)));
    let mut failed = false;
    for (kind, (name, allowed)) in KINDS.iter().enumerate() {
        let of_kind = || host.iter().zip(&card).filter(|((k, ..), _)| *k == kind);
        let largest = of_kind().map(|((.., value), _)| value.abs()).fold(0.0, f64::max);
        let error = |a: f64, b: f64| (a - b).abs() / a.abs().max(1e-2 * largest).max(1e-12);
        let worst =
            of_kind().map(|((_, of, a), (.., b))| (error(*a, *b), of, *a, *b)).max_by(|a, b| a.0.total_cmp(&b.0));
        let Some((worst, of, a, b)) = worst else {
            println!("FAIL {name}: none was measured");
            failed = true;
            continue;
        };
        let ok = worst <= *allowed;
        failed |= !ok;
        let mark = if ok { "ok  " } else { "FAIL" };
        println!(
            "{mark} {name:<30} {:4} of them, farthest {worst:.1e} (of {allowed:.0e}): {of}, {a} and {b}",
            of_kind().count()
        );
    }
    let same = card == again;
    println!("{} the same bits again", if same { "ok  " } else { "FAIL" });
    std::process::exit(i32::from(failed || !same));
}

/// Every number, with its kind and whose it is.
fn all(base: &model::BaseModel, measured: &dyn Calibration) -> Vec<(usize, String, f64)> {
    let mut numbers = vec![(0, "the model".into(), measured.loss().unwrap())];
    for block in 0..base.spec.blocks {
        numbers.push((1, format!("block {block}"), measured.loss_without_block(block).unwrap()));
        numbers.push((2, format!("block {block}"), measured.block_cosine(block).unwrap()));
    }
    for tensor in &base.inventory.tensors {
        let name = &tensor.name;
        numbers.push((3, name.clone(), measured.gradient_norm(name).unwrap()));
        numbers.push((4, name.clone(), measured.squared_gradient(name).unwrap()));
        numbers.push((5, name.clone(), measured.weight_gradient(name).unwrap()));
        for (i, moment) in measured.input_moments(name).into_iter().flatten().enumerate() {
            numbers.push((6 + i, name.clone(), moment));
        }
    }
    numbers
}
