//! Checkpoints: everything a run needs to go on exactly as if it had not been stopped.
//!
//! In: the trainable tensors, the optimiser's tensors, and [`State`]. Out: `RUN/checkpoints/step-N/` with
//! `trainable.safetensors`, `optimizer.safetensors` and `state.json`, written under a temporary name, brought to the
//! disk and renamed, so that a checkpoint that is there is whole. Reading checks every byte against its sha256.
//!
//! Keys of `trainable.safetensors`: a tensor that trains whole has its own name; the adapter of `X.weight` has
//! `X.lora_A.weight` `[rank, in]`, `X.lora_B.weight` `[out, rank]`, and with DoRA `X.lora_magnitude_vector` `[out]`.

pub mod lock;
pub mod source;
pub mod store;
pub mod tensors;

pub use lock::RunLock;
pub use source::Source;
pub use store::{Checkpoint, Store};
pub use tensors::{NamedTensor, TensorData, TensorFile, TensorSource};

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::report::{Hashes, LossAt};

/// The format's version, in [`State::version`].
pub const VERSION: u32 = 1;

/// The file of the trainable tensors.
pub const TRAINABLE: &str = "trainable.safetensors";
/// The file of the optimiser's tensors.
pub const OPTIMIZER: &str = "optimizer.safetensors";
/// The file of the rest.
pub const STATE: &str = "state.json";

/// What a checkpoint holds beside tensors. The parts that belong to other modules are kept as their own JSON.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// [`VERSION`]; filled in by [`Store::write`].
    pub version: u32,
    /// Optimiser steps done.
    pub step: u64,
    /// Tokens processed so far.
    pub tokens: u64,
    /// Seconds of training so far, over all sessions of the run.
    pub train_s: f64,
    /// The sampler's state.
    pub sampler: Value,
    /// Counters of the seeded random generators, by purpose.
    pub rng: BTreeMap<String, u64>,
    /// The policy's state.
    pub policy: Value,
    /// The last step's training loss.
    pub last_loss: Option<f64>,
    /// Lowest training loss of a step so far.
    pub best_loss: Option<LossAt>,
    /// Lowest evaluation loss so far; its checkpoint is never pruned.
    pub best_eval_loss: Option<LossAt>,
    /// Evaluations in a row that did not improve on the best.
    pub evals_without_gain: u64,
    /// The evaluation of the untouched model, so that a resumed run needn't repeat it.
    pub eval_before: Option<crate::report::EvalRecord>,
    /// Bytes that the run's activations may take on a GPU: with the same, a resumed run works in the same pieces.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub card_room: Option<u64>,
    /// What the run was made from.
    pub hashes: Hashes,
    /// Size and sha256 of the checkpoint's tensor files; filled in by [`Store::write`].
    pub files: BTreeMap<String, FileDigest>,
    /// sha256 of this object's JSON with this field empty; filled in by [`Store::write`].
    pub checksum: String,
}

/// A file's size and content hash.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileDigest {
    /// Size in bytes.
    pub bytes: u64,
    /// sha256 in hexadecimal.
    pub sha256: String,
}
