//! The plan as a policy makes it. The host checks each call where it is made.

use crate::{Result, host};

/// The plan. A tensor is treated once: frozen, trained or adapted. What is never named stays frozen, and in a revision
/// as it was.
pub struct Plan<'a> {
    builder: &'a host::Builder,
}

/// A low-rank adapter.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Adapter {
    /// Rank, between 1 and the smaller dimension of the weight.
    pub rank: u32,
    /// Numerator of the scale alpha / rank.
    pub alpha: f64,
    /// Probability in [0, 1) that an input is dropped.
    pub dropout: f64,
    /// Scale by alpha / sqrt(rank) (arXiv 2312.03732).
    pub rslora: bool,
    /// Train magnitude and direction apart: DoRA (arXiv 2402.09353).
    pub dora: bool,
}

impl Adapter {
    /// Plain LoRA of this rank, alpha twice the rank, no dropout.
    pub fn new(rank: u32) -> Self {
        Self { rank, alpha: 2.0 * f64::from(rank), dropout: 0.0, rslora: false, dora: false }
    }
}

impl<'a> Plan<'a> {
    pub(crate) fn new(builder: &'a host::Builder) -> Self {
        Self { builder }
    }

    /// Leaves the tensor as it is.
    ///
    /// # Errors
    /// The host refuses the call, as for every function here.
    pub fn freeze(&mut self, tensor: u32) -> Result<()> {
        Ok(self.builder.freeze(tensor)?)
    }

    /// Trains all of the tensor.
    ///
    /// # Errors
    /// It is treated already.
    pub fn train(&mut self, tensor: u32) -> Result<()> {
        Ok(self.builder.train(tensor)?)
    }

    /// Trains an adapter beside the tensor, a linear layer's weight.
    ///
    /// # Errors
    /// The adapter doesn't fit, or the tensor is treated already.
    pub fn adapt(&mut self, tensor: u32, adapter: Adapter) -> Result<()> {
        let made = host::Adapter::new(adapter.rank);
        made.alpha(adapter.alpha);
        made.dropout(adapter.dropout);
        made.rank_stabilised(adapter.rslora);
        made.dora(adapter.dora);
        Ok(self.builder.adapt(tensor, &made)?)
    }

    /// Says how the tensor is kept: `f32`, `bf16`, `nf4`, …
    ///
    /// # Errors
    /// The storage is unknown, or said twice.
    pub fn storage(&mut self, tensor: u32, storage: &str) -> Result<()> {
        Ok(self.builder.storage(tensor, storage)?)
    }

    /// A factor on the tensor's learning rate, above 0; after its treatment.
    ///
    /// # Errors
    /// It has no effect, makes no sense, or is said twice.
    pub fn lr_scale(&mut self, tensor: u32, factor: f64) -> Result<()> {
        Ok(self.builder.lr_scale(tensor, factor)?)
    }

    /// A further factor for an adapter's B matrix and magnitude (LoRA+).
    ///
    /// # Errors
    /// As [`Plan::lr_scale`].
    pub fn lr_scale_b(&mut self, tensor: u32, factor: f64) -> Result<()> {
        Ok(self.builder.lr_scale_b(tensor, factor)?)
    }

    /// Notes a score, for reports.
    ///
    /// # Errors
    /// It is not finite.
    pub fn score(&mut self, tensor: u32, score: f64) -> Result<()> {
        Ok(self.builder.score(tensor, score)?)
    }

    /// Asks for a revision after every so many steps; needs the capability `revise`.
    ///
    /// # Errors
    /// The number is 0, or the capability is missing.
    pub fn pick_every(&mut self, steps: u64) -> Result<()> {
        Ok(self.builder.pick_every(steps)?)
    }

    /// Asks for a revision before this step, 2 or later; needs the capability `revise`.
    ///
    /// # Errors
    /// The step is before 2, or the capability is missing.
    pub fn pick_at(&mut self, step: u64) -> Result<()> {
        Ok(self.builder.pick_at(step)?)
    }

    /// What happens to the tensor as things stand: `frozen`, `train` or `adapt`.
    ///
    /// # Errors
    /// There is no such tensor.
    pub fn treatment(&self, tensor: u32) -> Result<String> {
        Ok(self.builder.treatment(tensor)?)
    }

    /// Parameters that train as things stand.
    pub fn trainable_parameters(&self) -> u64 {
        self.builder.trainable_parameters()
    }

    /// An estimate of the bytes of weights, gradients and optimiser states as things stand.
    pub fn memory_estimate(&self) -> u64 {
        self.builder.memory_estimate()
    }
}
