//! The peers' work on the card: a Qwen3-8B shape with random weights and tokens, median of 8 steps after 3.

use std::time::Instant;

use liftplan_engine::Batch;
use liftplan_engine::cuda::{Context, Decoder, ModelShape, MomentFormat, Options};

use crate::work::{DRIVER_GIB, Method, batch, bytes, described, gib, step};

struct Row {
    name: &'static str,
    method: Method,
    moments: MomentFormat,
    sequence: usize,
    batch: usize,
    /// GiB of the whole card.
    budget: f64,
    goal: f64,
    peer: &'static str,
}

const fn row(
    name: &'static str,
    method: Method,
    moments: MomentFormat,
    [sequence, batch]: [usize; 2],
    budget: f64,
    goal: f64,
    peer: &'static str,
) -> Row {
    Row { name, method, moments, sequence, batch, budget, goal, peer }
}

use Method::*;
use MomentFormat::{Bf16, EightBit, Wide};

const ROWS: &[Row] = &[
    row("lora-2048x4-50", Lora, Wide, [2048, 4], 50.0, 17_000.0, "14895 compiled HF, 54.3"),
    row("lora-4096x4-78", Lora, Wide, [4096, 4], 78.0, 15_500.0, "out of memory"),
    row("lora-512x1", Lora, Wide, [512, 1], 18.0, 10_000.0, "1917 HF + Liger, 17.9"),
    row("lora-2048x1", Lora, Wide, [2048, 1], 17.7, 11_000.0, "6565 Unsloth, 16.2"),
    row("lora-2048x4-19.6", Lora, Wide, [2048, 4], 19.6, 11_900.0, "10356 Unsloth, 17.7"),
    row("lora-2048x4-17.7", Lora, Wide, [2048, 4], 17.7, 11_900.0, "10356 Unsloth, 17.7"),
    row("lora-4096x4-19.6", Lora, Wide, [4096, 4], 19.6, 11_500.0, "9984 Unsloth, 19.6"),
    // To stand beside LoRA's; no goal and no peer.
    row("dora-2048x4-60", Dora, Wide, [2048, 4], 60.0, 0.0, "none"),
    row("dora-2048x4-19.6", Dora, Wide, [2048, 4], 19.6, 0.0, "none"),
    row("dora-512x1", Dora, Wide, [512, 1], 18.0, 0.0, "none"),
    row("qlora-2048x4-40", Qlora, EightBit, [2048, 4], 40.0, 16_400.0, "14298 Unsloth, 40.4"),
    row("qlora-2048x4-8.1", Qlora, EightBit, [2048, 4], 8.1, 11_600.0, "10143 Unsloth, 8.1"),
    row("qlora-4096x4-10", Qlora, EightBit, [4096, 4], 10.0, 11_300.0, "9887 Unsloth, 10.0"),
    row("qlora-512x1", Qlora, EightBit, [512, 1], 7.0, 8_000.0, "1420 Unsloth, 6.3"),
    row("qlora-16384x1", Qlora, EightBit, [16384, 1], 10.0, 8_800.0, "7630 Unsloth, 10.0"),
    row("qlora-32768x1", Qlora, EightBit, [32768, 1], 13.9, 6_800.0, "5928 Unsloth, 13.9"),
    row("spectrum-2048x4-52", Spectrum, Bf16, [2048, 4], 52.0, 17_000.0, "15570 HF + Liger, 52.3"),
    row("spectrum-2048x4-26.2", Spectrum, Bf16, [2048, 4], 26.2, 13_500.0, "12024 HF + Liger, 26.2"),
    row("spectrum-2048x1", Spectrum, Bf16, [2048, 1], 26.2, 11_500.0, "7442 HF + Liger, 22.0"),
    row("spectrum8-2048x4-23", Spectrum, EightBit, [2048, 4], 23.0, 13_500.0, "11436 HF + Liger 8-bit, 23.0"),
    row("spectrum8-2048x4-26.2", Spectrum, EightBit, [2048, 4], 26.2, 13_500.0, "12024 HF + Liger, 26.2"),
    row("qspectrum-2048x4-18", Qspectrum, EightBit, [2048, 4], 18.0, 12_500.0, "nobody"),
    // The peer by tests/cuda/peer_full.py, and the goal 1.15 times that.
    row("full1.7b-2048x4", Full, Wide, [2048, 4], 78.0, 41_200.0, "35829 compiled HF, 27.6"),
];

/// What a step must compute, in FLOP, without computing anything twice: as `bench_peers.py` counts it.
fn model_flop(shape: &ModelShape, method: Method, trained: usize, [sequence, batch]: [usize; 2]) -> f64 {
    let (h, i, blocks) = (shape.hidden as f64, shape.intermediate as f64, shape.blocks as f64);
    let (d, kv) = ((shape.heads * shape.dim) as f64, (shape.kv_heads * shape.dim) as f64);
    let linear = blocks * (2.0 * h * d + 2.0 * h * kv + 3.0 * h * i);
    let (head, tokens) = (shape.vocab as f64 * h, (sequence * batch) as f64);
    let attention = 2.0 * tokens * sequence as f64 * d * blocks;
    let forward = tokens * 2.0 * (linear + head) + attention;
    let backward = tokens * 2.0 * (linear + head) + 2.0 * attention;
    let adapters = if matches!(method, Lora | Dora | Qlora) { 4.0 * tokens * trained as f64 } else { 0.0 };
    forward + backward + 2.0 * tokens * trained as f64 + adapters
}

