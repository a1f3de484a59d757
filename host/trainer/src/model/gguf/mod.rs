//! GGUF files: llama.cpp's single-file checkpoints, with configuration and tokenizer in their metadata.
//!
//! In: a mapped file. Out: the tensors under Hugging Face's names (`names`), a synthesised `config.json` (`config`),
//! and the tokenizer (`tokenizer`). From there on, nothing knows that the model was a GGUF file.

mod config;
mod header;
pub mod names;
pub mod pretokenizer;
mod tokenizer;

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::quantized::GgmlDType;
use candle_core::quantized::k_quants::{
    BlockQ2K, BlockQ3K, BlockQ4_0, BlockQ4_1, BlockQ4K, BlockQ5_0, BlockQ5_1, BlockQ5K, BlockQ6K, BlockQ8_0, GgmlType,
};

pub use header::Value;

use super::mapped::MappedFile;
use super::tokenizer::TextTokenizer;
use super::weights::{Encoding, Stored};
use crate::report::Observer;
use crate::{Error, Result};

/// An opened GGUF file.
pub(super) struct GgufFile {
    pub file: MappedFile,
    pub metadata: BTreeMap<String, Value>,
    pub tensors: BTreeMap<String, Stored>,
    /// Llama 3's factors on the wavelengths of the rotary embedding, if the file has them.
    rope_factors: Option<Vec<f32>>,
}

impl GgufFile {
    /// Opens the file at `path` without reading any tensor.
    ///
    /// # Errors
    /// What [`header::read`] refuses, a family that isn't supported, and tensors that the family doesn't have.
    pub fn open(path: &Path) -> Result<Self> {
        let file = MappedFile::open(path)?;
        Self::read(file).map_err(|e| e.at(path.display()))
    }

    fn read(file: MappedFile) -> Result<Self> {
        let header = header::read(file.bytes())?;
        let metadata = header.metadata;
        let family = config::family(&metadata)?;
        let (heads, kv_heads) = config::heads(&metadata, family)?;
        let mut rope_factors = None;
        let mut tensors = BTreeMap::new();
        for entry in header.tensors {
            if entry.name == "rope_freqs.weight" && entry.dtype == GgmlDType::F32 {
                let bytes = &file.bytes()[entry.range.0..entry.range.0 + entry.range.1];
                rope_factors = Some(bytes.as_chunks::<4>().0.iter().map(|&b| f32::from_le_bytes(b)).collect());
                continue;
            }
            let Some(name) = names::canonical(&entry.name) else {
                return Err(Error::model(format!("unexpected tensor `{}` {:?}", entry.name, entry.shape))
                    .help(format!("a plain {} model has no such tensor; this variant is not supported", family.name)));
            };
            let interleaved_heads = match names::rotated(&name) {
                _ if !family.gguf_interleaves_qk => None,
                Some(names::Rotated::Query) => Some(heads),
                Some(names::Rotated::Key) => Some(kv_heads),
                None => None,
            };
            let encoding = match entry.dtype {
                GgmlDType::F32 => Encoding::F32,
                GgmlDType::F16 => Encoding::F16,
                GgmlDType::BF16 => Encoding::BF16,
                blocks => Encoding::Blocks(blocks),
            };
            if let Some(heads) = interleaved_heads {
                let rows = entry.shape[0];
                if heads == 0 || !rows.is_multiple_of(2 * heads) {
                    return Err(Error::model(format!("tensor `{}` has {rows} rows for {heads} heads", entry.name)));
                }
                if entry.shape.len() < 2 && matches!(encoding, Encoding::Blocks(_)) {
                    return Err(Error::model(format!("tensor `{}` is a quantised vector", entry.name)));
                }
            }
            let stored = Stored {
                shape: entry.shape,
                dtype: dtype_name(entry.dtype).to_string(),
                encoding,
                file: 0,
                range: entry.range,
                interleaved_heads,
                packed: None,
            };
            if tensors.insert(name, stored).is_some() {
                return Err(Error::model(format!("tensor `{}` occurs twice under different names", entry.name)));
            }
        }
        Ok(Self { file, metadata, tensors, rope_factors })
    }

