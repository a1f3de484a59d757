//! Kernels that memory holds up, alone, at the 8B shape's sizes with 8,192 tokens: bytes a second, counted as their files' headers
//! count them, beside what a copy reaches. No number is read twice before the L2 cache has forgotten it.

use half::bf16;
use liftplan_engine::cuda::attention::{Shape, decode, decode_parts_len};
use liftplan_engine::cuda::dora::{self, Reading};
use liftplan_engine::cuda::memory::Element;
use liftplan_engine::cuda::ops::{self, Filled, Heads, Mask};
use liftplan_engine::cuda::packed::{Int8, Packed};
use liftplan_engine::cuda::slab::Slab;
use liftplan_engine::cuda::{Context, View, nf4};

use crate::products::seconds;

const TOKENS: usize = 8192;
const HIDDEN: usize = 4096;
const INNER: usize = 12288;
const HEAD: usize = 128;

struct Bench<'a> {
    context: &'a Context,
    slab: Slab,
    /// Bytes a second of a copy.
    copy: f64,
}

/// Prints each kernel's rate and its share of a copy's.
pub fn run(context: &Context) {
    let mut bench = Bench { context, slab: Slab::new(context), copy: 0.0 };
    let [from, to] = [(); 2].map(|()| bench.narrow(TOKENS, 2 * INNER));
    bench.copy = bench.measure("a copy", 2 * from.len() * 2, || context.copy(to, from).unwrap());
    for part in [norms, attention, activations, loss, adapters, packed, magnitudes] {
        bench.slab = Slab::new(context);
        part(&mut bench);
    }
}

impl Bench<'_> {
    /// Random numbers.
    fn narrow(&mut self, rows: usize, cols: usize) -> View<bf16> {
        let view = self.slab.take(rows, cols, 0).unwrap();
        ops::random_normal(self.context, Filled::Narrow(view), 1.0, 1, 0).unwrap();
        view
    }

    fn wide(&mut self, rows: usize, cols: usize) -> View<f32> {
        let view = self.slab.take(rows, cols, 0).unwrap();
        ops::random_normal(self.context, Filled::Wide(view), 1.0, 1, 0).unwrap();
        view
    }

    fn put<T: Element>(&mut self, values: &[T]) -> View<T> {
        let view = self.slab.take(1, values.len(), 0).unwrap();
        self.context.upload(view, values).unwrap();
        view
    }

    /// Prints how long `work` takes, which moves so many bytes; gives the rate.
    fn measure(&self, name: &str, bytes: usize, work: impl FnMut()) -> f64 {
        // As often as a copy takes a tenth of a second.
        let repeats = (3e11 / bytes as f64).clamp(10.0, 5000.0) as usize;
        let taken = seconds(self.context, repeats, work);
        let rate = bytes as f64 / taken;
        let share =
            if self.copy > 0.0 { format!("{:3.0} % of a copy", 100.0 * rate / self.copy) } else { String::new() };
        println!("{name:<44} {:8.1} us  {:5.2} TB/s  {share}", taken * 1e6, rate / 1e12);
        rate
    }
}

fn norms(bench: &mut Bench<'_>) {
    let context = bench.context;
    let [x, y, dy, residual] = [(); 4].map(|()| bench.narrow(TOKENS, HIDDEN));
    let w = bench.wide(1, HIDDEN);
    let once = TOKENS * HIDDEN * 2;
    bench.measure("norm", 2 * once, || ops::rms_norm(context, y, x, w, None, 1e-6).unwrap());
    bench.measure("norm, backward", 4 * once, || {
        ops::rms_norm_backward(context, y, None, dy, x, w, Some(residual), None, 1e-6).unwrap();
    });
}

fn attention(bench: &mut Bench<'_>) {
    let context = bench.context;
    let (heads, kv_heads) = (32, 8);
    let width = (heads + 2 * kv_heads) * HEAD;
    let [qkv, before] = [(); 2].map(|()| bench.narrow(TOKENS, width));
    let biases = bench.wide(1, width);
    let (sums, parts) = (bench.wide(1, width), bench.wide(1, ops::parts_len(TOKENS, width)));
    bench.measure("biases", 2 * TOKENS * width * 2, || ops::add_bias(context, qkv, biases).unwrap());
    bench.measure("biases' gradients", TOKENS * width * 2, || ops::column_sums(context, sums, qkv, parts).unwrap());

    let norms = [(); 2].map(|()| Some(bench.wide(1, HEAD)));
    let heads_of =
        Heads { heads, kv_heads, dim: HEAD, q_norm: norms[0], k_norm: norms[1], bias: None, factor: None, eps: 1e-6 };
    let positions = bench.put(&(0..TOKENS as i32).map(|i| i % 2048).collect::<Vec<_>>());
    let table = bench.wide(2048, HEAD);
    let turned = TOKENS * (heads + kv_heads) * HEAD * 2;
    bench.measure("rotary embedding, heads' norms", 2 * turned, || {
        ops::rope(context, &heads_of, qkv, qkv, positions, table).unwrap();
    });
    bench.measure("the same, backward", 3 * turned, || {
        ops::rope_backward(context, &heads_of, qkv, before, positions, table, None).unwrap();
    });

    let past = 32_767;
    let [keys, values] = [(); 2].map(|()| bench.narrow(past + 1, kv_heads * HEAD));
    let [query, out] = [(); 2].map(|()| bench.narrow(1, heads * HEAD));
    let shape = Shape { heads, kv_heads, dim: HEAD, window: None, scale: 0.1, unordered: false };
    let parts = bench.wide(1, decode_parts_len(context, &shape, 1, past));
    bench.measure("attention of one query behind 32,767", 2 * keys.len() * 2, || {
        decode(context, &shape, query, [keys, values], past, out, parts).unwrap();
    });
}

