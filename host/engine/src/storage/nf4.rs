//! Four-bit weights of QLoRA (arXiv 2305.14314): blocks of numbers divided by their largest magnitude, each quotient
//! replaced by the nearest of 16 values that are quantiles of the normal distribution. The layout is bitsandbytes': two
//! codes a byte, the first in its upper half, row after row without padding; the blocks run on across rows.

use rayon::prelude::*;

use super::dynamic8::{self, SIGNED};
use super::sum;
use crate::error::{EngineError, Result, expect_shape};
use crate::ops::parallel::vectorised;

/// What the 16 codes stand for, before they are multiplied by their block's scale.
pub const VALUES: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

/// Block sizes that bitsandbytes knows.
pub const BLOCK_SIZES: [usize; 8] = [32, 64, 128, 256, 512, 1024, 2048, 4096];

/// Scales in one block of a double quantisation.
pub const NESTED_BLOCK: usize = 256;

/// How to quantise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Nf4Options {
    /// Numbers that share a scale, one of [`BLOCK_SIZES`].
    pub block_size: usize,
    /// Whether the scales are quantised too, to 8 bits.
    pub double_quantization: bool,
}

/// A tensor in four bits.
#[derive(Clone, Debug, PartialEq)]
pub struct Nf4 {
    codes: Vec<u8>,
    scales: Scales,
    block_size: usize,
    len: usize,
}

/// The largest magnitude of each block.
#[derive(Clone, Debug, PartialEq)]
pub enum Scales {
    /// As it is.
    Plain(Vec<f32>),
    /// In 8 bits: `SIGNED[code] · absmax of 256 of them + offset`.
    Double {
        /// A code a block.
        codes: Vec<u8>,
        /// A magnitude for each [`NESTED_BLOCK`] codes.
        absmax: Vec<f32>,
        /// The mean of all.
        offset: f32,
    },
}

impl Scales {
    /// The scale of block `i`.
    fn get(&self, i: usize) -> f32 {
        match self {
            Self::Plain(scales) => scales[i],
            Self::Double { codes, absmax, offset } => {
                SIGNED.values[usize::from(codes[i])] * absmax[i / NESTED_BLOCK] + offset
            }
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::Plain(scales) => scales.len(),
            Self::Double { codes, .. } => codes.len(),
        }
    }
}

/// Blocks that one core quantises at a time.
const STRETCH: usize = 256;

impl Nf4 {
    /// Quantises `values`, bit for bit as bitsandbytes does.
    ///
    /// # Errors
    /// When one is not finite: its block would have no scale.
    pub fn quantise(values: &[f32], options: Nf4Options) -> Result<Self> {
        super::expect_finite(values)?;
        let block_size = options.block_size;
        let whole_blocks = values.len() / block_size;
        let middles: [f32; 15] = std::array::from_fn(|i| (VALUES[i] + VALUES[i + 1]) / 2.0);
        let mut codes = vec![0; values.len().div_ceil(2)];
        let mut scales = vec![0.0; values.len().div_ceil(block_size)];
        let stretches = values.par_chunks(STRETCH * block_size).zip(codes.par_chunks_mut(STRETCH * block_size / 2));
        stretches.zip(scales.par_chunks_mut(STRETCH)).enumerate().for_each(|(stretch, ((values, codes), scales))| {
            vectorised(|| {
                let blocks = values.chunks(block_size).zip(codes.chunks_mut(block_size / 2)).zip(scales);
                for (i, ((values, codes), scale)) in blocks.enumerate() {
                    *scale = dynamic8::largest(values);
                    let scaled = dynamic8::scaling(scale, stretch * STRETCH + i < whole_blocks);
                    // An odd number of values is followed by a zero.
                    let code = |value: Option<&f32>| {
                        let x = value.map_or(0.0, |value| scaled(*value));
                        middles.iter().map(|middle| u8::from(*middle < x)).sum::<u8>()
                    };
                    for (byte, pair) in codes.iter_mut().zip(values.chunks(2)) {
                        *byte = code(pair.first()) << 4 | code(pair.get(1));
                    }
                }
            });
        });
        let scales = if options.double_quantization { double(scales) } else { Scales::Plain(scales) };
        Ok(Self { codes, scales, block_size, len: values.len() })
    }

