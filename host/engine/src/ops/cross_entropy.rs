//! The loss over the vocabulary and the gradients of the logits, for a few rows at a time: the logits of a whole batch
//! are never held.

use super::exp::exp;
use super::parallel::by_rows2;

/// For each row of `logits[rows, vocab]`: writes `-log softmax(logits)[target]` to `losses[rows]` and, with
/// `grad_scale`, replaces the logits by the gradient of `grad_scale · loss`: `(softmax - onehot(target)) · grad_scale`.
/// Without it the logits are spoiled.
pub fn rows(losses: &mut [f32], logits: &mut [f32], targets: &[u32], grad_scale: Option<f32>) {
    let vocab = logits.len() / targets.len().max(1);
    by_rows2((logits, vocab), (losses, 1), |first, logits, losses| {
        for (i, (row, loss)) in logits.chunks_exact_mut(vocab).zip(losses).enumerate() {
            let target = targets[first + i] as usize;
            let target_logit = row[target];
            let max = max(row);
            for x in row.iter_mut() {
                *x = exp(*x - max);
            }
            let sum = sum(row);
            *loss = (f64::from(sum).ln() + f64::from(max) - f64::from(target_logit)) as f32;
            if let Some(scale) = grad_scale {
                let factor = scale / sum;
                for x in row.iter_mut() {
                    *x *= factor;
                }
                row[target] -= scale;
            }
        }
    });
}

const LANES: usize = 16;

#[inline(always)]
fn max(row: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let whole = row.chunks_exact(LANES);
    let tail = whole.remainder().iter().copied().fold(f32::NEG_INFINITY, f32::max);
    for chunk in whole {
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            *lane = if *x > *lane { *x } else { *lane };
        }
    }
    lanes.into_iter().fold(tail, f32::max)
}

/// Sums in lanes of `f32` over short stretches and in `f64` beyond, since a vocabulary is long.
#[inline(always)]
fn sum(row: &[f32]) -> f32 {
    let mut total = 0.0_f64;
    for stretch in row.chunks(1024) {
        let mut lanes = [0.0_f32; LANES];
        let whole = stretch.chunks_exact(LANES);
        let tail: f32 = whole.remainder().iter().sum();
        for chunk in whole {
            for (lane, x) in lanes.iter_mut().zip(chunk) {
                *lane += x;
            }
        }
        total += f64::from(lanes.iter().sum::<f32>() + tail);
    }
    total as f32
}
