//! Weights in 4 and 8 bits are bitsandbytes', bit for bit: 1,000 matrices packed and unpacked as
//! `tests/golden/quantised/make.py` recorded it.
#![allow(clippy::unwrap_used)]

use liftplan::checkpoint::{TensorData, TensorFile};
use liftplan_engine::optim::{AdamW, AdamWOptions, Bf16Update, Moment};
use liftplan_engine::storage::dynamic8::{SIGNED, UNSIGNED};
use liftplan_engine::storage::nf4::{self, Scales};
use liftplan_engine::{Int8, Nf4, Nf4Options, Param, Weight};
use serde::Deserialize;
use sha2::{Digest, Sha256};

#[derive(Deserialize)]
struct Golden {
    maps: Maps,
    nf4: Vec<i32>,
    matrices: Vec<Matrix>,
}

#[derive(Deserialize)]
struct Maps {
    signed: Vec<i32>,
    unsigned: Vec<i32>,
}

/// Beginnings of sha256 digests.
#[derive(Deserialize)]
struct Matrix {
    input: String,
    nf4: String,
    nf4_values: String,
    double: String,
    double_values: String,
    int8: String,
    int8_values: String,
    parts: Option<Parts>,
}

/// The whole of a double quantisation.
#[derive(Deserialize)]
struct Parts {
    codes: Vec<u8>,
    scale_codes: Vec<u8>,
    scale_absmax: Vec<i32>,
    offset: Vec<i32>,
}

fn golden() -> Golden {
    let path = liftplan_tests::golden::folder().join("quantised/weights.json");
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// splitmix64, from `seed`.
fn words(seed: u64) -> impl Iterator<Item = u64> {
    let mut state = seed;
    std::iter::from_fn(move || {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        Some(z ^ (z >> 31))
    })
}

/// Matrix number `index`, as in `make.py`: its number of columns, its numbers, and the block size.
fn matrix(index: usize) -> (usize, Vec<f32>, usize) {
    let [a, b]: [usize; 2] = words(index as u64).map(|w| w as usize).take(2).collect::<Vec<_>>().try_into().unwrap();
    let (rows, cols) = match index {
        _ if index % 10 == 9 => (16 * (1 + a % 12), 64 * (1 + b % 4)),
        0..90 => (1 + index % 9, 1 + index / 9),
        _ => (1 + a % 150, 1 + b % 200),
    };
    let power = |exponent: i32| f64::from(exponent).exp2();
    let number = |(place, draw): (usize, u64)| -> f32 {
        let sum: i64 = (0..4).map(|i| (draw >> (16 * i) & 0xffff) as i64).sum();
        let normal = (sum - 131_070) as f32 * power(-20) as f32;
        let small = |modulus: u64, middle: i64| (draw % modulus) as i64 - middle;
        match index % 8 {
            1 if draw % 97 == 0 => normal * 1024.0,
            2 if (draw % 97).is_multiple_of(3) || (place / 300).is_multiple_of(2) => 0.0,
            3 => (f64::from(normal) * power(-126)) as f32,
            4 => (small(1000, 500) as f64 * power(-149)) as f32,
            5 => small(9, 4) as f32 * 0.25,
            6 => f32::from_bits(normal.to_bits() & 0xffff_0000),
            _ => normal,
        }
    };
    let values = words(1_000_000 + index as u64).take(rows * cols).enumerate().map(number).collect();
    let block = [64, 64, 64, 32, 128, 256, 512, 1024, 2048, 4096][index % 10];
    (cols, values, if index.is_multiple_of(8) { 64 } else { block })
}

fn digest(parts: &[Vec<u8>]) -> String {
    let mut hash = Sha256::new();
    parts.iter().for_each(|part| hash.update(part));
    hash.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

fn bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

fn unpacked(len: usize, read: impl Fn(usize, &mut [f32])) -> String {
    let mut values = vec![f32::NAN; len];
    read(0, &mut values);
    digest(&[bytes(&values)])
}

#[test]
fn the_maps_are_those_of_bitsandbytes() {
    let golden = golden();
    let bits = |values: &[f32]| values.iter().map(|value| value.to_bits() as i32).collect::<Vec<_>>();
    assert_eq!(bits(&SIGNED.values), golden.maps.signed);
    assert_eq!(bits(&UNSIGNED.values), golden.maps.unsigned);
    assert_eq!(bits(&nf4::VALUES), golden.nf4);
}

#[test]
fn a_thousand_matrices_are_packed_and_unpacked_as_by_bitsandbytes() {
    let golden = golden();
    assert_eq!(golden.matrices.len(), 1000);
    for (index, expected) in golden.matrices.iter().enumerate() {
        let (cols, values, block_size) = matrix(index);
        assert_eq!(digest(&[bytes(&values)]), expected.input, "matrix {index} is made as in make.py");
        for double_quantization in [false, true] {
            let packed = Nf4::quantise(&values, Nf4Options { block_size, double_quantization }).unwrap();
            let (parts, expected_parts, expected_values) = match packed.scales() {
                Scales::Plain(scales) => (vec![bytes(scales)], &expected.nf4, &expected.nf4_values),
                Scales::Double { codes, absmax, offset } => {
                    if let Some(parts) = &expected.parts {
                        let bits =
                            |values: &[f32]| values.iter().map(|value| value.to_bits() as i32).collect::<Vec<_>>();
                        assert_eq!(packed.codes(), parts.codes, "matrix {index}");
                        assert_eq!(*codes, parts.scale_codes, "matrix {index}");
                        assert_eq!(bits(absmax), parts.scale_absmax, "matrix {index}");
                        assert_eq!(bits(&[*offset]), parts.offset, "matrix {index}");
                    }
                    (vec![codes.clone(), bytes(absmax), bytes(&[*offset])], &expected.double, &expected.double_values)
                }
            };
            let parts: Vec<Vec<u8>> = std::iter::once(packed.codes().to_vec()).chain(parts).collect();
            assert_eq!(digest(&parts), *expected_parts, "matrix {index}, double: {double_quantization}");
            let found = unpacked(values.len(), |start, out| packed.read(start, out));
            assert_eq!(found, *expected_values, "matrix {index}, unpacked, double: {double_quantization}");
        }
        let packed = Int8::quantise(&values, cols).unwrap();
        let codes = packed.codes().iter().map(|code| *code as u8).collect();
        assert_eq!(digest(&[codes, bytes(packed.absmax())]), expected.int8, "matrix {index} in int8");
        let found = unpacked(values.len(), |start, out| packed.read(start, out));
        assert_eq!(found, expected.int8_values, "matrix {index} in int8, unpacked");
    }
}

#[test]
fn any_stretch_of_a_packed_matrix_reads_as_the_whole_does() {
    for index in [13, 91, 250, 333, 999] {
        let (cols, values, block_size) = matrix(index);
        let nf4 = Nf4::quantise(&values, Nf4Options { block_size, double_quantization: true }).unwrap();
        let int8 = Int8::quantise(&values, cols).unwrap();
        for packed in [Weight::Nf4(nf4), Weight::Int8(int8)] {
            let whole = packed.as_f32();
            for (start, end) in words(index as u64).map(|w| (w as usize, (w >> 32) as usize)).take(200) {
                let (start, end) = (start % values.len(), end % values.len());
                let (start, end) = (start.min(end), start.max(end));
                let mut part = vec![f32::NAN; end - start];
                packed.read(start, &mut part);
                assert_eq!(part, whole[start..end], "{start}..{end} of matrix {index}");
            }
        }
    }
}

#[test]
fn what_is_not_finite_is_refused() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut values = vec![1.0; 100];
        values[77] = bad;
        let options = Nf4Options { block_size: 64, double_quantization: false };
        let message = format!("a number to be quantised is not finite ({})", f64::from(bad));
        assert_eq!(Nf4::quantise(&values, options).unwrap_err().to_string(), message);
        assert_eq!(Int8::quantise(&values, 10).unwrap_err().to_string(), message);
    }
}

