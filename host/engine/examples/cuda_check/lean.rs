//! What takes less memory changes no bit: the same training with and without.

use liftplan_engine::cuda::{Context, Options};
use liftplan_engine::optim::{AdamWOptions, Bf16Update};

use crate::Report;
use crate::model::{Case, Method, batch, on_card, shape, train, values};

const OPTIONS: AdamWOptions =
    AdamWOptions { betas: (0.9, 0.99), eps: 1e-8, bf16_update: Bf16Update::Stochastic, seed: 3 };

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
    }
}

pub fn check(context: &Context, report: &mut Report) {
    for case in [case("embedding on the host, lora", Method::Lora), case("embedding on the host, qlora", Method::Qlora)]
    {
        if report.wants(case.name) {
            embedding_on_host(context, &case, report);
        }
    }
}

fn embedding_on_host(context: &Context, case: &Case, report: &mut Report) {
    let values = values(case);
    let run = |options: Options| {
        let mut decoder = on_card(context, &Case { options, shape: case.shape.clone(), ..*case }, &values);
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
