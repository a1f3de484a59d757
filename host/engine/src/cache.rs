//! Keys and values of the tokens that a generation has seen.

/// What one block keeps of the tokens so far.
#[derive(Clone, Debug, Default)]
pub(crate) struct LayerCache {
    /// `[tokens, key heads · dim]`, turned by their positions.
    pub keys: Vec<f32>,
    /// `[tokens, key heads · dim]`.
    pub values: Vec<f32>,
}

/// The state of one generation: extend it by tokens, or cut it back to go on differently from an earlier one.
#[derive(Clone, Debug)]
pub struct Cache {
    pub(crate) layers: Vec<LayerCache>,
    pub(crate) tokens: usize,
}

impl Cache {
    /// An empty cache for a model with that many blocks.
    pub(crate) fn new(blocks: usize) -> Self {
        Self { layers: vec![LayerCache::default(); blocks], tokens: 0 }
    }

    /// How many tokens it holds.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Forgets everything after the first `tokens` tokens.
    pub fn truncate(&mut self, tokens: usize) {
        if tokens >= self.tokens {
            return;
        }
        for layer in &mut self.layers {
            let cols = layer.keys.len() / self.tokens;
            layer.keys.truncate(tokens * cols);
            layer.values.truncate(tokens * cols);
        }
        self.tokens = tokens;
    }
}
