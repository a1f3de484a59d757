//! 4-bit NormalFloat storage (QLoRA): packing and unpacking on the card.

use half::bf16;

use super::context::{Context, Launch};
use super::kernels::{args, sources::NF4};
use super::memory::View;
use super::profile::Kind;
use super::slab::Slab;
use crate::error::{EngineError, Result};
use crate::storage::nf4::BLOCK_SIZES;

/// Elements of a block where nothing else is said, for which the kernels are compiled if nothing else is.
pub const BLOCK: usize = 64;
/// Maxima of a block of maxima.
const NESTED: usize = 256;

/// A weight in 4 bits.
#[derive(Clone, Copy, Debug)]
pub struct Packed {
    /// Rows of the weight.
    pub rows: usize,
    /// Its columns, a multiple of 8.
    pub cols: usize,
    /// Elements of a block, which runs on across rows.
    block: usize,
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

/// Whether a weight of so many columns can be packed in blocks of `block` elements.
pub(crate) fn check(block: usize, cols: usize) -> Result<()> {
    let unfit = |what: &str, expected: String, found: usize| {
        Err(EngineError::Shape { what: format!("{what} of a 4-bit weight"), expected, found: found.to_string() })
    };
    if !BLOCK_SIZES.contains(&block) {
        return unfit("block size", format!("one of {BLOCK_SIZES:?}"), block);
    }
    if !cols.is_multiple_of(8) {
        return unfit("columns", "a multiple of 8".into(), cols);
    }
    Ok(())
}

impl Packed {
    /// Memory for a weight of `rows × cols` in blocks of `block` elements; `map` is that of the maxima's 8 bits, with double
    /// quantisation.
    ///
    /// # Errors
    /// When there are no such blocks, the columns are no multiple of 8, or there is no memory.
    pub fn new(slab: &mut Slab, [rows, cols]: [usize; 2], block: usize, map: Option<View<f32>>) -> Result<Self> {
        check(block, cols)?;
        let blocks = (rows * cols).div_ceil(block);
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
        Ok(Self { rows, cols, block, codes, maxima })
    }

    /// Whether its blocks have so many elements, and their maxima 8 bits if `double`.
    pub(crate) fn is(&self, block: usize, double: bool) -> bool {
        self.block == block && double == matches!(self.maxima, Maxima::Double { .. })
    }

    /// Frees its memory; nothing that is queued may read it.
    pub(crate) fn give_back(&self, slab: &mut Slab) {
        slab.give_back(self.codes);
        match self.maxima {
            Maxima::Wide(maxima) => slab.give_back(maxima),
            Maxima::Double { codes, nested, offset, .. } => {
                slab.give_back(codes);
                slab.give_back(nested);
                slab.give_back(offset);
            }
        }
    }

    /// Numbers of `f32` that packing it needs beside it.
    pub fn scratch_len(&self) -> usize {
        match self.maxima {
            Maxima::Wide(_) => 0,
            Maxima::Double { codes, .. } => codes.len(),
        }
    }

    /// Launches a kernel that is compiled for its blocks.
    fn launch(&self, context: &Context, name: &'static str, launch: Launch, arguments: &[u64]) -> Result<()> {
        let define = [("BLOCK", self.block as i64)];
        context.launch(&NF4, if self.block == BLOCK { &[] } else { &define }, name, launch, arguments)
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
        self.launch(context, "nf4_unpack", Launch::new(elements.div_ceil(8192), 256), arguments)
    }

    /// Packs `w`, whose rows begin at even elements; `scratch` has [`Packed::scratch_len`] numbers.
    ///
    /// # Errors
    /// When the launch fails.
    pub fn pack(&self, context: &Context, w: View<bf16>, scratch: View<f32>) -> Result<()> {
        context.kind(Kind::Other);
        let elements = self.rows * self.cols;
        let blocks = elements.div_ceil(self.block);
        let to = match self.maxima {
            Maxima::Wide(maxima) => maxima,
            Maxima::Double { .. } => scratch,
        };
        let arguments = args![self.codes, to, w, elements as u64, self.cols, w.stride()];
        // A warp a block, or half of one for 32 elements.
        let at_once = if self.block < 64 { 512 / self.block } else { 8 };
        self.launch(context, "nf4_pack", Launch::new(blocks.div_ceil(at_once), 256), arguments)?;
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
            _ => Err(EngineError::Shape {
                what: "4-bit weight".into(),
                expected: "maxima as planned, single or double".into(),
                found: "the other".into(),
            }),
        }
    }
}
