//! Adapters that begin, rest and begin again between steps, and weights that are kept in another way from a step on, on the card and
//! by the CPU engine; a run that goes on from what was kept between these picks; and that nothing is queued for the gradients of adapters that rest.

use std::collections::BTreeMap;

use liftplan_engine::cuda::{
    Context, Decoder as CudaDecoder, Kind, MomentFormat, Options, Role, Slot, StepPlan, Treatment, Update,
};
use liftplan_engine::optim::{AdamW, grad_norm};
use liftplan_engine::{Adapter, Block, Decoder, Keep, StepOptions};

use crate::Report;
use crate::script::{ADAPTERS, PICKS, STORED, Script};
use crate::tiny::{
    Case, Dora, Method, OPTIONS, Values, batch, kept_on_cpu, on_card, on_cpu_with, shape, slots, treatment, values,
};

const STEPS: u32 = 20;
const LR: f64 = 2e-3;

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
            compare(context, &case, ADAPTERS, report);
            at_rest(context, &case, report);
        }
    }
    for case in [
        case("picks, other storages", Method::Lora, plain, 0.0),
        case("picks, other storages in little room, dropout", Method::Lora, tight, 0.2),
        Case { rank: 5, ..case("picks, other storages beside whole weights", Method::Mixed, tight, 0.0) },
        dora(case("picks, other storages, dora", Method::Lora, plain, 0.0)),
        dora(case("picks, other storages beside whole weights, dora", Method::Mixed, plain, 0.1)),
    ] {
        if report.wants(case.name) {
            compare(context, &case, STORED, report);
        }
    }
}

/// What trains has, to the bit, the gradients that it has where all train; and nothing is queued for those that rest.
fn at_rest(context: &Context, case: &Case, report: &mut Report) {
    let (name, values) = (case.name, values(case));
    let mut decoder = on_card(context, case, &values);
    let (batch, whole) = (batch(case.shape.vocab, 0), StepPlan::new(3, 3, 3, 4096, 4096));
    // Of blocks that keep nothing but their input, in pieces, and of one that keeps its products.
    let mixed = StepPlan { pieces: 2, ..StepPlan::new(3, 1, 0, 50, 7) };
    for (kept, plan) in [("all kept", whole), ("little kept", mixed)] {
        let pass = |decoder: &mut CudaDecoder, trains: &dyn Fn(Slot) -> bool| {
            let trained = |slot, matrix: &str| trains(slot) && names(case, slot).iter().any(|name| name == matrix);
            let slots = slots(case);
            // Gradients of what rests are no numbers, which nobody is to read, least of all the norm.
            decoder.set_active(|_| true).unwrap();
            decoder.clear_grads();
            decoder.accumulate_with(&batch, f32::INFINITY, &StepPlan::new(3, 3, 3, 4096, 4096)).unwrap();
            decoder.set_active(|matrix| slots.iter().any(|&(slot, _)| trained(slot, matrix))).unwrap();
            decoder.set_dropout(3, 1);
            decoder.clear_grads();
            // Blocks below the first that trains keep nothing: the plan is of those above.
            let blocks = decoder.choose_plan(&batch).unwrap().levels.len();
            let levels = plan.levels[3 - blocks..].to_vec();
            context.start_profile();
            let loss = decoder.accumulate_with(&batch, 1.0, &StepPlan { levels, ..plan.clone() }).unwrap().sum;
            let queued = context.end_profile().unwrap().unwrap();
            let queued = queued.by_kind.get(&Kind::Adapter).map_or(0, |&(_, pieces)| pieces);
            let mut grads = BTreeMap::new();
            for trainable in decoder.active().into_iter().map(|index| &decoder.trainables()[index]) {
                grads.insert(trainable.name.clone(), trainable.grad(context).unwrap());
            }
            (loss, grads, decoder.grad_norm().unwrap(), queued)
        };
        let all = pass(&mut decoder, &|_| true);
        let some: [(&str, &dyn Fn(Slot) -> bool); 4] = [
            ("the last block's", &|slot| slot.0 == Some(2)),
            ("the last block's last", &|slot| slot == (Some(2), Role::Down)),
            ("keys'", &|slot| slot.1 == Role::K),
            ("the middle one's outputs", &|slot| slot == (Some(1), Role::O)),
        ];
        for (which, trains) in some {
            let found = pass(&mut decoder, trains);
            let named = |what: &str| format!("{name}: {which} adapters train alone, {kept}: {what}");
            let expected: Vec<_> = found.1.keys().flat_map(|matrix| all.1[matrix].clone()).collect();
            let gradients: Vec<_> = found.1.values().flatten().copied().collect();
            report.compare(&named("gradients"), &gradients, &expected, 2e-2);
            if kept == "little kept" {
                // Whatever trains, products have the same strides and so the same algorithms.
                report.holds(&named("the same bits"), found.0 == all.0 && gradients == expected);
            }
            report.holds(&named("fewer gradients"), found.1.len() < all.1.len());
            let squares = gradients.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>();
            report.holds(&named("norm"), (found.2 / squares.sqrt() - 1.0).abs() < 1e-5);
            report.holds(&named("less is queued"), found.3 < all.3);
            if kept == "all kept" && case.method == Method::Lora && case.dropout == 0.0 && case.dora == Dora::None {
                // Forward four products a block; back four for inputs' gradients, and gradients of A, one a group, and of B.
                let expected = 12
                    + match which {
                        "the last block's" => 4 + 4 + 7,
                        "the last block's last" => 1 + 1 + 1,
                        "keys'" => 3 * (4 + 1 + 1),
                        _ => 4 + 3 + 1 + 1,
                    };
                report.holds(&named(&format!("{expected} products ({})", found.3)), found.3 == expected);
            }
        }
        report.holds(&format!("{name}: all train again, {kept}"), pass(&mut decoder, &|_| true) == all);
    }
}

