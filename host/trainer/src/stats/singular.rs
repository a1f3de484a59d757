//! The singular values of one matrix: f32 in, f64 out.
//!
//! Two ways. The first squares the matrix: the smaller of `A·Aᵀ` and `Aᵀ·A`, summed in f64, whose eigenvalues are the
//! squares. It is several times faster than a decomposition of `A` itself, but squaring costs half the digits of the
//! small values. So its error is bounded first, and where the bound is not good enough, the second way decomposes `A`
//! itself ([`super::golub_kahan`]).

use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::evd::tridiag::{tridiag_in_place, tridiag_in_place_scratch};
use faer::linalg::matmul::triangular::{BlockStructure, matmul};
use faer::linalg::qr::no_pivoting::factor::recommended_block_size;
use faer::{Accum, Mat, MatRef, Par};

use super::golub_kahan;
use super::score::{quantile, spectral_threshold};
use crate::{Error, Result};

/// Rows or columns that are widened to f64 at a time while the matrix is squared.
const PANEL: usize = 256;
/// The largest error of any singular value that the fast way may have, as a part of the values' mean; that of the sum
/// of all and of those that Spectrum counts as noise; and that of the quartiles as a part of their distance.
const TOLERANCE: f64 = 1e-5;
const TOLERANCE_OF_SUMS: f64 = 1e-7;
const TOLERANCE_OF_QUARTILES: f64 = 1e-6;

/// The singular values, descending, of the `[rows, cols]` matrix whose elements are `elements` in row-major order.
///
/// Each value is within 10⁻⁵ of their mean, most within 10⁻¹², and their sum within 10⁻⁷ of itself. Values below
/// `max(rows, cols) · 2⁻⁵² · largest` can't be told from zero (the convention of NumPy's `matrix_rank`) and are given
/// as exactly 0. Takes at most twice the elements' own memory beside them, in which they are included: three times in
/// all.
///
/// # Errors
/// An element is not finite, or the shape is empty or doesn't fit the elements.
pub fn singular_values(elements: Vec<f32>, rows: usize, cols: usize, par: Par) -> Result<Vec<f64>> {
    check(&elements, rows, cols)?;
    of_checked(elements, rows, cols, par)
}

/// The same for elements that are checked.
pub(super) fn of_checked(elements: Vec<f32>, rows: usize, cols: usize, par: Par) -> Result<Vec<f64>> {
    match by_squaring(&elements, rows, cols, par)? {
        Some(values) => Ok(values),
        None => Ok(in_order(golub_kahan::singular_values(elements, rows, cols, par)?, rows, cols)),
    }
}

/// Fails for elements that have no singular values.
pub(super) fn check(elements: &[f32], rows: usize, cols: usize) -> Result<()> {
    if rows == 0 || cols == 0 || elements.len() != rows * cols {
        return Err(Error::model(format!(
            "a matrix of shape [{rows}, {cols}] with {} elements has no singular values",
            elements.len()
        )));
    }
    match elements.iter().position(|element| !element.is_finite()) {
        Some(place) => Err(Error::model(format!(
            "row {}, column {} is {}, and singular values need finite numbers",
            place / cols,
            place % cols,
            elements[place]
        ))),
        None => Ok(()),
    }
}

/// Singular values descending, with zeros where they can't be told from zero.
pub(super) fn in_order(mut values: Vec<f64>, rows: usize, cols: usize) -> Vec<f64> {
    values.sort_by(|a, b| b.total_cmp(a));
    let smallest = rows.max(cols) as f64 * f64::EPSILON * values.first().copied().unwrap_or(0.0);
    for value in &mut values {
        if *value <= smallest {
            *value = 0.0;
        }
    }
    values
}

