//! `[storage]`: how weights that stay frozen are kept, which is independent of what the policy trains.

use serde::{Deserialize, Serialize};

use super::Weights;
use crate::{Error, Result};

/// `[storage]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StorageConfig {
    /// How the linear layers' weights that don't train whole are kept. Default: as `train.weights`.
    pub frozen: FrozenStorage,
    /// Numbers that share a scale; only with `nf4`. 32, 64, 128, … or 4096. Default 64.
    pub block_size: Option<usize>,
    /// Whether the scales are quantised too; only with `nf4`. Default true.
    pub double_quantization: Option<bool>,
    /// How the other frozen tensors are kept: embedding, output head, norms, biases, and what `exclude` names.
    /// Default: as `train.weights`.
    pub others: Weights,
    /// Patterns of linear layers' weights that are kept as `others` are. Default none.
    pub exclude: Vec<String>,
    /// Keeps the token embedding, if frozen, as `frozen` too. Default false.
    pub embeddings: bool,
    /// The same for the output head. Default false.
    pub head: bool,
    /// Keeps the token embedding in the host's memory, where a GPU reads a row a token: 1.2 GiB less of an 8B model, the same
    /// numbers. It must be frozen and not the output head too. Default false.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub offload_embedding: bool,
}

/// How frozen weights are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FrozenStorage {
    /// 32-bit floats.
    F32,
    /// bfloat16.
    Bf16,
    /// Four bits and a scale a block, as QLoRA (arXiv 2305.14314) and bitsandbytes have it.
    Nf4,
    /// Eight bits and a scale a row, as LLM.int8() (arXiv 2208.07339) and bitsandbytes have it.
    Int8,
}

impl From<Weights> for FrozenStorage {
    fn from(weights: Weights) -> Self {
        match weights {
            Weights::F32 => Self::F32,
            Weights::Bf16 => Self::Bf16,
        }
    }
}

/// As written.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct WrittenStorage {
    pub frozen: Option<FrozenStorage>,
    pub block_size: Option<usize>,
    pub double_quantization: Option<bool>,
    pub others: Option<Weights>,
    pub exclude: Vec<String>,
    pub embeddings: bool,
    pub head: bool,
    pub offload_embedding: bool,
}

/// Fills in the defaults, given how the weights that train are kept.
pub(super) fn resolve(written: WrittenStorage, weights: Weights) -> Result<StorageConfig> {
    let frozen = written.frozen.unwrap_or(weights.into());
    let others = written.others.unwrap_or(weights);
    let nf4 = frozen == FrozenStorage::Nf4;
    for (setting, is_set) in
        [("block_size", written.block_size.is_some()), ("double_quantization", written.double_quantization.is_some())]
    {
        if is_set && !nf4 {
            return Err(Error::config(format!("`storage.{setting}` has no effect: storage.frozen is not \"nf4\""))
                .help("leave it out, or set storage.frozen = \"nf4\""));
        }
    }
    if frozen == others.into() {
        for (setting, is_set) in
            [("exclude", !written.exclude.is_empty()), ("embeddings", written.embeddings), ("head", written.head)]
        {
            if is_set {
                return Err(Error::config(format!(
                    "`storage.{setting}` has no effect: all frozen tensors are kept the same"
                ))
                .help("leave it out, or let storage.frozen and storage.others differ"));
            }
        }
    }
    let sizes = liftplan_engine::storage::nf4::BLOCK_SIZES;
    if let Some(size) = written.block_size.filter(|size| !sizes.contains(size)) {
        let sizes: Vec<String> = sizes.iter().map(usize::to_string).collect();
        return Err(Error::config(format!("`storage.block_size` cannot be {size}"))
            .help(format!("it can be {}", sizes.join(", "))));
    }
    Ok(StorageConfig {
        frozen,
        block_size: nf4.then(|| written.block_size.unwrap_or(64)),
        double_quantization: nf4.then(|| written.double_quantization.unwrap_or(true)),
        others,
        exclude: written.exclude,
        embeddings: written.embeddings,
        head: written.head,
        offload_embedding: written.offload_embedding,
    })
}
