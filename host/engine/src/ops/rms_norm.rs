//! Root-mean-square normalisation (arXiv 1910.07467): `y = x / rms(x) · w`, `rms(x) = sqrt(mean(x²) + eps)`.

use super::parallel::{by_rows, by_rows2};

/// `y[rows, n]` and `inverse_rms[rows]` of `x[rows, n]`; `w[n]`.
pub fn forward(y: &mut [f32], inverse_rms: &mut [f32], x: &[f32], w: &[f32], eps: f32) {
    let n = w.len();
    by_rows2((y, n), (inverse_rms, 1), |first, y, inverse_rms| {
        let x = &x[first * n..];
        for ((y, x), inverse) in y.chunks_exact_mut(n).zip(x.chunks_exact(n)).zip(inverse_rms) {
            *inverse = 1.0 / (dot(x, x) / n as f32 + eps).sqrt();
            for ((y, x), w) in y.iter_mut().zip(x).zip(w) {
                *y = x * *inverse * w;
            }
        }
    });
}

/// The normalised rows again, from what the forward pass kept: `y = x · inverse_rms · w`.
pub fn again(y: &mut [f32], x: &[f32], inverse_rms: &[f32], w: &[f32]) {
    let n = w.len();
    by_rows(y, n, |first, y| {
        let x = &x[first * n..];
        for ((y, x), inverse) in y.chunks_exact_mut(n).zip(x.chunks_exact(n)).zip(&inverse_rms[first..]) {
            for ((y, x), w) in y.iter_mut().zip(x).zip(w) {
                *y = x * inverse * w;
            }
        }
    });
}

/// `dx (+)= ` the gradient of `x`: with `x̂ = x · inverse_rms` and `g = dy · w`,
/// `dx = inverse_rms · (g - x̂ · mean(g · x̂))`. `add` says whether it is added to what `dx` holds.
pub fn backward_input(add: bool, dx: &mut [f32], dy: &[f32], x: &[f32], inverse_rms: &[f32], w: &[f32]) {
    let n = w.len();
    by_rows(dx, n, |first, dx| {
        let (dy, x) = (&dy[first * n..], &x[first * n..]);
        let rows = dx.chunks_exact_mut(n).zip(dy.chunks_exact(n)).zip(x.chunks_exact(n));
        for (((dx, dy), x), &inverse) in rows.zip(&inverse_rms[first..]) {
            let along = dot3(dy, w, x) * inverse * inverse * inverse / n as f32;
            for (((dx, dy), x), w) in dx.iter_mut().zip(dy).zip(x).zip(w) {
                let d = dy * w * inverse - x * along;
                *dx = if add { *dx + d } else { d };
            }
        }
    });
}

/// `dw[n] += Σ over rows of dy · x · inverse_rms`.
pub fn backward_weight(dw: &mut [f32], dy: &[f32], x: &[f32], inverse_rms: &[f32]) {
    let n = dw.len();
    for ((dy, x), inverse) in dy.chunks_exact(n).zip(x.chunks_exact(n)).zip(inverse_rms) {
        for ((dw, dy), x) in dw.iter_mut().zip(dy).zip(x) {
            *dw += dy * x * inverse;
        }
    }
}

/// Lanes of the sums: enough for the widest vector registers, and fixed, so that every machine adds in the same order.
const LANES: usize = 16;

#[inline(always)]
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0_f32; LANES];
    let (a_whole, b_whole) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let tail: f32 = a_whole.remainder().iter().zip(b_whole.remainder()).map(|(a, b)| a * b).sum();
    for (a, b) in a_whole.zip(b_whole) {
        for lane in 0..LANES {
            sums[lane] += a[lane] * b[lane];
        }
    }
    sums.iter().sum::<f32>() + tail
}

#[inline(always)]
fn dot3(a: &[f32], b: &[f32], c: &[f32]) -> f32 {
    let mut sums = [0.0_f32; LANES];
    let whole = a.len() / LANES * LANES;
    for i in (0..whole).step_by(LANES) {
        let (a, b, c) = (&a[i..i + LANES], &b[i..i + LANES], &c[i..i + LANES]);
        for lane in 0..LANES {
            sums[lane] += a[lane] * b[lane] * c[lane];
        }
    }
    sums.iter().sum::<f32>() + (whole..a.len()).map(|i| a[i] * b[i] * c[i]).sum::<f32>()
}
