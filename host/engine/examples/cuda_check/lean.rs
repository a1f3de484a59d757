//! What takes less memory changes no bit: the same training with and without.

use liftplan_engine::cuda::{Context, Decoder as CudaDecoder, ModelShape, MomentFormat, Options, StepPlan, Update};
use liftplan_engine::{EngineError, IGNORE};

use crate::Report;
use crate::tiny::{Case, Dora, Method, OPTIONS, Values, batch, on_card, shape, train, values};

/// A small untied model.
fn case(name: &'static str, method: Method) -> Case {
    Case {
        name,
        method,
        shape: shape(128, 192, 2, 1, 64, 203, false),
        head_norms: true,
        biases: false,
        options: Options::default(),
        rank: 4,
        dropout: 0.1,
        nf4: (64, true),
        dora: Dora::None,
    }
}

/// The same with DoRA and biases.
fn dora(name: &'static str, method: Method, dropout: f32) -> Case {
    Case { dora: Dora::All, biases: true, dropout, ..case(name, method) }
}

/// The case's model with other options.
fn built(context: &Context, case: &Case, options: Options, values: &Values) -> CudaDecoder {
    on_card(context, &Case { options, shape: case.shape.clone(), ..*case }, values)
}

/// Updates of all that trains.
fn updates(decoder: &CudaDecoder, weight_decay: f64) -> Vec<Update> {
    (0..decoder.trainables().len()).map(|index| Update { index, lr: 2e-3, weight_decay }).collect()
}

pub fn check(context: &Context, report: &mut Report) {
    for case in [case("embedding on the host, lora", Method::Lora), case("embedding on the host, qlora", Method::Qlora)]
    {
        if report.wants(case.name) {
            embedding_on_host(context, &case, report);
        }
    }
    for case in [
        case("waiting on the host, lora", Method::Lora),
        case("waiting on the host, qlora", Method::Qlora),
        case("waiting on the host, spectrum", Method::Spectrum),
        Case { biases: true, ..case("waiting on the host, full", Method::Full) },
        Case { head_norms: false, ..case("waiting on the host, lora without heads' norms", Method::Lora) },
        dora("waiting on the host, dora with dropout", Method::Lora, 0.1),
        dora("waiting on the host, dora", Method::Lora, 0.0),
        Case { head_norms: false, ..dora("waiting on the host, dora over nf4", Method::Qlora, 0.0) },
    ] {
        if report.wants(case.name) {
            waiting(context, &deep(case), report);
        }
    }
    let narrow = Options { moments: MomentFormat::EightBit, narrow_grads: true, ..Options::default() };
    for case in [
        case("updates inside the pass, lora", Method::Lora),
        case("updates inside the pass, qlora", Method::Qlora),
        dora("updates inside the pass, dora", Method::Lora, 0.0),
        dora("updates inside the pass, dora with dropout", Method::Lora, 0.1),
        dora("updates inside the pass, dora over nf4", Method::Qlora, 0.0),
        dora("updates inside the pass, dora over int8", Method::Ilora, 0.0),
        case("updates inside the pass, spectrum", Method::Spectrum),
        Case { options: narrow, ..case("updates inside the pass, spectrum in few bits", Method::Spectrum) },
        Case { biases: true, ..case("updates inside the pass, full", Method::Full) },
        Case {
            shape: shape(64, 136, 4, 2, 16, 67, true),
            ..case("updates inside the pass, full and tied", Method::Full)
        },
    ] {
        if report.wants(case.name) {
            update_in_backward(context, &case, report);
        }
    }
}

const DEEP: usize = 9;

/// A case with enough blocks for what they keep to take turns.
fn deep(case: Case) -> Case {
    let shape = ModelShape { blocks: DEEP, windows: vec![None; DEEP], ..case.shape };
    Case { shape, ..case }
}

