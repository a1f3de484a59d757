//! Adapters that begin, rest and begin again between steps, on the card and by the CPU engine; and a run that goes on from what was
//! kept between these picks.

use std::collections::BTreeMap;

use liftplan_engine::cuda::{
    Context, Decoder as CudaDecoder, MomentFormat, Options, Role, Slot, StepPlan, Treatment, Update,
};
use liftplan_engine::optim::{AdamW, AdamWOptions, Bf16Update, grad_norm};
use liftplan_engine::{Adapter, Block, Decoder, Keep, StepOptions};

use crate::Report;
use crate::tiny::{Case, Dora, Method, Values, batch, on_card_with, on_cpu, shape, slots, treatment, values};

const STEPS: u32 = 20;
/// The step from which a second run goes on: one adapter rests, and others are still to begin.
const RESUMED: u32 = 11;
const LR: f64 = 2e-3;
const OPTIONS: AdamWOptions =
    AdamWOptions { betas: (0.9, 0.99), eps: 1e-8, bf16_update: Bf16Update::Stochastic, seed: 3 };

/// Whether a weight's adapter trains in a step, from 0: two in a block from the start, those between and behind them later, those of
/// the first block, which had none, last; one rests for a while.
fn trains(step: u32, slot: Slot) -> bool {
    let Some(block) = slot.0 else { return false };
    let from = match slot.1 {
        _ if block == 0 => 12,
        Role::K | Role::Gate => 0,
        _ => 6,
    };
    step >= from && !(block == 1 && slot.1 == Role::Gate && (9..13).contains(&step))
}

/// Whether it ever did.
fn began(step: u32, slot: Slot) -> bool {
    (0..=step).any(|step| trains(step, slot))
}

pub fn check(context: &Context, report: &mut Report) {
    let case = |name, method, options, dropout| Case {
        name,
        method,
        shape: shape(128, 192, 2, 1, 64, 203, false),
        head_norms: true,
        biases: true,
        options,
        rank: 4,
        dropout,
        nf4: (64, true),
        dora: Dora::None,
    };
    let dora = |case| Case { dora: Dora::All, ..case };
    let plain = Options::default();
    let tight = Options { rank_multiple: 8, ..plain };
    for case in [
        case("picks, lora", Method::Lora, plain, 0.0),
        case("picks, lora in little room, dropout", Method::Lora, tight, 0.2),
        case("picks, qlora", Method::Qlora, plain, 0.1),
        case("picks, qlora in little room", Method::Qlora, Options { moments: MomentFormat::EightBit, ..tight }, 0.0),
        // Ranks by which a group with a weight that trains outgrows its room.
        Case { rank: 5, ..case("picks, beside whole weights", Method::Mixed, tight, 0.0) },
        dora(case("picks, dora", Method::Lora, plain, 0.0)),
        dora(case("picks, dora with dropout", Method::Lora, tight, 0.2)),
        dora(case("picks, dora over nf4", Method::Qlora, plain, 0.0)),
        dora(Case { rank: 5, ..case("picks, dora beside whole weights", Method::Mixed, tight, 0.0) }),
    ] {
        if report.wants(case.name) {
            compare(context, &case, report);
        }
    }
}

/// What a run tells, in its bits.
#[derive(Debug, PartialEq)]
struct Told {
    losses: Vec<f64>,
    norms: Vec<f64>,
    /// Values in the end, and states.
    values: BTreeMap<String, Vec<f32>>,
    states: String,
}

/// Gradients by step and name.
type Gradients = BTreeMap<(u32, String), Vec<f32>>;

