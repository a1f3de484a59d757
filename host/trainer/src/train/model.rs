//! The model that evaluation and generation ask, wherever it computes.

use std::cell::RefCell;

use liftplan_engine::decoder::LossSum;
use liftplan_engine::mat::Mat;
use liftplan_engine::{Batch, Decoder, EngineError, Pool, cuda};

use super::card::Card;

/// A model on the processor or on a GPU. Both give the same answers to the same questions.
#[derive(Clone, Copy)]
pub enum Model<'a> {
    /// On the processor.
    Host(&'a Decoder),
    /// On a GPU, whose buffers change with every question.
    Card(&'a RefCell<Card>),
}

impl<'a> From<&'a Decoder> for Model<'a> {
    fn from(decoder: &'a Decoder) -> Self {
        Self::Host(decoder)
    }
}

/// Keys and values of the tokens that a model has read.
pub enum Cache {
    /// On the processor.
    Host(liftplan_engine::Cache),
    /// On a GPU.
    Card(cuda::Cache),
}

impl Cache {
    /// How many tokens were read.
    pub fn tokens(&self) -> usize {
        match self {
            Self::Host(cache) => cache.tokens(),
            Self::Card(cache) => cache.tokens(),
        }
    }

    /// Forgets everything after the first `tokens` tokens.
    pub fn truncate(&mut self, tokens: usize) {
        match self {
            Self::Host(cache) => cache.truncate(tokens),
            Self::Card(cache) => cache.truncate(tokens),
        }
    }
}

impl Model<'_> {
    /// The loss of each target token, without a gradient.
    ///
    /// # Errors
    /// When the batch does not fit the model or the GPU's memory.
    pub fn losses(&self, batch: &Batch) -> Result<Vec<f32>, EngineError> {
        match self {
            Self::Host(decoder) => decoder.losses(batch),
            Self::Card(card) => card.borrow_mut().decoder_mut().losses(batch),
        }
    }

    /// The sum of the losses of the target tokens.
    ///
    /// # Errors
    /// As [`Model::losses`].
    pub fn loss(&self, batch: &Batch) -> Result<LossSum, EngineError> {
        match self {
            Self::Host(decoder) => decoder.loss(batch),
            Self::Card(card) => card.borrow_mut().decoder_mut().loss(batch),
        }
    }

    /// A cache that holds nothing.
    pub fn cache(&self) -> Cache {
        match self {
            Self::Host(decoder) => Cache::Host(decoder.cache()),
            Self::Card(card) => Cache::Card(card.borrow().decoder().cache()),
        }
    }

    /// Reads `ids` behind what the cache holds; gives the logits after each of them, `[ids, vocab]`, or with `last_only`
    /// after the last.
    ///
    /// # Errors
    /// When an id lies outside the vocabulary, there is none, there is no memory, or the cache is another engine's.
    pub fn extend(&self, cache: &mut Cache, ids: &[u32], last_only: bool) -> Result<Mat, EngineError> {
        match (self, cache) {
            (Self::Host(decoder), Cache::Host(cache)) => decoder.extend(cache, ids, last_only),
            (Self::Card(card), Cache::Card(cache)) => {
                let mut card = card.borrow_mut();
                let logits = card.decoder_mut().extend(cache, ids, last_only)?;
                Ok(Mat::from_slice(&Pool::new(), card.decoder().shape().vocab, &logits))
            }
            _ => Err(EngineError::Shape {
                what: "the cache's engine".into(),
                expected: "the model's".into(),
                found: "another".into(),
            }),
        }
    }
}
