//! Layers over weights in 4, 8 and 16 bits: the same as over the dequantised numbers, forward and backward, and with
//! memory near the packed size.
#![allow(clippy::unwrap_used)]

use half::bf16;
use liftplan_engine::mat::Mat;
use liftplan_engine::ops::matmul::Into;
use liftplan_engine::optim::{AdamW, AdamWOptions, Bf16Update, Buffer, LEAST_FOR_PAGES, Moment, Pages};
use liftplan_engine::rng::Random;
use liftplan_engine::{Adapter, AdapterOptions, Int8, Linear, Nf4, Nf4Options, Param, Pool, Weight};

fn random(seed: u32, len: usize) -> Vec<f32> {
    let mut random = Random::new(7, seed);
    (0..len).map(|_| 0.3 * random.normal()).collect()
}

fn formats(values: &[f32], cols: usize) -> Vec<Weight> {
    let nf4 = |double_quantization| {
        Weight::Nf4(Nf4::quantise(values, Nf4Options { block_size: 64, double_quantization }).unwrap())
    };
    let half = values.iter().map(|value| bf16::from_f32(*value)).collect();
    vec![nf4(false), nf4(true), Weight::Int8(Int8::quantise(values, cols).unwrap()), Weight::Bf16(half)]
}

fn layer(weight: Weight, [out, input]: [usize; 2], dora: bool) -> Linear {
    let rank = 3;
    let trained = |name: &str, rows, cols, seed| {
        Param::trained(name, rows, cols, Weight::F32(random(seed, rows * cols))).unwrap()
    };
    let magnitude = dora.then(|| trained("magnitude", 1, out, 5));
    let options = AdapterOptions { scale: 2.0, dropout: if dora { 0.2 } else { 0.0 }, dropout_stream: 1 };
    let (a, b) = (trained("a", rank, input, 3), trained("b", out, rank, 4));
    let mut linear = Linear::new(Param::frozen("w", out, input, weight).unwrap(), None).unwrap();
    linear.adapter = Some(Adapter::new([out, input], a, b, magnitude, options).unwrap());
    linear
}

/// Output, gradient of the input, and gradients of what trains.
fn pass(linear: &mut Linear, tokens: usize, pool: &Pool) -> Vec<Vec<f32>> {
    let (out, input) = (linear.outputs(), linear.inputs());
    let x = Mat::from_slice(pool, input, &random(10, tokens * input));
    let dy = Mat::from_slice(pool, out, &random(11, tokens * out));
    let dropout = Some((3, 4));
    let (y, kept) = linear.forward(&x, dropout);
    let mut dx = Mat::uninit(pool, tokens, input);
    linear.backward(&dy, Some(&x), &kept, dropout, Some((Into::Replace, &mut dx)));
    let grads = linear.params().filter_map(Param::grad).map(<[f32]>::to_vec);
    [y.to_vec(), dx.to_vec()].into_iter().chain(grads).collect()
}

#[test]
fn a_layer_computes_what_it_would_with_the_dequantised_weight() {
    for (shape, dora) in [([33, 50], false), ([64, 128], true), ([96, 64], false)] {
        let values = random(1, shape[0] * shape[1]);
        for weight in formats(&values, shape[1]) {
            let format = weight.format();
            let plain = Weight::F32(weight.as_f32().into_owned());
            assert_ne!(plain.as_f32(), values, "{format} rounds");
            let pool = Pool::new();
            let packed = pass(&mut layer(weight, shape, dora), 9, &pool);
            let dequantised = pass(&mut layer(plain, shape, dora), 9, &pool);
            assert_eq!(packed, dequantised, "{format} {shape:?}");
        }
    }
}

#[test]
fn a_weight_of_several_panels_gives_the_same_up_to_rounding() {
    let shape = [2500, 1024];
    let values = random(1, shape[0] * shape[1]);
    for weight in formats(&values, shape[1]) {
        let plain = Weight::F32(weight.as_f32().into_owned());
        let format = weight.format();
        let pool = Pool::new();
        let frozen = |weight| Linear::new(Param::frozen("w", shape[0], shape[1], weight).unwrap(), None).unwrap();
        let packed = pass(&mut frozen(weight), 5, &pool);
        let dequantised = pass(&mut frozen(plain), 5, &pool);
        for (ours, theirs) in packed.iter().zip(&dequantised) {
            let largest = theirs.iter().fold(0.0f32, |largest, x| largest.max(x.abs()));
            for (a, b) in ours.iter().zip(theirs) {
                assert!((a - b).abs() < 1e-5 * largest, "{format}: {a} against {b}");
            }
        }
    }
}

