//! The GPU engine checked and measured on the card at hand.
//!
//!     cargo run --release -p liftplan-engine --example cuda_check -- check
//!     cargo run --release -p liftplan-engine --example cuda_check -- bench [--rows lora-2048x4,qlora-512x1] [--profile] [--unordered]
//!     cargo run --release -p liftplan-engine --example cuda_check -- plans [--rows …] [--unordered]
//!     cargo run --release -p liftplan-engine --example cuda_check -- limits [--methods lora,qlora] [--budgets 8,24] [--dry]
//!     cargo run --release -p liftplan-engine --example cuda_check -- products
//!     cargo run --release -p liftplan-engine --example cuda_check -- traffic
//!
//! `check` compares every operation with the CPU's, and tiny models' training with the CPU engine; `bench` runs the
//! work of `host/docs/gpu.md`, `plans` shows without a card how it is planned; `limits` finds out what cards of 8 to 80 GB train by taking
//! no more of the one at hand, or plans it (`--dry`); `products` measures the matrix products of a block, and `traffic` the
//! kernels that memory holds up, each alone.
#![allow(clippy::unwrap_used)]

mod bench;
mod dora;
mod lean;
mod limits;
mod model;
mod moments;
mod ops;
mod picks;
mod products;
mod reuse;
mod script;
mod tiny;
mod traffic;
mod work;

use liftplan_engine::cuda::Context;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let command = arguments.first().map_or("check", String::as_str);
    let option = |name: &str| arguments.iter().position(|a| a == name).and_then(|i| arguments.get(i + 1).cloned());
    let given = |name: &str| arguments.iter().any(|a| a == name);
    let rows = option("--rows").unwrap_or_default();
    if command == "plans" {
        bench::plans(&rows, given("--unordered"));
        return;
    }
    let limits = |context: &Context| {
        limits::run(context, &option("--methods").unwrap_or_default(), &option("--budgets").unwrap_or_default())
    };
    if command == "limits" && given("--dry") {
        std::process::exit(i32::from(limits(&Context::dry((9, 0)))));
    }
    let context = match Context::new(option("--device").map_or(0, |device| device.parse().unwrap_or(0))) {
        Ok(context) => context,
        Err(error) => {
            eprintln!("error: {error}");
            std::process::exit(2);
        }
    };
    let (major, minor) = context.capability();
    println!("{} ({major}.{minor}), {} multiprocessors", context.name(), context.multiprocessors());
    let failed = match command {
        "check" => {
            let only = option("--only").unwrap_or_default();
            let mut report = Report { only, ..Report::default() };
            ops::check(&context, &mut report);
            model::check(&context, &mut report);
            moments::check(&context, &mut report);
            lean::check(&context, &mut report);
            picks::check(&context, &mut report);
            reuse::check(&context, &mut report);
            println!("{} checks, {} failed", report.done, report.failed.len());
            for failure in &report.failed {
                println!("FAILED {failure}");
            }
            !report.failed.is_empty() || report.done == 0
        }
        "bench" => bench::run(&context, &rows, given("--profile"), given("--unordered")),
        "limits" => limits(&context),
        "products" => {
            products::run(&context);
            false
        }
        "traffic" => {
            traffic::run(&context);
            false
        }
        other => {
            eprintln!("error: unknown command `{other}`: check, bench, plans, limits, products or traffic");
            true
        }
    };
    std::process::exit(i32::from(failed));
}

/// What was checked.
#[derive(Default)]
pub struct Report {
    only: String,
    done: usize,
    failed: Vec<String>,
}

impl Report {
    /// Whether a check of this name was asked for.
    pub fn wants(&self, name: &str) -> bool {
        name.contains(&self.only)
    }

    /// Compares `found` with `expected` by the norm of their difference.
    pub fn compare(&mut self, name: &str, found: &[f32], expected: &[f32], tolerance: f64) {
        self.done += 1;
        let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>().sqrt();
        let difference = norm(&mut found.iter().zip(expected).map(|(a, b)| f64::from(*a) - f64::from(*b)));
        let scale = norm(&mut expected.iter().map(|&x| f64::from(x)));
        let relative = difference / scale.max(1e-30);
        // A NaN is no number below the tolerance.
        let fits = found.len() == expected.len() && relative <= tolerance;
        println!("{:<64} {relative:9.2e}  {}", name, if fits { "ok" } else { "FAILED" });
        if !fits {
            self.failed.push(format!(
                "{name}: {relative:.2e} > {tolerance:.0e} ({} and {} numbers)",
                found.len(),
                expected.len()
            ));
        }
    }

    /// Notes whether something holds.
    pub fn holds(&mut self, name: &str, holds: bool) {
        self.done += 1;
        println!("{:<64} {:>9}  {}", name, "", if holds { "ok" } else { "FAILED" });
        if !holds {
            self.failed.push(name.into());
        }
    }
}
