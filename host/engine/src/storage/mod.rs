//! How a weight is kept: its numbers in one of several formats, read as `f32` by the operations.

use std::borrow::Cow;

use half::bf16;

/// A weight matrix `[rows, cols]` (one row for a vector) in the format it is kept in.
#[derive(Clone, Debug)]
pub enum Weight {
    /// 32-bit floats.
    F32(Vec<f32>),
    /// bfloat16: the upper half of an `f32`.
    Bf16(Vec<bf16>),
}

impl Weight {
    /// Number of elements.
    pub fn len(&self) -> usize {
        match self {
            Self::F32(values) => values.len(),
            Self::Bf16(values) => values.len(),
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
        }
    }

    /// The numbers as `f32`: borrowed where they are kept so, converted into a fresh buffer otherwise.
    pub fn as_f32(&self) -> Cow<'_, [f32]> {
        match self {
            Self::F32(values) => Cow::Borrowed(values),
            Self::Bf16(values) => Cow::Owned(values.iter().map(|x| x.to_f32()).collect()),
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
        }
    }
}
