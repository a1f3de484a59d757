//! Singular values on the card at hand, checked against the processor's and measured.
//!
//!     cargo run --release -p liftplan --example cuda_scan -- check
//!     cargo run --release -p liftplan --example cuda_scan -- bench [--blocks 36] [--cached] [--profile]
//!
//! `check` compares scores and values of matrices of all kinds with those of the processor. `bench` scans a model of
//! Qwen3-8B's shape with random weights in bf16 (252 matrices in 36 blocks), each made where a scan would read it,
//! hashed as a scan does.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Instant;

use faer::Par;
use liftplan::stats::card::{Card, Prepared};
use liftplan::stats::{Statistic, singular_values, snr};
use liftplan_engine::cuda::{Buffer, Context};
use sha2::{Digest, Sha256};

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let has = |name: &str| arguments.iter().any(|a| a == name);
    let option = |name: &str| arguments.iter().position(|a| a == name).and_then(|i| arguments.get(i + 1).cloned());
    let number = |name: &str, default| option(name).map_or(default, |text| text.parse().unwrap());
    let started = Instant::now();
    let context = Context::new(number("--device", 0)).unwrap_or_else(|error| {
        eprintln!("error: {error}");
        std::process::exit(2)
    });
    println!("{}, opened in {:.2} s", context.name(), started.elapsed().as_secs_f64());
    let failed = match arguments.first().map_or("check", String::as_str) {
        "check" => check(&context),
        "bench" => bench(&context, number("--blocks", 36), has("--profile")),
        other => {
            eprintln!("error: unknown command `{other}`: check or bench");
            true
        }
    };
    std::process::exit(i32::from(failed));
}

/// A generator of numbers (xorshift64*).
struct Numbers(u64);

impl Numbers {
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// In [-1, 1).
    fn next(&mut self) -> f32 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    fn many(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.next()).collect()
    }
}

/// About these singular values, each between two random vectors of length about 1.
fn with_spectrum([rows, cols]: [usize; 2], spectrum: &[f64], seed: u64) -> Vec<f32> {
    let mut elements = vec![0f64; rows * cols];
    let mut numbers = Numbers::new(seed);
    for value in spectrum {
        let (left, right) = (numbers.many(rows), numbers.many(cols));
        let scale = value * 3.0 / ((rows * cols) as f64).sqrt();
        for (row, l) in elements.chunks_mut(cols).zip(&left) {
            let factor = scale * f64::from(*l);
            row.iter_mut().zip(&right).for_each(|(to, r)| *to += factor * f64::from(*r));
        }
    }
    elements.into_iter().map(|element| element as f32).collect()
}

type Case = (String, [usize; 2], Vec<f32>);

fn cases() -> Vec<Case> {
    let mut cases: Vec<Case> = Vec::new();
    for (seed, shape) in [
        [1, 1],
        [1, 7],
        [7, 1],
        [2, 2],
        [3, 5],
        [31, 33],
        [64, 64],
        [65, 64],
        [127, 129],
        [128, 300],
        [300, 64],
        [257, 256],
        [33, 700],
        [700, 33],
        [576, 1536],
        [1536, 576],
        [576, 576],
        [192, 576],
        [1000, 999],
        [1024, 2048],
    ]
    .into_iter()
    .enumerate()
    {
        cases.push((format!("random {shape:?}"), shape, Numbers::new(seed as u64).many(shape[0] * shape[1])));
    }
    for shape in [[90, 60], [60, 90], [400, 400], [320, 640]] {
        for rank in [1, 2, 17, 59] {
            let spectrum: Vec<f64> = (0..rank).map(|i| 10f64.powf(-(i as f64) / 6.0)).collect();
            cases.push((format!("rank {rank} of {shape:?}"), shape, with_spectrum(shape, &spectrum, 11)));
        }
    }
    for (name, decades) in [("conditioned 1e3", 3.0), ("conditioned 1e6", 6.0), ("conditioned 1e9", 9.0)] {
        for shape in [[256, 256], [200, 500]] {
            let count = shape[0];
            let spectrum: Vec<f64> = (0..count).map(|i| 10f64.powf(-decades * i as f64 / count as f64)).collect();
            cases.push((format!("{name} {shape:?}"), shape, with_spectrum(shape, &spectrum, 5)));
        }
    }
    let diagonal = |i: usize| if i.is_multiple_of(101) { 10f32.powi(-((i / 101) as i32 % 10)) } else { 0.0 };
    cases.push(("diagonal 1 to 1e-9".into(), [100, 100], (0..100 * 100).map(diagonal).collect()));
    cases.push(("zero".into(), [130, 70], vec![0.0; 130 * 70]));
    cases.push(("constant".into(), [70, 130], vec![2.0; 130 * 70]));
    let identity = (0..200 * 200).map(|i: usize| if i.is_multiple_of(201) { 3.0 } else { 0.0 }).collect();
    cases.push(("identity".into(), [200, 200], identity));
    let random = Numbers::new(77).many(96 * 160);
    cases.push(("tiny numbers".into(), [96, 160], random.iter().map(|x| x * 1e-38).collect()));
    cases.push(("huge numbers".into(), [96, 160], random.iter().map(|x| x * 3e38).collect()));
    let block = random.iter().enumerate().map(|(i, x)| if i % 160 < 40 { *x } else { 0.0 }).collect();
    cases.push(("zero columns".into(), [96, 160], block));
    cases
}

