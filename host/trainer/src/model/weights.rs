//! A checkpoint's tensors, wherever they lie: one table from canonical names to shapes, types and bytes.
//!
//! In: mapped safetensors or GGUF files. Out: one tensor at a time, as the engine or a test asks for it.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor};
use half::{bf16, f16};
use liftplan_engine::{EngineError, Weight};
use rayon::prelude::*;

use super::bnb::Packed;
use super::gguf::GgufFile;
use super::mapped::MappedFile;
use super::safetensors::Checkpoint;
use crate::{Error, Result};

/// How a tensor's bytes are encoded.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Encoding {
    F32,
    F16,
    BF16,
    /// Blocks of a GGUF quantisation.
    Blocks(candle_core::quantized::GgmlDType),
    /// Codes of a quantised weight, with what belongs to them in [`Stored::packed`].
    Packed,
    /// Whole numbers: parts of quantised weights, until they are put together.
    Raw,
}

/// A tensor as it's stored.
pub(super) struct Stored {
    /// Shape, outermost dimension first.
    pub shape: Vec<usize>,
    /// The type's name, as [`super::inventory::TensorInfo::dtype`] has it.
    pub dtype: String,
    pub encoding: Encoding,
    /// Which file it lies in.
    pub file: usize,
    /// First byte in that file, and number of bytes.
    pub range: (usize, usize),
    /// Set for llama.cpp's interleaved q and k: the number of heads whose rows must be put back in order.
    pub interleaved_heads: Option<usize>,
    /// Set for weights that bitsandbytes quantised.
    pub packed: Option<Packed>,
}

/// The tensors of a checkpoint by canonical name.
pub(super) enum Weights {
    Safetensors(Checkpoint),
    Gguf(GgufFile),
}

impl Weights {
    pub fn tensors(&self) -> &BTreeMap<String, Stored> {
        match self {
            Weights::Safetensors(checkpoint) => &checkpoint.tensors,
            Weights::Gguf(gguf) => &gguf.tensors,
        }
    }

    pub fn tensors_mut(&mut self) -> &mut BTreeMap<String, Stored> {
        match self {
            Weights::Safetensors(checkpoint) => &mut checkpoint.tensors,
            Weights::Gguf(gguf) => &mut gguf.tensors,
        }
    }

    /// The name of the file that a tensor lies in.
    pub fn file_name(&self, stored: &Stored) -> String {
        match self {
            Weights::Safetensors(checkpoint) => checkpoint.files[stored.file].name(),
            Weights::Gguf(gguf) => gguf.file.name(),
        }
    }

    /// A tensor's bytes as they are in the file. The ranges were checked against the file when it was opened.
    pub fn bytes(&self, stored: &Stored) -> &[u8] {
        &self.file(stored).bytes()[stored.range.0..stored.range.0 + stored.range.1]
    }

    /// Lets go of the pages that reading a tensor's bytes brought into memory.
    pub fn release(&self, stored: &Stored) {
        self.file(stored).release(stored.range.0, stored.range.1);
    }

    pub fn file(&self, stored: &Stored) -> &MappedFile {
        match self {
            Weights::Safetensors(checkpoint) => &checkpoint.files[stored.file],
            Weights::Gguf(gguf) => &gguf.file,
        }
    }

    /// The bytes of a packed weight beside its codes.
    pub fn more_bytes(&self, stored: &Stored) -> Vec<&[u8]> {
        stored.packed.as_ref().map_or_else(Vec::new, |packed| packed.more_bytes(self.files()))
    }

    /// A weight that the checkpoint holds packed, as it is there; nothing if it holds plain numbers.
    pub fn packed(&self, name: &str) -> Result<Option<Weight>> {
        let stored = self.get(name)?;
        let Some(packed) = &stored.packed else { return Ok(None) };
        let damaged = |error: EngineError| Error::model(format!("tensor `{name}`: {error}"));
        let weight = packed.weight(stored, self.files()).map(Some).map_err(damaged);
        self.release(stored);
        weight
    }

    fn files(&self) -> &[MappedFile] {
        match self {
            Weights::Safetensors(checkpoint) => &checkpoint.files,
            Weights::Gguf(_) => &[],
        }
    }

    /// One tensor on the CPU: f32, f16 and bf16 as stored, anything else as f32.
    pub fn read(&self, name: &str) -> Result<Tensor> {
        let stored = self.get(name)?;
        let dtype = match stored.encoding {
            Encoding::F32 | Encoding::Blocks(_) | Encoding::Packed | Encoding::Raw => DType::F32,
            Encoding::F16 => DType::F16,
            Encoding::BF16 => DType::BF16,
        };
        let failed = |e: candle_core::Error| Error::model(format!("cannot read tensor `{name}`: {e}"));
        let tensor = match (stored.encoding, stored.interleaved_heads) {
            (Encoding::Blocks(_) | Encoding::Packed | Encoding::Raw, _) => {
                Tensor::from_vec(self.to_f32(name, stored)?, stored.shape.as_slice(), &Device::Cpu).map_err(failed)
            }
            (_, None) => {
                Tensor::from_raw_buffer(self.bytes(stored), dtype, &stored.shape, &Device::Cpu).map_err(failed)
            }
            (_, Some(heads)) => {
                let source = self.bytes(stored);
                let mut rows = vec![0u8; source.len()];
                for_each_row(stored, heads, source, &mut rows, |from, to| {
                    to.copy_from_slice(from);
                    Ok(())
                })?;
                Tensor::from_raw_buffer(&rows, dtype, &stored.shape, &Device::Cpu).map_err(failed)
            }
        };
        self.release(stored);
        tensor
    }

