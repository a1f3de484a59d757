//! Matrix products. `n` is a matrix as it is stored (row-major), `t` its transpose; `m`, `n`, `k` as in BLAS.
//!
//! Computed by faer's kernels, which reach the machine's best rate on the shapes of a decoder block.

use faer::linalg::matmul::matmul;
use faer::reborrow::ReborrowMut;
use faer::{Accum, MatMut, MatRef, Par};

use crate::mat::Mat;
use crate::pool::Pool;
use crate::storage::Weight;

/// What happens to what the output holds already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Into {
    /// It is replaced.
    Replace,
    /// The product is added to it.
    Add,
}

impl From<Into> for Accum {
    fn from(into: Into) -> Self {
        match into {
            Into::Replace => Accum::Replace,
            Into::Add => Accum::Add,
        }
    }
}

/// A piece of a product is at most this wide: the kernels lose a quarter of their rate beyond.
const PIECE_COLUMNS: usize = 1536;
/// And has at most so many elements, or this many multiplications once it is down to half of that.
const PIECE_LEN: usize = 1 << 16;
const PIECE_MULTIPLICATIONS: usize = 1 << 27;

/// `c (+)= alpha · a · b`, in pieces of the output that the cores share.
///
/// The kernels could share a product among threads of their own, which wait for each other by spinning: where a core
/// has anything else to do, they lose half of their rate. Pieces depend on the shape alone, not on the number of cores.
fn product(into: Into, c: MatMut<'_, f32>, alpha: f32, a: MatRef<'_, f32>, b: MatRef<'_, f32>) {
    let (m, n, k) = (c.nrows(), c.ncols(), a.ncols());
    let long = m * n * k > PIECE_MULTIPLICATIONS && m * n > PIECE_LEN / 2;
    if n <= PIECE_COLUMNS && m * n <= PIECE_LEN && !long {
        return matmul(c, into.into(), a, b, alpha, Par::Seq);
    }
    // Whole tiles of the kernels on one side.
    let middle = |len: usize| (len / 2).next_multiple_of(32);
    if n >= m {
        let (c_left, c_right) = c.split_at_col_mut(middle(n));
        let (b_left, b_right) = b.split_at_col(middle(n));
        rayon::join(|| product(into, c_left, alpha, a, b_left), || product(into, c_right, alpha, a, b_right));
    } else {
        let (c_top, c_bottom) = c.split_at_row_mut(middle(m));
        let (a_top, a_bottom) = a.split_at_row(middle(m));
        rayon::join(|| product(into, c_top, alpha, a_top, b), || product(into, c_bottom, alpha, a_bottom, b));
    }
}

/// `c[m, n] (+)= alpha · a[m, k] · b[n, k]ᵀ`: a linear layer's forward pass.
pub fn nt(into: Into, c: &mut [f32], alpha: f32, a: &[f32], b: &[f32], [m, n, k]: [usize; 3]) {
    let a = MatRef::from_row_major_slice(a, m, k);
    let b = MatRef::from_row_major_slice(b, n, k).transpose();
    product(into, MatMut::from_row_major_slice_mut(c, m, n), alpha, a, b);
}

/// `c[m, n] (+)= alpha · a[m, k] · b[k, n]`: the gradient of a linear layer's input.
pub fn nn(into: Into, c: &mut [f32], alpha: f32, a: &[f32], b: &[f32], [m, n, k]: [usize; 3]) {
    let a = MatRef::from_row_major_slice(a, m, k);
    let b = MatRef::from_row_major_slice(b, k, n);
    let c = MatMut::from_row_major_slice_mut(c, m, n);
    product(into, c, alpha, a, b);
}

/// `c[m, n] (+)= alpha · a[k, m]ᵀ · b[k, n]`: the gradient of a linear layer's weight.
pub fn tn(into: Into, c: &mut [f32], alpha: f32, a: &[f32], b: &[f32], [m, n, k]: [usize; 3]) {
    let a = MatRef::from_row_major_slice(a, k, m).transpose();
    let b = MatRef::from_row_major_slice(b, k, n);
    let c = MatMut::from_row_major_slice_mut(c, m, n);
    product(into, c, alpha, a, b);
}

/// Elements of a weight that are converted to `f32` at a time (8 MiB): more would leave the cache before they are used.
const PANEL_LEN: usize = 1 << 21;

/// [`nt`] with a weight `[n, k]` in any format: what is not kept as `f32` is converted panel by panel, into one buffer of the
/// pool, so that the memory stays near that of the format. Panels depend on the shape alone.
pub fn nt_weight(into: Into, c: &mut [f32], alpha: f32, a: &[f32], weight: (&Weight, &Pool), [m, n, k]: [usize; 3]) {
    let (weight, pool) = weight;
    if let Weight::F32(values) = weight {
        return nt(into, c, alpha, a, values, [m, n, k]);
    }
    let a = MatRef::from_row_major_slice(a, m, k);
    let mut c = MatMut::from_row_major_slice_mut(c, m, n);
    for_each_panel(weight, pool, [n, k], |first, rows, panel| {
        let b = MatRef::from_row_major_slice(panel, rows, k).transpose();
        product(into, c.rb_mut().subcols_mut(first, rows), alpha, a, b);
    });
}

/// [`nn`] with a weight `[k, n]` in any format, as [`nt_weight`].
pub fn nn_weight(into: Into, c: &mut [f32], alpha: f32, a: &[f32], weight: (&Weight, &Pool), [m, n, k]: [usize; 3]) {
    let (weight, pool) = weight;
    if let Weight::F32(values) = weight {
        return nn(into, c, alpha, a, values, [m, n, k]);
    }
    let a = MatRef::from_row_major_slice(a, m, k);
    let mut c = MatMut::from_row_major_slice_mut(c, m, n);
    let mut into = into;
    for_each_panel(weight, pool, [k, n], |first, rows, panel| {
        let b = MatRef::from_row_major_slice(panel, rows, n);
        product(into, c.rb_mut(), alpha, a.subcols(first, rows), b);
        into = Into::Add;
    });
}

/// Hands the weight `[rows, cols]` on in panels of whole rows: the first row, how many they are, and their numbers.
fn for_each_panel(weight: &Weight, pool: &Pool, [rows, cols]: [usize; 2], mut each: impl FnMut(usize, usize, &[f32])) {
    let most = panel_rows(rows, cols);
    let mut panel = Mat::uninit(pool, most, cols);
    for first in (0..rows).step_by(most.max(1)) {
        let count = most.min(rows - first);
        let panel = &mut panel[..count * cols];
        weight.read_parallel(first * cols, panel);
        each(first, count, panel);
    }
}

fn panel_rows(rows: usize, cols: usize) -> usize {
    (PANEL_LEN / cols.max(1)).max(1).min(rows)
}

/// Elements of the buffer through which a weight `[rows, cols]` is converted.
pub(crate) fn panel_len(rows: usize, cols: usize) -> usize {
    panel_rows(rows, cols) * cols
}
