//! A content hash of the weights that is cheap enough for every start.
//!
//! It guards against going on with another base model than a run began with, so it must be the same wherever the files
//! lie and however they are cut into shards, and must differ for another checkpoint, quantisation or fine-tune. It is
//! not a defence against somebody who builds a second model with the same hash.
//!
//! Hashing all of a 16 GB checkpoint would read all of it at each start. Instead SHA-256 runs over each tensor's name,
//! type, shape and length, and over all of its bytes if it has at most [`WHOLE`], or else over [`SAMPLES`] stretches of
//! [`STRETCH`] bytes spread evenly from its first byte to its last. Training or merging an adapter changes nearly every
//! element of a tensor, so the samples see it; a change of single rows in a large embedding can be missed.

use super::inventory::Inventory;
use super::weights::Weights;
use crate::hash::Hasher;

/// Tensors of at most so many bytes are hashed whole.
const WHOLE: usize = 64 * 1024;
/// Samples of a larger tensor.
const SAMPLES: usize = 16;
/// Bytes of each sample.
const STRETCH: usize = 1024;

/// The hash, 64 hexadecimal digits.
pub(super) fn content_hash(inventory: &Inventory, weights: &Weights) -> String {
    let mut hasher = Hasher::default();
    hasher.update(b"liftplan weights 1\0");
    for tensor in &inventory.tensors {
        let Some(stored) = weights.tensors().get(&tensor.name) else { continue };
        let bytes = weights.bytes(stored);
        for more in weights.more_bytes(stored) {
            hasher.update(more);
        }
        hasher.update(tensor.name.as_bytes());
        hasher.update([0]);
        hasher.update(tensor.dtype.as_bytes());
        hasher.update([0]);
        hasher.update((tensor.shape.len() as u64).to_le_bytes());
        for &dimension in &tensor.shape {
            hasher.update((dimension as u64).to_le_bytes());
        }
        hasher.update((bytes.len() as u64).to_le_bytes());
        if bytes.len() <= WHOLE {
            hasher.update(bytes);
            weights.release(stored);
            continue;
        }
        let last = bytes.len() - STRETCH;
        for sample in 0..SAMPLES {
            let start = last / (SAMPLES - 1) * sample + last % (SAMPLES - 1) * sample / (SAMPLES - 1);
            hasher.update(&bytes[start..start + STRETCH]);
        }
        weights.release(stored);
    }
    hasher.finish()
}