/// The matrices of a weight's adapter, if it has one.
fn names(case: &Case, slot: Slot) -> Vec<String> {
    let name = format!("{}.{:?}", slot.0.map_or("model".into(), |block| block.to_string()), slot.1);
    match treatment(case, slot, &name) {
        Treatment::Adapt(spec) => [spec.a, spec.b].into_iter().chain(spec.magnitude).collect(),
        _ => Vec::new(),
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

fn on_card_run(
    context: &Context,
    case: &Case,
    script: Script,
    values: &Values,
    resumed: Option<u32>,
) -> (Told, Gradients) {
    let mut decoder = script.on_card(context, case, values, 0);
    let (mut losses, mut norms, mut gradients) = (vec![], vec![], Gradients::new());
    for step in 0..STEPS {
        if resumed == Some(step) {
            let numbers = numbers(context, &decoder);
            let states = decoder.states().unwrap();
            decoder = script.on_card(context, case, values, step);
            put(&mut decoder, &numbers);
            decoder.set_states(states).unwrap();
        }
        script.pick(&mut decoder, case, values, step);
        decoder.set_active(|name| adapter_trains(case, script, step, name)).unwrap();
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
const WATCHED: [u32; 7] = [0, 6, 9, 12, 13, 15, 18];

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
fn adapter_trains(case: &Case, script: Script, step: u32, matrix: &str) -> bool {
    slots(case).into_iter().any(|(slot, name)| {
        let Treatment::Adapt(spec) = treatment(case, slot, &name) else { return false };
        [&spec.a, &spec.b].into_iter().chain(&spec.magnitude).any(|name| name == matrix) && (script.trains)(step, slot)
    })
}

/// The CPU engine's losses, norms and gradients.
fn on_cpu_run(case: &Case, script: Script, values: &Values) -> (Vec<f64>, Vec<f64>, Gradients) {
    let mut decoder = on_cpu_with(case, values, |slot| (script.kept)(case, 0, slot));
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
            if linear.adapter.is_none() && script.began(step, slot) {
                linear.adapter = waiting.remove(linear.weight.name());
            }
        }
        for (_, name, storage) in script.stored(case, step) {
            let (_, cols, numbers) = &values[&name];
            let param = decoder.params_mut().find(|param| param.name() == name).unwrap();
            param.value = kept_on_cpu(numbers, *cols, storage);
        }
        let is_whole = |name: &str| slots.contains_key(name);
        for param in decoder.params_mut().filter(|param| !is_whole(param.name())) {
            param.set_trained(adapter_trains(case, script, step, param.name()));
        }
        optimizer.retain(|name| is_whole(name) || adapter_trains(case, script, step, name));
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

fn compare(context: &Context, case: &Case, script: Script, report: &mut Report) {
    let name = case.name;
    let values = values(case);
    let (told, found) = on_card_run(context, case, script, &values, None);
    let (losses, norms, expected) = on_cpu_run(case, script, &values);
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
    let again = |resumed| on_card_run(context, case, script, &values, resumed).0 == told;
    report.holds(&format!("{name}: the same bits again"), again(None));
    for step in script.resumed {
        report.holds(&format!("{name}: the same bits resumed in step {step}"), again(Some(step)));
    }

    // Adapters that began late, and what is kept otherwise, stand as if they had been there from the start: the same pass, to the bit.
    let mut late = script.on_card(context, case, &values, 0);
    let mut early = script.on_card(context, case, &values, STEPS);
    PICKS.iter().for_each(|&step| script.pick(&mut late, case, &values, step));
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
        let alike = pass(&mut late) == pass(&mut early);
        report.holds(&format!("{name}: as from the start, {} pieces", plan.pieces), alike);
        let needed = |decoder: &CudaDecoder| decoder.needed(&batch, &plan).unwrap();
        report.holds(&format!("{name}: as much memory as from the start"), needed(&late) == needed(&early));
    }
    println!("    {} bytes from the start, {} as they began", bytes(&early), bytes(&late));
}
