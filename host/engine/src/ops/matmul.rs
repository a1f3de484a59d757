//! Matrix products. `n` is a matrix as it is stored (row-major), `t` its transpose; `m`, `n`, `k` as in BLAS.
//!
//! Computed by faer's kernels, which reach the machine's best rate on the shapes of a decoder block.

use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};

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

/// Wide products are cut into pieces of this many columns: the kernels lose a quarter of their rate beyond
/// (512 × 576 × 49152: 150 GFLOP/s whole, 203 in pieces, on a machine whose best is 215).
const COLUMNS_EACH: usize = 1536;

/// Products below this many multiplications are done on one core.
const MIN_PARALLEL_MULTIPLICATIONS: usize = 1 << 18;

fn parallelism(m: usize, n: usize, k: usize) -> Par {
    if m * n * k < MIN_PARALLEL_MULTIPLICATIONS { Par::Seq } else { Par::rayon(0) }
}

/// `c[m, n] (+)= alpha · a[m, k] · b[n, k]ᵀ`: a linear layer's forward pass.
pub fn nt(into: Into, c: &mut [f32], alpha: f32, a: &[f32], b: &[f32], [m, n, k]: [usize; 3]) {
    let a = MatRef::from_row_major_slice(a, m, k);
    let mut c = MatMut::from_row_major_slice_mut(c, m, n);
    for start in (0..n).step_by(COLUMNS_EACH) {
        let width = COLUMNS_EACH.min(n - start);
        let b = MatRef::from_row_major_slice(&b[start * k..(start + width) * k], width, k).transpose();
        let c = c.as_mut().subcols_mut(start, width);
        matmul(c, Accum::from(into), a, b, alpha, parallelism(m, width, k));
    }
}

/// `c[m, n] (+)= alpha · a[m, k] · b[k, n]`: the gradient of a linear layer's input.
pub fn nn(into: Into, c: &mut [f32], alpha: f32, a: &[f32], b: &[f32], [m, n, k]: [usize; 3]) {
    let a = MatRef::from_row_major_slice(a, m, k);
    let b = MatRef::from_row_major_slice(b, k, n);
    let c = MatMut::from_row_major_slice_mut(c, m, n);
    matmul(c, Accum::from(into), a, b, alpha, parallelism(m, n, k));
}

/// `c[m, n] (+)= alpha · a[k, m]ᵀ · b[k, n]`: the gradient of a linear layer's weight.
pub fn tn(into: Into, c: &mut [f32], alpha: f32, a: &[f32], b: &[f32], [m, n, k]: [usize; 3]) {
    let a = MatRef::from_row_major_slice(a, k, m).transpose();
    let b = MatRef::from_row_major_slice(b, k, n);
    let c = MatMut::from_row_major_slice_mut(c, m, n);
    matmul(c, Accum::from(into), a, b, alpha, parallelism(m, n, k));
}
