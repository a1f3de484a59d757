//! What a step reads: several documents, one after another, without padding.

use crate::error::{EngineError, Result, expect_shape};

/// The target of a position that counts in no loss.
pub const IGNORE: u32 = u32::MAX;

/// Documents packed one behind another. Attention and positions never cross from one document into the next.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// Token ids of all documents, `[tokens]`.
    pub ids: Vec<u32>,
    /// The token to predict at each position, or [`IGNORE`], `[tokens]`.
    pub targets: Vec<u32>,
    /// Position of each token inside its document, `[tokens]`.
    pub positions: Vec<u32>,
    /// Where each document starts, and at the end the number of tokens: `[documents + 1]`.
    pub starts: Vec<u32>,
}

impl Batch {
    /// Packs documents; each is its ids and, for each of them, whether it is a target of the loss when it is
    /// predicted from the ids before it. The first id of a document has nothing before it and is never a target.
    pub fn pack<'a>(documents: impl IntoIterator<Item = (&'a [u32], &'a [bool])>) -> Self {
        let mut batch = Self { starts: vec![0], ..Self::default() };
        for (ids, is_target) in documents {
            for (position, &id) in ids.iter().enumerate() {
                let target = match (ids.get(position + 1), is_target.get(position + 1)) {
                    (Some(&next), Some(true)) => next,
                    _ => IGNORE,
                };
                batch.ids.push(id);
                batch.targets.push(target);
                batch.positions.push(position as u32);
            }
            batch.starts.push(batch.ids.len() as u32);
        }
        batch
    }

    /// Number of tokens.
    pub fn tokens(&self) -> usize {
        self.ids.len()
    }

    /// Number of positions that count in the loss.
    pub fn target_count(&self) -> usize {
        self.targets.iter().filter(|&&target| target != IGNORE).count()
    }

    /// Fails unless the lengths agree and every id lies inside the vocabulary.
    pub(crate) fn check(&self, vocab: usize) -> Result<()> {
        expect_shape("targets of the batch", self.ids.len(), self.targets.len())?;
        expect_shape("positions of the batch", self.ids.len(), self.positions.len())?;
        expect_shape("end of the last document", Some(self.ids.len() as u32), self.starts.last().copied())?;
        let ids = self.ids.iter().chain(self.targets.iter().filter(|&&target| target != IGNORE));
        for (position, &id) in ids.enumerate() {
            if id as usize >= vocab {
                return Err(EngineError::TokenId { id, position: position % self.ids.len().max(1), vocab });
            }
        }
        Ok(())
    }
}
