//! DoRA's kernels against the definition, at odd and even shapes, with memory poisoned before, and run twice.

use liftplan_engine::cuda::dora::{self, Around, Reading};
use liftplan_engine::cuda::{View, ops};

use crate::Report;
use crate::ops::{BF16, Bench};

pub fn check(bench: &mut Bench<'_>, report: &mut Report) {
    norms(bench, report);
    outputs(bench, report);
    magnitudes(bench, report);
    activations(bench, report);
}

fn norms(bench: &mut Bench<'_>, report: &mut Report) {
    let context = bench.context;
    // The last: what the adapter adds is larger than the weight, and its rank than a warp.
    for ([outputs, inputs], rank, padded, spread) in
        [([5, 8], 3, 8, 0.3), ([64, 576], 4, 64, 0.1), ([1000, 4096], 16, 16, 0.05), ([33, 72], 40, 64, 0.5)]
    {
        let w = bench.normal(outputs * inputs, 0.0, 0.05);
        let (a, b) = (bench.normal(rank * inputs, 0.0, 0.1), bench.normal(outputs * rank, 0.0, spread));
        let magnitude = bench.normal(outputs, 1.0, 0.3);
        let dot = |a: &[f32], b: &[f32]| -> f32 { a.iter().zip(b).map(|(a, b)| a * b).sum() };
        let mut norm = Vec::new();
        for (w, b) in w.chunks(inputs).zip(b.chunks(rank)) {
            let merged = |c: usize| {
                let added: f64 = (0..rank).map(|k| f64::from(b[k]) * f64::from(a[k * inputs + c])).sum();
                f64::from(w[c]) + added
            };
            norm.push((0..inputs).map(|c| merged(c).powi(2)).sum::<f64>().sqrt() as f32);
        }
        let factor: Vec<f32> = magnitude.iter().zip(&norm).map(|(m, n)| m / n).collect();
        // The adapter's columns are some in the middle of the group's.
        let at = (padded - rank).min(1);
        let wide: Vec<f32> = (w.chunks(inputs).zip(b.chunks(rank)))
            .flat_map(|(w, b)| {
                let mut row = w.to_vec();
                row.resize(inputs + padded, f32::NAN);
                row[inputs + at..inputs + at + rank].copy_from_slice(b);
                row
            })
            .collect();
        let mut crossed = vec![f32::NAN; outputs * padded];
        let mut gram = vec![f32::NAN; padded * padded];
        for k in 0..rank {
            let a_k = &a[k * inputs..(k + 1) * inputs];
            for (row, w) in w.chunks(inputs).enumerate() {
                crossed[row * padded + at + k] = dot(w, a_k);
            }
            for j in 0..rank {
                gram[(at + k) * padded + at + j] = dot(a_k, &a[j * inputs..(j + 1) * inputs]);
            }
        }
        let w = bench.narrow(outputs, inputs + padded, 0, &wide).slice_cols(0, inputs);
        let square: View<f32> = bench.poisoned(1, outputs, 8);
        dora::squares(context, square, w).unwrap();
        let around = Around {
            square,
            b: w.slice_cols(inputs + at, rank),
            cross: bench.put(&crossed).reshaped(outputs, padded).slice_cols(at, rank),
            gram: bench.put(&gram).reshaped(padded, padded).slice_rows(at, rank).slice_cols(at, rank),
        };
        let values: View<f32> = bench.put(&magnitude);
        let found: [View<f32>; 2] = [bench.poisoned(1, outputs, 8), bench.poisoned(1, outputs, 8)];
        dora::norms(context, found, Some(values), around).unwrap();
        let name = format!("dora: norms of {outputs}x{inputs}, rank {rank}");
        let expected: Vec<f32> =
            wide.chunks(inputs + padded).map(|row| row[..inputs].iter().map(|x| x * x).sum()).collect();
        report.compare(&format!("{name}, squares"), &context.download(square).unwrap(), &expected, 1e-5);
        report.compare(&name, &context.download(found[0]).unwrap(), &norm, 1e-5);
        report.compare(&format!("{name}, factors"), &context.download(found[1]).unwrap(), &factor, 1e-5);
        // Without magnitudes factors stay as they are.
        dora::norms(context, [found[0], values], None, around).unwrap();
        report.holds(&format!("{name}, alone"), context.download(values).unwrap() == magnitude);
    }
    // Nothing at all; what the adapter takes away in one number, and in eight, whose sums round; and a weight alone.
    let w = [[0.0; 8], [3.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0], [0.3; 8], [1.0; 8]];
    let (a, b) =
        ([[1.0_f32, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0], [1.0; 8]], [[0.0, 0.0], [-3.0, 0.0], [0.0, -0.3], [0.0; 2]]);
    let rows: Vec<f32> = w.iter().zip(&b).flat_map(|(w, b)| w.iter().chain(b).chain(&[f32::NAN; 6]).copied()).collect();
    let rows = bench.narrow(4, 16, 0, &rows);
    let dot = |a: &[f32; 8], b: &[f32; 8]| -> f32 { a.iter().zip(b).map(|(a, b)| a * b).sum() };
    // The numbers that lie there.
    let on_card: Vec<[f32; 8]> = bench.get(rows).chunks(16).map(|row| std::array::from_fn(|i| row[i])).collect();
    let crossed: Vec<f32> = on_card.iter().flat_map(|w| a.iter().map(move |a| dot(w, a))).collect();
    let gram: Vec<f32> = a.iter().flat_map(|x| a.iter().map(move |y| dot(x, y))).collect();
    let square: View<f32> = bench.poisoned(1, 4, 0);
    dora::squares(context, square, rows.slice_cols(0, 8)).unwrap();
    let around = Around {
        square,
        b: rows.slice_cols(8, 2),
        cross: bench.put(&crossed).reshaped(4, 2),
        gram: bench.put(&gram).reshaped(2, 2),
    };
    let found: [View<f32>; 2] = [bench.poisoned(1, 4, 0), bench.poisoned(1, 4, 0)];
    let magnitude: View<f32> = bench.put(&[2.0_f32; 4]);
    dora::norms(context, found, Some(magnitude), around).unwrap();
    let [norm, factor] = found.map(|view| context.download(view).unwrap());
    report.holds("dora: rows of zeros have factors of 1", norm[..2] == [0.0; 2] && factor[..2] == [1.0; 2]);
    report.holds("dora: what cancels is near zero", (0.0..1e-3).contains(&norm[2]) && factor[2].is_finite());
    report.compare("dora: a weight alone", &[norm[3], factor[3]], &[8_f32.sqrt(), 2.0 / 8_f32.sqrt()], 1e-6);
}

