//! What a plan does, for a person: by role, how many tensors are frozen, adapted or trained, and how many parameters.

use std::fmt;

use serde::Serialize;

use super::memory::{Memory, States, lasting};
use super::{AdapterSpec, Plan, Treatment};
use crate::model::inventory::{Inventory, Kind, TensorInfo};
use crate::report::text::{grouped, memory};

/// What a plan does, counted.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// The policy that made it.
    pub policy: String,
    /// The plan's hash.
    pub hash: String,
    /// One row a role, in the order of the forward pass.
    pub roles: Vec<RoleRow>,
    /// Parameters of the base model.
    pub base_parameters: u64,
    /// Parameters that train: those of trained tensors, and of adapters.
    pub trainable_parameters: u64,
    /// `trainable_parameters` as a percentage of `base_parameters`.
    pub trainable_percent: f64,
    /// Memory that lasts through training, with AdamW's moments in f32; what a pass and the program hold comes on top.
    pub memory: Memory,
    /// Where linear layers train whole and the embedding or the head does not: the bytes of gradients and moments that
    /// training these too would take.
    pub frozen_vocabulary_bytes: Option<u64>,
}

/// The tensors of one role.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RoleRow {
    /// The role, `q_proj`; a bias is listed as `q_proj.bias`.
    pub role: String,
    /// Tensors in all.
    pub tensors: usize,
    /// Of these frozen.
    pub frozen: usize,
    /// Of these adapted.
    pub adapted: usize,
    /// Of these trained whole.
    pub trained: usize,
    /// The ranks of the adapters, each once, ascending.
    pub ranks: Vec<usize>,
    /// Parameters that train.
    pub trainable_parameters: u64,
}

impl AdapterSpec {
    /// Parameters of the adapter of a weight `[out, in]`: A is `[rank, in]`, B `[out, rank]`, DoRA's magnitude `[out]`.
    pub fn parameters(&self, shape: &[usize]) -> u64 {
        let (out, inner) = match shape {
            [out, inner] => (*out, *inner),
            _ => (0, 0),
        };
        (self.rank * (out + inner) + if self.dora { out } else { 0 }) as u64
    }
}

impl Plan {
    /// Counts what the plan does to the tensors of `inventory`, for which it was made.
    pub fn summary(&self, inventory: &Inventory) -> Summary {
        let mut roles: Vec<RoleRow> = Vec::new();
        let (mut base, mut trainable) = (0, 0);
        for (entry, info) in self.entries.iter().zip(&inventory.tensors) {
            let role = if info.kind == Kind::Bias { format!("{}.bias", info.role) } else { info.role.clone() };
            let place = roles.iter().position(|row| row.role == role).unwrap_or_else(|| {
                roles.push(RoleRow {
                    role,
                    tensors: 0,
                    frozen: 0,
                    adapted: 0,
                    trained: 0,
                    ranks: Vec::new(),
                    trainable_parameters: 0,
                });
                roles.len() - 1
            });
            let row = &mut roles[place];
            row.tensors += 1;
            base += info.len() as u64;
            let trains = match &entry.treatment {
                Treatment::Frozen => {
                    row.frozen += 1;
                    0
                }
                Treatment::Train => {
                    row.trained += 1;
                    info.len() as u64
                }
                Treatment::Adapt(adapter) => {
                    row.adapted += 1;
                    if let Err(place) = row.ranks.binary_search(&adapter.rank) {
                        row.ranks.insert(place, adapter.rank);
                    }
                    adapter.parameters(&info.shape)
                }
            };
            row.trainable_parameters += trains;
            trainable += trains;
        }
        Summary {
            policy: self.origin.policy.clone(),
            hash: self.hash(),
            roles,
            base_parameters: base,
            trainable_parameters: trainable,
            trainable_percent: 100.0 * trainable as f64 / base.max(1) as f64,
            memory: lasting(self, inventory, States::ADAMW),
            frozen_vocabulary_bytes: self.frozen_vocabulary_bytes(inventory),
        }
    }
}

impl Plan {
    fn frozen_vocabulary_bytes(&self, inventory: &Inventory) -> Option<u64> {
        let pairs = || self.entries.iter().zip(&inventory.tensors);
        let whole = pairs().any(|(entry, info)| info.kind == Kind::Linear && entry.treatment == Treatment::Train);
        let of_vocabulary = |info: &TensorInfo| matches!(info.kind, Kind::Embedding | Kind::Head);
        let frozen = pairs().filter(|(entry, info)| of_vocabulary(info) && entry.treatment == Treatment::Frozen);
        let parameters: usize = frozen.map(|(_, info)| info.len()).sum();
        (whole && parameters > 0).then_some((4 + 8) * parameters as u64)
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.roles.iter().map(|row| row.role.len()).chain([4]).max().unwrap_or(4);
        writeln!(f, "{:width$}  tensors  frozen  adapted  trained  {:>14}  rank", "role", "trainable")?;
        for row in &self.roles {
            let ranks: Vec<_> = row.ranks.iter().map(ToString::to_string).collect();
            let line = format!(
                "{:width$}  {:>7}  {:>6}  {:>7}  {:>7}  {:>14}  {}",
                row.role,
                row.tensors,
                row.frozen,
                row.adapted,
                row.trained,
                grouped(row.trainable_parameters),
                ranks.join(", ")
            );
            writeln!(f, "{}", line.trim_end())?;
        }
        writeln!(
            f,
            "{} of {} parameters train ({:.2} %), by policy `{}`; plan {}",
            grouped(self.trainable_parameters),
            grouped(self.base_parameters),
            self.trainable_percent,
            self.policy,
            self.hash.get(..12).unwrap_or(&self.hash)
        )?;
        write!(
            f,
            "memory without activations: {} (weights {}, adapters {}, gradients {}, moments {})",
            memory(self.memory.total()),
            memory(self.memory.weights_bytes),
            memory(self.memory.adapters_bytes),
            memory(self.memory.gradients_bytes),
            memory(self.memory.optimizer_bytes)
        )?;
        match self.frozen_vocabulary_bytes {
            Some(bytes) => write!(
                f,
                "\nembedding and head stay frozen: they have no ranking among equals, and training them would take {} more",
                memory(bytes)
            ),
            None => Ok(()),
        }
    }
}