/// The card's values of these matrices.
fn on_card(context: &Context, cases: &[Case]) -> BTreeMap<usize, Vec<f64>> {
    let shapes: Vec<_> = cases.iter().map(|(_, shape, _)| *shape).collect();
    let mut found = BTreeMap::new();
    let outcome = Card::new(context.clone()).singular_values(
        &shapes,
        0,
        |place| Ok((String::new(), Prepared::Elements(cases[place].2.clone()))),
        |place, _, values| assert!(found.insert(place, values).is_none()),
    );
    assert_eq!(outcome.unwrap_or_else(|error| panic!("{error}")).left, [0; 0]);
    found
}

fn check(context: &Context) -> bool {
    // What the buffers lie on is not zero.
    let poison = Buffer::new(context, 1 << 30).unwrap();
    context.fill_bytes(poison.view::<u8>(1, 1 << 30), 0xff).unwrap();
    context.synchronize().unwrap();
    drop(poison);

    let cases = cases();
    let found = on_card(context, &cases);
    let again = on_card(context, &cases);
    let mut failed = 0;
    let mut other_scores = 0;
    for (place, (name, [rows, cols], elements)) in cases.iter().enumerate() {
        let expected = singular_values(elements.clone(), *rows, *cols, Par::rayon(0)).unwrap();
        let values = &found[&place];
        let largest = expected[0].max(f64::MIN_POSITIVE);
        let error = values.iter().zip(&expected).map(|(a, b)| (a - b).abs() / largest).fold(0.0, f64::max);
        let [score, wanted] = [values, &expected].map(|values| snr(values, *rows, *cols).unwrap());
        let off = if score == wanted { 0.0 } else { (score - wanted).abs() / wanted.abs() };
        let [score, wanted] = [values, &expected].map(|values| Statistic::Snr.of(values, *rows, *cols).unwrap());
        let same = score == wanted;
        other_scores += usize::from(!same);
        // A NaN is no number below the tolerance.
        let fits = values.len() == expected.len() && error <= 1e-9 && off <= 1e-4 && again[&place] == *values;
        failed += usize::from(!fits);
        println!(
            "{name:<28} value {error:9.2e}  snr {off:9.2e}  {}{}",
            if fits { "ok" } else { "FAILED" },
            if same { "" } else { "  (sixth digit differs)" }
        );
    }
    println!("{} matrices, {failed} failed, {other_scores} with another score of six digits", cases.len());
    failed > 0
}

fn bench(context: &Context, blocks: usize, profile: bool) -> bool {
    let of_block =
        [[4096, 4096], [1024, 4096], [1024, 4096], [4096, 4096], [12288, 4096], [12288, 4096], [4096, 12288]];
    let shapes: Vec<[usize; 2]> = (0..blocks).flat_map(|_| of_block).collect();
    let read_seconds = Mutex::new([0.0, 0.0]);
    let prepare = |place: usize| {
        let started = Instant::now();
        let [rows, cols] = shapes[place];
        let mut numbers = Numbers::new(place as u64);
        // Rounded to bf16.
        let elements: Vec<f32> =
            (0..rows * cols).map(|_| f32::from_bits((numbers.next() * 0.02).to_bits() & 0xffff_0000)).collect();
        let made = started.elapsed().as_secs_f64();
        let key = Sha256::digest(bytemuck::cast_slice::<f32, u8>(&elements));
        let mut seconds = read_seconds.lock().unwrap();
        seconds[0] += made;
        seconds[1] += started.elapsed().as_secs_f64() - made;
        Ok((key.iter().map(|byte| format!("{byte:02x}")).collect(), Prepared::Elements(elements)))
    };
    let (free_before, total) = context.memory().unwrap();
    if profile {
        context.start_profile();
    }
    let mut least_free = free_before;
    let mut scores = vec![0.0; shapes.len()];
    let started = Instant::now();
    // The largest tensor of the model is its embedding.
    let outcome = Card::new(context.clone())
        .singular_values(&shapes, 4 * 151_936 * 4096, prepare, |place, _, values| {
            scores[place] = Statistic::Snr.of(&values, shapes[place][0], shapes[place][1]).unwrap();
            least_free = least_free.min(context.memory().unwrap().0);
        })
        .unwrap_or_else(|error| panic!("{error}"));
    let seconds = started.elapsed().as_secs_f64();
    if let Some(times) = context.end_profile().unwrap() {
        for (kind, (ms, pieces)) in times.by_kind {
            println!("{:<14} {ms:10.1} ms in {pieces} pieces", format!("{kind:?}"));
        }
    }
    let [made, hashed] = *read_seconds.lock().unwrap();
    let gib = |bytes: usize| bytes as f64 / f64::from(1 << 30);
    println!(
        "{} matrices in {seconds:.2} s, of which {} whole and {} left to the processor; waited for reading, uploading, \
         the card: {:.2?}; {:.2} GiB of the card in all, {:.2} by buffers; {} threads made weights for {made:.1} s and \
         hashed for {hashed:.1} s in sum; first scores {:?}",
        shapes.len(),
        outcome.whole,
        outcome.left.len(),
        outcome.waited,
        gib(total - least_free),
        gib(context.allocated_bytes().1),
        rayon::current_num_threads(),
        &scores[..7.min(scores.len())]
    );
    !outcome.left.is_empty() || scores.iter().any(|score| *score <= 0.0)
}
