//! Tiny models: what is trained of each and in which form, the same numbers on the card and in the CPU engine, a batch, a step.

use std::collections::BTreeMap;

use liftplan_engine::cuda::{
    AdapterSpec, Builder, Context, Data, Decoder as CudaDecoder, Loader, ModelShape, Options, Role, Slot, Storage,
    TensorSpec, Treatment, Update,
};
use liftplan_engine::ops::attention::Heads;
use liftplan_engine::optim::{AdamWOptions, Bf16Update};
use liftplan_engine::rng::Random;
use liftplan_engine::storage::nf4::VALUES;
use liftplan_engine::{
    Adapter, AdapterOptions, Batch, Block, BlockShape, Decoder, Int8, Linear, Param, Pool, Rope, Weight,
};

const SCALE: f32 = 2.0;

/// How what is compared to the bit is updated.
pub(super) const OPTIONS: AdamWOptions =
    AdamWOptions { betas: (0.9, 0.99), eps: 1e-8, bf16_update: Bf16Update::Stochastic, seed: 3 };

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Method {
    Lora,
    Full,
    Spectrum,
    Qlora,
    /// Adapters, and some weights that train whole beside them.
    Mixed,
    /// LoRA over 8 bits.
    Ilora,
}

/// Which adapters have magnitudes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Dora {
    None,
    All,
    /// Keys, gate and the last layer, beside adapters without.
    Some,
}

pub(super) struct Case {
    pub name: &'static str,
    pub method: Method,
    pub shape: ModelShape,
    pub head_norms: bool,
    pub biases: bool,
    pub options: Options,
    /// Rank of adapters.
    pub rank: usize,
    /// Their dropout.
    pub dropout: f32,
    /// Elements of a block of 4 bits, and whether their maxima are in 8 bits.
    pub nf4: (usize, bool),
    /// Whether they have magnitudes: all, or those of every second linear layer.
    pub dora: Dora,
}

pub(super) fn shape(
    hidden: usize,
    intermediate: usize,
    heads: usize,
    kv_heads: usize,
    dim: usize,
    vocab: usize,
    tied: bool,
) -> ModelShape {
    ModelShape {
        vocab,
        hidden,
        intermediate,
        blocks: 3,
        heads,
        kv_heads,
        dim,
        windows: vec![None, Some(9), None],
        rms_eps: 1e-6,
        tied,
        inverse_frequencies: (0..dim / 2).map(|i| 1000_f32.powf(-2.0 * i as f32 / dim as f32)).collect(),
    }
}

pub(super) fn slots(case: &Case) -> Vec<(Slot, String)> {
    use Role::*;
    let mut list = vec![(None, Embedding)];
    for block in 0..case.shape.blocks {
        let block = Some(block);
        list.push((block, InputNorm));
        for (weight, bias) in [(Q, QBias), (K, KBias), (V, VBias)] {
            list.push((block, weight));
            if case.biases {
                list.push((block, bias));
            }
        }
        if case.head_norms {
            list.extend([(block, QNorm), (block, KNorm)]);
        }
        list.extend([(block, O), (block, PostNorm), (block, Gate), (block, Up), (block, Down)]);
        if case.biases {
            list.extend([OBias, GateBias, UpBias, DownBias].map(|role| (block, role)));
        }
    }
    list.push((None, FinalNorm));
    if !case.shape.tied {
        list.push((None, Head));
    }
    list.into_iter()
        .map(|slot| (slot, format!("{}.{:?}", slot.0.map_or("model".into(), |b| b.to_string()), slot.1)))
        .collect()
}

fn is_linear(role: Role) -> bool {
    matches!(role, Role::Q | Role::K | Role::V | Role::O | Role::Gate | Role::Up | Role::Down)
}

pub(super) fn treatment(case: &Case, slot: Slot, name: &str) -> Treatment {
    match case.method {
        Method::Full => Treatment::Train,
        Method::Mixed if slot.0 > Some(0) && matches!(slot.1, Role::Q | Role::Up) => Treatment::Train,
        Method::Lora | Method::Qlora | Method::Ilora | Method::Mixed if is_linear(slot.1) => {
            Treatment::Adapt(AdapterSpec {
                rank: case.rank,
                scale: SCALE,
                dropout: case.dropout,
                dropout_stream: slot.0.map_or(0, |block| block as u32) * 32 + slot.1 as u32,
                a: format!("{name}.A"),
                b: format!("{name}.B"),
                magnitude: match case.dora {
                    Dora::None => false,
                    Dora::All => true,
                    Dora::Some => matches!(slot.1, Role::K | Role::Gate | Role::Down),
                }
                .then(|| format!("{name}.M")),
            })
        }
        // Some of each kind, none in the first block.
        Method::Spectrum => match slot {
            (Some(1), Role::K | Role::Down | Role::Gate) | (Some(2), Role::Q | Role::V | Role::O | Role::Up) => {
                Treatment::Train
            }
            _ => Treatment::Frozen,
        },
        _ => Treatment::Frozen,
    }
}