/// The square roots of the eigenvalues of the smaller square, descending, or `None` if they may not be exact enough.
fn by_squaring(elements: &[f32], rows: usize, cols: usize, par: Par) -> Result<Option<Vec<f64>>> {
    let mut square = square(elements, rows, cols, par);
    let size = square.nrows();
    let trace: f64 = (0..size).map(|i| square[(i, i)]).sum();
    let block = recommended_block_size::<f64>(size, size);
    let mut reflectors = Mat::<f64>::zeros(block, size - 1);
    let mut scratch = MemBuffer::new(tridiag_in_place_scratch::<f64>(size, par, Default::default()));
    tridiag_in_place(square.as_mut(), reflectors.as_mut(), par, MemStack::new(&mut scratch), Default::default());
    let diagonal: Vec<f64> = (0..size).map(|i| square[(i, i)]).collect();
    let beside: Vec<f64> = (1..size).map(|i| square[(i, i - 1)]).collect();
    drop(square);
    Ok(from_squares(golub_kahan::tridiagonal_eigenvalues(&diagonal, &beside)?, trace, rows, cols))
}

/// The singular values, descending, whose squares came out of the smaller square of a `[rows, cols]` matrix, or `None`
/// if they may not be exact enough; `trace` is the sum of the squares of all elements.
pub(super) fn from_squares(mut squares: Vec<f64>, trace: f64, rows: usize, cols: usize) -> Option<Vec<f64>> {
    squares.sort_by(|a, b| b.total_cmp(a));
    // Rounding in the sums and in the rotations moves an eigenvalue by about this much; the trace is the sum of all
    // squares, so it is at least the norm of the square.
    let error_of_squares = ((rows + cols) as f64).sqrt() * f64::EPSILON * trace;
    let values: Vec<f64> = squares.iter().map(|square| square.max(0.0).sqrt()).collect();
    let error = |value: f64| if value > 0.0 { error_of_squares / value } else { f64::INFINITY };
    let sum_is_good = |part: &[f64]| {
        part.iter().map(|value| error(*value)).sum::<f64>() <= TOLERANCE_OF_SUMS * part.iter().sum::<f64>()
    };
    let threshold = spectral_threshold(&values, rows, cols);
    let noise = &values[values.partition_point(|value| *value > threshold)..];
    let mean = values.iter().sum::<f64>() / values.len() as f64;
    let (low, high) = (quantile(&values, 0.25), quantile(&values, 0.75));
    let least = values.last().copied().unwrap_or(0.0);
    // The last condition: no value is mere rounding, which a deficient matrix's would be.
    let good = error(least) <= TOLERANCE * mean
        && sum_is_good(&values)
        && sum_is_good(noise)
        && error(low) <= TOLERANCE_OF_QUARTILES * (high - low)
        && error(least) <= least / 4.0;
    good.then(|| in_order(values, rows, cols))
}

/// The lower triangle of the smaller of `A·Aᵀ` and `Aᵀ·A`.
fn square(elements: &[f32], rows: usize, cols: usize, par: Par) -> Mat<f64> {
    let size = rows.min(cols);
    let long = rows.max(cols);
    let mut square = Mat::<f64>::zeros(size, size);
    let mut panel = vec![0f64; size * PANEL.min(long)];
    for start in (0..long).step_by(PANEL) {
        let width = PANEL.min(long - start);
        let panel = &mut panel[..size * width];
        // Column-major [size, width]: a row of a tall matrix is a column of the panel as it stands.
        if rows >= cols {
            for (to, from) in panel.iter_mut().zip(&elements[start * cols..(start + width) * cols]) {
                *to = f64::from(*from);
            }
        } else {
            for (row, from) in elements.chunks_exact(cols).enumerate() {
                for (column, from) in from[start..start + width].iter().enumerate() {
                    panel[column * size + row] = f64::from(*from);
                }
            }
        }
        let panel = MatRef::from_column_major_slice(panel, size, width);
        matmul(
            square.as_mut(),
            BlockStructure::TriangularLower,
            Accum::Add,
            panel,
            BlockStructure::Rectangular,
            panel.transpose(),
            BlockStructure::Rectangular,
            1.0,
            par,
        );
    }
    square
}