fn outputs(bench: &mut Bench<'_>, report: &mut Report) {
    let context = bench.context;
    for [rows, n] in [[1, 8], [67, 576], [33, 4096], [5, 2056]] {
        let (r, p, add) =
            (bench.normal(rows * n, 0.0, 1.0), bench.normal(rows * n, 0.0, 1.0), bench.normal(rows * n, 0.0, 1.0));
        let (factor, bias) = (bench.normal(n, 1.0, 0.3), bench.normal(n, 0.0, 1.0));
        let at = |i: usize| (factor[i % n], bias[i % n]);
        let (factor_view, bias_view) = (bench.put(&factor), bench.put(&bias));
        let (wide_r, wide_p) = (bench.put(&r).reshaped(rows, n), bench.put(&p).reshaped(rows, n));
        let (narrow_p, narrow_add) = (bench.narrow(rows, n, 8, &p), bench.narrow(rows, n, 16, &add));
        for biased in [false, true] {
            let reading = Reading { factor: factor_view, bias: biased.then_some(bias_view) };
            let b = |i: usize| if biased { at(i).1 } else { 0.0 };
            let name = format!("dora: {rows}x{n}, bias {biased}");
            let expected: Vec<f32> = (0..rows * n).map(|i| add[i] + at(i).0 * p[i] + b(i)).collect();
            let y = bench.poisoned(rows, n, 64);
            dora::add(context, y, narrow_add, narrow_p, reading).unwrap();
            report.compare(&format!("{name}, added"), &bench.get(y), &expected, BF16);
            let in_place = bench.narrow(rows, n, 8, &add);
            dora::add(context, in_place, in_place, narrow_p, reading).unwrap();
            report.holds(&format!("{name}, in place"), bench.get(in_place) == bench.get(y));
            for adds in [false, true] {
                let mixed = |i: usize| r[i] + (at(i).0 - 1.0) * p[i] + b(i) + if adds { add[i] } else { 0.0 };
                let expected: Vec<f32> = (0..rows * n).map(mixed).collect();
                let y = bench.poisoned(rows, n, 8);
                dora::mix(context, y, [wide_r, wide_p], reading, adds.then_some(narrow_add)).unwrap();
                report.compare(&format!("{name}, mixed, added {adds}"), &bench.get(y), &expected, BF16);
            }
        }
        let expected: Vec<f32> = (0..rows * n).map(|i| (at(i).0 - 1.0) * p[i]).collect();
        let to = bench.poisoned(rows, n, 64);
        dora::scale(context, to, narrow_p, factor_view, 1.0).unwrap();
        report.compare(&format!("dora: {rows}x{n}, beyond"), &bench.get(to), &expected, BF16);
        let expected: Vec<f32> = (0..rows * n).map(|i| at(i).0 * p[i]).collect();
        dora::scale(context, narrow_p, narrow_p, factor_view, 0.0).unwrap();
        report.compare(&format!("dora: {rows}x{n}, scaled in place"), &bench.get(narrow_p), &expected, BF16);
    }
}

