//! 4-bit NormalFloat storage (QLoRA): packing and unpacking on the card.

use half::bf16;

use super::context::{Context, Launch};
use super::kernels::{args, sources::NF4};
use super::memory::View;
use super::profile::Kind;
use super::slab::Slab;
use crate::error::Result;

/// Elements of a block.
pub const BLOCK: usize = 64;
/// Maxima of a block of maxima.
const NESTED: usize = 256;

/// A weight in 4 bits.
#[derive(Clone, Copy, Debug)]
pub struct Packed {
    /// Rows of the weight.
    pub rows: usize,
    /// Its columns, a multiple of 64.
    pub cols: usize,
    codes: View<u8>,
    maxima: Maxima,
}

#[derive(Clone, Copy, Debug)]
enum Maxima {
    Wide(View<f32>),
    Double { codes: View<u8>, nested: View<f32>, map: View<f32>, offset: View<f32> },
}

/// Queues writing `a[rank, inputs + rank]` below and `b[outputs, rank]` beside the unpacked weight in
/// `w[outputs + rank, inputs + rank]`; ranks and inputs are multiples of 8.
///
/// # Errors
/// When the launch fails.
pub(crate) fn surround(context: &Context, w: View<bf16>, a: View<bf16>, b: View<bf16>) -> Result<()> {
    context.kind(Kind::Unpack);
    let (outputs, rank, stride) = (b.rows(), b.cols(), w.stride());
    let pieces = (outputs * rank + rank * stride) / 8;
    let arguments = args![w, a, b, outputs, stride - rank, rank, stride];
    context.launch(&NF4, &[], "nf4_surround", Launch::new(pieces.div_ceil(256), 256), arguments)
}

/// The parts of a packed weight as a checkpoint has them.
#[derive(Clone, Copy, Debug)]
pub enum Parts<'a> {
    /// Codes and a maximum a block.
    Single(&'a [u8], &'a [f32]),
    /// Codes, maxima in 8 bits, their maxima, the map of the 8 bits, and the offset.
    Double(&'a [u8], &'a [u8], &'a [f32], &'a [f32], f32),
}

impl Packed {
    /// Memory for a weight of `rows × cols`; `map` is that of the maxima's 8 bits, with double quantisation.
    ///
    /// # Errors
    /// When there is no memory.
    pub fn new(slab: &mut Slab, [rows, cols]: [usize; 2], map: Option<View<f32>>) -> Result<Self> {
        let blocks = (rows * cols).div_ceil(BLOCK);
        let codes = slab.take(1, rows * cols / 2, 0)?;
        let maxima = match map {
            None => Maxima::Wide(slab.take(1, blocks, 0)?),
            Some(map) => Maxima::Double {
                codes: slab.take(1, blocks, 0)?,
                nested: slab.take(1, blocks.div_ceil(NESTED), 0)?,
                map,
                offset: slab.take(1, 1, 0)?,
            },
        };
        Ok(Self { rows, cols, codes, maxima })
    }

    /// Unpacks it into `w`, whose rows may lie apart.
    ///
    /// # Errors
    /// When the launch fails.
    pub fn unpack(&self, context: &Context, w: View<bf16>) -> Result<()> {
        context.kind(Kind::Unpack);
        let elements = self.rows * self.cols;
        let none = 0_u64;
        let (wide, codes, nested, map, offset) = match self.maxima {
            Maxima::Wide(maxima) => (maxima.ptr(), none, none, none, none),
            Maxima::Double { codes, nested, map, offset } => (none, codes.ptr(), nested.ptr(), map.ptr(), offset.ptr()),
        };
        let arguments = args![w, self.codes, wide, codes, nested, map, offset, elements as u64, self.cols, w.stride()];
        context.launch(&NF4, &[], "nf4_unpack", Launch::new(elements.div_ceil(8192), 256), arguments)
    }

    /// Packs `w`; `scratch` has a number for each block of 64 elements.
    ///
    /// # Errors
    /// When the launch fails.
    pub fn pack(&self, context: &Context, w: View<bf16>, scratch: View<f32>) -> Result<()> {
        context.kind(Kind::Other);
        let elements = self.rows * self.cols;
        let blocks = elements.div_ceil(BLOCK);
        let to = match self.maxima {
            Maxima::Wide(maxima) => maxima,
            Maxima::Double { .. } => scratch,
        };
        let arguments = args![self.codes, to, w, elements as u64, self.cols, w.stride()];
        context.launch(&NF4, &[], "nf4_pack", Launch::new(blocks.div_ceil(8), 256), arguments)?;
        if let Maxima::Double { codes, nested, map, offset } = self.maxima {
            context.launch(&NF4, &[], "nf4_mean", Launch::new(1, 1024), args![offset, to, blocks])?;
            let arguments = args![codes, nested, to, map, offset, blocks];
            context.launch(&NF4, &[], "nf4_pack_maxima", Launch::new(blocks.div_ceil(NESTED), 256), arguments)?;
        }
        Ok(())
    }

    /// Copies a checkpoint's parts.
    ///
    /// # Errors
    /// When the device fails.
    pub fn load(&self, context: &Context, parts: Parts<'_>) -> Result<()> {
        match (parts, self.maxima) {
            (Parts::Single(codes, maxima), Maxima::Wide(to)) => {
                context.upload(self.codes, codes)?;
                context.upload(to, maxima)
            }
            (Parts::Double(codes, small, large, _, mean), Maxima::Double { codes: c, nested, offset, .. }) => {
                context.upload(self.codes, codes)?;
                context.upload(c, small)?;
                context.upload(nested, large)?;
                context.upload(offset, &[mean])
            }
            _ => Err(crate::EngineError::Shape {
                what: "4-bit weight".into(),
                expected: "maxima as planned, single or double".into(),
                found: "the other".into(),
            }),
        }
    }
}
