//! Each operation against the CPU's, at odd and even shapes, with memory poisoned before, and run twice.

use half::bf16;
use liftplan_engine::cuda::attention::{self, Documents, Shape};
use liftplan_engine::cuda::gemm::{Layout, multiply};
use liftplan_engine::cuda::memory::Element;
use liftplan_engine::cuda::nf4::{Packed, Parts};
use liftplan_engine::cuda::slab::Slab;
use liftplan_engine::cuda::{Buffer, Context, View, ops};
use liftplan_engine::ops as cpu;
use liftplan_engine::ops::attention::{Heads, Kept, Span};
use liftplan_engine::ops::matmul::{self, Into};
use liftplan_engine::rng::Random;
use liftplan_engine::storage::dynamic8::SIGNED;
use liftplan_engine::storage::nf4::{BLOCK_SIZES, Nf4, Nf4Options, Scales};

use crate::{Report, dora};

/// bf16 keeps 8 bits: half of the last is 2⁻⁹, and a result may be rounded after inputs that are exact.
pub(super) const BF16: f64 = 4e-3;

pub(super) struct Bench<'a> {
    pub context: &'a Context,
    random: Random,
    buffers: Vec<Buffer>,
}

/// Numbers that bf16 can hold.
fn rounded(values: Vec<f32>) -> Vec<f32> {
    values.into_iter().map(|x| bf16::from_f32(x).to_f32()).collect()
}

fn wide(values: Vec<bf16>) -> Vec<f32> {
    values.into_iter().map(bf16::to_f32).collect()
}

impl Bench<'_> {
    pub fn normal(&mut self, len: usize, mean: f32, spread: f32) -> Vec<f32> {
        rounded((0..len).map(|_| mean + spread * self.random.normal()).collect())
    }

    /// A matrix of NaNs, with room behind its rows.
    pub fn poisoned<T: Element>(&mut self, rows: usize, cols: usize, room: usize) -> View<T> {
        let buffer = Buffer::new(self.context, rows * (cols + room) * size_of::<T>()).unwrap();
        let whole = buffer.view::<T>(rows, cols + room);
        self.context.fill_bytes(whole, 0xff).unwrap();
        self.buffers.push(buffer);
        whole.slice_cols(0, cols)
    }

    pub fn narrow(&mut self, rows: usize, cols: usize, room: usize, values: &[f32]) -> View<bf16> {
        let view = self.poisoned(rows, cols, room);
        self.context.upload(view, &values.iter().map(|&x| bf16::from_f32(x)).collect::<Vec<_>>()).unwrap();
        view
    }

    pub fn put<T: Element>(&mut self, values: &[T]) -> View<T> {
        let view = self.poisoned(1, values.len(), 0);
        self.context.upload(view, values).unwrap();
        view
    }

    pub fn get(&self, view: View<bf16>) -> Vec<f32> {
        wide(self.context.download(view).unwrap())
    }
}