/// Steps by plans that keep less and leave it elsewhere, against one that keeps all.
fn waiting(context: &Context, case: &Case, report: &mut Report) {
    let values = values(case);
    let run = |plan: &StepPlan| {
        let mut decoder = built(context, case, case.options, &values);
        let updates = updates(&decoder, 0.01);
        let mut numbers = Vec::new();
        for step in 0..4_u32 {
            let batch = batch(case.shape.vocab, step % 2);
            decoder.set_dropout(3, u64::from(step));
            decoder.clear_grads();
            let scale = 1.0 / batch.target_count() as f32;
            let loss = decoder.accumulate_with(&batch, scale, plan).unwrap();
            numbers.extend([loss.sum, decoder.grad_norm().unwrap()]);
            decoder.update(&OPTIONS, &updates, 1.0).unwrap();
        }
        let values: Vec<Vec<f32>> = decoder.trainables().iter().map(|t| t.value(context).unwrap()).collect();
        (numbers, values)
    };
    // Of the spectrum the first block does not train.
    let blocks = DEEP - usize::from(case.method == Method::Spectrum);
    let little = || StepPlan::new(blocks, 2, 1, 4096, 4096);
    let all = run(&StepPlan::new(blocks, blocks, blocks, 4096, 4096));
    report.holds(&format!("{}: it moved", case.name), all.0[0] != all.0[4]);
    for (name, plan) in [
        ("attention kept", little().attended()),
        ("attention on the host", StepPlan { offload: true, ..little().attended() }),
        ("inputs on the host", StepPlan { offload: true, ..little() }),
    ] {
        report.holds(&format!("{}: {name}, the same bits", case.name), run(&plan) == all);
    }
}

/// Six steps with updates after each pass and inside it, by a rich plan and a lean one, one of them without targets.
fn update_in_backward(context: &Context, case: &Case, report: &mut Report) {
    let values = values(case);
    for (name, plan) in [
        ("all kept", StepPlan::new(3, 3, 3, 4096, 4096)),
        ("little kept", StepPlan { pieces: 2, ..StepPlan::new(3, 1, 0, 50, 7) }),
    ] {
        let run = |inside: bool| {
            let options = Options { update_in_backward: inside, ..case.options };
            let mut decoder = built(context, case, options, &values);
            let updates = updates(&decoder, 0.01);
            let mut numbers = Vec::new();
            for step in 0..6_u32 {
                let mut batch = batch(case.shape.vocab, step % 2);
                if step == 4 {
                    batch.targets.fill(IGNORE);
                }
                let scale = 1.0 / batch.target_count().max(1) as f32;
                decoder.set_dropout(3, u64::from(step));
                let (loss, norm) = if inside {
                    decoder.accumulate_and_update_with(&batch, scale, (&OPTIONS, &updates), &plan).unwrap()
                } else {
                    decoder.clear_grads();
                    let loss = decoder.accumulate_with(&batch, scale, &plan).unwrap();
                    let norm = decoder.grad_norm().unwrap();
                    decoder.update(&OPTIONS, &updates, 1.0).unwrap();
                    (loss, norm)
                };
                numbers.extend([loss.sum, norm]);
            }
            let values: Vec<Vec<f32>> = decoder.trainables().iter().map(|t| t.value(context).unwrap()).collect();
            (numbers, values, format!("{:?}", decoder.states().unwrap()))
        };
        let (after, inside) = (run(false), run(true));
        report.holds(&format!("{}, {name}: the same losses and norms", case.name), after.0 == inside.0);
        report.holds(&format!("{}, {name}: the same weights", case.name), after.1 == inside.1);
        report.holds(&format!("{}, {name}: the same states", case.name), after.2 == inside.2);
        report.holds(&format!("{}, {name}: it moved", case.name), after.0[0] != after.0[4]);
    }
    stops(context, case, &values, report);
    if case.method == Method::Lora {
        stops_amid(context, case, &values, report);
    }
}

