//! Sums and products element by element, and column sums.

use super::parallel::by_rows;

/// `y += x`.
pub fn add(y: &mut [f32], x: &[f32]) {
    assert_eq!(y.len(), x.len(), "the terms of a sum have the same shape");
    by_rows(y, 1, |start, y| {
        for (y, x) in y.iter_mut().zip(&x[start..]) {
            *y += x;
        }
    });
}

/// `y[rows, cols] += bias[cols]`.
pub fn add_bias(y: &mut [f32], bias: &[f32]) {
    by_rows(y, bias.len(), |_, y| {
        for row in y.chunks_exact_mut(bias.len()) {
            for (y, b) in row.iter_mut().zip(bias) {
                *y += b;
            }
        }
    });
}

/// `y[rows, cols] *= factors[cols]`.
pub fn scale_columns(y: &mut [f32], factors: &[f32]) {
    by_rows(y, factors.len(), |_, y| {
        for row in y.chunks_exact_mut(factors.len()) {
            for (y, f) in row.iter_mut().zip(factors) {
                *y *= f;
            }
        }
    });
}

/// `sums[cols] += Σ over rows of x[rows, cols]`: the gradient of a bias. Rows are added in order, so that the result
/// does not depend on the number of cores.
pub fn add_column_sums(sums: &mut [f32], x: &[f32]) {
    for row in x.chunks_exact(sums.len()) {
        for (sum, x) in sums.iter_mut().zip(row) {
            *sum += x;
        }
    }
}

/// `sums[cols] += Σ over rows of x · y`, element by element.
pub fn add_column_dots(sums: &mut [f32], x: &[f32], y: &[f32]) {
    for (x, y) in x.chunks_exact(sums.len()).zip(y.chunks_exact(sums.len())) {
        for ((sum, x), y) in sums.iter_mut().zip(x).zip(y) {
            *sum += x * y;
        }
    }
}
