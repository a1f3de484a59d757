//! AdamW against its formula in f64, and how bf16 weights take up small changes.
#![allow(clippy::unwrap_used)]

use half::bf16;
use liftplan_engine::optim::{AdamW, AdamWOptions, Bf16Update, grad_norm};
use liftplan_engine::rng::Random;
use liftplan_engine::{Param, Weight};

const OPTIONS: AdamWOptions =
    AdamWOptions { betas: (0.9, 0.99), eps: 1e-8, bf16_update: Bf16Update::Stochastic, seed: 1 };

fn set_grad(param: &mut Param, random: &mut Random) -> Vec<f32> {
    let grad = param.grad_mut().unwrap();
    grad.iter_mut().for_each(|g| *g = random.normal());
    grad.to_vec()
}

#[test]
fn agrees_with_the_formula_in_f64() {
    let mut random = Random::new(2, 0);
    let len = 40_001;
    let start: Vec<f32> = (0..len).map(|_| random.normal()).collect();
    let mut param = Param::trained("w", 1, len, Weight::F32(start.clone())).unwrap();
    let mut optimizer = AdamW::new(OPTIONS);
    let (lr, decay, factor) = (0.01, 0.1, 0.5_f32);
    let mut expected: Vec<[f64; 3]> = start.iter().map(|&w| [f64::from(w), 0.0, 0.0]).collect();
    for step in 1..=20 {
        let grad = set_grad(&mut param, &mut random);
        optimizer.update(&mut param, lr, decay, factor).unwrap();
        for ([w, m, v], g) in expected.iter_mut().zip(grad) {
            let g = f64::from(g * factor);
            *m = 0.9 * *m + 0.1 * g;
            *v = 0.99 * *v + 0.01 * g * g;
            let m_hat = *m / (1.0 - 0.9_f64.powi(step));
            let v_hat = *v / (1.0 - 0.99_f64.powi(step));
            *w -= lr * decay * *w;
            *w -= lr * m_hat / (v_hat.sqrt() + 1e-8);
        }
    }
    for (i, (w, [expected, ..])) in param.value.as_f32().iter().zip(&expected).enumerate() {
        assert!(
            (f64::from(*w) - expected).abs() < 2e-6 * (1.0 + expected.abs()),
            "element {i}: {w} against {expected}"
        );
    }
}

/// The mean of many bf16 weights after steps too small for bf16 to show.
fn mean_after(update: Bf16Update) -> f64 {
    let len = 20_000;
    let mut param = Param::trained("w", 1, len, Weight::Bf16(vec![bf16::from_f32(1.0); len])).unwrap();
    let mut optimizer = AdamW::new(AdamWOptions { bf16_update: update, ..OPTIONS });
    for _ in 0..10 {
        param.grad_mut().unwrap().fill(-1.0);
        // Each step adds 1e-4; the neighbours of 1 in bf16 are 2^-8 below and 2^-7 above.
        optimizer.update(&mut param, 1e-4, 0.0, 1.0).unwrap();
    }
    param.value.as_f32().iter().map(|&w| f64::from(w)).sum::<f64>() / len as f64
}

#[test]
fn stochastic_rounding_is_right_on_average() {
    let mean = mean_after(Bf16Update::Stochastic);
    // The standard error of the mean is about 2^-7 · sqrt(0.12 / 20000) = 2e-5.
    assert!((mean - 1.001).abs() < 1e-4, "mean {mean}");
}

#[test]
fn a_master_copy_keeps_what_bf16_cannot_show() {
    let len = 8;
    let mut param = Param::trained("w", 1, len, Weight::Bf16(vec![bf16::from_f32(1.0); len])).unwrap();
    let mut optimizer = AdamW::new(AdamWOptions { bf16_update: Bf16Update::Master, ..OPTIONS });
    for _ in 0..60 {
        param.grad_mut().unwrap().fill(-1.0);
        optimizer.update(&mut param, 1e-4, 0.0, 1.0).unwrap();
    }
    // 1.006 is nearer to 1 + 2^-7 than to 1.
    assert_eq!(param.value.as_f32()[0], 1.0078125);
    assert!((optimizer.states()["w"].master.as_ref().unwrap()[0] - 1.006).abs() < 1e-5);
    assert_eq!(optimizer.state_bytes(), 3 * 4 * len);
}

#[test]
fn a_gradient_that_is_not_finite_is_named() {
    let mut param = Param::trained("model.norm.weight", 1, 3, Weight::F32(vec![1.0; 3])).unwrap();
    param.grad_mut().unwrap().copy_from_slice(&[3.0, 0.0, 4.0]);
    assert_eq!(grad_norm([&param].into_iter()).unwrap(), 5.0);
    param.grad_mut().unwrap()[1] = f32::NAN;
    let error = grad_norm([&param].into_iter()).unwrap_err();
    assert_eq!(error.to_string(), "the gradient of model.norm.weight is not finite (NaN)");
}

#[test]
fn a_state_of_another_size_is_refused() {
    let mut optimizer = AdamW::new(OPTIONS);
    let mut param = Param::trained("w", 1, 3, Weight::F32(vec![1.0; 3])).unwrap();
    optimizer.update(&mut param, 0.1, 0.0, 1.0).unwrap();
    let mut other = Param::trained("w", 1, 4, Weight::F32(vec![1.0; 4])).unwrap();
    assert!(optimizer.update(&mut other, 0.1, 0.0, 1.0).is_err());
}
