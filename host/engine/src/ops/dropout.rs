//! Inverted dropout, whose mask is made again in the backward pass instead of being kept.

use super::parallel::by_rows;
use crate::rng::{Stream, unit};

/// `y = x · mask / (1 - p)`, where `mask` is 1 with probability `1 - p`. The backward pass is the same function on the
/// gradient, with the same stream.
pub fn apply(y: &mut [f32], x: &[f32], p: f32, stream: Stream) {
    assert_eq!(y.len(), x.len(), "dropout keeps the shape");
    let keep_scale = 1.0 / (1.0 - p);
    // Rows of 4 elements: one call of the generator each.
    by_rows(y, 4, |group, y| {
        for (i, y) in y.chunks_mut(4).enumerate() {
            let words = stream.words((group + i) as u64);
            let x = &x[(group + i) * 4..];
            for ((y, x), word) in y.iter_mut().zip(x).zip(words) {
                *y = if unit(word) < p { 0.0 } else { x * keep_scale };
            }
        }
    });
}
