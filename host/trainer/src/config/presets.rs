//! Names in `[policy]` that set two independent things at once: the policy, and how frozen weights are kept.

use super::storage::FrozenStorage;
use super::{PolicyConfig, Weights, storage, written};
use crate::{Error, Result};

/// A preset.
pub struct Preset {
    /// The name by which configurations call it, in `policy.name`.
    pub name: &'static str,
    /// The policy that it stands for.
    pub policy: &'static str,
    /// One sentence.
    pub about: &'static str,
}

/// All presets.
pub const PRESETS: [Preset; 2] = [
    Preset {
        name: "qlora",
        policy: "lora",
        about: "Policy `lora` over frozen weights in 4 bits (arXiv 2305.14314); the rest in bf16.",
    },
    Preset {
        name: "qspectrum",
        policy: "spectrum",
        about: "Policy `spectrum`: the chosen weights train in bf16, the other linear layers' are kept in 4 bits.",
    },
];

/// Puts the policy in the place of its preset, and sets what the preset sets. `train.weights` can still be chosen.
pub(super) fn expand(
    policy: &mut PolicyConfig,
    train: &mut written::WrittenTrain,
    storage: &mut storage::WrittenStorage,
) -> Result<()> {
    let Some(preset) = PRESETS.iter().find(|preset| preset.name == policy.name) else { return Ok(()) };
    if storage.frozen.is_some_and(|frozen| frozen != FrozenStorage::Nf4) {
        return Err(Error::config(format!(
            "`storage.frozen` contradicts the preset \"{}\", which keeps frozen weights as nf4",
            preset.name
        ))
        .help(format!("leave it out, or set policy.name = \"{}\"", preset.policy)));
    }
    policy.name = preset.policy.to_string();
    storage.frozen = Some(FrozenStorage::Nf4);
    train.weights = train.weights.or(Some(Weights::Bf16));
    Ok(())
}
