//! What an optimiser remembers of a parameter, and where: in memory, or in pages that the caller provides.

use std::fmt;
use std::sync::Arc;

use bytemuck::Pod;

use crate::error::{EngineError, Result};
use crate::storage::dynamic8;

/// The state of one parameter.
#[derive(Debug)]
pub struct State {
    /// First moment, as many elements as the parameter.
    pub first: Moment,
    /// Second moment.
    pub second: Moment,
    /// The `f32` copy of a bf16 weight, with [`super::Bf16Update::Master`].
    pub master: Option<Buffer<f32>>,
    /// Updates so far.
    pub updates: u64,
}

/// A moment's numbers.
#[derive(Debug)]
pub enum Moment {
    /// As they are.
    F32(Buffer<f32>),
    /// In 8 bits, by a map of [`dynamic8`]: signed for the first moment, unsigned for the second.
    Bits8 {
        /// A code an element.
        codes: Buffer<u8>,
        /// The largest magnitude of each [`BLOCK`] elements.
        absmax: Vec<f32>,
    },
}

/// Elements of an 8-bit moment that share a scale.
pub const BLOCK: usize = 256;
/// Moments of fewer elements are kept in `f32` also by 8-bit optimisers: they cost little and often belong to norms.
pub const LEAST_FOR_BITS8: usize = 4096;
/// States of fewer elements stay in memory also with paged optimisers: their pages would be mostly empty.
pub const LEAST_FOR_PAGES: usize = 100_000;

impl Moment {
    /// Number of elements.
    pub fn len(&self) -> usize {
        match self {
            Self::F32(values) => values.len(),
            Self::Bits8 { codes, .. } => codes.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes it takes, wherever they are.
    pub fn bytes(&self) -> usize {
        match self {
            Self::F32(values) => size_of_val::<[f32]>(values),
            Self::Bits8 { codes, absmax } => codes.len() + size_of_val(absmax.as_slice()),
        }
    }

    /// The numbers as `f32`, by the map they were quantised with.
    pub fn to_f32(&self, map: &dynamic8::Map) -> Vec<f32> {
        match self {
            Self::F32(values) => values.to_vec(),
            Self::Bits8 { codes, absmax } => {
                let mut values = vec![0.0; codes.len()];
                dynamic8::dequantise(map, codes, BLOCK, absmax, &mut values);
                values
            }
        }
    }

    pub(super) fn release(&self) {
        match self {
            Self::F32(values) => values.release(),
            Self::Bits8 { codes, .. } => codes.release(),
        }
    }
}

/// Numbers in memory, or in pages.
pub enum Buffer<T> {
    /// In memory.
    Memory(Vec<T>),
    /// In pages.
    Paged(Box<dyn Pages>),
}

/// Bytes that need not stay in memory while they are not used: a mapped file, for instance. They must be aligned to 4.
pub trait Pages: Send + Sync {
    /// All of them.
    fn bytes(&self) -> &[u8];
    /// All of them, to change.
    fn bytes_mut(&mut self) -> &mut [u8];
    /// Says that they will not be used for a while. They stay what they are, also for who still refers to them.
    fn release(&self);
}

/// Makes pages of so many zero bytes.
pub type MakePages = Arc<dyn Fn(usize) -> std::io::Result<Box<dyn Pages>> + Send + Sync>;

impl<T: Pod> Buffer<T> {
    /// `len` zeros, in pages if they are given and worth it.
    pub(super) fn zeros(len: usize, pages: Option<&MakePages>) -> Result<Self> {
        let Some(make) = pages.filter(|_| len >= LEAST_FOR_PAGES) else {
            return Ok(Self::Memory(vec![T::zeroed(); len]));
        };
        let bytes = len * size_of::<T>();
        make(bytes).map(Self::Paged).map_err(|error| EngineError::Pages { bytes, error })
    }

    /// A copy of `values`, in pages if they are given and worth it.
    pub(super) fn copy(values: &[T], pages: Option<&MakePages>) -> Result<Self> {
        let mut buffer = Self::zeros(values.len(), pages)?;
        buffer.copy_from_slice(values);
        Ok(buffer)
    }

    /// Moves the numbers into pages if they are given and worth it, where they are not used for a while.
    pub(super) fn move_into(&mut self, pages: Option<&MakePages>) -> Result<()> {
        *self = Self::copy(self, pages)?;
        self.release();
        Ok(())
    }

    /// The pages that it is kept in, if it is.
    pub fn pages(&self) -> Option<&dyn Pages> {
        match self {
            Self::Memory(_) => None,
            Self::Paged(pages) => Some(pages.as_ref()),
        }
    }

    /// Says that the numbers will not be used for a while.
    pub fn release(&self) {
        if let Some(pages) = self.pages() {
            pages.release();
        }
    }
}

impl<T: Pod> std::ops::Deref for Buffer<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        match self {
            Self::Memory(values) => values,
            Self::Paged(pages) => bytemuck::cast_slice(pages.bytes()),
        }
    }
}

impl<T: Pod> std::ops::DerefMut for Buffer<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        match self {
            Self::Memory(values) => values,
            Self::Paged(pages) => bytemuck::cast_slice_mut(pages.bytes_mut()),
        }
    }
}

impl<T: Pod> From<Vec<T>> for Buffer<T> {
    fn from(values: Vec<T>) -> Self {
        Self::Memory(values)
    }
}

impl<T: Pod> fmt::Debug for Buffer<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = if matches!(self, Self::Memory(_)) { "memory" } else { "pages" };
        write!(f, "{} elements in {place}", self.len())
    }
}
