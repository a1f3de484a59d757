//! Tiny models trained on the card and by the CPU engine, side by side.

use liftplan_engine::cuda::{Context, Decoder as CudaDecoder, MomentFormat, Options};
use liftplan_engine::optim::{AdamW, AdamWOptions, Bf16Update, grad_norm};
use liftplan_engine::{Keep, StepOptions};

use crate::Report;
use crate::tiny::{Case, Dora, Method, batch, on_card, on_cpu, shape, train, values};

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
