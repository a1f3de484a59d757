//! From `[storage]` to the rule by which tensors get their storage, and the refusal of what turned out to change nothing.

use super::ModelView;
use super::select::{self, Patterns};
use super::storage_of;
use crate::config::{Config, FrozenStorage, StorageConfig};
use crate::model::inventory::Kind;
use crate::plan::{Plan, Storage, StorageRule, Treatment};
use crate::{Error, Result};

/// The rule that `config` asks for.
pub(crate) fn rule(config: &Config, view: &ModelView<'_>) -> Result<StorageRule> {
    let StorageConfig { others, exclude, embeddings, head, .. } = &config.storage;
    if *head && view.tied() && !embeddings {
        return Err(Error::plan("`storage.head` = true: this model's output head is its embedding")
            .help("set storage.embeddings = true to quantise it, or leave storage.head out"));
    }
    let mut packed: Vec<bool> = view
        .tensors()
        .iter()
        .map(|info| match info.kind {
            Kind::Linear => true,
            Kind::Embedding => *embeddings,
            Kind::Head => *head,
            Kind::Bias | Kind::Norm => false,
        })
        .collect();
    select::exclude("storage.exclude", &Patterns(exclude.clone()), view, &mut packed)?;
    let others = storage_of(*others);
    let exceptions = view.tensors().iter().zip(&packed).filter(|(_, packed)| !**packed);
    Ok(StorageRule {
        trained: storage_of(config.train.weights),
        frozen: frozen(&config.storage),
        exceptions: exceptions.map(|(info, _)| (info.name.clone(), others)).collect(),
    })
}

fn frozen(storage: &StorageConfig) -> Storage {
    match storage.frozen {
        FrozenStorage::F32 => Storage::F32,
        FrozenStorage::Bf16 => Storage::Bf16,
        FrozenStorage::Int8 => Storage::Int8,
        FrozenStorage::Nf4 => Storage::Nf4 {
            block_size: storage.block_size.unwrap_or(64),
            double_quantization: storage.double_quantization.unwrap_or(true),
        },
    }
}

/// Refuses a storage that no tensor of the plan has. A plan that is revised may come to it later.
pub(super) fn check(config: &Config, plan: &Plan) -> Result<()> {
    let wanted = frozen(&config.storage);
    let is_so = |entry: &crate::plan::Entry| entry.treatment != Treatment::Train && entry.storage == wanted;
    if wanted == storage_of(config.train.weights) || !plan.picks.is_empty() || plan.entries.iter().any(is_so) {
        return Ok(());
    }
    Err(Error::plan(format!(
        "`storage.frozen` = \"{wanted}\" has no effect: policy `{}` leaves none of these weights frozen",
        plan.origin.policy
    ))
    .help("leave it out"))
}
