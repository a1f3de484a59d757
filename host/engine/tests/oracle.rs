//! Whole models against candle's autograd: the loss and the gradient of every parameter that trains, in `f32`, for each
//! feature of the block; and against finite differences.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Shape, Trained, batch, model};
use liftplan_engine::{Keep, StepOptions};

const OPTIONS: StepOptions = StepOptions { grad_scale: 0.25, keep: Keep::Activations, dropout: None };

fn check(shape: &Shape, trained: Trained) {
    let batch = batch(shape, &[7, 1, 70, 3]);
    let mut decoder = model(shape, trained, 3);
    let loss = decoder.accumulate(&batch, OPTIONS).unwrap();
    let (oracle_loss, oracle_grads) = common::oracle::gradients(&decoder, shape, &batch, OPTIONS.grad_scale);
    let relative = (loss.sum - oracle_loss).abs() / oracle_loss;
    assert!(relative < 1e-5, "loss {} against {oracle_loss}", loss.sum);
    let mut compared = 0;
    for param in decoder.params() {
        let Some(grad) = param.grad() else { continue };
        let expected = &oracle_grads[param.name()];
        let norm = expected.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
        let difference = grad.iter().zip(expected).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>().sqrt();
        assert!(norm > 0.0, "{} has a gradient to compare", param.name());
        assert!(difference / norm < 2e-4, "{}: relative difference {:.2e}", param.name(), difference / norm);
        compared += 1;
    }
    assert!(compared > 0);
    let without = decoder.loss(&batch).unwrap();
    assert!((without.sum - loss.sum).abs() / loss.sum < 1e-6, "{} without gradients", without.sum);
}

#[test]
fn full_training_of_a_plain_model() {
    check(&Shape::default(), Trained::Everything);
}

#[test]
fn tied_embedding() {
    check(&Shape { tied: true, ..Shape::default() }, Trained::Everything);
}

#[test]
fn grouped_heads_biases_and_normed_heads() {
    let shape = Shape { heads: 6, kv_heads: 2, head_dim: 10, biases: true, head_norms: true, ..Shape::default() };
    check(&shape, Trained::Everything);
}

#[test]
fn sliding_window() {
    check(&Shape { window: Some(5), ..Shape::default() }, Trained::Everything);
}

#[test]
fn lora_on_every_linear() {
    check(&Shape { biases: true, ..Shape::default() }, Trained::Lora { dora: false });
}

#[test]
fn dora_on_every_linear() {
    check(&Shape { biases: true, ..Shape::default() }, Trained::Lora { dora: true });
}

#[test]
fn each_parameter_alone() {
    // What trains alone stops the backward pass in a different place each time.
    let shape = Shape { heads: 4, kv_heads: 2, biases: true, head_norms: true, ..Shape::default() };
    let names: Vec<String> = model(&shape, Trained::Nothing, 3).params().map(|p| p.name().to_string()).collect();
    assert!(names.len() > 20);
    for name in names {
        check(&shape, Trained::Only(name));
    }
}

#[test]
fn recomputed_blocks_give_the_same_bits() {
    for trained in [Trained::Everything, Trained::Lora { dora: true }] {
        let shape = Shape { head_norms: true, ..Shape::default() };
        let batch = batch(&shape, &[9, 30]);
        let dropout = Some((11, 4));
        let mut kept = model(&shape, trained.clone(), 3);
        let mut again = model(&shape, trained, 3);
        let a = kept.accumulate(&batch, StepOptions { dropout, ..OPTIONS }).unwrap();
        let b = again.accumulate(&batch, StepOptions { dropout, keep: Keep::Inputs, ..OPTIONS }).unwrap();
        assert_eq!(a, b);
        for (a, b) in kept.params().zip(again.params()) {
            assert_eq!(a.grad(), b.grad(), "{}", a.name());
        }
    }
}

