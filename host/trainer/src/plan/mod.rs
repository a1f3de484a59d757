//! The plan: what happens to each tensor, and when the policy looks again. It is the only thing that passes from a
//! policy to training.
//!
//! A policy speaks to a [`PlanBuilder`], which checks each call and fills in what was left frozen; the [`Plan`] that it
//! builds has one [`Entry`] for each tensor of the inventory. [`canonical`] gives it one text and one hash, [`file`]
//! keeps it in `plan.json`, and [`summary`] tells a person what it does.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub mod canonical;
pub mod file;
pub mod fit;
pub mod memory;
pub mod summary;
mod builder;
mod storage;

pub use builder::PlanBuilder;
pub(crate) use builder::kind_in_words;
pub use storage::StorageRule;
pub use summary::Summary;

/// What the plan does with a tensor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "treatment")]
pub enum Treatment {
    /// It stays as it is; no gradient is computed or held for it.
    Frozen,
    /// All of it trains.
    Train,
    /// It stays, and a low-rank adapter beside it trains.
    Adapt(AdapterSpec),
}

/// A low-rank adapter, fully resolved.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AdapterSpec {
    /// Rank, between 1 and the smaller dimension of the weight.
    pub rank: usize,
    /// The numerator of the scale: `alpha / rank`, or `alpha / sqrt(rank)` with `rslora`.
    pub alpha: f64,
    /// Probability that an input of the adapter is dropped, in `[0, 1)`.
    pub dropout: f64,
    /// Rank-stabilised scaling (arXiv 2312.03732).
    pub rslora: bool,
    /// Weight-decomposed adaptation (arXiv 2402.09353).
    pub dora: bool,
}

impl AdapterSpec {
    /// The factor on the adapter's product.
    pub fn scale(&self) -> f64 {
        if self.rslora { self.alpha / (self.rank as f64).sqrt() } else { self.alpha / self.rank as f64 }
    }
}

/// How the engine keeps a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Storage {
    /// 32-bit floats.
    F32,
    /// bfloat16.
    Bf16,
    /// Four bits and a scale a block (arXiv 2305.14314); not for what trains whole.
    Nf4 {
        /// Numbers that share a scale.
        block_size: usize,
        /// Whether the scales are kept in 8 bits.
        double_quantization: bool,
    },
    /// Eight bits and a scale a row (arXiv 2208.07339); not for what trains whole.
    Int8,
}

/// One tensor's line in the plan.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// Canonical name.
    pub tensor: String,
    /// What happens to it.
    #[serde(flatten)]
    pub treatment: Treatment,
    /// How it is kept.
    pub storage: Storage,
    /// Factor on the learning rate of what trains here (for an adapter: of both its matrices).
    pub lr_scale: f64,
    /// Further factor on the learning rate of an adapter's B matrix and DoRA magnitude (LoRA+, arXiv 2402.12354; the
    /// same parameters as in PEFT's `create_loraplus_optimizer`); 1 elsewhere.
    pub lr_scale_b: f64,
}

/// When the policy is asked again, between steps. Steps count from 1; a pick at step `n` happens before it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Picks {
    /// Every so many steps, if set.
    pub every: Option<u64>,
    /// At these steps, ascending.
    pub at: Vec<u64>,
}

/// Who made a plan.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Origin {
    /// The policy's name, `lora`.
    pub policy: String,
    /// Its version.
    pub version: String,
    /// Its settings, every default filled in.
    pub settings: serde_json::Value,
}

/// The plan of a model: one entry a tensor of the inventory, in its order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// The format's version, 1.
    pub version: u32,
    /// Who made it.
    pub origin: Origin,
    /// One entry for each tensor.
    pub entries: Vec<Entry>,
    /// When the policy revises it.
    pub picks: Picks,
    /// The scores that the policy gave to tensors, for reports; absent tensors have none.
    pub scores: BTreeMap<String, f64>,
}

impl Picks {
    /// Whether the policy is asked before `step`, counted from 1. Every `n` steps means before steps n + 1, 2n + 1, …:
    /// after each `n` that are done.
    pub fn includes(&self, step: u64) -> bool {
        let every = self.every.is_some_and(|every| step > 1 && (step - 1).is_multiple_of(every));
        every || self.at.binary_search(&step).is_ok()
    }

    /// Whether the plan is ever revised.
    pub fn is_empty(&self) -> bool {
        self.every.is_none() && self.at.is_empty()
    }
}

impl Plan {
    /// The plan format's version, which `version` must equal.
    pub const VERSION: u32 = 1;

    /// The entry of the tensor called `name`.
    pub fn get(&self, name: &str) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.tensor == name)
    }

    /// The sha256 of the plan's canonical JSON, in hexadecimal.
    pub fn hash(&self) -> String {
        canonical::hash(self)
    }

    /// The entries that have something to train.
    pub fn trained(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter().filter(|entry| entry.treatment != Treatment::Frozen)
    }
}

#[cfg(test)]
pub(crate) mod tests;