fn magnitudes(bench: &mut Bench<'_>, report: &mut Report) {
    let context = bench.context;
    for [rows, n] in [[1, 8], [64, 576], [65, 1032], [1000, 4096]] {
        let (dy, p) = (bench.normal(rows * n, 0.1, 1.0), bench.normal(rows * n, 0.1, 1.0));
        let (norm, before) = (bench.normal(n, 2.0, 0.3), bench.normal(n, 0.0, 1.0));
        let sum = |c: usize| (0..rows).map(|r| f64::from(dy[r * n + c]) * f64::from(p[r * n + c])).sum::<f64>();
        let expected: Vec<f32> = (0..n).map(|c| (f64::from(before[c]) + sum(c) / f64::from(norm[c])) as f32).collect();
        let (dy, p) = (bench.narrow(rows, n, 64, &dy), bench.narrow(rows, n, 8, &p));
        let norm = bench.put(&norm);
        let mut found = Vec::new();
        for _ in 0..2 {
            let (grad, parts) = (bench.put(&before), bench.poisoned(1, dora::parts_len(rows, n), 0));
            dora::magnitude(context, grad, [dy, p], norm, parts).unwrap();
            found.push(context.download(grad).unwrap());
        }
        report.compare(&format!("dora: magnitudes of {rows}x{n}"), &found[0], &expected, 1e-5);
        report.holds(&format!("dora: magnitudes of {rows}x{n}, the same bits again"), found[0] == found[1]);
    }
}

