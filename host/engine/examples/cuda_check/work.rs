//! What is trained to measure the card: a Qwen3 shape with random weights, the methods, random documents, a step.

use liftplan_engine::cuda::{
    AdapterSpec, Builder, Context, Decoder, Level, ModelShape, MomentFormat, Options, Role, Slot, StepPlan, Storage,
    TensorSpec, Treatment, Update,
};
use liftplan_engine::optim::{AdamWOptions, Bf16Update};
use liftplan_engine::rng::Random;
use liftplan_engine::{Batch, EngineError};

/// GiB that the driver takes of an H100 before the model, and what its kernels take and the planner leaves free.
pub(super) const DRIVER_GIB: [f64; 2] = [0.52, 0.125];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Method {
    Lora,
    Dora,
    Qlora,
    Spectrum,
    Qspectrum,
    Full,
}

use Method::{Dora, Full, Lora, Qlora, Qspectrum, Spectrum};

impl Method {
    /// The 8B model's dimensions; those of 1.7B where everything trains.
    pub fn shape(self) -> ModelShape {
        match self {
            Full => qwen(2048, 6144, 28, 16, true),
            _ => qwen(4096, 12288, 36, 32, false),
        }
    }

    /// With gradients of weights in bf16; nothing on the host.
    pub fn options(self, moments: MomentFormat) -> Options {
        let rank_multiple = if self == Qlora { 16 } else { 0 };
        Options { moments, narrow_grads: true, rank_multiple, ..Options::default() }
    }

    /// A model with random weights, or one without any where the card is not there; its optimiser's states are made.
    pub fn build(self, context: &Context, options: Options) -> Result<Decoder, EngineError> {
        let shape = self.shape();
        let mut builder = Builder::new(context, &shape, &specs(&shape, self), options)?;
        if !context.is_dry() {
            builder.randomise(0.02, 0.01, 1)?;
        }
        let mut decoder = builder.finish();
        decoder.prepare(&decoder.active())?;
        Ok(decoder)
    }
}

fn qwen(hidden: usize, intermediate: usize, blocks: usize, heads: usize, tied: bool) -> ModelShape {
    ModelShape {
        vocab: 151_936,
        hidden,
        intermediate,
        blocks,
        heads,
        kv_heads: 8,
        dim: 128,
        windows: vec![None; blocks],
        rms_eps: 1e-6,
        tied,
        inverse_frequencies: (0..64).map(|i| 1e6_f32.powf(-2.0 * i as f32 / 128.0)).collect(),
    }
}

/// The blocks whose weights of each role train: what `bench_peers.py` draws (Python's random, seed 0).
const SPECTRUM: [(Role, [usize; 9]); 7] = [
    (Role::Q, [2, 12, 16, 24, 25, 26, 29, 31, 34]),
    (Role::K, [3, 4, 8, 9, 13, 19, 22, 24, 30]),
    (Role::V, [2, 6, 9, 16, 19, 23, 27, 28, 34]),
    (Role::O, [6, 10, 19, 20, 21, 22, 27, 30, 33]),
    (Role::Gate, [0, 3, 16, 17, 25, 28, 29, 30, 35]),
    (Role::Up, [0, 5, 7, 10, 21, 22, 23, 25, 31]),
    (Role::Down, [2, 4, 9, 12, 14, 15, 17, 25, 33]),
];

fn specs(shape: &ModelShape, method: Method) -> Vec<TensorSpec> {
    use Role::{Down, Embedding, FinalNorm, Gate, Head, InputNorm, K, KNorm, O, PostNorm, Q, QNorm, Up, V};
    let mut slots: Vec<Slot> = vec![(None, Embedding)];
    for block in 0..shape.blocks {
        slots.extend([InputNorm, Q, K, V, QNorm, KNorm, O, PostNorm, Gate, Up, Down].map(|role| (Some(block), role)));
    }
    slots.push((None, FinalNorm));
    if !shape.tied {
        slots.push((None, Head));
    }
    slots
        .into_iter()
        .map(|slot| {
            let name = format!("{slot:?}");
            let chosen = SPECTRUM.iter().find(|(role, _)| *role == slot.1);
            let (linear, picked) = match (chosen, slot.0) {
                (Some((_, blocks)), Some(block)) => (true, blocks.contains(&block)),
                _ => (false, false),
            };
            let treatment = match method {
                Lora | Dora | Qlora if linear => {
                    let (a, b) = (format!("{name}.A"), format!("{name}.B"));
                    let magnitude = (method == Dora).then(|| format!("{name}.M"));
                    let (dropout, dropout_stream) = (0.0, 0);
                    Treatment::Adapt(AdapterSpec { rank: 16, scale: 2.0, dropout, dropout_stream, a, b, magnitude })
                }
                Spectrum | Qspectrum if picked => Treatment::Train,
                Full => Treatment::Train,
                _ => Treatment::Frozen,
            };
            let packed = linear && (method == Qlora || method == Qspectrum && !picked);
            let storage = if packed { Storage::Nf4 { block: 64, double: true } } else { Storage::Bf16 };
            TensorSpec { slot, name, treatment, storage }
        })
        .collect()
}

/// So many documents of so many random tokens.
pub(super) fn batch(shape: &ModelShape, [sequence, batch]: [usize; 2], seed: u32) -> Batch {
    let mut random = Random::new(7, seed);
    let targets = vec![true; sequence];
    let documents: Vec<Vec<u32>> =
        (0..batch).map(|_| (0..sequence).map(|_| random.next_u32() % shape.vocab as u32).collect()).collect();
    Batch::pack(documents.iter().map(|ids| (ids.as_slice(), targets.as_slice())))
}

/// One update of everything that trains; gives the mean loss, once the card has ended.
pub(super) fn step(decoder: &mut Decoder, batch: &Batch) -> Result<f64, EngineError> {
    let updates: Vec<Update> =
        (0..decoder.trainables().len()).map(|index| Update { index, lr: 1e-4, weight_decay: 0.0 }).collect();
    let options = AdamWOptions { betas: (0.9, 0.999), eps: 1e-8, bf16_update: Bf16Update::Stochastic, seed: 1 };
    let scale = 1.0 / batch.target_count() as f32;
    let loss = if decoder.options().update_in_backward {
        decoder.accumulate_and_update(batch, scale, &options, &updates)?.0
    } else {
        decoder.clear_grads();
        let loss = decoder.accumulate(batch, scale)?;
        decoder.update(&options, &updates, 1.0)?;
        loss
    };
    decoder.context().synchronize()?;
    Ok(loss.mean())
}

/// A plan in words.
pub(super) fn described(plan: &StepPlan) -> String {
    format!(
        "{} blocks keep all, {} their products, {} what attention gave, {} their input{}; {} pieces, {} rows of the feed-forward layer, {} of the logits at once",
        plan.count(Level::All),
        plan.count(Level::Products),
        plan.count(Level::Attended),
        plan.count(Level::Input),
        if plan.offload { " (on the host, as what attention gave)" } else { "" },
        plan.pieces,
        plan.mlp_rows,
        plan.loss_rows
    )
}

pub(super) fn gib(bytes: usize) -> f64 {
    bytes as f64 / (1_u64 << 30) as f64
}

/// The bytes of so many GiB.
pub(super) fn bytes(gib: f64) -> usize {
    (gib * (1_u64 << 30) as f64) as usize
}
