//! Tiny models trained on the card and by the CPU engine, side by side.

use std::collections::BTreeMap;

use liftplan_engine::cuda::{
    AdapterSpec, Builder, Context, Data, Decoder as CudaDecoder, ModelShape, MomentFormat, Options, Role, Slot,
    Storage, TensorSpec, Treatment, Update,
};
use liftplan_engine::ops::attention::Heads;
use liftplan_engine::optim::{AdamW, AdamWOptions, Bf16Update, grad_norm};
use liftplan_engine::rng::Random;
use liftplan_engine::storage::nf4::VALUES;
use liftplan_engine::{
    Adapter, AdapterOptions, Batch, Block, BlockShape, Decoder, Int8, Keep, Linear, Param, Pool, Rope, StepOptions,
    Weight,
};

use crate::Report;

const SCALE: f32 = 2.0;

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
    on_card_with(context, case, values, |_| true)
}

/// The same with adapters at some weights only.
pub(super) fn on_card_with(
    context: &Context,
    case: &Case,
    values: &Values,
    adapted: impl Fn(Slot) -> bool,
) -> CudaDecoder {
    let storage = |slot: Slot| match case.method {
        Method::Qlora if is_linear(slot.1) => Storage::Nf4 { block: case.nf4.0, double: case.nf4.1 },
        Method::Ilora if is_linear(slot.1) => Storage::Int8,
        _ => Storage::F32,
    };
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
    let mut builder = Builder::new(context, &case.shape, &specs, case.options).unwrap();
    for spec in &specs {
        let (_, cols, numbers) = &values[&spec.name];
        if spec.storage == Storage::Int8 {
            let packed = Int8::quantise(numbers, *cols).unwrap();
            builder.load(spec.slot, Data::Int8(packed.codes(), packed.absmax())).unwrap();
        } else {
            builder.load(spec.slot, Data::F32(numbers)).unwrap();
        }
        if let Treatment::Adapt(adapter) = &spec.treatment {
            for name in [&adapter.a, &adapter.b].into_iter().chain(&adapter.magnitude) {
                builder.set_trainable(builder.trainable(name).unwrap(), &values[name].2).unwrap();
            }
        }
    }
    builder.finish()
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

pub(super) fn on_cpu(case: &Case, values: &Values) -> Decoder {
    let param = |slot: Slot| {
        let name = format!("{}.{:?}", slot.0.map_or("model".into(), |b: usize| b.to_string()), slot.1);
        let (rows, cols, numbers) = values[&name].clone();
        let numbers =
            if case.method == Method::Qlora && is_linear(slot.1) { four_bits(&numbers, case.nf4.0) } else { numbers };
        let numbers = match case.method {
            Method::Ilora if is_linear(slot.1) => Weight::Int8(Int8::quantise(&numbers, cols).unwrap()),
            _ => Weight::F32(numbers),
        };
        let mut param = Param::frozen(&name, rows, cols, numbers).unwrap();
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

pub fn check(context: &Context, report: &mut Report) {
    let plain = Options::default();
    let base = Case {
        name: "lora",
        method: Method::Lora,
        shape: shape(64, 136, 4, 2, 16, 67, false),
        head_norms: true,
        biases: false,
        options: plain,
        rank: 4,
        dropout: 0.0,
        nf4: (64, true),
        dora: Dora::None,
    };
    let wide = || shape(128, 192, 2, 1, 64, 203, false);
    let dora = |name, method| Case { name, method, shape: wide(), dora: Dora::All, ..base };
    let cases = [
        Case {
            name: "model lora with biases, dim 64",
            biases: true,
            head_norms: false,
            shape: shape(128, 192, 2, 1, 64, 203, false),
            rank: 3,
            ..base
        },
        Case { name: "model lora, normed heads", shape: base.shape.clone(), ..base },
        Case { name: "model lora with dropout", shape: base.shape.clone(), dropout: 0.25, ..base },
        Case { name: "model qlora with dropout", method: Method::Qlora, shape: wide(), dropout: 0.1, ..base },
        Case {
            name: "model full, tied",
            method: Method::Full,
            biases: true,
            shape: shape(64, 136, 4, 2, 16, 67, true),
            ..base
        },
        Case {
            name: "model full, untied, dim 80",
            method: Method::Full,
            shape: shape(160, 96, 2, 2, 80, 99, false),
            ..base
        },
        Case { name: "model spectrum", method: Method::Spectrum, shape: base.shape.clone(), ..base },
        Case {
            name: "model spectrum, bf16 gradients, 8-bit moments",
            method: Method::Spectrum,
            shape: base.shape.clone(),
            options: Options { moments: MomentFormat::EightBit, narrow_grads: true, ..plain },
            ..base
        },
        Case {
            name: "model lora, bf16 moments",
            shape: base.shape.clone(),
            options: Options { moments: MomentFormat::Bf16, ..plain },
            ..base
        },
        Case { name: "model qlora", method: Method::Qlora, shape: shape(128, 192, 2, 1, 64, 203, false), ..base },
        // Rows that are no whole number of blocks, too.
        Case {
            name: "model qlora, blocks of 32",
            method: Method::Qlora,
            shape: shape(136, 200, 2, 1, 64, 203, false),
            nf4: (32, true),
            ..base
        },
        Case {
            name: "model qlora, blocks of 128",
            method: Method::Qlora,
            shape: shape(128, 192, 2, 1, 64, 203, false),
            nf4: (128, true),
            ..base
        },
        Case {
            name: "model qlora, blocks of 1024, plain maxima",
            method: Method::Qlora,
            shape: shape(136, 200, 2, 1, 64, 203, false),
            nf4: (1024, false),
            ..base
        },
        dora("model dora", Method::Lora),
        Case { dropout: 0.25, ..dora("model dora with dropout", Method::Lora) },
        Case { biases: true, head_norms: false, rank: 3, ..dora("model dora with biases, rank 3", Method::Lora) },
        Case { biases: true, rank: 3, dropout: 0.1, ..dora("model dora with biases and dropout", Method::Lora) },
        Case { shape: shape(72, 136, 4, 2, 16, 67, true), ..dora("model dora, tied, odd widths", Method::Lora) },
        Case { dora: Dora::Some, ..dora("model dora beside lora", Method::Lora) },
        Case { dora: Dora::Some, dropout: 0.1, ..dora("model dora beside lora, with dropout", Method::Lora) },
        dora("model dora over nf4", Method::Qlora),
        Case { dropout: 0.1, ..dora("model dora over nf4 with dropout", Method::Qlora) },
        dora("model dora over int8", Method::Ilora),
        Case { dropout: 0.1, ..dora("model dora over int8 with dropout", Method::Ilora) },
    ];
    for case in &cases {
        if report.wants(case.name) {
            compare(context, case, report);
        }
    }
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

fn compare(context: &Context, case: &Case, report: &mut Report) {
    let values = values(case);
    let (mut card, mut cpu) = (on_card(context, case, &values), on_cpu(case, &values));
    let vocab = case.shape.vocab;
    let options = AdamWOptions { betas: (0.9, 0.99), eps: 1e-8, bf16_update: Bf16Update::Stochastic, seed: 3 };
    let mut optimizer = AdamW::new(options);
    let lr = if case.method == Method::Full { 1e-3 } else { 5e-3 };
    let (mut found, mut expected, mut found_norms, mut expected_norms) = (vec![], vec![], vec![], vec![]);
    for step in 0..20_u32 {
        let batch = batch(vocab, step % 2);
        let scale = 1.0 / batch.target_count() as f32;
        cpu.clear_grads();
        let step_options =
            StepOptions { grad_scale: scale, keep: Keep::Activations, dropout: Some((3, u64::from(step))) };
        let loss = cpu.accumulate(&batch, step_options).unwrap();
        card.set_dropout(3, u64::from(step));
        if step == 0 {
            card.clear_grads();
            let found = card.accumulate(&batch, scale).unwrap();
            report.compare(&format!("{}: first loss", case.name), &[found.mean() as f32], &[loss.mean() as f32], 1e-2);
            let grads: Vec<(String, Vec<f32>)> =
                (card.trainables().iter()).map(|t| (t.name.clone(), t.grad(context).unwrap())).collect();
            let mut compared = 0;
            for param in cpu.params().filter(|param| param.trains()) {
                let found = grads.iter().find(|(name, _)| name == param.name()).map(|(_, grad)| grad.clone());
                let name = format!("{}: gradient of {}", case.name, param.name());
                report.compare(&name, &found.unwrap_or_default(), param.grad().unwrap(), 6e-2);
                compared += 1;
            }
            report.holds(&format!("{}: all that trains was compared", case.name), compared == grads.len());
            // Twice the same batch is twice the gradient.
            card.accumulate(&batch, scale).unwrap();
            let twice = card.trainables()[0].grad(context).unwrap();
            let doubled: Vec<f32> = grads[0].1.iter().map(|x| 2.0 * x).collect();
            report.compare(&format!("{}: gradients add up", case.name), &twice, &doubled, 1e-2);
        }
        let norm = grad_norm(cpu.params()).unwrap();
        for param in cpu.params_mut() {
            optimizer.update(param, lr, 0.01, (1.0 / norm.max(1.0)) as f32).unwrap();
        }
        let (card_loss, card_norm) = train(&mut card, &options, &batch, lr);
        found.push(card_loss as f32);
        expected.push(loss.mean() as f32);
        found_norms.push(card_norm as f32);
        expected_norms.push(norm as f32);
    }
    println!("    losses {:?} … {:?} against {:?} … {:?}", found[0], found[19], expected[0], expected[19]);
    report.compare(&format!("{}: 20 losses", case.name), &found, &expected, 3e-2);
    report.compare(&format!("{}: 20 gradient norms", case.name), &found_norms, &expected_norms, 8e-2);
    report.holds(&format!("{}: it learns", case.name), found[19] < 0.9 * found[0]);

    // Logits of a whole batch against the CPU, against the cache, and after the same training again.
    let one = batch(vocab, 5);
    let rows = [0, 17, 36];
    let logits = card.logits(&one, &rows).unwrap();
    let mut cache = card.cache();
    let mut behind = card.extend(&mut cache, &one.ids[..1], true).unwrap();
    for id in &one.ids[1..18] {
        let next = card.extend(&mut cache, std::slice::from_ref(id), true).unwrap();
        if cache.tokens() == 18 {
            behind.extend(next);
        }
    }
    behind.extend(card.extend(&mut cache, &one.ids[18..37], true).unwrap());
    report.compare(&format!("{}: logits behind a cache", case.name), &behind, &logits, 2e-2);
    let losses = card.losses(&one).unwrap();
    report.compare(
        &format!("{}: losses of an evaluation", case.name),
        &[losses.iter().sum::<f32>()],
        &[cpu.losses(&one).unwrap().iter().sum()],
        5e-2,
    );

    let mut again = on_card(context, case, &values);
    let mut same = true;
    for step in 0..20_u32 {
        let batch = batch(vocab, step % 2);
        again.set_dropout(3, u64::from(step));
        if step == 0 {
            // As above: two passes that the first step forgets.
            again.clear_grads();
            again.accumulate(&batch, 1.0).unwrap();
        }
        let (loss, norm) = train(&mut again, &options, &batch, lr);
        same &= loss as f32 == found[step as usize] && norm as f32 == found_norms[step as usize];
    }
    report.holds(&format!("{}: the same bits again", case.name), same);

    // Less kept, in smaller pieces: the same loss and nearly the same gradients.
    let mut lean = on_card(context, case, &values);
    let batch = batch(vocab, 0);
    let mut rich = on_card(context, case, &values);
    let plan = liftplan_engine::cuda::StepPlan::new(3, 1, 0, 50, 7);
    let scale = 1.0 / batch.target_count() as f32;
    let rich_loss = rich.accumulate(&batch, scale).unwrap();
    let lean_loss = lean.accumulate_with(&batch, scale, &plan).unwrap();
    report.compare(
        &format!("{}: loss, little kept", case.name),
        &[lean_loss.sum as f32],
        &[rich_loss.sum as f32],
        1e-3,
    );
    let all = |decoder: &CudaDecoder| -> Vec<f32> {
        decoder.trainables().iter().flat_map(|t| t.grad(context).unwrap()).collect()
    };
    report.compare(&format!("{}: gradients, little kept", case.name), &all(&lean), &all(&rich), 1e-2);
}