pub(super) type Values = BTreeMap<String, (usize, usize, Vec<f32>)>;

/// Numbers that bf16 can hold.
fn draw(random: &mut Random, len: usize, mean: f32, spread: f32) -> Vec<f32> {
    (0..len).map(|_| half::bf16::from_f32(mean + spread * random.normal()).to_f32()).collect()
}

pub(super) fn values(case: &Case) -> Values {
    let mut random = Random::new(9, 0);
    let mut values = Values::new();
    for (slot, name) in slots(case) {
        let [rows, cols] = case.shape.shape_of(slot.1);
        let (mean, spread) = match slot.1 {
            Role::Embedding => (0.0, 1.0),
            role if role.biases().is_some() => (0.0, 0.3),
            _ if rows == 1 && cols > 1 => (1.0, 0.2),
            _ => (0.0, 1.0 / (cols as f32).sqrt()),
        };
        if let Treatment::Adapt(adapter) = treatment(case, slot, &name) {
            values.insert(adapter.a, (case.rank, cols, draw(&mut random, case.rank * cols, 0.0, 0.1)));
            values.insert(adapter.b, (rows, case.rank, draw(&mut random, rows * case.rank, 0.0, 0.1)));
            if let Some(magnitude) = adapter.magnitude {
                values.insert(magnitude, (1, rows, draw(&mut random, rows, 1.0, 0.3)));
            }
        }
        values.insert(name, (rows, cols, draw(&mut random, rows * cols, mean, spread)));
    }
    values
}

pub(super) fn on_card(context: &Context, case: &Case, values: &Values) -> CudaDecoder {
    on_card_with(context, case, values, |_| true, |slot| storage(case, slot))
}

/// How the method keeps a weight.
pub(super) fn storage(case: &Case, slot: Slot) -> Storage {
    match case.method {
        Method::Qlora if is_linear(slot.1) => Storage::Nf4 { block: case.nf4.0, double: case.nf4.1 },
        Method::Ilora if is_linear(slot.1) => Storage::Int8,
        _ => Storage::F32,
    }
}

/// The same with adapters at some weights only, and weights kept as `storage` says.
pub(super) fn on_card_with(
    context: &Context,
    case: &Case,
    values: &Values,
    adapted: impl Fn(Slot) -> bool,
    storage: impl Fn(Slot) -> Storage,
) -> CudaDecoder {
    let specs: Vec<TensorSpec> = slots(case)
        .into_iter()
        .map(|(slot, name)| {
            let treatment = match treatment(case, slot, &name) {
                Treatment::Adapt(_) if !adapted(slot) => Treatment::Frozen,
                treatment => treatment,
            };
            TensorSpec { slot, treatment, storage: storage(slot), name }
        })
        .collect();
    let mut decoder = Builder::new(context, &case.shape, &specs, case.options).unwrap().finish();
    let mut loader = Loader::default();
    for spec in &specs {
        load(&mut loader, &decoder, values, (spec.slot, &spec.name, spec.storage));
        if let Treatment::Adapt(adapter) = &spec.treatment {
            for name in [&adapter.a, &adapter.b].into_iter().chain(&adapter.magnitude) {
                let matrix = decoder.trainables().iter().position(|trainable| trainable.name == *name).unwrap();
                decoder.set_value(matrix, &values[name].2).unwrap();
            }
        }
    }
    decoder
}

/// Copies a weight's numbers to the card, as they are kept there.
pub(super) fn load(
    loader: &mut Loader,
    decoder: &CudaDecoder,
    values: &Values,
    (slot, name, storage): (Slot, &str, Storage),
) {
    let (_, cols, numbers) = &values[name];
    if storage == Storage::Int8 {
        let packed = Int8::quantise(numbers, *cols).unwrap();
        loader.load(decoder, slot, Data::Int8(packed.codes(), packed.absmax())).unwrap();
    } else {
        loader.load(decoder, slot, Data::F32(numbers)).unwrap();
    }
}

/// What 4 bits make of a weight, without the second quantisation, which is finer than what is compared.
fn four_bits(w: &[f32], block: usize) -> Vec<f32> {
    w.chunks(block)
        .flat_map(|block| {
            let max = block.iter().fold(0.0_f32, |m, x| m.max(x.abs()));
            let near = |x: f32| VALUES.into_iter().min_by(|a, b| (a - x).abs().total_cmp(&(b - x).abs())).unwrap();
            block.iter().map(|x| near(x / max) * max).collect::<Vec<_>>()
        })
        .collect()
}

