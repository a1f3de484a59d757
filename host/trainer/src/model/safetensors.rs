//! Safetensors checkpoints: one `model.safetensors`, or the shards that `model.safetensors.index.json` names.

use std::collections::BTreeMap;
use std::path::{Component, Path};

use ::safetensors::tensor::{Dtype, SafeTensorError, SafeTensors};
use serde_json::Value;

use super::mapped::MappedFile;
use super::weights::{Encoding, Stored};
use crate::{Error, ErrorKind, Result};

/// The name of an unsharded checkpoint.
pub(super) const SINGLE: &str = "model.safetensors";
/// The name of a sharded checkpoint's table of contents.
pub(super) const INDEX: &str = "model.safetensors.index.json";

/// An opened checkpoint.
pub(super) struct Checkpoint {
    pub files: Vec<MappedFile>,
    pub tensors: BTreeMap<String, Stored>,
    /// Whether it may hold parts of weights that bitsandbytes quantised.
    is_quantised: bool,
}

impl Checkpoint {
    /// Opens the checkpoint in `directory` without reading any tensor; parts of quantised weights are left as they are. A single file wins over an index, as in
    /// transformers.
    ///
    /// # Errors
    /// No checkpoint, a missing or damaged shard, a type that isn't supported, an index that disagrees with its shards.
    pub fn open(directory: &Path, is_quantised: bool) -> Result<Self> {
        let mut checkpoint = Checkpoint { files: Vec::new(), tensors: BTreeMap::new(), is_quantised };
        if directory.join(SINGLE).exists() {
            checkpoint.add(&directory.join(SINGLE), |_| true)?;
            return Ok(checkpoint);
        }
        let index = directory.join(INDEX);
        if !index.exists() {
            return Err(no_weights(directory));
        }
        let shard_of = read_index(&index)?;
        let mut shards: Vec<&String> = shard_of.values().collect();
        shards.sort();
        shards.dedup();
        for shard in shards {
            let path = directory.join(shard);
            if !path.exists() {
                return Err(Error::model(format!("{}: shard {shard} is missing", directory.display()))
                    .help(format!("{INDEX} names it; fetch the whole checkpoint again")));
            }
            // A tensor that two shards hold counts where the index says.
            checkpoint.add(&path, |name| shard_of.get(name).is_none_or(|home| home == shard))?;
        }
        match shard_of.iter().find(|(name, _)| !checkpoint.tensors.contains_key(*name)) {
            None => Ok(checkpoint),
            Some((name, shard)) => Err(Error::model(format!(
                "{}: tensor `{name}` is not in {shard}, where {INDEX} says it is",
                directory.display()
            ))
            .help("fetch the whole checkpoint again")),
        }
    }

    fn add(&mut self, path: &Path, wanted: impl Fn(&str) -> bool) -> Result<()> {
        let file = MappedFile::open(path)?;
        let (header, metadata) =
            SafeTensors::read_metadata(file.bytes()).map_err(|e| explain(&e, file.bytes()).at(path.display()))?;
        let data_start = 8 + header;
        for (name, info) in metadata.tensors() {
            if !wanted(&name) {
                continue;
            }
            let (dtype, encoding) = match info.dtype {
                Dtype::F32 => ("f32", Encoding::F32),
                Dtype::F16 => ("f16", Encoding::F16),
                Dtype::BF16 => ("bf16", Encoding::BF16),
                Dtype::U8 if self.is_quantised => ("u8", Encoding::Raw),
                Dtype::I8 if self.is_quantised => ("i8", Encoding::Raw),
                other => {
                    return Err(Error::model(format!("{}: tensor `{name}` has type {other:?}", path.display()))
                        .help("supported types: F32, F16, BF16"));
                }
            };
            let (start, end) = info.data_offsets;
            let stored = Stored {
                shape: info.shape.clone(),
                dtype: dtype.to_string(),
                encoding,
                file: self.files.len(),
                range: (data_start + start, end - start),
                interleaved_heads: None,
                packed: None,
            };
            if self.tensors.insert(name.clone(), stored).is_some() {
                return Err(Error::model(format!("{}: tensor `{name}` is also in another shard", path.display()))
                    .help(format!("{INDEX} must say which one counts")));
            }
        }
        self.files.push(file);
        Ok(())
    }
}

/// Reads the table from tensor names to shard file names.
pub(super) fn read_index(path: &Path) -> Result<BTreeMap<String, String>> {
    let text = std::fs::read_to_string(path).map_err(|e| Error::io(ErrorKind::Model, "read", path, &e))?;
    let wrong = |what: &str| Error::model(format!("{}: {what}", path.display())).help("fetch the file again");
    let index: Value = serde_json::from_str(&text).map_err(|e| wrong(&format!("not valid JSON: {e}")))?;
    let map = index.get("weight_map").and_then(Value::as_object).ok_or_else(|| wrong("`weight_map` is missing"))?;
    let mut shard_of = BTreeMap::new();
    for (name, shard) in map {
        let shard = shard.as_str().ok_or_else(|| wrong(&format!("`weight_map.{name}` is not a file name")))?;
        // An index comes from elsewhere; it may only name files beside itself.
        let mut parts = Path::new(shard).components();
        if !(matches!(parts.next(), Some(Component::Normal(_))) && parts.next().is_none()) {
            return Err(wrong(&format!("`weight_map.{name}` is `{shard}`, which is not a plain file name")));
        }
        shard_of.insert(name.clone(), shard.to_string());
    }
    Ok(shard_of)
}

fn explain(error: &SafeTensorError, bytes: &[u8]) -> Error {
    let again = "fetch the file again; the download was probably cut off";
    match error {
        SafeTensorError::HeaderTooSmall | SafeTensorError::InvalidHeaderLength => {
            Error::model(format!("truncated within the safetensors header, after {} bytes", bytes.len())).help(again)
        }
        SafeTensorError::MetadataIncompleteBuffer => {
            Error::model(format!("the file's length, {} bytes, is not what its safetensors header says", bytes.len()))
                .help(again)
        }
        SafeTensorError::HeaderTooLarge if bytes.starts_with(b"version https://git-lfs") => {
            Error::model("this is a Git LFS pointer, not the weights").help("run `git lfs pull` in the repository")
        }
        SafeTensorError::HeaderTooLarge => Error::model("not a safetensors file").help("expected a safetensors header"),
        other => Error::model(format!("damaged safetensors header: {other}")).help("fetch the file again"),
    }
}

fn no_weights(directory: &Path) -> Error {
    let error = Error::model(format!("{}: no weights; expected {SINGLE} or {INDEX}", directory.display()));
    let pickled = ["pytorch_model.bin", "pytorch_model.bin.index.json"].iter().any(|f| directory.join(f).exists());
    match pickled {
        true => error.help(
            "pytorch_model.bin can run code when it is read and is not supported; convert it with \
             `AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(DIR)` of transformers",
        ),
        false => error.help("is this the right directory?"),
    }
}