fn activations(bench: &mut Bench<'_>, report: &mut Report) {
    let context = bench.context;
    for [rows, n] in [[1, 8], [3, 104], [64, 1536], [130, 1032]] {
        let products = bench.normal(rows * 2 * n, 0.0, 1.0);
        let dy = bench.normal(rows * n, 0.0, 1.0);
        let (factor, bias) = (bench.normal(2 * n, 1.0, 0.3), bench.normal(2 * n, 0.0, 0.5));
        let norm = bench.normal(2 * n, 2.0, 0.3);
        for biased in [false, true] {
            let at =
                |c: usize, p: f32| f64::from(factor[c]) * f64::from(p) + if biased { f64::from(bias[c]) } else { 0.0 };
            let (mut y, mut d_products) = (vec![0.0; rows * n], vec![0.0; rows * 2 * n]);
            let (mut d_magnitude, mut d_bias) = (vec![0.0_f64; 2 * n], vec![0.0_f64; 2 * n]);
            for row in 0..rows {
                for c in 0..n {
                    let place = [row * 2 * n + c, row * 2 * n + n + c];
                    let [gate, up] = [at(c, products[place[0]]), at(n + c, products[place[1]])];
                    let s = 1.0 / (1.0 + (-gate).exp());
                    let d = f64::from(dy[row * n + c]);
                    y[row * n + c] = (gate * s * up) as f32;
                    let d_both = [d * up * s * (1.0 + gate * (1.0 - s)), d * gate * s];
                    for ((place, c), d) in place.into_iter().zip([c, n + c]).zip(d_both) {
                        d_products[place] = (f64::from(factor[c]) * d) as f32;
                        d_magnitude[c] += d * f64::from(products[place]) / f64::from(norm[c]);
                        d_bias[c] += d;
                    }
                }
            }
            let narrowed = |values: Vec<f64>| values.into_iter().map(|x| x as f32).collect::<Vec<_>>();
            let (d_magnitude, d_bias) = (narrowed(d_magnitude), narrowed(d_bias));
            let reading = Reading { factor: bench.put(&factor), bias: biased.then(|| bench.put(&bias)) };
            let norm = bench.put(&norm);
            let name = format!("dora: activation {rows}x{n}, bias {biased}");
            let (view, out) = (bench.narrow(rows, 2 * n, 64, &products), bench.poisoned(rows, n, 8));
            dora::swiglu(context, out, view, reading).unwrap();
            report.compare(&format!("{name}, forward"), &bench.get(out), &y, BF16);
            for again in [true, false] {
                let view = bench.narrow(rows, 2 * n, 64, &products);
                let d = bench.narrow(rows, n, 8, &dy);
                let len = dora::parts_len(rows, 2 * n);
                let (parts, bias_parts) = (bench.poisoned(1, len, 0), bench.poisoned(1, len, 0));
                let with_bias = again.then_some(bias_parts);
                dora::swiglu_backward(context, view, d, reading, (parts, with_bias), again).unwrap();
                report.compare(&format!("{name}, again {again}, products"), &bench.get(view), &d_products, BF16);
                // The activation is the forward pass's to the bit.
                let expected = if again { bench.get(out) } else { dy.clone() };
                report.holds(&format!("{name}, again {again}, in its place"), bench.get(d) == expected);
                for (at, which) in [(0, "gate"), (n, "up")] {
                    let (grad, bias_grad) = (bench.put(&vec![0.0_f32; n]), bench.put(&vec![0.0_f32; n]));
                    let of_part = norm.slice_cols(at, n);
                    dora::add_magnitude(context, grad, of_part, parts.slice_cols(at, n), 2 * n, rows).unwrap();
                    let found = context.download(grad).unwrap();
                    report.compare(&format!("{name}, magnitudes of {which}"), &found, &d_magnitude[at..at + n], 1e-4);
                    if let Some(parts) = with_bias {
                        dora::add_bias(context, bias_grad, parts, [at, 2 * n], rows).unwrap();
                        let found = context.download(bias_grad).unwrap();
                        report.compare(&format!("{name}, biases of {which}"), &found, &d_bias[at..at + n], 1e-4);
                    }
                }
            }
        }
    }
    // Factors of 1 change nothing.
    let (rows, n) = (17, 264);
    let products = bench.normal(rows * 2 * n, 0.0, 1.0);
    let view = bench.narrow(rows, 2 * n, 0, &products);
    let (plain, with_factors) = (bench.poisoned(rows, n, 0), bench.poisoned(rows, n, 0));
    ops::swiglu(context, plain, view).unwrap();
    let reading = Reading { factor: bench.put(&vec![1.0_f32; 2 * n]), bias: None };
    dora::swiglu(context, with_factors, view, reading).unwrap();
    report.holds("dora: factors of 1", bench.get(plain) == bench.get(with_factors));
}
