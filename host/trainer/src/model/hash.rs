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

use rayon::prelude::*;

use super::inventory::Inventory;
use super::weights::{Stored, Weights};
use crate::Result;
use crate::hash::Hasher;

/// Tensors of at most so many bytes are hashed whole.
const WHOLE: usize = 64 * 1024;
/// Samples of a larger tensor.
const SAMPLES: usize = 16;
/// Bytes of each sample.
const STRETCH: usize = 1024;

/// The hash, 64 hexadecimal digits.
///
/// # Errors
/// A file can't be read.
pub(super) fn content_hash(inventory: &Inventory, weights: &Weights) -> Result<String> {
    let mut hasher = Hasher::default();
    hasher.update(b"liftplan weights 1\0");
    let stored: Vec<_> =
        inventory.tensors.iter().filter_map(|t| weights.tensors().get(&t.name).map(|stored| (t, stored))).collect();
    // Read on all cores: from a disk, each sample is a wait of its own.
    let read: Vec<_> = stored.par_iter().map(|(_, stored)| samples(weights, stored)).collect::<Result<_>>()?;
    for ((tensor, stored), samples) in stored.into_iter().zip(read) {
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
        hasher.update((stored.range.1 as u64).to_le_bytes());
        hasher.update(samples);
    }
    Ok(hasher.finish())
}

/// The bytes of a tensor that are hashed, one behind the other; reading them from the file's map would bring in what lies around.
fn samples(weights: &Weights, stored: &Stored) -> Result<Vec<u8>> {
    let bytes = stored.range.1;
    if bytes <= WHOLE {
        let mut whole = vec![0; bytes];
        weights.read_at(stored, 0, &mut whole)?;
        return Ok(whole);
    }
    let last = bytes - STRETCH;
    let mut samples = vec![0; SAMPLES * STRETCH];
    for (sample, to) in samples.chunks_mut(STRETCH).enumerate() {
        let start = last / (SAMPLES - 1) * sample + last % (SAMPLES - 1) * sample / (SAMPLES - 1);
        weights.read_at(stored, start, to)?;
    }
    Ok(samples)
}
