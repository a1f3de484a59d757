//! How a weight is kept: its numbers in one of several formats, read as `f32` by the operations.

use std::borrow::Cow;

use half::bf16;
use rayon::prelude::*;

use crate::error::{EngineError, Result};
use crate::ops::parallel::vectorised;

pub mod dynamic8;
pub mod int8;
pub mod nf4;
mod sum;

pub use int8::Int8;
pub use nf4::{Nf4, Nf4Options};

/// A weight matrix `[rows, cols]` (one row for a vector) in the format it is kept in.
#[derive(Clone, Debug)]
pub enum Weight {
    /// 32-bit floats.
    F32(Vec<f32>),
    /// bfloat16: the upper half of an `f32`.
    Bf16(Vec<bf16>),
    /// Four bits and a scale a block; only frozen weights.
    Nf4(Nf4),
    /// Eight bits and a scale a row; only frozen weights.
    Int8(Int8),
}

/// Elements that one core converts at a time.
const STRETCH: usize = 1 << 15;

impl Weight {
    /// Number of elements.
    pub fn len(&self) -> usize {
        match self {
            Self::F32(values) => values.len(),
            Self::Bf16(values) => values.len(),
            Self::Nf4(packed) => packed.len(),
            Self::Int8(packed) => packed.len(),
        }
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes it takes.
    pub fn bytes(&self) -> usize {
        match self {
            Self::F32(values) => size_of_val(values.as_slice()),
            Self::Bf16(values) => size_of_val(values.as_slice()),
            Self::Nf4(packed) => packed.bytes(),
            Self::Int8(packed) => packed.bytes(),
        }
    }

    /// What the format is called in messages.
    pub fn format(&self) -> &'static str {
        match self {
            Self::F32(_) => "f32",
            Self::Bf16(_) => "bf16",
            Self::Nf4(_) => "nf4",
            Self::Int8(_) => "int8",
        }
    }

    /// Whether it can train: formats of 16 and 32 bits.
    pub fn can_train(&self) -> bool {
        matches!(self, Self::F32(_) | Self::Bf16(_))
    }

    /// The numbers as `f32`: borrowed where they are kept so, converted into a fresh buffer otherwise. For small weights,
    /// and outside training steps; products read large ones panel by panel ([`crate::ops::matmul::nt_weight`]).
    pub fn as_f32(&self) -> Cow<'_, [f32]> {
        match self {
            Self::F32(values) => Cow::Borrowed(values),
            _ => {
                let mut values = vec![0.0; self.len()];
                self.read(0, &mut values);
                Cow::Owned(values)
            }
        }
    }

    /// Elements `start .. start + out.len()` as `f32`.
    pub fn read(&self, start: usize, out: &mut [f32]) {
        match self {
            Self::F32(values) => out.copy_from_slice(&values[start..start + out.len()]),
            Self::Bf16(values) => {
                for (to, from) in out.iter_mut().zip(&values[start..]) {
                    *to = from.to_f32();
                }
            }
            Self::Nf4(packed) => packed.read(start, out),
            Self::Int8(packed) => packed.read(start, out),
        }
    }

    /// As [`Weight::read`], on all cores.
    pub(crate) fn read_parallel(&self, start: usize, out: &mut [f32]) {
        out.par_chunks_mut(STRETCH).enumerate().for_each(|(i, out)| vectorised(|| self.read(start + i * STRETCH, out)));
    }
}

/// Fails at the first number that no scale can hold.
fn expect_finite(values: &[f32]) -> Result<()> {
    match values.iter().find(|value| !value.is_finite()) {
        None => Ok(()),
        Some(value) => {
            Err(EngineError::NotFinite { what: "a number to be quantised".into(), value: f64::from(*value) })
        }
    }
}