    /// Whether a tensor's bytes are its elements in bf16, in row-major order.
    pub fn is_plain_bf16(&self, name: &str) -> Result<bool> {
        let stored = self.get(name)?;
        Ok(stored.encoding == Encoding::BF16 && stored.interleaved_heads.is_none())
    }

    /// Copies a tensor's bytes from `start` on to `to`, which they fill, without keeping them in memory.
    pub fn read_bytes(&self, name: &str, start: usize, to: &mut [u8]) -> Result<()> {
        let stored = self.get(name)?;
        if start + to.len() > stored.range.1 {
            return Err(Error::internal(format!("tensor `{name}` has no byte {}", start + to.len() - 1)));
        }
        self.read_at(stored, start, to)
    }

    /// The same of a tensor that was found.
    pub fn read_at(&self, stored: &Stored, start: usize, to: &mut [u8]) -> Result<()> {
        self.file(stored).read(stored.range.0 + start, to)
    }

    /// One tensor's elements as f32, in row-major order.
    pub fn read_f32(&self, name: &str) -> Result<Vec<f32>> {
        let stored = self.get(name)?;
        self.to_f32(name, stored)
    }

    fn get(&self, name: &str) -> Result<&Stored> {
        self.tensors().get(name).ok_or_else(|| {
            let nearest = self.tensors().keys().min_by_key(|known| strsim::levenshtein(known, name));
            let error = Error::model(format!("the model has no tensor `{name}`"));
            match nearest {
                Some(nearest) => error.help(format!("did you mean `{nearest}`?")),
                None => error,
            }
        })
    }

    fn to_f32(&self, name: &str, stored: &Stored) -> Result<Vec<f32>> {
        if let Some(weight) = self.packed(name)? {
            return Ok(weight.as_f32().into_owned());
        }
        let source = self.bytes(stored);
        let mut elements = vec![0f32; stored.shape.iter().product()];
        let heads = stored.interleaved_heads.unwrap_or(0);
        let convert = |from: &[u8], to: &mut [f32]| -> Result<()> {
            match stored.encoding {
                Encoding::F32 => fill(from, to, f32::from_le_bytes),
                Encoding::F16 => fill(from, to, |bytes| f16::from_le_bytes(bytes).to_f32()),
                Encoding::BF16 => fill(from, to, |bytes| bf16::from_le_bytes(bytes).to_f32()),
                Encoding::Packed | Encoding::Raw => {
                    return Err(Error::internal(format!("tensor `{name}` holds no numbers of its own")));
                }
                Encoding::Blocks(kind) => {
                    super::gguf::dequantise(kind, from, to).map_err(|e| e.at(format!("tensor `{name}`")))?
                }
            }
            Ok(())
        };
        for_each_row(stored, heads, source, &mut elements, convert)?;
        self.release(stored);
        Ok(elements)
    }
}

/// Decodes `from`, `N` bytes an element, into `to`.
fn fill<const N: usize>(from: &[u8], to: &mut [f32], decode: impl Fn([u8; N]) -> f32) {
    for (bytes, element) in from.as_chunks::<N>().0.iter().zip(to) {
        *element = decode(*bytes);
    }
}

/// Hands each row of the tensor, in the order in which it shall come out, to `convert`, on all cores.
///
/// With `heads > 0` the rows of each head are stored as `a0 b0 a1 b1 …` and come out as `a0 a1 … b0 b1 …`: llama.cpp
/// rotates neighbouring elements where Hugging Face rotates the two halves of a head.
fn for_each_row<T: Send>(
    stored: &Stored,
    heads: usize,
    source: &[u8],
    rows: &mut [T],
    convert: impl Fn(&[u8], &mut [T]) -> Result<()> + Sync,
) -> Result<()> {
    if source.is_empty() || rows.is_empty() {
        return Ok(());
    }
    // A vector is one row, unless its elements change places.
    let count = if stored.shape.len() < 2 && heads == 0 { 1 } else { stored.shape.first().copied().unwrap_or(1) };
    let (row_bytes, row_len) = (source.len() / count, rows.len() / count);
    let head_rows = count.checked_div(heads).unwrap_or(0);
    let origin = |row: usize| match head_rows {
        0 => row,
        _ => {
            let (head, within) = (row / head_rows, row % head_rows);
            let (half, index) = (within / (head_rows / 2), within % (head_rows / 2));
            head * head_rows + 2 * index + half
        }
    };
    // Rows are grouped so that a task is worth its scheduling.
    let group = (32_768 / row_len.max(1)).max(1);
    rows.par_chunks_mut(group * row_len).enumerate().try_for_each(|(index, chunk)| {
        chunk.chunks_mut(row_len).enumerate().try_for_each(|(offset, row)| {
            let from = origin(index * group + offset) * row_bytes;
            convert(&source[from..from + row_bytes], row)
        })
    })
}