#[test]
fn gradients_with_dropout_agree_with_finite_differences() {
    for dora in [false, true] {
        let shape = Shape { dropout: 0.3, ..Shape::default() };
        let batch = batch(&shape, &[12, 5]);
        let options = StepOptions { grad_scale: 1.0, dropout: Some((5, 9)), ..OPTIONS };
        let mut decoder = model(&shape, Trained::Lora { dora }, 3);
        let names: Vec<String> = decoder.params().filter(|p| p.trains()).map(|p| p.name().to_string()).collect();
        // DoRA holds its norm constant, so that differences agree for the magnitude only.
        for name in names.iter().filter(|name| !dora || name.ends_with("magnitude")) {
            decoder.clear_grads();
            decoder.accumulate(&batch, options).unwrap();
            let grad = decoder.params().find(|p| p.name() == name).unwrap().grad().unwrap().to_vec();
            let norm = grad.iter().map(|g| g * g).sum::<f32>().sqrt();
            let mut loss_at = |step: f32| {
                common::shift(&mut decoder, name, &grad, step / norm);
                let loss = decoder.accumulate(&batch, options).unwrap().sum;
                common::shift(&mut decoder, name, &grad, -step / norm);
                loss
            };
            let step = 1e-3;
            let slope = (loss_at(step) - loss_at(-step)) / f64::from(2.0 * step);
            let relative = (slope - f64::from(norm)).abs() / f64::from(norm);
            assert!(relative < 1e-2, "{name}: slope {slope} against {norm}");
        }
    }
}

#[test]
fn packed_documents_give_the_losses_and_gradients_of_documents_alone() {
    let shape = Shape { window: Some(9), ..Shape::default() };
    let lengths = [7, 70, 2, 33];
    let packed = batch(&shape, &lengths);
    let mut together = model(&shape, Trained::Everything, 3);
    let mut alone = model(&shape, Trained::Everything, 3);
    let sum = together.accumulate(&packed, OPTIONS).unwrap();
    let mut sums = liftplan_engine::decoder::LossSum::default();
    for document in common::split(&packed) {
        sums += alone.accumulate(&document, OPTIONS).unwrap();
    }
    assert_eq!(sum.targets, sums.targets);
    assert!((sum.sum - sums.sum).abs() / sum.sum < 1e-6, "{} against {}", sum.sum, sums.sum);
    for (a, b) in together.params().zip(alone.params()) {
        let (a, b) = (a.grad().unwrap(), b.grad().unwrap());
        let norm = a.iter().map(|x| x * x).sum::<f32>().sqrt();
        let difference = a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum::<f32>().sqrt();
        assert!(difference / norm < 1e-5);
    }
}

#[test]
fn reading_token_by_token_gives_the_logits_of_reading_at_once() {
    let shape = Shape { window: Some(6), head_norms: true, kv_heads: 2, ..Shape::default() };
    let batch = batch(&shape, &[40]);
    let decoder = model(&shape, Trained::Nothing, 3);
    let rows: Vec<usize> = (0..40).collect();
    let at_once = decoder.logits(&batch, &rows).unwrap();
    let mut cache = decoder.cache();
    let first = decoder.extend(&mut cache, &batch.ids[..23], false).unwrap();
    // Reading something else and forgetting it changes nothing.
    decoder.extend(&mut cache, &[1, 2, 3], true).unwrap();
    cache.truncate(23);
    let mut stepped: Vec<f32> = first.to_vec();
    for id in &batch.ids[23..] {
        stepped.extend_from_slice(&decoder.extend(&mut cache, &[*id], true).unwrap());
    }
    for (a, b) in at_once.iter().zip(&stepped) {
        assert!((a - b).abs() < 1e-4, "{a} against {b}");
    }
}

#[test]
fn a_frozen_weight_has_no_gradient_and_a_bad_id_is_an_error() {
    let shape = Shape::default();
    let mut decoder = model(&shape, Trained::Lora { dora: false }, 3);
    assert!(decoder.params().filter(|p| !p.name().contains("lora")).all(|p| p.grad().is_none()));
    let mut batch = batch(&shape, &[5]);
    batch.ids[2] = 10_000;
    let error = decoder.accumulate(&batch, OPTIONS).unwrap_err();
    assert_eq!(error.to_string(), "token id 10000 at position 2 is outside the vocabulary of 67");
}
