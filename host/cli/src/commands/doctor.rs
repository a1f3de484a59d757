//! `liftplan doctor`: what this machine can do.

use std::fmt::Write;
use std::time::{Duration, Instant};

use anyhow::Result;
use liftplan::device::{Survey, survey};
use liftplan::report::text::memory;
use liftplan_engine::ops::matmul;
use serde::Serialize;

use crate::output::Output;

/// What was found.
#[derive(Serialize)]
struct Machine {
    /// Liftplan's version.
    version: &'static str,
    /// Operating system and processor family.
    platform: String,
    /// The processor's name, where the system tells.
    cpu: Option<String>,
    /// Threads that this process may use.
    threads: usize,
    /// Instruction sets that the matrix products can use, and whether they are there.
    features: Vec<Feature>,
    /// Memory in all, in bytes.
    memory_bytes: Option<u64>,
    /// Memory that a new process can have, in bytes.
    memory_available_bytes: Option<u64>,
    /// Rate of an f32 matrix product on all threads.
    matmul_gflops: f64,
    /// What GPUs there are, and what using them takes.
    cuda: Survey,
    /// What can compute here.
    devices: Vec<String>,
}

#[derive(Serialize)]
struct Feature {
    name: &'static str,
    present: bool,
}

/// Measures and shows.
pub fn run(output: &Output) -> Result<()> {
    let cuda = survey();
    let machine = Machine {
        version: env!("CARGO_PKG_VERSION"),
        platform: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
        cpu: field("/proc/cpuinfo", "model name"),
        threads: std::thread::available_parallelism().map_or(1, |threads| threads.get()),
        features: features(),
        memory_bytes: kib("MemTotal"),
        memory_available_bytes: kib("MemAvailable"),
        matmul_gflops: matmul_gflops(),
        devices: std::iter::once("cpu".to_string()).chain(cuda.gpus.iter().map(|gpu| gpu.device.clone())).collect(),
        cuda,
    };
    Ok(output.result(&machine, text(&machine))?)
}

fn text(machine: &Machine) -> String {
    let mut text = String::new();
    let features: Vec<_> = machine
        .features
        .iter()
        .map(|feature| format!("{} {}", feature.name, if feature.present { "yes" } else { "no" }))
        .collect();
    let bytes = |bytes: Option<u64>| bytes.map_or("unknown".to_string(), memory);
    // Writing to a string can't fail.
    let _ = writeln!(text, "liftplan      {}", machine.version);
    let _ = writeln!(text, "platform      {}", machine.platform);
    let _ = writeln!(text, "processor     {}", machine.cpu.as_deref().unwrap_or("unknown"));
    let _ = writeln!(text, "threads       {}", machine.threads);
    let _ =
        writeln!(text, "instructions  {}", if features.is_empty() { "unknown".into() } else { features.join(", ") });
    let _ = writeln!(
        text,
        "memory        {}, {} available",
        bytes(machine.memory_bytes),
        bytes(machine.memory_available_bytes)
    );
    let _ = writeln!(text, "matmul        {:.1} GFLOP/s (f32, 1024 x 1024 x 1024)", machine.matmul_gflops);
    for gpu in &machine.cuda.gpus {
        let (free, all) = (memory(gpu.free_bytes), memory(gpu.memory_bytes));
        let _ =
            writeln!(text, "{:13} {}, compute capability {}, {all}, {free} free", gpu.device, gpu.name, gpu.capability);
    }
    if let Some(problem) = &machine.cuda.problem {
        let _ = writeln!(text, "GPUs          none: {problem}");
    }
    for library in &machine.cuda.libraries {
        let state = match (&library.help, library.optional) {
            (None, _) => "found".to_string(),
            (Some(help), false) => format!("missing: {help}"),
            (Some(help), true) => format!("missing, not needed: {help}"),
        };
        let _ = writeln!(text, "{:13} {state}", library.name);
    }
    let _ = writeln!(text, "devices       {}", machine.devices.join(", "));
    text
}

#[cfg(target_arch = "x86_64")]
fn features() -> Vec<Feature> {
    macro_rules! detected {
        ($($name:tt),*) => { vec![$(Feature { name: $name, present: is_x86_feature_detected!($name) }),*] };
    }
    detected!("avx", "avx2", "fma", "avx512f", "avx512bf16")
}

#[cfg(target_arch = "aarch64")]
fn features() -> Vec<Feature> {
    macro_rules! detected {
        ($($name:tt),*) => { vec![$(Feature { name: $name, present: std::arch::is_aarch64_feature_detected!($name) }),*] };
    }
    detected!("neon", "fp16", "bf16", "dotprod")
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn features() -> Vec<Feature> {
    Vec::new()
}

/// The best of several products within a second: the first ones wake the threads and the clock.
fn matmul_gflops() -> f64 {
    const N: usize = 1024;
    let a: Vec<f32> = (0..N * N).map(|i| (i % 7) as f32 - 3.0).collect();
    let b: Vec<f32> = (0..N * N).map(|i| (i % 5) as f32 - 2.0).collect();
    let mut c = vec![0.0; N * N];
    let begun = Instant::now();
    let mut best = Duration::MAX;
    while begun.elapsed() < Duration::from_secs(1) {
        let start = Instant::now();
        matmul::nt(matmul::Into::Replace, &mut c, 1.0, &a, &b, [N, N, N]);
        best = best.min(start.elapsed());
        std::hint::black_box(&c);
    }
    2.0 * (N * N * N) as f64 / best.as_secs_f64() / 1e9
}

/// A number of KiB in `/proc/meminfo`, as bytes.
fn kib(key: &str) -> Option<u64> {
    let value = field("/proc/meminfo", key)?;
    value.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
}

/// The first value of `key` in a file of `key: value` lines.
fn field(file: &str, key: &str) -> Option<String> {
    let text = std::fs::read_to_string(file).ok()?;
    text.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        (name.trim() == key).then(|| value.trim().to_string())
    })
}