/// Runs the rows whose names contain one of `names` (all without); gives whether any failed.
pub fn run(context: &Context, names: &str, profile: bool, unordered: bool) -> bool {
    let wanted = |row: &&Row| names.is_empty() || names.split(',').any(|name| row.name.contains(name));
    let (free, total) = context.memory().unwrap();
    println!("the card holds {:.2} GiB, {:.2} are taken before the model", gib(total), gib(total - free));
    println!(
        "| row | tok/s | ms a step | GiB of the card | of it the engine | predicted | model TFLOP/s | of 679 | first step s | peer | goal |"
    );
    let mut failed = false;
    let mut current: Option<(Method, MomentFormat, Decoder)> = None;
    for row in ROWS.iter().filter(wanted) {
        let shape = row.method.shape();
        if current.as_ref().is_none_or(|(method, moments, _)| (*method, *moments) != (row.method, row.moments)) {
            current = None;
            let started = Instant::now();
            match row.method.build(context, row.options(unordered)) {
                Ok(decoder) => {
                    println!(
                        "built {:?} in {:.1} s, {:.2} GiB",
                        row.method,
                        started.elapsed().as_secs_f64(),
                        gib(decoder.model_bytes())
                    );
                    current = Some((row.method, row.moments, decoder));
                }
                Err(error) => {
                    println!("| {} | {error} |", row.name);
                    failed = true;
                    continue;
                }
            }
        }
        let Some((_, _, decoder)) = &mut current else { continue };
        failed |= !measure(context, row, &shape, decoder, profile);
    }
    failed
}

/// Prints the plan of each row without a card: what the driver takes for itself is what it took on an H100.
pub fn plans(names: &str, unordered: bool) {
    for row in ROWS.iter().filter(|row| names.is_empty() || names.split(',').any(|name| row.name.contains(name))) {
        let shape = row.method.shape();
        let mut decoder = row.method.build(&Context::dry((9, 0)), row.options(unordered)).unwrap();
        decoder.set_budget(Some(bytes(row.budget - DRIVER_GIB.iter().sum::<f64>())));
        let batch = batch(&shape, [row.sequence, row.batch], 0);
        match decoder.choose_plan(&batch) {
            Ok(plan) => println!(
                "{}: {:.2} GiB of the model and {:.2}; {}",
                row.name,
                gib(decoder.model_bytes()),
                gib(decoder.needed(&batch, &plan).unwrap()),
                described(&plan)
            ),
            Err(error) => println!("{}: {error}", row.name),
        }
    }
}

impl Row {
    fn options(&self, unordered: bool) -> Options {
        Options {
            unordered,
            // A tied one is the head.
            embedding_on_host: self.method != Full,
            update_in_backward: matches!(self.method, Spectrum | Qspectrum | Full),
            ..self.method.options(self.moments)
        }
    }
}

fn measure(context: &Context, row: &Row, shape: &ModelShape, decoder: &mut Decoder, profile: bool) -> bool {
    decoder.release_arena().unwrap();
    decoder.set_budget(Some(bytes(row.budget)));
    context.reset_peak();
    let trained: usize = decoder.trainables().iter().map(|trainable| trainable.len()).sum();
    let batches: Vec<Batch> = (0..4).map(|seed| batch(shape, [row.sequence, row.batch], seed)).collect();
    let plan = match decoder.choose_plan(&batches[0]) {
        Ok(plan) => plan,
        Err(error) => {
            println!("| {} | {error} |", row.name);
            return false;
        }
    };
    let predicted = decoder.model_bytes() + decoder.needed(&batches[0], &plan).unwrap();
    let (mut seconds, mut losses, mut first) = (Vec::new(), Vec::new(), 0.0);
    for i in 0..11 {
        let started = Instant::now();
        losses.push(step(decoder, &batches[i % 4]).unwrap());
        let took = started.elapsed().as_secs_f64();
        if i == 0 {
            first = took;
        }
        if i >= 3 {
            seconds.push(took);
        }
    }
    seconds.sort_by(f64::total_cmp);
    let median = (seconds[3] + seconds[4]) / 2.0;
    let (free, total) = context.memory().unwrap();
    let tera = model_flop(shape, row.method, trained, [row.sequence, row.batch]) / median / 1e12;
    let (_, engine) = context.allocated_bytes();
    println!(
        "| {} | {:.0} | {:.1} | {:.2} | {:.2} | {:.2} | {:.0} | {:.0} % | {:.2} | {} | {:.0} |",
        row.name,
        (row.sequence * row.batch) as f64 / median,
        median * 1e3,
        gib(total - free),
        gib(engine),
        gib(predicted),
        tera,
        tera / 6.79,
        first,
        row.peer,
        row.goal
    );
    println!(
        "    {}; losses {:.3} … {:.3}; steps {:.1} to {:.1} ms",
        described(&plan),
        losses[0],
        losses[10],
        seconds[0] * 1e3,
        seconds[7] * 1e3
    );
    if profile {
        context.start_profile();
        step(decoder, &batches[0]).unwrap();
        if let Some(times) = context.end_profile().unwrap() {
            let sum: f64 = times.by_kind.values().map(|(ms, _)| ms).sum();
            for (kind, (ms, pieces)) in &times.by_kind {
                println!(
                    "    {:<16} {ms:8.2} ms  {:5.1} %  {pieces} pieces",
                    format!("{kind:?}"),
                    100.0 * ms / times.total_ms
                );
            }
            println!("    {:<16} {:8.2} ms of {:.2}", "between", times.total_ms - sum, times.total_ms);
        }
    }
    losses.iter().all(|loss| loss.is_finite())
}