type Check = fn(&mut Bench<'_>, &mut Report);

pub fn check(context: &Context, report: &mut Report) {
    let mut bench = Bench { context, random: Random::new(5, 0), buffers: Vec::new() };
    let checks: [(&str, Check); 10] = [
        ("products", products),
        ("norm", norms),
        ("rope", ropes),
        ("swiglu", swiglus),
        ("loss", losses),
        ("embedding", embeddings),
        ("nf4", nf4),
        ("cache", caches),
        ("attention", attentions),
        ("dora", dora::check),
    ];
    for (name, check) in checks {
        if report.wants(name) {
            check(&mut bench, report);
            bench.buffers.clear();
        }
    }
}

fn products(bench: &mut Bench<'_>, report: &mut Report) {
    for [m, n, k] in [[64, 128, 96], [257, 48, 520], [16, 4096, 1000], [33, 151, 72]] {
        let alpha = 0.5;
        for layout in [Layout::Nt, Layout::Nn, Layout::Tn] {
            let (a_shape, b_shape) = match layout {
                Layout::Nt => ([m, k], [n, k]),
                Layout::Nn => ([m, k], [k, n]),
                Layout::Tn => ([k, m], [k, n]),
            };
            let (a, b) = (bench.normal(m * k, 0.0, 1.0), bench.normal(n * k, 0.0, 1.0));
            let mut expected = bench.normal(m * n, 0.0, 1.0);
            let before = expected.clone();
            let product = match layout {
                Layout::Nt => matmul::nt,
                Layout::Nn => matmul::nn,
                Layout::Tn => matmul::tn,
            };
            product(Into::Add, &mut expected, alpha, &a, &b, [m, n, k]);
            // Rows of activations and weights are padded to 16 bytes everywhere.
            let room = |cols: usize| cols.next_multiple_of(8) - cols + 8;
            let a = bench.narrow(a_shape[0], a_shape[1], room(a_shape[1]), &a);
            let b = bench.narrow(b_shape[0], b_shape[1], room(b_shape[1]), &b);
            let c = bench.narrow(m, n, room(n), &before);
            multiply(bench.context, layout, c, alpha, a, b, Some((1.0, c))).unwrap();
            report.compare(&format!("products: {layout:?} {m}x{n}x{k}, added"), &bench.get(c), &expected, BF16);
            let out = bench.poisoned::<f32>(m, n, 0);
            multiply(bench.context, layout, out, alpha, a, b, None).unwrap();
            let found = bench.context.download(out).unwrap();
            let without: Vec<f32> = expected.iter().zip(&before).map(|(x, y)| x - y).collect();
            report.compare(&format!("products: {layout:?} {m}x{n}x{k}, f32"), &found, &without, 1e-5);
        }
    }
}

fn norms(bench: &mut Bench<'_>, report: &mut Report) {
    let context = bench.context;
    for [rows, n] in [[5, 64], [67, 576], [33, 4096], [3, 5128], [9, 16384]] {
        let (x, dy, residual) =
            (bench.normal(rows * n, 0.1, 1.0), bench.normal(rows * n, 0.0, 1.0), bench.normal(rows * n, 0.0, 1.0));
        let w = bench.normal(n, 1.0, 0.3);
        let (mut y, mut inverse) = (vec![0.0; rows * n], vec![0.0; rows]);
        cpu::rms_norm::forward(&mut y, &mut inverse, &x, &w, 1e-5);
        let mut dx = residual.clone();
        cpu::rms_norm::backward_input(true, &mut dx, &dy, &x, &inverse, &w);
        let mut dw = vec![0.0; n];
        cpu::rms_norm::backward_weight(&mut dw, &dy, &x, &inverse);
        let order: Vec<i32> = (0..rows as i32).rev().collect();
        let (x, dy, residual) =
            (bench.narrow(rows, n, 64, &x), bench.narrow(rows, n, 0, &dy), bench.narrow(rows, n, 8, &residual));
        let (w, order) = (bench.put(&w), bench.put(&order));
        let out = bench.poisoned(rows, n, 64);
        ops::rms_norm(context, out, x, w, None, 1e-5).unwrap();
        report.compare(&format!("norm: forward {rows}x{n}"), &bench.get(out), &y, BF16);
        ops::rms_norm(context, out, x, w, Some(order), 1e-5).unwrap();
        let turned: Vec<f32> = y.chunks(n).rev().flatten().copied().collect();
        report.compare(&format!("norm: chosen rows {rows}x{n}"), &bench.get(out), &turned, BF16);
        let roots = bench.poisoned(1, rows, 0);
        ops::rms_norm_backward(context, residual, Some(roots), dy, x, w, Some(residual), None, 1e-5).unwrap();
        report.compare(&format!("norm: backward {rows}x{n}"), &bench.get(residual), &dx, BF16);
        let (grad, parts) = (bench.put(&vec![0.0_f32; n]), bench.poisoned(1, ops::parts_len(rows, n), 0));
        ops::rms_norm_weight(context, grad, dy, x, roots, None, parts).unwrap();
        report.compare(&format!("norm: weight {rows}x{n}"), &context.download(grad).unwrap(), &dw, 1e-4);
    }
}

fn ropes(bench: &mut Bench<'_>, report: &mut Report) {
    let context = bench.context;
    for (dim, heads, kv_heads, normed, biased, scaled) in [
        (64, 3, 1, false, false, false),
        (80, 4, 2, true, false, false),
        (96, 2, 2, false, true, false),
        (128, 8, 2, true, true, false),
        (256, 5, 1, true, false, false),
        (16, 4, 4, true, false, false),
        (64, 3, 1, false, false, true),
        (80, 4, 2, true, true, true),
        (128, 8, 2, true, false, true),
    ] {
        let (tokens, half, cols) = (37, dim / 2, (heads + 2 * kv_heads) * dim);
        let (q_cols, rotated_cols) = (heads * dim, (heads + kv_heads) * dim);
        let frequencies: Vec<f32> = (0..half).map(|i| 100_f32.powf(-2.0 * i as f32 / dim as f32)).collect();
        let positions: Vec<u32> = (0..tokens as u32).map(|i| i * 7 % 50).collect();
        let table = cpu::rope::Table::new(&frequencies, 50);
        let mut angles = Vec::new();
        for position in 0..50 {
            let at = |f: &f32| f64::from(position as f32 * f);
            angles.extend(frequencies.iter().map(|f| at(f).cos() as f32));
            angles.extend(frequencies.iter().map(|f| at(f).sin() as f32));
        }
        let x = bench.normal(tokens * cols, 0.0, 1.0);
        let bias = biased.then(|| bench.normal(cols, 0.0, 1.0));
        let (wq, wk) = (bench.normal(dim, 1.0, 0.3), bench.normal(dim, 1.0, 0.3));
        let dy = bench.normal(tokens * cols, 0.0, 1.0);
        let factor = scaled.then(|| bench.normal(cols, 1.0, 0.3));
        // The CPU's: queries and keys apart.
        let mut expected = x.clone();
        if let Some(factor) = &factor {
            for row in expected.chunks_mut(cols) {
                row.iter_mut().zip(factor).for_each(|(x, f)| *x *= f);
            }
        }
        if let Some(bias) = &bias {
            for row in expected.chunks_mut(cols) {
                row.iter_mut().zip(bias).for_each(|(x, b)| *x += b);
            }
        }
        let part = |values: &[f32], from: usize, to: usize| -> Vec<f32> {
            values.chunks(cols).flat_map(|row| row[from..to].to_vec()).collect()
        };
        let mut d_expected = dy.clone();
        let mut weight_grads = Vec::new();
        for (from, to, w) in [(0, q_cols, &wq), (q_cols, rotated_cols, &wk)] {
            let before = part(&expected, from, to);
            let (mut y, mut inverse) = (before.clone(), vec![0.0; before.len() / dim]);
            if normed {
                cpu::rms_norm::forward(&mut y, &mut inverse, &before, w, 1e-6);
            }
            cpu::rope::forward(&mut y, &table, &positions);
            let mut d = part(&dy, from, to);
            cpu::rope::backward(&mut d, &table, &positions);
            let mut dw = vec![0.0; dim];
            if normed {
                let turned = d.clone();
                cpu::rms_norm::backward_weight(&mut dw, &turned, &before, &inverse);
                cpu::rms_norm::backward_input(false, &mut d, &turned, &before, &inverse, w);
            }
            weight_grads.push(dw);
            for (row, (y, d)) in y.chunks(to - from).zip(d.chunks(to - from)).enumerate() {
                expected[row * cols + from..row * cols + to].copy_from_slice(y);
                d_expected[row * cols + from..row * cols + to].copy_from_slice(d);
            }
        }
        let shape = ops::Heads {
            heads,
            kv_heads,
            dim,
            q_norm: normed.then(|| bench.put(&wq)),
            k_norm: normed.then(|| bench.put(&wk)),
            bias: bias.map(|bias| bench.put(&bias)),
            factor: factor.map(|factor| bench.put(&factor)),
            eps: 1e-6,
        };
        let signed: Vec<i32> = positions.iter().map(|&p| p as i32).collect();
        let (positions, angles) = (bench.put(&signed), bench.put(&angles));
        let (from, to) = (bench.narrow(tokens, cols, 64, &x), bench.poisoned(tokens, cols, 0));
        let name =
            format!("rope: {heads}/{kv_heads} heads of {dim}, norms {normed}, biases {biased}, factors {scaled}");
        ops::rope(context, &shape, to, from, positions, angles).unwrap();
        report.compare(&format!("{name}, forward"), &bench.get(to), &expected, BF16);
        let d = bench.narrow(tokens, cols, 64, &dy);
        let grads = [bench.put(&vec![0.0_f32; dim]), bench.put(&vec![0.0_f32; dim])];
        let parts = bench.poisoned(1, ops::rope_parts_len(dim), 0);
        let norm_grads = normed.then_some((grads.map(Some), parts));
        ops::rope_backward(context, &shape, d, from, positions, angles, norm_grads).unwrap();
        report.compare(&format!("{name}, backward"), &bench.get(d), &d_expected, BF16);
        if normed {
            for (which, grad) in grads.iter().enumerate() {
                let found = context.download(*grad).unwrap();
                report.compare(&format!("{name}, norm {which}"), &found, &weight_grads[which], 1e-4);
            }
        }
        let d = bench.narrow(tokens, cols, 64, &dy);
        ops::rope_backward(context, &shape, d, from, positions, angles, None).unwrap();
        report.compare(&format!("{name}, backward alone"), &bench.get(d), &d_expected, BF16);
    }
}

fn swiglus(bench: &mut Bench<'_>, report: &mut Report) {
    for [rows, n] in [[3, 8], [17, 1536], [5, 12288], [29, 104]] {
        let (gate, up, dy) =
            (bench.normal(rows * n, 0.0, 2.0), bench.normal(rows * n, 0.0, 1.0), bench.normal(rows * n, 0.0, 1.0));
        let mut y = vec![0.0; rows * n];
        cpu::swiglu::forward(&mut y, &gate, &up);
        let both: Vec<f32> = gate.chunks(n).zip(up.chunks(n)).flat_map(|(g, u)| [g, u].concat()).collect();
        let (mut d_gate, mut d_up) = (gate, up);
        cpu::swiglu::backward(&mut d_gate, &mut d_up, &dy);
        let d_both: Vec<f32> = d_gate.chunks(n).zip(d_up.chunks(n)).flat_map(|(g, u)| [g, u].concat()).collect();
        let gate_up = bench.narrow(rows, 2 * n, 64, &both);
        let out = bench.poisoned(rows, n, 64);
        ops::swiglu(bench.context, out, gate_up).unwrap();
        report.compare(&format!("swiglu: forward {rows}x{n}"), &bench.get(out), &y, BF16);
        let d = bench.narrow(rows, n, 0, &dy);
        ops::swiglu_backward(bench.context, gate_up, d, true).unwrap();
        let found = bench.get(gate_up);
        report.compare(&format!("swiglu: backward {rows}x{n}"), &found, &d_both, BF16);
        report.compare(&format!("swiglu: activation again {rows}x{n}"), &bench.get(d), &y, BF16);
        let (gate_up, d) = (bench.narrow(rows, 2 * n, 64, &both), bench.narrow(rows, n, 0, &dy));
        ops::swiglu_backward(bench.context, gate_up, d, false).unwrap();
        report.compare(&format!("swiglu: backward alone {rows}x{n}"), &bench.get(gate_up), &found, 0.0);
        report.compare(&format!("swiglu: its gradient left alone {rows}x{n}"), &bench.get(d), &dy, 0.0);
    }
}

fn losses(bench: &mut Bench<'_>, report: &mut Report) {
    for [rows, vocab] in [[7, 67], [13, 32003], [5, 151_936], [3, 8]] {
        let logits = bench.normal(rows * vocab, 0.0, 3.0);
        let targets: Vec<u32> = (0..rows).map(|i| (i * 7919 % vocab) as u32).collect();
        let (mut expected, mut d) = (vec![0.0; rows], logits.clone());
        cpu::cross_entropy::rows(&mut expected, &mut d, &targets, Some(0.25));
        let room = vocab.next_multiple_of(64) - vocab;
        let view = bench.narrow(rows, vocab, room, &logits);
        let targets = bench.put(&targets.iter().map(|&t| t as i32).collect::<Vec<_>>());
        let (losses, scale) = (bench.poisoned(1, rows, 0), bench.put(&[0.25_f32]));
        ops::cross_entropy(bench.context, losses, view, targets, None).unwrap();
        report.compare(&format!("loss: {rows}x{vocab}"), &bench.context.download(losses).unwrap(), &expected, 1e-5);
        report.compare(&format!("loss: logits left alone {rows}x{vocab}"), &bench.get(view), &logits, 0.0);
        ops::cross_entropy(bench.context, losses, view, targets, Some(scale)).unwrap();
        report.compare(&format!("loss: gradient {rows}x{vocab}"), &bench.get(view), &d, BF16);
    }
}

fn embeddings(bench: &mut Bench<'_>, report: &mut Report) {
    let (vocab, n) = (50, 72);
    let table = bench.normal(vocab * n, 0.0, 1.0);
    let ids: Vec<u32> = (0..91).map(|i| i * i % 17).collect();
    let dy = bench.normal(ids.len() * n, 0.0, 1.0);
    let expected: Vec<f32> = ids.iter().flat_map(|&id| table[id as usize * n..][..n].to_vec()).collect();
    let mut d_table = vec![0.0; vocab * n];
    cpu::embedding::backward(&mut d_table, &dy, &ids);
    let mut places = std::collections::BTreeMap::<u32, Vec<i32>>::new();
    for (place, &id) in ids.iter().enumerate() {
        places.entry(id).or_default().push(place as i32);
    }
    let mut starts = vec![0];
    for list in places.values() {
        starts.push(starts[starts.len() - 1] + list.len() as i32);
    }
    let table = bench.narrow(vocab, n, 0, &table);
    let signed = bench.put(&ids.iter().map(|&id| id as i32).collect::<Vec<_>>());
    let out = bench.poisoned(ids.len(), n, 8);
    ops::embed(bench.context, out, table, signed).unwrap();
    report.compare("embedding: forward", &bench.get(out), &expected, 0.0);
    let lists = [
        bench.put(&places.keys().map(|&id| id as i32).collect::<Vec<_>>()),
        bench.put(&starts),
        bench.put(&places.into_values().flatten().collect::<Vec<_>>()),
    ];
    let dy = bench.narrow(ids.len(), n, 8, &dy);
    let grad = bench.put(&vec![0.0_f32; vocab * n]).reshaped(vocab, n);
    ops::embed_backward(bench.context, grad, dy, lists).unwrap();
    report.compare("embedding: backward", &bench.context.download(grad).unwrap(), &d_table, 1e-6);
}

fn nf4(bench: &mut Bench<'_>, report: &mut Report) {
    let context = bench.context;
    for [rows, cols] in [[3, 64], [1, 8], [5, 72], [7, 1000], [96, 576], [1024, 4096]] {
        let w = bench.normal(rows * cols, 0.0, 0.02);
        let view = bench.narrow(rows, cols, 64, &w);
        for block in BLOCK_SIZES {
            for double in [false, true] {
                let name = format!("nf4: {rows}x{cols}, blocks of {block}, double {double}");
                let options = Nf4Options { block_size: block, double_quantization: double };
                let expected = Nf4::quantise(&w, options).unwrap();
                let mut numbers = vec![0.0; w.len()];
                expected.read(0, &mut numbers);
                let mut slab = Slab::new(context);
                let map = bench.put(&SIGNED.values);
                let packed = Packed::new(&mut slab, [rows, cols], block, double.then_some(map)).unwrap();
                let unpacked = |bench: &mut Bench<'_>| {
                    let out = bench.poisoned(rows, cols, 64);
                    packed.unpack(context, out).unwrap();
                    bench.get(out)
                };
                let scratch = bench.poisoned(1, packed.scratch_len().max(1), 0);
                packed.pack(context, view, scratch).unwrap();
                // The same bits; with quantised maxima but for the sum that their mean is made of.
                let found = unpacked(bench);
                report.compare(&name, &found, &rounded(numbers.clone()), if double { 5e-3 } else { 0.0 });
                let parts = match expected.scales() {
                    Scales::Plain(scales) => Parts::Single(expected.codes(), scales),
                    Scales::Double { codes, absmax, offset } => {
                        Parts::Double(expected.codes(), codes, absmax, &[], *offset)
                    }
                };
                packed.load(context, parts).unwrap();
                // A product and a sum in one may round a maximum otherwise.
                let found = unpacked(bench);
                report.compare(&format!("{name}, loaded"), &found, &rounded(numbers), if double { 5e-4 } else { 0.0 });
            }
        }
    }
}

