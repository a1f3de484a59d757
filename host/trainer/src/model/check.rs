//! What the configuration promises against what the checkpoint holds: every tensor once, in the right shape.

use super::arch;
use super::inventory::Inventory;
use super::spec::ModelSpec;
use super::weights::Weights;
use crate::report::{Event, Observer};
use crate::{Error, Result};

const EMBEDDING: &str = "model.embed_tokens.weight";
const HEAD: &str = "lm_head.weight";

/// Builds the inventory of the opened checkpoint.
///
/// Ties follow transformers 5: with `tie_word_embeddings`, either of embedding and head may be absent and is then the
/// other; if both are there and differ, they are not tied, and the user is told.
///
/// # Errors
/// A tensor is missing, surplus, or has another shape than `spec` gives it.
pub(super) fn inventory(
    origin: &str,
    spec: &mut ModelSpec,
    weights: &mut Weights,
    observer: &mut dyn Observer,
) -> Result<Inventory> {
    // Old checkpoints carry the rotary frequencies, which are computed.
    weights.tensors_mut().retain(|name, _| !name.ends_with(".rotary_emb.inv_freq"));
    if spec.tied {
        resolve_tie(spec, weights, observer);
    }
    let mut tensors = arch::expected_tensors(spec);
    for tensor in &mut tensors {
        let Some(stored) = weights.tensors().get(&tensor.name) else {
            return Err(missing(origin, &tensor.name, &tensor.shape, weights));
        };
        if stored.shape != tensor.shape {
            return Err(Error::model(format!(
                "{origin}: tensor `{}` in {} has shape {:?}; the configuration says {:?}",
                tensor.name,
                weights.file_name(stored),
                stored.shape,
                tensor.shape
            ))
            .help("the configuration and the weights are not of the same model"));
        }
        tensor.dtype.clone_from(&stored.dtype);
    }
    let inventory =
        Inventory { architecture: spec.architecture.clone(), tensors, tied: spec.tied, blocks: spec.blocks };
    if weights.tensors().len() != inventory.tensors.len() {
        let known: std::collections::BTreeSet<&str> = inventory.tensors.iter().map(|t| t.name.as_str()).collect();
        let mut surplus = weights.tensors().iter().filter(|(name, _)| !known.contains(name.as_str()));
        if let Some((name, stored)) = surplus.next() {
            return Err(Error::model(format!(
                "{origin}: unexpected tensor `{name}` {:?} in {}{}; a {} model of this configuration has no such tensor",
                stored.shape,
                weights.file_name(stored),
                and_more(surplus.count()),
                spec.architecture
            ))
            .help("the configuration and the weights are not of the same model, or it is an unsupported variant"));
        }
    }
    Ok(inventory)
}

fn resolve_tie(spec: &mut ModelSpec, weights: &mut Weights, observer: &mut dyn Observer) {
    let tensors = weights.tensors();
    match (tensors.get(EMBEDDING), tensors.get(HEAD)) {
        (Some(embedding), Some(head)) => {
            let same = embedding.encoding == head.encoding && weights.bytes(embedding) == weights.bytes(head);
            if same {
                weights.tensors_mut().remove(HEAD);
            } else {
                observer.on(&Event::Warning(
                    "the configuration ties the head to the embedding, but the checkpoint holds both and they differ: they are not tied",
                ));
                spec.tied = false;
            }
        }
        (None, Some(_)) => {
            if let Some(head) = weights.tensors_mut().remove(HEAD) {
                weights.tensors_mut().insert(EMBEDDING.to_string(), head);
            }
        }
        _ => {}
    }
}

fn missing(origin: &str, name: &str, shape: &[usize], weights: &Weights) -> Error {
    let error = Error::model(format!("{origin}: tensor `{name}` {shape:?} is missing from the checkpoint"));
    if name == HEAD {
        return error.help("if the head is the embedding, `tie_word_embeddings` must be true in config.json");
    }
    match weights.tensors().keys().find(|known| known.ends_with(name.trim_start_matches("model."))) {
        Some(similar) => error.help(format!("the checkpoint has `{similar}`; expected the names of transformers")),
        None => {
            error.help("the configuration and the weights are not of the same model, or the checkpoint is incomplete")
        }
    }
}

fn and_more(count: usize) -> String {
    match count {
        0 => String::new(),
        more => format!(" (and {more} more)"),
    }
}
