//! Storages: what they can hold, what they take, and which one a tensor gets when its policy doesn't say.

use std::collections::BTreeMap;
use std::fmt;

use super::{Storage, Treatment};

/// The storage of tensors of which a policy says nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StorageRule {
    /// Of tensors that train whole.
    pub trained: Storage,
    /// Of all others, adapted ones among them.
    pub frozen: Storage,
    /// Of tensors that are an exception from `frozen`, by name.
    pub exceptions: BTreeMap<String, Storage>,
}

impl From<Storage> for StorageRule {
    /// The same for all.
    fn from(storage: Storage) -> Self {
        Self { trained: storage, frozen: storage, exceptions: BTreeMap::new() }
    }
}

impl StorageRule {
    /// The storage of the tensor called `name`.
    pub fn of(&self, name: &str, treatment: &Treatment) -> Storage {
        match treatment {
            Treatment::Train => self.trained,
            Treatment::Frozen | Treatment::Adapt(_) => self.exceptions.get(name).copied().unwrap_or(self.frozen),
        }
    }
}

impl Storage {
    /// Whether a tensor kept so can train: small changes must not be lost.
    pub fn can_train(self) -> bool {
        matches!(self, Self::F32 | Self::Bf16)
    }

    /// Bytes of a tensor of this shape, scales included.
    pub fn bytes(self, shape: &[usize]) -> u64 {
        let elements: usize = shape.iter().product();
        let bytes = match self {
            Self::F32 => 4 * elements,
            Self::Bf16 => 2 * elements,
            Self::Nf4 { block_size, double_quantization } => {
                let blocks = elements.div_ceil(block_size.max(1));
                elements.div_ceil(2)
                    + if double_quantization { blocks + 4 * blocks.div_ceil(256) + 4 } else { 4 * blocks }
            }
            Self::Int8 => elements + 4 * elements / shape.last().copied().unwrap_or(1).max(1),
        };
        bytes as u64
    }
}

impl fmt::Display for Storage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::Nf4 { .. } => "nf4",
            Self::Int8 => "int8",
        })
    }
}