fn activations(bench: &mut Bench<'_>) {
    let context = bench.context;
    let (gate_up, y) = (bench.narrow(TOKENS, 2 * INNER), bench.narrow(TOKENS, INNER));
    let once = TOKENS * INNER * 2;
    bench.measure("gated activation", 3 * once, || ops::swiglu(context, y, gate_up).unwrap());
    for (name, again) in [("gated activation, backward", false), ("the same, the activation again", true)] {
        let bytes = (5 + usize::from(again)) * once;
        bench.measure(name, bytes, || ops::swiglu_backward(context, gate_up, y, again).unwrap());
    }
}

fn loss(bench: &mut Bench<'_>) {
    let (context, rows, vocab) = (bench.context, 2048, 151_936);
    let (logits, losses, scale) = (bench.narrow(rows, vocab), bench.wide(1, rows), bench.wide(1, 1));
    let targets = bench.put(&vec![7_i32; rows]);
    bench.measure("loss and its gradients, 152k tokens", 3 * rows * vocab * 2, || {
        ops::cross_entropy(context, losses, logits, targets, Some(scale)).unwrap();
    });
}

fn adapters(bench: &mut Bench<'_>) {
    let context = bench.context;
    let [x, y] = [(); 2].map(|()| bench.narrow(TOKENS, INNER));
    let mask = Mask { p: 0.1, pass: (1, 1), stream: 1, first_row: 0 };
    for (name, add) in [("dropout", false), ("dropout, added", true)] {
        let bytes = (2 + usize::from(add)) * x.len() * 2;
        bench.measure(name, bytes, || ops::dropout(context, y, x, mask, add).unwrap());
    }
}

fn packed(bench: &mut Bench<'_>) {
    let context = bench.context;
    let w = bench.narrow(2 * INNER, HIDDEN);
    let shape = [w.rows(), w.cols()];
    for block in [32, 64, 4096] {
        let packed = nf4::Packed::new(&mut bench.slab, shape, block, None).unwrap();
        packed.pack(context, w, bench.wide(1, 1)).unwrap();
        let bytes = w.len() / 2 + w.len() / block * 4 + w.len() * 2;
        bench.measure(&format!("4 bits in blocks of {block}, unpacked"), bytes, || packed.unpack(context, w).unwrap());
    }
    let packed = Packed::Int8(Int8::new(&mut bench.slab, shape).unwrap());
    bench.measure("8 bits, unpacked", 3 * w.len(), || packed.unpack(context, w).unwrap());
}

fn magnitudes(bench: &mut Bench<'_>) {
    let context = bench.context;
    let [y, add, p] = [(); 3].map(|()| bench.narrow(TOKENS, HIDDEN));
    let [r, mixed] = [(); 2].map(|()| bench.wide(TOKENS, HIDDEN));
    let factor = bench.wide(1, 2 * INNER);
    let of = |outputs: usize| Reading { factor: factor.slice_cols(0, outputs), bias: None };
    let once = TOKENS * HIDDEN * 2;
    bench.measure("DoRA: output, added", 3 * once, || dora::add(context, y, add, p, of(HIDDEN)).unwrap());
    bench.measure("DoRA: gradient of products", 2 * once, || {
        dora::scale(context, y, y, factor.slice_cols(0, HIDDEN), 0.0).unwrap();
    });
    bench.measure("DoRA: output with dropout", 5 * once, || {
        dora::mix(context, y, [r, mixed], of(HIDDEN), None).unwrap()
    });
    let (grad, norm) = (bench.wide(1, HIDDEN), bench.wide(1, HIDDEN));
    let parts = bench.wide(1, dora::parts_len(TOKENS, 2 * INNER));
    bench.measure("DoRA: magnitudes' gradients", 2 * once, || {
        dora::magnitude(context, grad, [y, p], norm, parts).unwrap();
    });
    let (w, square) = (bench.narrow(2 * INNER, HIDDEN), bench.wide(1, 2 * INNER));
    bench.measure("DoRA: squares of a weight", w.len() * 2, || dora::squares(context, square, w).unwrap());
    let (gate_up, dy) = (bench.narrow(TOKENS, 2 * INNER), bench.narrow(TOKENS, INNER));
    let once = TOKENS * INNER * 2;
    bench.measure("DoRA: gated activation", 3 * once, || dora::swiglu(context, dy, gate_up, of(2 * INNER)).unwrap());
    bench.measure("DoRA: the same, backward", 5 * once, || {
        dora::swiglu_backward(context, gate_up, dy, of(2 * INNER), (parts, None), false).unwrap();
    });
}
