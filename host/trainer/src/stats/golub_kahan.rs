//! Singular values without squaring: the matrix is made bidiagonal in place by reflections (Golub, Kahan 1965), and the
//! bidiagonal `B` is read as the symmetric tridiagonal `[[0, Bᵀ], [B, 0]]` with its rows in turns, whose eigenvalues are
//! plus and minus the singular values. Each comes out within a few roundings of the largest one.

use faer::diag::Diag;
use faer::dyn_stack::{MemBuffer, MemStack, StackReq};
use faer::linalg::evd::tridiagonal_self_adjoint_evd;
use faer::linalg::qr::no_pivoting::factor::recommended_block_size;
use faer::linalg::svd::bidiag::{bidiag_in_place, bidiag_in_place_scratch};
use faer::{Mat, Par};

use crate::{Error, Result};

/// The singular values of the `[rows, cols]` matrix with these elements in row-major order, in no certain order.
/// The elements are given away, so that there are never more than they and one copy in f64.
pub(super) fn singular_values(elements: Vec<f32>, rows: usize, cols: usize, par: Par) -> Result<Vec<f64>> {
    let (long, size) = (rows.max(cols), rows.min(cols));
    let element = |row: usize, col: usize| f64::from(elements[row * cols + col]);
    // Transposed where it is wide: faer's reduction wants a tall matrix.
    let mut matrix = if rows >= cols {
        Mat::from_fn(long, size, element)
    } else {
        Mat::from_fn(long, size, |row, col| element(col, row))
    };
    drop(elements);
    let block = recommended_block_size::<f64>(long, size);
    let mut left = Mat::<f64>::zeros(block, size);
    let mut right = Mat::<f64>::zeros(block, size.saturating_sub(1));
    let mut scratch = MemBuffer::new(bidiag_in_place_scratch::<f64>(long, size, par, Default::default()));
    bidiag_in_place(
        matrix.as_mut(),
        left.as_mut(),
        right.as_mut(),
        par,
        MemStack::new(&mut scratch),
        Default::default(),
    );
    let mut beside = Vec::with_capacity(2 * size - 1);
    for i in 0..size {
        beside.push(matrix[(i, i)]);
        if i + 1 < size {
            beside.push(matrix[(i, i + 1)]);
        }
    }
    drop(matrix);
    let mut values = tridiagonal_eigenvalues(&vec![0.0; 2 * size], &beside)?;
    values.sort_by(|a, b| b.total_cmp(a));
    values.truncate(size);
    Ok(values.into_iter().map(|value| value.max(0.0)).collect())
}

/// The eigenvalues of a symmetric tridiagonal matrix: its diagonal, and the entries beside it.
pub(super) fn tridiagonal_eigenvalues(diagonal: &[f64], beside: &[f64]) -> Result<Vec<f64>> {
    let size = diagonal.len();
    let mut on = Diag::<f64>::zeros(size);
    let mut off = Diag::<f64>::zeros(size);
    on.column_vector_mut().iter_mut().zip(diagonal).for_each(|(to, from)| *to = *from);
    off.column_vector_mut().iter_mut().zip(beside).for_each(|(to, from)| *to = *from);
    let mut values = Diag::<f64>::zeros(size);
    let scratch = StackReq::new_aligned::<f64>(size + 64, 128).array(2);
    tridiagonal_self_adjoint_evd(
        on.as_ref(),
        off.as_ref(),
        values.as_mut(),
        None,
        Par::Seq,
        MemStack::new(&mut MemBuffer::new(scratch)),
        Default::default(),
    )
    .map_err(|error| Error::internal(format!("the eigenvalue iteration did not converge ({error:?})")))?;
    Ok(values.column_vector().iter().copied().collect())
}
