//! A low-rank adapter beside a frozen weight: LoRA (arXiv 2106.09685) and DoRA (arXiv 2402.09353).

use crate::error::{Result, expect_shape};
use crate::mat::Mat;
use crate::ops::matmul::{self, Into};
use crate::param::Param;
use crate::pool::Pool;
use crate::storage::Weight;

/// What an adapter computes with its matrices.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdapterOptions {
    /// Factor on `B·A`.
    pub scale: f32,
    /// Probability that an input of the adapter is dropped while training.
    pub dropout: f32,
    /// Tells this adapter's dropout from every other's.
    pub dropout_stream: u32,
}

/// The matrices of an adapter of a weight `[out, in]`.
#[derive(Debug)]
pub struct Adapter {
    /// `[rank, in]`.
    pub a: Param,
    /// `[out, rank]`.
    pub b: Param,
    /// DoRA's magnitudes, `[1, out]`: the layer's weight becomes `magnitude · (W + scale·B·A) / ‖W + scale·B·A‖`, the
    /// norm taken of each output's row and held constant in the backward pass (section 4.3 of the paper).
    pub magnitude: Option<Param>,
    /// Its settings.
    pub options: AdapterOptions,
}

impl Adapter {
    /// An adapter for a weight `[out, in]`.
    ///
    /// # Errors
    /// When the matrices do not fit the weight or each other.
    pub fn new(
        [out, input]: [usize; 2],
        a: Param,
        b: Param,
        magnitude: Option<Param>,
        options: AdapterOptions,
    ) -> Result<Self> {
        expect_shape(a.name(), input, a.cols())?;
        expect_shape(b.name(), [out, a.rows()], [b.rows(), b.cols()])?;
        if let Some(magnitude) = &magnitude {
            expect_shape(magnitude.name(), out, magnitude.cols())?;
        }
        Ok(Self { a, b, magnitude, options })
    }

    /// Its rank.
    pub fn rank(&self) -> usize {
        self.a.rows()
    }

    /// For DoRA: `‖W + scale·B·A‖` of each output's row, `[out]`.
    pub(crate) fn row_norms(&self, weight: &Weight, pool: &Pool) -> Vec<f32> {
        let (out, input) = (self.b.rows(), self.a.cols());
        let (a, b) = (self.a.value.as_f32(), self.b.value.as_f32());
        let mut merged = Mat::uninit(pool, out, input);
        weight.read_parallel(0, &mut merged);
        matmul::nn(Into::Add, &mut merged, self.options.scale, &b, &a, [out, input, self.rank()]);
        row_norms(&merged, input)
    }

    pub(crate) fn params_mut(&mut self) -> impl Iterator<Item = &mut Param> {
        [&mut self.a, &mut self.b].into_iter().chain(&mut self.magnitude)
    }

    pub(crate) fn params(&self) -> impl Iterator<Item = &Param> {
        [&self.a, &self.b].into_iter().chain(&self.magnitude)
    }
}

/// The Euclidean norm of each row of `values[rows, cols]`, summed in `f64`.
pub fn row_norms(values: &[f32], cols: usize) -> Vec<f32> {
    let norm = |row: &[f32]| row.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt() as f32;
    values.chunks_exact(cols).map(norm).collect()
}
