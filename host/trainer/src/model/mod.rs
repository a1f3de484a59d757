//! A base model, opened but not yet loaded: its dimensions, its inventory, its tokenizer, and a way to read each tensor.
//!
//! In: a reference, which is a Hugging Face directory, a GGUF file, or a hub id. Out: a [`BaseModel`], the same whatever
//! it came from. Opening maps files and reads their headers; a tensor is read when it is asked for.
//!
//! ```text
//! reference → files → config.json → spec → expected tensors → checked against the files → inventory
//! ```

mod ahead;
pub mod arch;
mod bnb;
mod check;
pub mod gguf;
mod hash;
mod hf;
mod hub;
pub mod inventory;
mod mapped;
mod reference;
mod safetensors;
pub mod shapes;
pub mod spec;
mod summary;
mod tokenizer;
mod weights;

use std::path::{Path, PathBuf};

use candle_core::Tensor;
use liftplan_engine::Weight;
use serde_json::Value;

pub use summary::{RoleSummary, Summary};
pub use tokenizer::{SpecialToken, TextTokenizer};

use crate::model::inventory::Inventory;
use crate::model::spec::ModelSpec;
use crate::report::Observer;
use crate::{Error, Result};
use reference::Source;
use weights::Weights;

/// A base model, opened but not loaded.
pub struct BaseModel {
    /// Its dimensions and options.
    pub spec: ModelSpec,
    /// Its tensors, in the order of the forward pass.
    pub inventory: Inventory,
    /// Its tokenizer.
    pub tokenizer: TextTokenizer,
    /// Its chat template, in Jinja, if it has one.
    pub chat_template: Option<String>,
    /// Hugging Face's `config.json`, synthesised for a GGUF file.
    pub config_json: Value,
    /// Content hash of the weights, 64 hexadecimal digits: the same wherever the files lie and however they are sharded.
    pub hash: String,
    /// Where it came from, as the user named it.
    pub origin: String,
    /// The directory or GGUF file that it was opened from.
    pub path: PathBuf,
    weights: Weights,
}

/// Opens the model that `reference` names: a Hugging Face directory, a GGUF file, or a hub id `org/name`.
/// A path is relative to `relative_to`. Progress of a download and warnings go to `observer`.
///
/// # Errors
/// The reference is neither, or the model is incomplete, damaged, inconsistent or of a kind that isn't supported.
pub fn open(reference: &str, relative_to: &Path, observer: &mut dyn Observer) -> Result<BaseModel> {
    match reference::resolve(reference, relative_to, observer)? {
        Source::Directory(directory) => open_directory(&directory, reference, observer),
        Source::Gguf(file) => open_gguf(&file, reference, observer),
    }
}

fn open_directory(directory: &Path, origin: &str, observer: &mut dyn Observer) -> Result<BaseModel> {
    let place = directory.join("config.json");
    let config_json = hf::read_json(directory, "config.json")?
        .ok_or_else(|| Error::model(format!("{} is missing", place.display())).help("is this the right directory?"))?;
    let spec = arch::spec_from_config(&arch::Config::new(place.display().to_string(), &config_json)?)?;
    let is_quantised = config_json.get("quantization_config").is_some();
    let mut checkpoint = safetensors::Checkpoint::open(directory, is_quantised)?;
    if is_quantised {
        bnb::fold(&directory.display().to_string(), &mut checkpoint)?;
    }
    let text = hf::tokenizer(directory, &config_json, spec.vocab, observer)?;
    check_and_hash(origin, directory, config_json, spec, Weights::Safetensors(checkpoint), text, observer)
}

fn open_gguf(file: &Path, origin: &str, observer: &mut dyn Observer) -> Result<BaseModel> {
    let gguf = gguf::GgufFile::open(file)?;
    let config_json = gguf.config_json()?;
    let spec = arch::spec_from_config(&arch::Config::new(file.display().to_string(), &config_json)?)?;
    let text = gguf.tokenizer(spec.vocab, observer)?;
    check_and_hash(origin, file, config_json, spec, Weights::Gguf(gguf), text, observer)
}

/// The model of these parts: a description, its weights, and a tokenizer with its chat template.
fn check_and_hash(
    origin: &str,
    path: &Path,
    config_json: Value,
    mut spec: ModelSpec,
    mut weights: Weights,
    (tokenizer, chat_template): (TextTokenizer, Option<String>),
    observer: &mut dyn Observer,
) -> Result<BaseModel> {
    let inventory = check::inventory(&path.display().to_string(), &mut spec, &mut weights, observer)?;
    let hash = hash::content_hash(&inventory, &weights)?;
    let (origin, path) = (origin.to_string(), path.to_path_buf());
    Ok(BaseModel { spec, inventory, tokenizer, chat_template, config_json, hash, origin, path, weights })
}

impl BaseModel {
    /// Reads one tensor by its canonical name, on the CPU: f32, f16 and bf16 as stored, quantised GGUF types as f32.
    ///
    /// # Errors
    /// The model has no such tensor; a tied head is the embedding and has no name of its own.
    pub fn read(&self, name: &str) -> Result<Tensor> {
        self.weights.read(name)
    }

    /// Whether a tensor's bytes in its file are its elements in bf16, in row-major order.
    ///
    /// # Errors
    /// As [`BaseModel::read`].
    pub fn is_plain_bf16(&self, name: &str) -> Result<bool> {
        self.weights.is_plain_bf16(name)
    }

    /// Copies a tensor's bytes from `start` on to `to`, which they fill.
    ///
    /// # Errors
    /// As [`BaseModel::read`], and when the file can't be read.
    pub fn read_bytes(&self, name: &str, start: usize, to: &mut [u8]) -> Result<()> {
        self.weights.read_bytes(name, start, to)
    }

    /// Reads one tensor's elements as f32, in row-major order, whatever it's stored as.
    ///
    /// # Errors
    /// As [`BaseModel::read`].
    pub fn read_f32(&self, name: &str) -> Result<Vec<f32>> {
        self.weights.read_f32(name)
    }

    /// A weight that the checkpoint holds packed by bitsandbytes, as it is there; nothing if it holds plain numbers.
    ///
    /// # Errors
    /// As [`BaseModel::read`].
    pub fn packed(&self, name: &str) -> Result<Option<Weight>> {
        self.weights.packed(name)
    }

    /// Whether it was opened from a GGUF file.
    pub fn is_gguf(&self) -> bool {
        matches!(self.weights, Weights::Gguf(_))
    }

    /// What there is to know of it in a table.
    pub fn summary(&self) -> Summary {
        Summary::of(self)
    }

    /// The number of bytes that a tensor takes up in its file.
    fn stored_bytes(&self, name: &str) -> usize {
        let more = |stored| self.weights.more_bytes(stored).iter().map(|bytes| bytes.len()).sum::<usize>();
        self.weights.tensors().get(name).map_or(0, |stored| stored.range.1 + more(stored))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
