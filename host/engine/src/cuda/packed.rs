//! Weights that are kept in fewer bits than products read. In: how a weight is kept. Out: bf16, where a product wants it.

use half::bf16;

use super::context::{Context, Launch};
use super::kernels::{args, sources::INT8};
use super::memory::View;
use super::nf4;
use super::profile::Kind;
use super::slab::Slab;
use super::spec::Storage;
use crate::error::Result;
use crate::storage::dynamic8::SIGNED;

/// A packed weight.
#[derive(Clone, Copy, Debug)]
pub enum Packed {
    /// In 4 bits.
    Nf4(nf4::Packed),
    /// In 8 bits, a scale a row.
    Int8(Int8),
}

/// The map of the 8 bits of blocks' maxima, which all weights with double quantisation share; made with the first.
#[derive(Debug, Default)]
pub(crate) struct Map(Option<View<f32>>);

impl Map {
    /// The map where a weight kept as `storage` needs it, in memory of `slab`.
    pub fn wanted(&mut self, context: &Context, slab: &mut Slab, storage: Storage) -> Result<Option<View<f32>>> {
        if !matches!(storage, Storage::Nf4 { double: true, .. }) {
            return Ok(None);
        }
        if self.0.is_none() {
            let map = slab.take::<f32>(1, 256, 0)?;
            context.upload(map, &SIGNED.values)?;
            self.0 = Some(map);
        }
        Ok(self.0)
    }
}

impl Packed {
    /// Memory for a weight of `shape` kept as `storage`, with [`Map::wanted`]; `None` if that packs nothing.
    ///
    /// # Errors
    /// When it cannot be packed so, or there is no memory.
    pub(crate) fn take(
        slab: &mut Slab,
        shape: [usize; 2],
        storage: Storage,
        map: Option<View<f32>>,
    ) -> Result<Option<Self>> {
        Ok(match storage {
            Storage::F32 | Storage::Bf16 => None,
            Storage::Nf4 { block, .. } => Some(Self::Nf4(nf4::Packed::new(slab, shape, block, map)?)),
            Storage::Int8 => Some(Self::Int8(Int8::new(slab, shape)?)),
        })
    }

    /// Whether it is kept as `storage`.
    pub(crate) fn is(&self, storage: Storage) -> bool {
        match (self, storage) {
            (Self::Nf4(packed), Storage::Nf4 { block, double }) => packed.is(block, double),
            (Self::Int8(_), Storage::Int8) => true,
            _ => false,
        }
    }

    /// Frees its memory; nothing that is queued may read it.
    pub(crate) fn give_back(&self, slab: &mut Slab) {
        match self {
            Self::Nf4(packed) => packed.give_back(slab),
            Self::Int8(Int8 { codes, absmax }) => {
                slab.give_back(*codes);
                slab.give_back(*absmax);
            }
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