/// A weight as the CPU engine keeps it.
pub(super) fn kept_on_cpu(numbers: &[f32], cols: usize, storage: Storage) -> Weight {
    match storage {
        Storage::F32 | Storage::Bf16 => Weight::F32(numbers.to_vec()),
        Storage::Nf4 { block, .. } => Weight::F32(four_bits(numbers, block)),
        Storage::Int8 => Weight::Int8(Int8::quantise(numbers, cols).unwrap()),
    }
}

pub(super) fn on_cpu(case: &Case, values: &Values) -> Decoder {
    on_cpu_with(case, values, |slot| storage(case, slot))
}

/// The same with weights kept as `storage` says.
pub(super) fn on_cpu_with(case: &Case, values: &Values, storage: impl Fn(Slot) -> Storage) -> Decoder {
    let param = |slot: Slot| {
        let name = format!("{}.{:?}", slot.0.map_or("model".into(), |b: usize| b.to_string()), slot.1);
        let (rows, cols, numbers) = &values[&name];
        let weight = kept_on_cpu(numbers, *cols, storage(slot));
        let mut param = Param::frozen(&name, *rows, *cols, weight).unwrap();
        param.set_trained(treatment(case, slot, &name) == Treatment::Train);
        param
    };
    let linear = |block: usize, role: Role, bias: Option<Role>| {
        let weight = param((Some(block), role));
        let [rows, cols] = [weight.rows(), weight.cols()];
        let spec = treatment(case, (Some(block), role), weight.name());
        let mut linear =
            Linear::new(weight, bias.filter(|_| case.biases).map(|bias| param((Some(block), bias)))).unwrap();
        if let Treatment::Adapt(spec) = spec {
            let trained = |name: &String| {
                let (rows, cols, numbers) = values[name].clone();
                Param::trained(name, rows, cols, Weight::F32(numbers)).unwrap()
            };
            let magnitude = spec.magnitude.as_ref().map(trained);
            let options =
                AdapterOptions { scale: spec.scale, dropout: spec.dropout, dropout_stream: spec.dropout_stream };
            linear.adapter =
                Some(Adapter::new([rows, cols], trained(&spec.a), trained(&spec.b), magnitude, options).unwrap());
        }
        linear
    };
    let shape = &case.shape;
    let blocks = (0..shape.blocks)
        .map(|i| {
            let heads = Heads { queries: shape.heads, keys: shape.kv_heads, dim: shape.dim, window: shape.windows[i] };
            Block {
                shape: BlockShape {
                    hidden: shape.hidden,
                    intermediate: shape.intermediate,
                    heads,
                    rms_eps: shape.rms_eps,
                },
                input_norm: param((Some(i), Role::InputNorm)),
                q: linear(i, Role::Q, Some(Role::QBias)),
                k: linear(i, Role::K, Some(Role::KBias)),
                v: linear(i, Role::V, Some(Role::VBias)),
                q_norm: case.head_norms.then(|| param((Some(i), Role::QNorm))),
                k_norm: case.head_norms.then(|| param((Some(i), Role::KNorm))),
                o: linear(i, Role::O, Some(Role::OBias)),
                post_norm: param((Some(i), Role::PostNorm)),
                gate: linear(i, Role::Gate, Some(Role::GateBias)),
                up: linear(i, Role::Up, Some(Role::UpBias)),
                down: linear(i, Role::Down, Some(Role::DownBias)),
            }
        })
        .collect();
    let decoder = Decoder {
        embedding: param((None, Role::Embedding)),
        blocks,
        norm: param((None, Role::FinalNorm)),
        head: (!shape.tied).then(|| param((None, Role::Head))),
        rope: Rope::new(shape.inverse_frequencies.clone()),
        pool: Pool::new(),
    };
    decoder.check().unwrap();
    decoder
}

pub(super) fn batch(vocab: usize, seed: u32) -> Batch {
    let mut random = Random::new(1, seed);
    let documents: Vec<(Vec<u32>, Vec<bool>)> = [37, 5, 64, 23]
        .into_iter()
        .map(|len| {
            // Few ids, so that there is something to learn.
            let ids = (0..len).map(|_| random.next_u32() % vocab as u32 % 13).collect();
            (ids, (0..len).map(|i| i % 3 != 0).collect())
        })
        .collect();
    Batch::pack(documents.iter().map(|(ids, targets)| (ids.as_slice(), targets.as_slice())))
}

pub(super) fn train(decoder: &mut CudaDecoder, options: &AdamWOptions, batch: &Batch, lr: f64) -> (f64, f64) {
    decoder.clear_grads();
    let loss = decoder.accumulate(batch, 1.0 / batch.target_count() as f32).unwrap();
    let norm = decoder.grad_norm().unwrap();
    let updates: Vec<Update> =
        (0..decoder.trainables().len()).map(|index| Update { index, lr, weight_decay: 0.01 }).collect();
    decoder.update(options, &updates, (1.0 / norm.max(1.0)) as f32).unwrap();
    (loss.mean(), norm)
}