fn on_card_run(context: &Context, case: &Case, values: &Values, resume: bool) -> (Told, Gradients) {
    let at = |step: u32| on_card_with(context, case, values, |slot| began(step, slot));
    let mut decoder = at(0);
    let (mut losses, mut norms, mut gradients) = (vec![], vec![], Gradients::new());
    for step in 0..STEPS {
        if resume && step == RESUMED {
            let numbers = numbers(context, &decoder);
            let states = decoder.states().unwrap();
            decoder = at(step);
            put(&mut decoder, &numbers);
            decoder.set_states(states).unwrap();
        }
        let begins: Vec<_> = slots(case)
            .into_iter()
            .filter(|(slot, _)| began(step, *slot) && step > 0 && !began(step - 1, *slot))
            .filter_map(|(slot, name)| match treatment(case, slot, &name) {
                Treatment::Adapt(spec) => Some((slot, spec)),
                _ => None,
            })
            .collect();
        if !begins.is_empty() {
            decoder.adapt(&begins).unwrap();
            let names = begins.iter().flat_map(|(_, spec)| [&spec.a, &spec.b].into_iter().chain(&spec.magnitude));
            let first = names.map(|name| (name.clone(), values[name].2.clone())).collect();
            put(&mut decoder, &first);
        }
        decoder.set_active(|name| adapter_trains(case, step, name)).unwrap();
        decoder.set_dropout(3, u64::from(step));
        decoder.clear_grads();
        let batch = batch(case.shape.vocab, step % 2);
        let loss = decoder.accumulate(&batch, 1.0 / batch.target_count() as f32).unwrap();
        if WATCHED.contains(&step) {
            for index in decoder.active() {
                let trainable = &decoder.trainables()[index];
                gradients.insert((step, trainable.name.clone()), trainable.grad(context).unwrap());
            }
        }
        let norm = decoder.grad_norm().unwrap();
        let updates: Vec<Update> =
            decoder.active().into_iter().map(|index| Update { index, lr: LR, weight_decay: 0.01 }).collect();
        decoder.update(&OPTIONS, &updates, (1.0 / norm.max(1.0)) as f32).unwrap();
        losses.push(loss.mean());
        norms.push(norm);
    }
    let states = format!("{:?}", decoder.states().unwrap());
    (Told { losses, norms, values: numbers(context, &decoder), states }, gradients)
}

/// Steps whose gradients are compared: the first, and those behind picks.
const WATCHED: [u32; 5] = [0, 6, 9, 12, 13];

pub(super) fn numbers(context: &Context, decoder: &CudaDecoder) -> BTreeMap<String, Vec<f32>> {
    decoder.trainables().iter().map(|t| (t.name.clone(), t.value(context).unwrap())).collect()
}

pub(super) fn put(decoder: &mut CudaDecoder, numbers: &BTreeMap<String, Vec<f32>>) {
    for (name, numbers) in numbers {
        let index = decoder.trainables().iter().position(|trainable| trainable.name == *name).unwrap();
        decoder.set_value(index, numbers).unwrap();
    }
}

/// Whether the adapter whose matrix has this name trains in a step.
fn adapter_trains(case: &Case, step: u32, matrix: &str) -> bool {
    slots(case).into_iter().any(|(slot, name)| {
        let Treatment::Adapt(spec) = treatment(case, slot, &name) else { return false };
        [&spec.a, &spec.b].into_iter().chain(&spec.magnitude).any(|name| name == matrix) && trains(step, slot)
    })
}

/// The CPU engine's losses, norms and gradients.
fn on_cpu_run(case: &Case, values: &Values) -> (Vec<f64>, Vec<f64>, Gradients) {
    let mut decoder = on_cpu(case, values);
    let slots: BTreeMap<String, Slot> = slots(case).into_iter().map(|(slot, name)| (name, slot)).collect();
    let mut waiting: BTreeMap<String, Adapter> = BTreeMap::new();
    for linear in linears(&mut decoder) {
        if let Some(adapter) = linear.adapter.take() {
            waiting.insert(linear.weight.name().to_string(), adapter);
        }
    }
    let mut optimizer = AdamW::new(OPTIONS);
    let (mut losses, mut norms, mut gradients) = (vec![], vec![], Gradients::new());
    for step in 0..STEPS {
        for linear in linears(&mut decoder) {
            let slot = slots[linear.weight.name()];
            if linear.adapter.is_none() && began(step, slot) {
                linear.adapter = waiting.remove(linear.weight.name());
            }
        }
        let is_whole = |name: &str| slots.contains_key(name);
        for param in decoder.params_mut().filter(|param| !is_whole(param.name())) {
            param.set_trained(adapter_trains(case, step, param.name()));
        }
        optimizer.retain(|name| is_whole(name) || adapter_trains(case, step, name));
        let batch = batch(case.shape.vocab, step % 2);
        decoder.clear_grads();
        let options = StepOptions {
            grad_scale: 1.0 / batch.target_count() as f32,
            keep: Keep::Activations,
            dropout: Some((3, u64::from(step))),
        };
        losses.push(decoder.accumulate(&batch, options).unwrap().mean());
        let norm = grad_norm(decoder.params()).unwrap();
        norms.push(norm);
        for param in decoder.params_mut().filter(|param| param.trains()) {
            if WATCHED.contains(&step) {
                gradients.insert((step, param.name().to_string()), param.grad().unwrap().to_vec());
            }
            optimizer.update(param, LR, 0.01, (1.0 / norm.max(1.0)) as f32).unwrap();
        }
    }
    (losses, norms, gradients)
}

