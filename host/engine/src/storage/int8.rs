//! Eight-bit weights of LLM.int8() (arXiv 2208.07339): each row divided by its largest magnitude and rounded to whole
//! 127ths. bitsandbytes calls the rows' magnitudes SCB.

use rayon::prelude::*;

use crate::error::{Result, expect_shape};
use crate::ops::parallel::vectorised;

/// A matrix `[rows, cols]` in eight bits.
#[derive(Clone, Debug, PartialEq)]
pub struct Int8 {
    codes: Vec<i8>,
    absmax: Vec<f32>,
    cols: usize,
}

/// What bitsandbytes multiplies by instead of dividing by 127.
const INVERSE_127: f32 = 7.874_016e-3;

impl Int8 {
    /// Quantises a matrix with rows of `cols` numbers.
    ///
    /// # Errors
    /// When a number is not finite: its row would have no scale.
    pub fn quantise(values: &[f32], cols: usize) -> Result<Self> {
        super::expect_finite(values)?;
        let mut codes = vec![0; values.len()];
        let mut absmax = vec![0.0; values.len() / cols.max(1)];
        let rows = values.par_chunks(cols.max(1)).zip(codes.par_chunks_mut(cols.max(1))).zip(&mut absmax);
        rows.for_each(|((values, codes), absmax)| {
            vectorised(|| {
                *absmax = super::dynamic8::largest(values);
                // In the order of PyTorch, which divides a number by a tensor so.
                let scale = 1.0 / *absmax * 127.0;
                // A row of zeros, or one so small that its scale overflows, becomes zeros.
                if scale.is_finite() {
                    for (code, value) in codes.iter_mut().zip(values) {
                        *code = (value * scale).round_ties_even() as i8;
                    }
                }
            });
        });
        Ok(Self { codes, absmax, cols })
    }

    /// A matrix that was quantised already.
    ///
    /// # Errors
    /// When the parts do not fit each other.
    pub fn from_parts(cols: usize, codes: Vec<i8>, absmax: Vec<f32>) -> Result<Self> {
        expect_shape("scales of an 8-bit weight", codes.len(), absmax.len() * cols)?;
        Ok(Self { codes, absmax, cols })
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.codes.len()
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.codes.is_empty()
    }

    /// Bytes it takes.
    pub fn bytes(&self) -> usize {
        self.codes.len() + size_of_val(self.absmax.as_slice())
    }

    /// A code an element, from -127 to 127.
    pub fn codes(&self) -> &[i8] {
        &self.codes
    }

    /// The largest magnitude of each row.
    pub fn absmax(&self) -> &[f32] {
        &self.absmax
    }

    /// Elements `start .. start + out.len()`.
    pub fn read(&self, start: usize, out: &mut [f32]) {
        let mut at = start;
        let mut rest = out;
        while !rest.is_empty() {
            let row = at / self.cols;
            let end = ((row + 1) * self.cols).min(at + rest.len());
            let (part, after) = rest.split_at_mut(end - at);
            let absmax = self.absmax[row];
            for (out, code) in part.iter_mut().zip(&self.codes[at..end]) {
                *out = f32::from(*code) * absmax * INVERSE_127;
            }
            (at, rest) = (end, after);
        }
    }
}
