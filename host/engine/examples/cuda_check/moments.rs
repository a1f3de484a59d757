//! The codes of 8-bit moments: those of the first update, by the card's arithmetic and by a search through the maps.

use liftplan_engine::cuda::{Context, MomentFormat, Options, Update};
use liftplan_engine::optim::{AdamWOptions, BLOCK, Bf16Update, Moment};
use liftplan_engine::storage::dynamic8::{Map, SIGNED, UNSIGNED};

use crate::Report;
use crate::tiny::{Case, Dora, Method, batch, on_card, shape, values};

pub fn check(context: &Context, report: &mut Report) {
    let name = "moments in 8 bits";
    if !report.wants(name) {
        return;
    }
    let options = Options { moments: MomentFormat::EightBit, ..Options::default() };
    let case = Case {
        name,
        method: Method::Full,
        shape: shape(128, 200, 2, 1, 64, 203, false),
        head_norms: true,
        biases: false,
        options,
        rank: 4,
        dropout: 0.0,
        nf4: (64, true),
        dora: Dora::None,
    };
    let mut decoder = on_card(context, &case, &values(&case));
    let batch = batch(case.shape.vocab, 0);
    decoder.clear_grads();
    decoder.accumulate(&batch, 1.0 / batch.target_count() as f32).unwrap();
    let grads: Vec<_> = decoder.trainables().iter().map(|t| (t.name.clone(), t.grad(context).unwrap())).collect();
    let options = AdamWOptions { betas: (0.9, 0.99), eps: 1e-8, bf16_update: Bf16Update::Stochastic, seed: 3 };
    let updates: Vec<Update> = (0..grads.len()).map(|index| Update { index, lr: 1e-3, weight_decay: 0.01 }).collect();
    decoder.update(&options, &updates, 1.0).unwrap();
    let states = decoder.states().unwrap();
    let (rest1, rest2) = ((1.0 - options.betas.0) as f32, (1.0 - options.betas.1) as f32);
    let mut compared = 0;
    for (tensor, grad) in &grads {
        let Some(state) = states.get(tensor) else { continue };
        let first: Vec<f32> = grad.iter().map(|g| rest1 * g).collect();
        let second: Vec<f32> = grad.iter().map(|g| rest2 * g * g).collect();
        for (what, map, values, moment) in
            [("first", &*SIGNED, first, &state.first), ("second", &*UNSIGNED, second, &state.second)]
        {
            let Moment::Bits8 { codes, absmax } = moment else { continue };
            let (expected, maxima) = quantised(map, &values, what == "second");
            report.holds(&format!("{name}: {what} of {tensor}"), **codes == *expected && *absmax == maxima);
            compared += codes.len();
        }
    }
    report.holds(&format!("{name}: {compared} codes compared"), compared > 100_000);
}

/// Codes and maxima; `above_zero`: what is not zero has not zero's code.
fn quantised(map: &Map, values: &[f32], above_zero: bool) -> (Vec<u8>, Vec<f32>) {
    let mut codes = Vec::new();
    let mut maxima = Vec::new();
    for block in values.chunks(BLOCK) {
        let most = block.iter().fold(0.0_f32, |most, x| most.max(x.abs()));
        let by = 1.0 / most.max(1e-38);
        codes.extend(block.iter().map(|x| map.nearest(x * by).max(u8::from(above_zero && *x > 0.0))));
        maxima.push(most);
    }
    (codes, maxima)
}