#[test]
fn twenty_steps_of_adamw_in_8_bits_are_those_of_bitsandbytes() {
    let path = liftplan_tests::golden::folder().join("quantised/adamw8bit.safetensors");
    let golden = TensorFile::open(&path).unwrap();
    let floats = |name: String| golden.get(&name).unwrap().data.to_f32().unwrap();
    let codes = |name: String| match golden.get(&name).unwrap().data {
        TensorData::U8(codes) => codes,
        other => panic!("{name} is {:?}", other.dtype()),
    };
    let options = AdamWOptions { betas: (0.9, 0.999), eps: 1e-8, bf16_update: Bf16Update::Stochastic, seed: 0 };
    for name in ["large", "small"] {
        let start = floats(format!("{name}.start"));
        let mut param = Param::trained(name, 1, start.len(), Weight::F32(start)).unwrap();
        let mut optimizer = AdamW::new(options).with_bits8();
        for step in 1..=20 {
            param.grad_mut().unwrap().copy_from_slice(&floats(format!("{name}.grad.{step}")));
            optimizer.update(&mut param, 1e-3, 0.01, 1.0).unwrap();
            if ![1, 5, 20].contains(&step) {
                continue;
            }
            let expected = floats(format!("{name}.value.{step}"));
            let apart = |(a, b): (&f32, &f32)| (a - b).abs();
            let values = param.value.as_f32();
            let (far, off) = values
                .iter()
                .zip(&expected)
                .map(apart)
                .fold((0.0f32, 0), |(far, off), apart| (far.max(apart), off + usize::from(apart > 1e-6)));
            // A state that falls on the other side of a middle moves its weight by a share of the learning rate, 1e-3.
            assert!(far < if name == "small" { 1e-6 } else { 5e-4 }, "{name}, step {step}: values {far} apart");
            assert!(off * 50 <= values.len(), "{name}, step {step}: {off} values are off");
            let state = &optimizer.states()[name];
            for (moment, part) in [(&state.first, 1), (&state.second, 2)] {
                match moment {
                    Moment::F32(values) => {
                        assert_eq!(name, "small");
                        close(values, &floats(format!("{name}.state{part}.{step}")), 1e-6, name);
                    }
                    Moment::Bits8 { codes: ours, absmax } => {
                        // So may a block's largest state, by what is left of it after some steps.
                        close(absmax, &floats(format!("{name}.absmax{part}.{step}")), 1e-3, name);
                        let theirs = codes(format!("{name}.state{part}.{step}"));
                        let differ = ours.iter().zip(&theirs).filter(|(a, b)| a != b).count();
                        assert!(
                            ours.iter().zip(&theirs).all(|(a, b)| a.abs_diff(*b) <= 1),
                            "step {step}, state {part}"
                        );
                        assert!(differ * 500 <= ours.len(), "step {step}, state {part}: {differ} codes differ");
                    }
                }
            }
        }
    }
}

fn close(ours: &[f32], theirs: &[f32], tolerance: f32, what: &str) {
    assert_eq!(ours.len(), theirs.len(), "{what}");
    let largest = theirs.iter().fold(0.0f32, |largest, x| largest.max(x.abs()));
    for (a, b) in ours.iter().zip(theirs) {
        assert!((a - b).abs() <= tolerance * largest, "{what}: {a} against {b}");
    }
}
