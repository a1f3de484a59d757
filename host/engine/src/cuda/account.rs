//! What a model takes on the card, by kind. In: a model as it stands, or one that was laid out dry. Out: bytes.

use super::decoder::Decoder;
use super::gemm::WORKSPACE_BYTES;
use super::trainable::{Grad, Moments};

/// Bytes by kind, without activations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Account {
    /// Weights, adapters and what is computed from them.
    pub weights: usize,
    /// Gradients.
    pub gradients: usize,
    /// The optimiser's moments, and wide copies of weights that products read in bf16.
    pub states: usize,
    /// Tables, scratch memory, and what the last buffer of small tensors has left.
    pub other: usize,
}

impl Account {
    /// All of it.
    pub fn total(&self) -> usize {
        self.weights + self.gradients + self.states + self.other
    }
}

impl Decoder {
    /// What the model takes, with the table that batches up to these positions need.
    pub fn account(&self, positions: &[u32]) -> Account {
        let (mut gradients, mut states) = (0, 0);
        for trainable in &self.trainables {
            gradients += match trainable.grad {
                // It lies among the activations.
                _ if trainable.in_window => 0,
                Grad::Wide(view) => 4 * view.len(),
                Grad::Narrow(view) => 2 * view.len(),
            };
            states += match trainable.moments {
                None => 0,
                Some(Moments::Wide([first, _])) => 8 * first.len(),
                Some(Moments::Bf16([first, _])) => 4 * first.len(),
                Some(Moments::EightBit([first, _], [maxima, _])) => 2 * first.len() + 8 * maxima.len(),
            };
            if let (Some(master), Some(_)) = (trainable.master, trainable.copy) {
                states += 4 * master.len();
            }
        }
        let (table, _) = self.rope_bytes(positions);
        let spare = self.slab.held_bytes() - self.slab.bytes();
        Account {
            weights: self.model_bytes().saturating_sub(gradients + states),
            gradients,
            states,
            other: spare + self.optimizer.bytes() + table + WORKSPACE_BYTES,
        }
    }
}
