//! Weights that are kept in fewer bits than products read. In: how a weight is kept. Out: bf16, where a product wants it.

use half::bf16;

use super::context::{Context, Launch};
use super::kernels::{args, sources::INT8};
use super::memory::View;
use super::nf4;
use super::profile::Kind;
use super::slab::Slab;
use crate::error::Result;

/// A packed weight.
#[derive(Clone, Copy, Debug)]
pub enum Packed {
    /// In 4 bits.
    Nf4(nf4::Packed),
    /// In 8 bits, a scale a row.
    Int8(Int8),
}

impl Packed {
    /// Rows and columns.
    pub fn shape(&self) -> [usize; 2] {
        match self {
            Self::Nf4(packed) => [packed.rows, packed.cols],
            Self::Int8(packed) => [packed.codes.rows(), packed.codes.cols()],
        }
    }

    /// Unpacks it into `w`, whose rows may lie apart.
    ///
    /// # Errors
    /// When the launch fails.
    pub fn unpack(&self, context: &Context, w: View<bf16>) -> Result<()> {
        match self {
            Self::Nf4(packed) => packed.unpack(context, w),
            Self::Int8(packed) => packed.unpack(context, w),
        }
    }
}

/// A weight in 8 bits (LLM.int8()).
#[derive(Clone, Copy, Debug)]
pub struct Int8 {
    codes: View<u8>,
    absmax: View<f32>,
}

impl Int8 {
    /// Memory for a weight of `rows × cols`.
    ///
    /// # Errors
    /// When there is no memory.
    pub fn new(slab: &mut Slab, [rows, cols]: [usize; 2]) -> Result<Self> {
        Ok(Self { codes: slab.take(rows, cols, 0)?, absmax: slab.take(1, rows, 0)? })
    }

    /// Copies codes, `[rows, cols]`, and each row's largest magnitude.
    ///
    /// # Errors
    /// When the device fails.
    pub fn load(&self, context: &Context, codes: &[i8], absmax: &[f32]) -> Result<()> {
        context.upload(self.codes, bytemuck::cast_slice(codes))?;
        context.upload(self.absmax, absmax)
    }

    fn unpack(&self, context: &Context, w: View<bf16>) -> Result<()> {
        context.kind(Kind::Unpack);
        let elements = self.codes.len();
        let arguments = args![w, self.codes, self.absmax, elements as u64, self.codes.cols(), w.stride()];
        context.launch(&INT8, &[], "int8_unpack", Launch::new(elements.div_ceil(2048), 256), arguments)
    }
}