fn linears(decoder: &mut Decoder) -> impl Iterator<Item = &mut liftplan_engine::Linear> {
    decoder.blocks.iter_mut().flat_map(Block::linears_mut)
}

fn compare(context: &Context, case: &Case, report: &mut Report) {
    let name = case.name;
    let values = values(case);
    let (told, found) = on_card_run(context, case, &values, false);
    let (losses, norms, expected) = on_cpu_run(case, &values);
    let narrow = |values: &[f64]| values.iter().map(|&x| x as f32).collect::<Vec<_>>();
    report.compare(&format!("{name}: losses of 20 steps"), &narrow(&told.losses), &narrow(&losses), 1e-2);
    report.compare(&format!("{name}: norms of gradients"), &narrow(&told.norms), &narrow(&norms), 5e-2);
    let keys = |gradients: &Gradients| gradients.keys().cloned().collect::<Vec<_>>();
    report.holds(&format!("{name}: the same tensors train"), keys(&found) == keys(&expected));
    for ((step, tensor), expected) in &expected {
        let found = found.get(&(*step, tensor.clone())).cloned().unwrap_or_default();
        // Behind some steps the weights themselves differ a little.
        let tolerance = if *step == 0 { 6e-2 } else { 1.5e-1 };
        report.compare(&format!("{name}: gradient of {tensor} in step {step}"), &found, expected, tolerance);
    }
    report.holds(&format!("{name}: the same bits again"), on_card_run(context, case, &values, false).0 == told);
    report.holds(&format!("{name}: the same bits resumed"), on_card_run(context, case, &values, true).0 == told);

    // Adapters that began late stand as if they had been there from the start: the same pass, to the bit.
    let mut late = on_card_with(context, case, &values, |slot| trains(0, slot));
    let mut early = on_card_with(context, case, &values, |_| true);
    for begins in [6, 12] {
        let specs = slots(case).into_iter().filter(|(slot, _)| began(begins, *slot) && !began(begins - 1, *slot));
        let specs: Vec<_> = specs
            .filter_map(|(slot, name)| match treatment(case, slot, &name) {
                Treatment::Adapt(spec) => Some((slot, spec)),
                _ => None,
            })
            .collect();
        late.adapt(&specs).unwrap();
    }
    let all: BTreeMap<String, Vec<f32>> = numbers(context, &early);
    put(&mut late, &all);
    let bytes = |decoder: &CudaDecoder| decoder.model_bytes();
    let batch = batch(case.shape.vocab, 0);
    for plan in [StepPlan::new(3, 3, 3, 4096, 4096), StepPlan { pieces: 2, ..StepPlan::new(3, 1, 0, 50, 7) }] {
        let pass = |decoder: &mut CudaDecoder| {
            decoder.set_active(|_| true).unwrap();
            decoder.set_dropout(3, 1);
            decoder.clear_grads();
            let loss = decoder.accumulate_with(&batch, 1.0, &plan).unwrap();
            let grads: BTreeMap<String, Vec<f32>> =
                decoder.trainables().iter().map(|t| (t.name.clone(), t.grad(context).unwrap())).collect();
            (loss.sum, grads)
        };
        report
            .holds(&format!("{name}: as from the start, {} pieces", plan.pieces), pass(&mut late) == pass(&mut early));
    }
    println!("    {} bytes from the start, {} as they began", bytes(&early), bytes(&late));
}