    /// A tensor of `len` numbers that was quantised already.
    ///
    /// # Errors
    /// When the parts do not fit each other.
    pub fn from_parts(len: usize, block_size: usize, codes: Vec<u8>, scales: Scales) -> Result<Self> {
        if block_size == 0 || !block_size.is_multiple_of(2) {
            return Err(EngineError::Shape {
                what: "block size of a 4-bit weight".into(),
                expected: "an even number above 0".into(),
                found: block_size.to_string(),
            });
        }
        expect_shape("bytes of a 4-bit weight", len.div_ceil(2), codes.len())?;
        expect_shape("scales of a 4-bit weight", len.div_ceil(block_size), scales.len())?;
        if let Scales::Double { codes, absmax, .. } = &scales {
            expect_shape("scales of a 4-bit weight's scales", codes.len().div_ceil(NESTED_BLOCK), absmax.len())?;
        }
        Ok(Self { codes, scales, block_size, len })
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes it takes.
    pub fn bytes(&self) -> usize {
        self.codes.len()
            + match &self.scales {
                Scales::Plain(scales) => size_of_val(scales.as_slice()),
                Scales::Double { codes, absmax, offset } => {
                    codes.len() + size_of_val(absmax.as_slice()) + size_of_val(offset)
                }
            }
    }

    /// How it was quantised.
    pub fn options(&self) -> Nf4Options {
        Nf4Options { block_size: self.block_size, double_quantization: matches!(self.scales, Scales::Double { .. }) }
    }

    /// Two codes a byte, the first in the upper half.
    pub fn codes(&self) -> &[u8] {
        &self.codes
    }

    /// The blocks' scales.
    pub fn scales(&self) -> &Scales {
        &self.scales
    }

    /// Elements `start .. start + out.len()`.
    pub fn read(&self, start: usize, out: &mut [f32]) {
        let mut at = start;
        let mut rest = out;
        while !rest.is_empty() {
            let block = at / self.block_size;
            let end = ((block + 1) * self.block_size).min(at + rest.len());
            let (part, after) = rest.split_at_mut(end - at);
            self.read_block(at, self.scales.get(block), part);
            (at, rest) = (end, after);
        }
    }

    /// Elements from `start` that all belong to the block whose scale is given.
    fn read_block(&self, start: usize, scale: f32, out: &mut [f32]) {
        let scaled = VALUES.map(|value| value * scale);
        let value = |at: usize| scaled[usize::from(self.codes[at / 2] >> (4 * (1 - at % 2)) & 15)];
        // Whole bytes in the middle, half ones at the ends.
        let before = (start % 2).min(out.len());
        let (first, rest) = out.split_at_mut(before);
        if let [first] = first {
            *first = value(start);
        }
        let (pairs, last) = rest.as_chunks_mut::<2>();
        for (pair, byte) in pairs.iter_mut().zip(&self.codes[(start + before) / 2..]) {
            *pair = [scaled[usize::from(byte >> 4)], scaled[usize::from(byte & 15)]];
        }
        if let [last] = last {
            *last = value(start + before + 2 * pairs.len());
        }
    }
}

/// Quantises the scales to 8 bits, as differences from their mean.
fn double(scales: Vec<f32>) -> Scales {
    if scales.is_empty() {
        return Scales::Double { codes: Vec::new(), absmax: Vec::new(), offset: 0.0 };
    }
    let offset = sum::mean(&scales);
    let differences: Vec<f32> = scales.iter().map(|scale| scale - offset).collect();
    let mut codes = vec![0; scales.len()];
    let mut absmax = vec![0.0; scales.len().div_ceil(NESTED_BLOCK)];
    dynamic8::quantise(&SIGNED, &differences, NESTED_BLOCK, &mut codes, &mut absmax);
    Scales::Double { codes, absmax, offset }
}