#[test]
fn gradients_through_4_bit_weights_are_those_of_finite_differences() {
    let shape = [20, 33];
    let values = random(1, shape[0] * shape[1]);
    let packed = Nf4::quantise(&values, Nf4Options { block_size: 32, double_quantization: true }).unwrap();
    let mut linear = layer(Weight::Nf4(packed), shape, false);
    let pool = Pool::new();
    let (tokens, x) = (4, random(10, 4 * shape[1]));
    let dy = Mat::from_slice(&pool, shape[0], &random(11, tokens * shape[0]));
    let loss = |linear: &Linear, x: &[f32]| -> f64 {
        let (y, _) = linear.forward(&Mat::from_slice(&pool, shape[1], x), None);
        y.iter().zip(dy.iter()).map(|(y, d)| f64::from(*y) * f64::from(*d)).sum()
    };
    let input = Mat::from_slice(&pool, shape[1], &x);
    let (_, kept) = linear.forward(&input, None);
    let mut dx = Mat::uninit(&pool, tokens, shape[1]);
    linear.backward(&dy, Some(&input), &kept, None, Some((Into::Replace, &mut dx)));
    let step = 0.25;
    for i in (0..x.len()).step_by(7) {
        let moved = |by: f32| {
            let mut x = x.clone();
            x[i] += by;
            loss(&linear, &x)
        };
        let slope = (moved(step) - moved(-step)) / f64::from(2.0 * step);
        assert!((slope - f64::from(dx[i])).abs() < 1e-4, "input {i}: {slope} against {}", dx[i]);
    }
    let d_b = linear.adapter.as_ref().unwrap().b.grad().unwrap().to_vec();
    for (i, d_b) in d_b.iter().enumerate().step_by(5) {
        let mut moved = |by: f32| {
            let Weight::F32(b) = &mut linear.adapter.as_mut().unwrap().b.value else { unreachable!() };
            b[i] += by;
            let moved = loss(&linear, &x);
            let Weight::F32(b) = &mut linear.adapter.as_mut().unwrap().b.value else { unreachable!() };
            b[i] -= by;
            moved
        };
        let slope = (moved(step) - moved(-step)) / f64::from(2.0 * step);
        assert!((slope - f64::from(*d_b)).abs() < 1e-4, "B {i}: {slope} against {d_b}");
    }
}

#[test]
fn a_pass_over_a_large_packed_weight_needs_no_more_than_a_panel() {
    let shape = [16_384, 1024];
    let packed =
        Nf4::quantise(&random(1, shape[0] * shape[1]), Nf4Options { block_size: 64, double_quantization: true });
    let weight = Weight::Nf4(packed.unwrap());
    assert!(weight.bytes() * 7 < 4 * weight.len(), "{} bytes", weight.bytes());
    let mut linear = Linear::new(Param::frozen("w", shape[0], shape[1], weight).unwrap(), None).unwrap();
    let pool = Pool::new();
    pass(&mut linear, 2, &pool);
    // 64 MiB of numbers in panels of 8.
    assert!(pool.peak_bytes() < 9 << 20, "{} bytes", pool.peak_bytes());
}

#[test]
fn a_packed_weight_cannot_train() {
    let packed = Nf4::quantise(&[1.0; 64], Nf4Options { block_size: 64, double_quantization: false }).unwrap();
    let error = Param::trained("w", 1, 64, Weight::Nf4(packed)).unwrap_err();
    assert_eq!(error.to_string(), "storage of w, which trains: expected f32 or bf16, found nf4");
}

/// Pages that count.
struct Counted(Vec<u8>, std::sync::Arc<std::sync::atomic::AtomicUsize>);

impl Pages for Counted {
    fn bytes(&self) -> &[u8] {
        &self.0
    }
    fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
    fn release(&self) {
        self.1.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    }
}

#[test]
fn states_in_pages_are_the_same_states() {
    let released = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let count = released.clone();
    let make: liftplan_engine::optim::MakePages =
        std::sync::Arc::new(move |bytes| Ok(Box::new(Counted(vec![0; bytes], count.clone())) as Box<dyn Pages>));
    let options = AdamWOptions { betas: (0.9, 0.99), eps: 1e-8, bf16_update: Bf16Update::Master, seed: 1 };
    for len in [1000, LEAST_FOR_PAGES + 1] {
        for bits8 in [false, true] {
            let run = |paged: bool| {
                let mut optimizer = AdamW::new(options);
                optimizer = if bits8 { optimizer.with_bits8() } else { optimizer };
                if paged {
                    optimizer.set_pages(make.clone());
                }
                let start = random(1, len).iter().map(|value| bf16::from_f32(*value)).collect();
                let mut param = Param::trained("w", 1, len, Weight::Bf16(start)).unwrap();
                for step in 0..3 {
                    param.grad_mut().unwrap().copy_from_slice(&random(20 + step, len));
                    optimizer.update(&mut param, 0.01, 0.1, 1.0).unwrap();
                }
                let in_pages = match &optimizer.states()["w"].first {
                    Moment::F32(values) => matches!(values, Buffer::Paged(_)),
                    Moment::Bits8 { codes, .. } => matches!(codes, Buffer::Paged(_)),
                };
                assert_eq!(in_pages, paged && len >= LEAST_FOR_PAGES);
                (param.value.as_f32().into_owned(), optimizer.state_bytes())
            };
            assert_eq!(run(false), run(true), "{len} elements, 8 bits: {bits8}");
        }
    }
    // Two moments and a master copy, three times, for the large parameter in each format.
    assert_eq!(released.load(std::sync::atomic::Ordering::Relaxed), 18);
}
