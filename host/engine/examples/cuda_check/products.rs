//! The matrix products of a Qwen3-8B block, alone: which rate each reaches, and what room behind the rows costs.

use std::time::Instant;

use half::bf16;
use liftplan_engine::cuda::gemm::{Layout, Output, multiply, multiply_own};
use liftplan_engine::cuda::ops::{Filled, random_normal};
use liftplan_engine::cuda::{Buffer, Context, View};

fn matrix(context: &Context, buffers: &mut Vec<Buffer>, rows: usize, cols: usize, room: usize) -> View<bf16> {
    let buffer = Buffer::new(context, rows * (cols + room) * 2).unwrap();
    let view = buffer.view::<bf16>(rows, cols + room);
    random_normal(context, Filled::Narrow(view), 0.02, 1, buffers.len() as u32).unwrap();
    buffers.push(buffer);
    view.slice_cols(0, cols)
}

/// How long a call of `work` takes on the card, of so many without a pause, after 3 others.
pub fn seconds(context: &Context, repeats: usize, mut work: impl FnMut()) -> f64 {
    for _ in 0..3 {
        work();
    }
    context.synchronize().unwrap();
    let start = Instant::now();
    for _ in 0..repeats {
        work();
    }
    context.synchronize().unwrap();
    start.elapsed().as_secs_f64() / repeats as f64
}

fn time(context: &Context, name: &str, flop: f64, bytes: f64, work: impl FnMut()) {
    let repeats = (40e12 / flop.max(bytes * 200.0)).clamp(5.0, 400.0) as usize;
    let seconds = seconds(context, repeats, work);
    let (tera, giga) = (flop / seconds / 1e12, bytes / seconds / 1e9);
    println!("{name:<44} {:8.1} us  {tera:6.1} TFLOP/s  {giga:6.0} GB/s", seconds * 1e6);
}

fn product<T: Output>(context: &Context, name: &str, layout: Layout, [m, n, k]: [usize; 3], room: usize, adds: bool) {
    let mut buffers = Vec::new();
    let (a, b) = match layout {
        Layout::Nt => ([m, k], [n, k]),
        Layout::Nn => ([m, k], [k, n]),
        Layout::Tn => ([k, m], [k, n]),
    };
    let a = matrix(context, &mut buffers, a[0], a[1], room);
    let b = matrix(context, &mut buffers, b[0], b[1], room);
    let buffer = Buffer::new(context, m * (n + room) * size_of::<T>()).unwrap();
    let out = buffer.view::<T>(m, n + room).slice_cols(0, n);
    context.fill_bytes(out, 0).unwrap();
    let flop = 2.0 * (m * n * k) as f64;
    let bytes = 2.0 * (m * k + n * k) as f64 + (m * n * size_of::<T>()) as f64 * if adds { 2.0 } else { 1.0 };
    time(context, &format!("{name} {m}x{n}x{k} +{room}"), flop, bytes, || {
        multiply(context, layout, out, 1.0, a, b, adds.then_some((1.0, out))).unwrap();
    });
}

/// A weight and, below it, an adapter's rows, by these rows: what DoRA's norms are made of.
fn by_adapter(context: &Context, name: &str, [outputs, inputs]: [usize; 2], rank: usize) {
    let mut buffers = Vec::new();
    let rows = outputs + rank;
    let both = matrix(context, &mut buffers, rows, inputs, rank);
    let buffer = Buffer::new(context, rows * rank * 4).unwrap();
    let out = buffer.view::<f32>(rows, rank);
    let flop = 2.0 * (rows * rank * inputs) as f64;
    let bytes = (2 * rows * inputs + 4 * rows * rank) as f64;
    time(context, &format!("{name} by A {rows}x{rank}x{inputs}"), flop, bytes, || {
        multiply_own(context, Layout::Nt, out, both, both.slice_rows(outputs, rank)).unwrap();
    });
}

/// Prints each product's time.
pub fn run(context: &Context) {
    for tokens in [8192, 512] {
        for rank in [0, 48, 64] {
            product::<bf16>(context, "qkv forward", Layout::Nt, [tokens, 6144, 4096 + rank], 0, false);
            product::<bf16>(context, "gate_up forward", Layout::Nt, [tokens, 24576, 4096 + rank], 0, false);
            product::<bf16>(context, "down forward, added", Layout::Nt, [tokens, 4096, 12288 + rank], 0, true);
            product::<bf16>(context, "o forward, added", Layout::Nt, [tokens, 4096, 4096 + rank], 0, true);
            product::<bf16>(context, "gate_up backward", Layout::Nn, [tokens, 4096, 24576 + rank], rank, false);
            product::<bf16>(context, "down backward", Layout::Nn, [tokens, 12288, 4096 + rank], rank, false);
            product::<bf16>(context, "qkv backward", Layout::Nn, [tokens, 4096, 6144 + rank], rank, false);
        }
        for rank in [16, 64] {
            product::<bf16>(context, "low of hidden", Layout::Nt, [tokens, rank, 4096], 64, false);
            product::<bf16>(context, "low of activation", Layout::Nt, [tokens, rank, 12288], 64, false);
            product::<bf16>(context, "d_low of gate_up", Layout::Nn, [tokens, rank, 24576], 64, false);
            product::<bf16>(context, "d_low of hidden", Layout::Nn, [tokens, rank, 4096], 64, false);
        }
        product::<f32>(context, "dA of gate_up", Layout::Tn, [32, 4096, tokens], 64, true);
        product::<f32>(context, "dA of down", Layout::Tn, [16, 12288, tokens], 64, true);
        product::<f32>(context, "dB of gate", Layout::Tn, [12288, 16, tokens], 64, true);
        product::<f32>(context, "dB of down", Layout::Tn, [4096, 16, tokens], 64, true);
        product::<bf16>(context, "dW of gate", Layout::Tn, [12288, 4096, tokens], 0, false);
    }
    for rank in [16, 64] {
        by_adapter(context, "qkv", [6144, 4096], rank);
        by_adapter(context, "o", [4096, 4096], rank);
        by_adapter(context, "gate_up", [24_576, 4096], rank);
        by_adapter(context, "down", [4096, 12_288], rank);
    }
    product::<bf16>(context, "logits", Layout::Nt, [2048, 151_936, 4096], 0, false);
    product::<bf16>(context, "logits backward", Layout::Nn, [2048, 4096, 151_936], 0, false);
}