fn caches(bench: &mut Bench<'_>, report: &mut Report) {
    for (dim, heads, kv_heads, window, first, count) in [
        (64, 4, 2, None, 0, 5),
        (128, 8, 1, None, 100, 1),
        (80, 3, 3, Some(17), 60, 3),
        (256, 2, 1, None, 9, 2),
        // Many stretches of keys; key heads of 1 to 7 queries; a window that begins inside.
        (128, 8, 2, None, 3000, 1),
        (64, 9, 3, None, 1000, 2),
        (128, 7, 1, None, 700, 3),
        (96, 10, 2, Some(900), 2500, 2),
        (24, 6, 1, None, 500, 1),
    ] {
        let total = first + count;
        let (q, k, v) = (
            bench.normal(count * heads * dim, 0.0, 1.0),
            bench.normal(total * kv_heads * dim, 0.0, 1.0),
            bench.normal(total * kv_heads * dim, 0.0, 1.0),
        );
        let shape = Heads { queries: heads, keys: kv_heads, dim, window };
        let (mut out, mut lse) = (vec![0.0; q.len()], vec![0.0; count * heads]);
        let span = Span { query_start: 0, queries: count, key_start: 0, keys: total };
        cpu::attention::forward(&mut out, &mut lse, [&q, &k, &v], &[span], shape);
        let shape = Shape { heads, kv_heads, dim, window, scale: 1.0 / (dim as f32).sqrt(), unordered: false };
        let (q, k, v) = (
            bench.narrow(count, heads * dim, 64, &q),
            bench.narrow(total, kv_heads * dim, 0, &k),
            bench.narrow(total, kv_heads * dim, 0, &v),
        );
        let found = bench.poisoned(count, heads * dim, 8);
        let parts = attention::decode_parts_len(bench.context, &shape, count, first);
        let parts = bench.poisoned(1, parts.max(1), 0);
        attention::decode(bench.context, &shape, q, [k, v], first, found, parts).unwrap();
        let name = format!("cache: {heads}/{kv_heads} heads of {dim}, {count} behind {first}, window {window:?}");
        report.compare(&name, &bench.get(found), &out, BF16);
    }
}

