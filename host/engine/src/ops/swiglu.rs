//! The gated feed-forward activation (arXiv 2002.05202): `y = silu(gate) · up`, `silu(x) = x · sigmoid(x)`.

use super::exp::sigmoid;
use super::parallel::{by_rows, by_rows2};

/// `y = silu(gate) · up`.
pub fn forward(y: &mut [f32], gate: &[f32], up: &[f32]) {
    by_rows(y, 1, |start, y| {
        for ((y, gate), up) in y.iter_mut().zip(&gate[start..]).zip(&up[start..]) {
            *y = gate * sigmoid(*gate) * up;
        }
    });
}

/// Replaces `gate` and `up` by their gradients, given `dy`.
pub fn backward(gate: &mut [f32], up: &mut [f32], dy: &[f32]) {
    by_rows2((gate, 1), (up, 1), |start, gate, up| {
        for ((gate, up), dy) in gate.iter_mut().zip(up).zip(&dy[start..]) {
            let (x, s) = (*gate, sigmoid(*gate));
            let d_up = dy * x * s;
            *gate = dy * *up * s * (1.0 + x * (1.0 - s));
            *up = d_up;
        }
    });
}
