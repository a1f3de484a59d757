//! A row-major matrix of activations. Rows are tokens (or tokens × heads), columns are features.

use crate::pool::Pool;

/// A matrix whose buffer comes from a [`Pool`] and goes back to it when dropped.
#[derive(Debug)]
pub struct Mat {
    buffer: Vec<f32>,
    rows: usize,
    cols: usize,
    pool: Pool,
}

impl Mat {
    /// A matrix with unspecified contents, for operations that write every element.
    pub fn uninit(pool: &Pool, rows: usize, cols: usize) -> Self {
        Self { buffer: pool.take(rows * cols), rows, cols, pool: pool.clone() }
    }

    /// A matrix of zeros.
    pub fn zeros(pool: &Pool, rows: usize, cols: usize) -> Self {
        let mut mat = Self::uninit(pool, rows, cols);
        mat.fill(0.0);
        mat
    }

    /// A copy of `values`, row by row; `values.len()` must be a multiple of `cols`.
    pub fn from_slice(pool: &Pool, cols: usize, values: &[f32]) -> Self {
        assert_eq!(values.len() % cols.max(1), 0, "{} values do not make rows of {cols}", values.len());
        let mut mat = Self::uninit(pool, values.len() / cols.max(1), cols);
        mat.copy_from_slice(values);
        mat
    }

    /// A copy of this matrix.
    pub fn duplicate(&self) -> Self {
        Self::from_slice(&self.pool, self.cols, self)
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Where its buffer comes from.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// One row.
    pub fn row(&self, row: usize) -> &[f32] {
        &self[row * self.cols..(row + 1) * self.cols]
    }

    /// The same numbers as `rows × cols` of another shape.
    pub fn reshaped(mut self, rows: usize, cols: usize) -> Self {
        assert_eq!(self.rows * self.cols, rows * cols, "a reshape keeps the number of elements");
        (self.rows, self.cols) = (rows, cols);
        self
    }
}

impl std::ops::Deref for Mat {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        &self.buffer[..self.rows * self.cols]
    }
}

impl std::ops::DerefMut for Mat {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.buffer[..self.rows * self.cols]
    }
}

impl Drop for Mat {
    fn drop(&mut self) {
        self.pool.put(std::mem::take(&mut self.buffer));
    }
}