/// An adapter whose A is zero and whose B is huge: the loss is a number, and the gradient of A is none. The block above changes.
fn stops_amid(context: &Context, case: &Case, values: &Values, report: &mut Report) {
    let options = Options { update_in_backward: true, ..case.options };
    let mut decoder = built(context, case, options, values);
    for (name, number) in [("1.Q.A", 0.0), ("1.Q.B", 1e30)] {
        let matrix = decoder.trainables().iter().position(|trainable| trainable.name == name).unwrap();
        let len = decoder.trainables()[matrix].len();
        decoder.set_value(matrix, &vec![number; len]).unwrap();
    }
    let of = |decoder: &CudaDecoder, block: usize| -> Vec<Vec<f32>> {
        let in_block = decoder.trainables().iter().filter(|trainable| trainable.name.starts_with(&format!("{block}.")));
        in_block.map(|trainable| trainable.value(context).unwrap()).collect()
    };
    let before = [0, 1, 2].map(|block| of(&decoder, block));
    let updates = updates(&decoder, 0.0);
    let batch = batch(case.shape.vocab, 0);
    let scale = 1.0 / batch.target_count() as f32;
    let error = decoder.accumulate_and_update(&batch, scale, &OPTIONS, &updates).map(|_| ()).unwrap_err().to_string();
    println!("    {error}");
    let said = error.starts_with("the gradient of 1.Q.A is not finite") && error.contains("; block 2 had been updated");
    let changed = [0, 1, 2].map(|block| of(&decoder, block) != before[block]);
    let counted = decoder.trainables().iter().all(|t| (t.updates == 1) == t.name.starts_with("2."));
    let name = format!("{}: what is not finite stops the blocks from its own on", case.name);
    report.holds(&name, said && changed == [false, false, true] && counted);
}

/// A weight that is not a number in the middle block: nothing changes, or nothing but the block above it.
fn stops(context: &Context, case: &Case, values: &Values, report: &mut Report) {
    let options = Options { update_in_backward: true, ..case.options };
    let mut decoder = built(context, case, options, values);
    let updates = updates(&decoder, 0.0);
    let all = |decoder: &CudaDecoder| -> Vec<(String, Vec<f32>)> {
        decoder.trainables().iter().map(|t| (t.name.clone(), t.value(context).unwrap())).collect()
    };
    let batch = batch(case.shape.vocab, 0);
    // Gradients beyond all numbers from a loss that is one: the last block's are not finite, and nothing changes.
    let before = all(&decoder);
    let error = decoder.accumulate_and_update(&batch, f32::MAX, &OPTIONS, &updates).map(|_| ()).unwrap_err();
    let message = error.to_string();
    println!("    {message}");
    let same = all(&decoder) == before && decoder.trainables().iter().all(|trainable| trainable.updates == 0);
    let said = matches!(error, EngineError::NotFinite { .. }) && message.starts_with("the gradient of 2.");
    report.holds(&format!("{}: an infinite gradient changes nothing, and is named", case.name), same && said);
    // And then it goes on.
    let scale = 1.0 / batch.target_count() as f32;
    let went_on = decoder.accumulate_and_update(&batch, scale, &OPTIONS, &updates).is_ok();
    report.holds(&format!("{}: the next step changes everything", case.name), went_on && all(&decoder) != before);
}

fn embedding_on_host(context: &Context, case: &Case, report: &mut Report) {
    let values = values(case);
    let run = |options: Options| {
        let mut decoder = built(context, case, options, &values);
        let mut numbers = Vec::new();
        for step in 0..6_u32 {
            decoder.set_dropout(3, u64::from(step));
            let (loss, norm) = train(&mut decoder, &OPTIONS, &batch(case.shape.vocab, step % 2), 5e-3);
            numbers.extend([loss, norm]);
        }
        let one = batch(case.shape.vocab, 5);
        let mut cache = decoder.cache();
        let logits = decoder.extend(&mut cache, &one.ids[..20], false).unwrap();
        (numbers, logits, decoder.losses(&one).unwrap(), decoder.host_bytes())
    };
    let here = run(case.options);
    let there = run(Options { embedding_on_host: true, ..case.options });
    report.holds(&format!("{}: it lies there", case.name), here.3 == 0 && there.3 > 0);
    report.holds(&format!("{}: the same losses and norms", case.name), here.0 == there.0);
    report.holds(&format!("{}: the same logits and evaluation", case.name), here.1 == there.1 && here.2 == there.2);
}