fn attentions(bench: &mut Bench<'_>, report: &mut Report) {
    let context = bench.context;
    for (dim, heads, kv_heads, window, lengths) in [
        (64, 4, 4, None, vec![7, 1, 130, 64]),
        (80, 4, 2, None, vec![65, 33]),
        (96, 8, 1, None, vec![200]),
        (128, 8, 2, None, vec![129, 3, 256]),
        (128, 4, 1, Some(40), vec![150, 90]),
        (128, 8, 2, None, vec![192, 192]),
        (256, 2, 1, None, vec![77, 12]),
    ] {
        let mut starts = vec![0_u32];
        for len in lengths {
            starts.push(starts[starts.len() - 1] + len);
        }
        let tokens = starts[starts.len() - 1] as usize;
        let (q_cols, k_cols) = (heads * dim, kv_heads * dim);
        let cols = q_cols + 2 * k_cols;
        let qkv = bench.normal(tokens * cols, 0.0, 1.0);
        let d_out = bench.normal(tokens * q_cols, 0.0, 1.0);
        let part =
            |from: usize, to: usize| -> Vec<f32> { qkv.chunks(cols).flat_map(|row| row[from..to].to_vec()).collect() };
        let (q, k, v) = (part(0, q_cols), part(q_cols, q_cols + k_cols), part(q_cols + k_cols, cols));
        let shape = Heads { queries: heads, keys: kv_heads, dim, window };
        let spans = Span::documents(&starts);
        let (mut out, mut lse) = (vec![0.0; q.len()], vec![0.0; tokens * heads]);
        cpu::attention::forward(&mut out, &mut lse, [&q, &k, &v], &spans, shape);
        let (mut dq, mut dk, mut dv) = (vec![0.0; q.len()], vec![0.0; k.len()], vec![0.0; v.len()]);
        let kept = Kept { q: &q, k: &k, v: &v, out: &out, lse: &lse };
        cpu::attention::backward([&mut dq, &mut dk, &mut dv], &d_out, kept, &spans, shape);
        let shape = Shape { heads, kv_heads, dim, window, scale: 1.0 / (dim as f32).sqrt(), unordered: false };
        let (_starts, documents) = Documents::upload(context, starts).unwrap();
        let name =
            format!("attention: {heads}/{kv_heads} heads of {dim}, {} documents, window {window:?}", documents.count());
        let view = bench.narrow(tokens, cols, 64, &qkv);
        let d_view = bench.narrow(tokens, q_cols, 0, &d_out);
        let workspace = bench.poisoned::<u8>(1, attention::workspace_bytes(context, &shape, &documents).max(1), 0);
        let mut first: Option<Vec<f32>> = None;
        for run in 0..2 {
            let (found, found_lse) = (bench.poisoned(tokens, q_cols, 64), bench.poisoned::<f32>(heads, tokens, 0));
            let made = attention::Kept { qkv: view, out: found, lse: found_lse };
            attention::forward(context, &shape, &documents, made).unwrap();
            let d_found = bench.poisoned(tokens, cols, 64);
            attention::backward(context, &shape, &documents, made, [d_view, d_found], workspace).unwrap();
            let (out_found, d_found) = (bench.get(found), bench.get(d_found));
            if run == 0 {
                let lse_found = context.download(found_lse).unwrap();
                let turned: Vec<f32> = documents
                    .host
                    .windows(2)
                    .flat_map(|pair| (0..heads).map(move |head| (pair[0] as usize..pair[1] as usize, head)))
                    .flat_map(|(rows, head)| rows.map(move |row| (row, head)))
                    .map(|(row, head)| lse[row * heads + head])
                    .collect();
                report.compare(&format!("{name}, forward"), &out_found, &out, 6e-3);
                report.compare(&format!("{name}, log of sums"), &lse_found, &turned, 1e-3);
                let part = |from: usize, to: usize| -> Vec<f32> {
                    d_found.chunks(cols).flat_map(|row| row[from..to].to_vec()).collect()
                };
                report.compare(&format!("{name}, dq"), &part(0, q_cols), &dq, 1e-2);
                report.compare(&format!("{name}, dk"), &part(q_cols, q_cols + k_cols), &dk, 1e-2);
                report.compare(&format!("{name}, dv"), &part(q_cols + k_cols, cols), &dv, 1e-2);
            }
            let both = [out_found, d_found].concat();
            match &first {
                None => first = Some(both),
                Some(first) => report.holds(&format!("{name}, the same bits again"), *first == both),
            }
        }
    }
}
