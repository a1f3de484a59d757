//! Small random models for the tests.

#[allow(dead_code)]
pub mod oracle;

use liftplan_engine::ops::attention::Heads;
use liftplan_engine::rng::Random;
use liftplan_engine::{
    Adapter, AdapterOptions, Batch, Block, BlockShape, Decoder, IGNORE, Linear, Param, Pool, Rope, Weight,
};

#[derive(Clone)]
pub struct Shape {
    pub vocab: usize,
    pub hidden: usize,
    pub intermediate: usize,
    pub blocks: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub window: Option<usize>,
    pub biases: bool,
    pub head_norms: bool,
    pub tied: bool,
    pub dropout: f32,
}

impl Default for Shape {
    fn default() -> Self {
        Self {
            vocab: 67,
            hidden: 24,
            intermediate: 37,
            blocks: 3,
            heads: 4,
            kv_heads: 4,
            head_dim: 8,
            window: None,
            biases: false,
            head_norms: false,
            tied: false,
            dropout: 0.0,
        }
    }
}

#[derive(Clone)]
pub enum Trained {
    Nothing,
    Everything,
    Only(String),
    Lora { dora: bool },
}

const RANK: usize = 3;
pub const SCALE: f32 = 1.5;
pub const EPS: f32 = 1e-5;

struct Maker<'a> {
    random: Random,
    shape: &'a Shape,
    trained: Trained,
    adapters: u32,
}

impl Maker<'_> {
    fn values(&mut self, len: usize, mean: f32, spread: f32) -> Weight {
        Weight::F32((0..len).map(|_| mean + spread * self.random.normal()).collect())
    }

    fn param(&mut self, name: &str, rows: usize, cols: usize, mean: f32, spread: f32) -> Param {
        let value = self.values(rows * cols, mean, spread);
        let mut param = Param::frozen(name, rows, cols, value).unwrap();
        param.set_trained(match &self.trained {
            Trained::Everything => true,
            Trained::Only(only) => only == name,
            Trained::Nothing | Trained::Lora { .. } => false,
        });
        param
    }

    fn linear(&mut self, name: &str, out: usize, input: usize) -> Linear {
        let weight = self.param(&format!("{name}.weight"), out, input, 0.0, 1.5 / (input as f32).sqrt());
        let bias = self.shape.biases.then(|| self.param(&format!("{name}.bias"), 1, out, 0.0, 0.3));
        let mut linear = Linear::new(weight, bias).unwrap();
        if let Trained::Lora { dora } = self.trained {
            let options = AdapterOptions { scale: SCALE, dropout: self.shape.dropout, dropout_stream: self.adapters };
            self.adapters += 1;
            let trained = |name: String, rows, cols, value| Param::trained(name, rows, cols, value).unwrap();
            let a = self.values(RANK * input, 0.0, 0.3);
            let b = self.values(out * RANK, 0.0, 0.3);
            let magnitude = dora.then(|| self.values(out, 1.5, 0.3));
            let a = trained(format!("{name}.lora_a"), RANK, input, a);
            let b = trained(format!("{name}.lora_b"), out, RANK, b);
            let magnitude = magnitude.map(|m| trained(format!("{name}.lora_magnitude"), 1, out, m));
            linear.adapter = Some(Adapter::new([out, input], a, b, magnitude, options).unwrap());
        }
        linear
    }
}

/// A random model; the same seed gives the same weights whatever trains.
pub fn model(shape: &Shape, trained: Trained, seed: u64) -> Decoder {
    let mut maker = Maker { random: Random::new(seed, 0), shape, trained, adapters: 0 };
    let Shape { vocab, hidden, intermediate, heads, kv_heads, head_dim, .. } = *shape;
    let heads = Heads { queries: heads, keys: kv_heads, dim: head_dim, window: shape.window };
    let block_shape = BlockShape { hidden, intermediate, heads, rms_eps: EPS };
    let embedding = maker.param("embedding", vocab, hidden, 0.0, 1.0);
    let blocks = (0..shape.blocks)
        .map(|i| Block {
            shape: block_shape,
            input_norm: maker.param(&format!("{i}.input_norm"), 1, hidden, 1.0, 0.3),
            q: maker.linear(&format!("{i}.q"), heads.queries * head_dim, hidden),
            k: maker.linear(&format!("{i}.k"), heads.keys * head_dim, hidden),
            v: maker.linear(&format!("{i}.v"), heads.keys * head_dim, hidden),
            q_norm: shape.head_norms.then(|| maker.param(&format!("{i}.q_norm"), 1, head_dim, 1.0, 0.3)),
            k_norm: shape.head_norms.then(|| maker.param(&format!("{i}.k_norm"), 1, head_dim, 1.0, 0.3)),
            o: maker.linear(&format!("{i}.o"), hidden, heads.queries * head_dim),
            post_norm: maker.param(&format!("{i}.post_norm"), 1, hidden, 1.0, 0.3),
            gate: maker.linear(&format!("{i}.gate"), intermediate, hidden),
            up: maker.linear(&format!("{i}.up"), intermediate, hidden),
            down: maker.linear(&format!("{i}.down"), hidden, intermediate),
        })
        .collect();
    let norm = maker.param("norm", 1, hidden, 1.0, 0.3);
    let head = (!shape.tied).then(|| maker.param("head", vocab, hidden, 0.0, 0.4));
    let rope = Rope::new(inverse_frequencies(head_dim));
    let decoder = Decoder { embedding, blocks, norm, head, rope, pool: Pool::new() };
    decoder.check().unwrap();
    decoder
}

pub fn inverse_frequencies(head_dim: usize) -> Vec<f32> {
    (0..head_dim / 2).map(|i| 100_f32.powf(-2.0 * i as f32 / head_dim as f32)).collect()
}

/// Random documents of the given lengths; two of three tokens are targets.
pub fn batch(shape: &Shape, lengths: &[usize]) -> Batch {
    let mut random = Random::new(1, 1);
    let documents: Vec<(Vec<u32>, Vec<bool>)> = lengths
        .iter()
        .map(|&len| {
            let ids = (0..len).map(|_| random.next_u32() % shape.vocab as u32).collect();
            (ids, (0..len).map(|i| i % 3 != 0).collect())
        })
        .collect();
    Batch::pack(documents.iter().map(|(ids, targets)| (ids.as_slice(), targets.as_slice())))
}

/// Each document of a batch as a batch of its own.
#[allow(dead_code)]
pub fn split(batch: &Batch) -> Vec<Batch> {
    let part = |pair: &[u32]| {
        let rows = pair[0] as usize..pair[1] as usize;
        Batch {
            ids: batch.ids[rows.clone()].to_vec(),
            targets: batch.targets[rows.clone()].to_vec(),
            positions: batch.positions[rows.clone()].to_vec(),
            starts: vec![0, rows.len() as u32],
        }
    };
    let parts = batch.starts.windows(2).map(part);
    parts.filter(|part| part.targets.iter().any(|&target| target != IGNORE)).collect()
}

/// Adds `step · direction` to the parameter called `name`.
#[allow(dead_code)]
pub fn shift(decoder: &mut Decoder, name: &str, direction: &[f32], step: f32) {
    let param = decoder.params_mut().find(|param| param.name() == name).unwrap();
    let Weight::F32(values) = &mut param.value else { panic!("the test's weights are f32") };
    for (value, d) in values.iter_mut().zip(direction) {
        *value += step * d;
    }
}