    /// Hugging Face's `config.json` for this model.
    ///
    /// # Errors
    /// Metadata that is missing, of the wrong type, or describes a variant that isn't supported.
    pub fn config_json(&self) -> Result<serde_json::Value> {
        config::synthesise(self).map_err(|e| e.at(self.file.path().display()))
    }

    /// The tokenizer and chat template that the metadata describe.
    ///
    /// # Errors
    /// No tokenizer, or one that isn't supported.
    pub fn tokenizer(&self, vocab: usize, observer: &mut dyn Observer) -> Result<(TextTokenizer, Option<String>)> {
        tokenizer::build(&self.metadata, vocab, observer).map_err(|e| e.at(self.file.path().display()))
    }
}

/// The name of a type, as [`super::inventory::TensorInfo::dtype`] has it.
fn dtype_name(dtype: GgmlDType) -> &'static str {
    match dtype {
        GgmlDType::F32 => "f32",
        GgmlDType::F16 => "f16",
        GgmlDType::BF16 => "bf16",
        GgmlDType::Q4_0 => "q4_0",
        GgmlDType::Q4_1 => "q4_1",
        GgmlDType::Q5_0 => "q5_0",
        GgmlDType::Q5_1 => "q5_1",
        GgmlDType::Q8_0 => "q8_0",
        GgmlDType::Q8_1 => "q8_1",
        GgmlDType::Q2K => "q2_k",
        GgmlDType::Q3K => "q3_k",
        GgmlDType::Q4K => "q4_k",
        GgmlDType::Q5K => "q5_k",
        GgmlDType::Q6K => "q6_k",
        GgmlDType::Q8K => "q8_k",
    }
}

/// Decodes whole quantised blocks from `from` into `to`, which holds exactly their elements.
///
/// # Errors
/// A type without a decoder (which the header reader refuses already).
pub(super) fn dequantise(dtype: GgmlDType, from: &[u8], to: &mut [f32]) -> Result<()> {
    match dtype {
        GgmlDType::Q4_0 => decode::<BlockQ4_0>(from, to),
        GgmlDType::Q4_1 => decode::<BlockQ4_1>(from, to),
        GgmlDType::Q5_0 => decode::<BlockQ5_0>(from, to),
        GgmlDType::Q5_1 => decode::<BlockQ5_1>(from, to),
        GgmlDType::Q8_0 => decode::<BlockQ8_0>(from, to),
        GgmlDType::Q2K => decode::<BlockQ2K>(from, to),
        GgmlDType::Q3K => decode::<BlockQ3K>(from, to),
        GgmlDType::Q4K => decode::<BlockQ4K>(from, to),
        GgmlDType::Q5K => decode::<BlockQ5K>(from, to),
        GgmlDType::Q6K => decode::<BlockQ6K>(from, to),
        other => Err(Error::model(format!("type {} cannot be decoded", dtype_name(other)))),
    }
}

/// Decodes blocks of type `B` where they lie.
fn decode<B: GgmlType>(from: &[u8], to: &mut [f32]) -> Result<()> {
    let size = size_of::<B>();
    if !from.len().is_multiple_of(size) || from.len() / size * B::BLCK_SIZE != to.len() {
        return Err(Error::internal(format!("{} bytes of blocks for {} elements", from.len(), to.len())));
    }
    if from.as_ptr().align_offset(align_of::<B>()) != 0 {
        return Err(Error::internal("quantised blocks at an odd address"));
    }
    // SAFETY: candle's block types are `repr(C)` structs of integers and half floats, for which any bytes are valid and
    // which have no padding (their sizes are asserted there). Length and alignment were checked above.
    let blocks = unsafe { std::slice::from_raw_parts(from.as_ptr().cast::<B>(), from.len() / size) };
    B::to_float(blocks, to);
    Ok(())
}
