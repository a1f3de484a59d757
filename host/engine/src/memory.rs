//! What a training step will hold, from dimensions alone: the same buffers, taken and given back in the same order as
//! by `decoder.rs`, `block.rs` and `linear.rs`, but only counted. Nothing is loaded or computed.
//!
//! `tests/memory.rs` compares the count with the pool's own, so that the two cannot drift apart.

use crate::block::BlockShape;
use crate::decoder::{Keep, rows_at_once};
use crate::ops::attention;
use crate::ops::matmul::panel_len;
use crate::pool::SPARE_LEN;

/// A linear layer, as far as its memory goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinearPart {
    /// Number of outputs.
    pub outputs: usize,
    /// Number of inputs.
    pub inputs: usize,
    /// Whether the weight trains.
    pub trains: bool,
    /// Whether its bias trains.
    pub bias_trains: bool,
    /// Whether the weight is kept in another format than `f32`, so that each product converts it first.
    pub converted: bool,
    /// The adapter beside it.
    pub adapter: Option<AdapterPart>,
}

/// An adapter, as far as its memory goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AdapterPart {
    /// Its rank.
    pub rank: usize,
    /// Whether it is a DoRA adapter.
    pub dora: bool,
    /// Whether its input is dropped out.
    pub dropout: bool,
}

impl LinearPart {
    fn any_trains(&self) -> bool {
        self.trains || self.bias_trains || self.adapter.is_some()
    }

    fn needs_input(&self) -> bool {
        self.trains || self.adapter.is_some()
    }
}

/// A block.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BlockPart {
    /// Its dimensions.
    pub shape: BlockShape,
    /// q, k, v, o, gate, up, down.
    pub linears: [LinearPart; 7],
    /// Whether the norm before attention trains.
    pub input_norm_trains: bool,
    /// Whether the norm before the feed-forward layer trains.
    pub post_norm_trains: bool,
    /// If queries and keys are normalised: whether either norm trains.
    pub head_norms_train: Option<bool>,
}

impl BlockPart {
    fn trains(&self) -> bool {
        let norms = self.input_norm_trains || self.post_norm_trains || self.head_norms_train == Some(true);
        norms || self.linears.iter().any(LinearPart::any_trains)
    }
}

/// A model.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelPart {
    /// Rows of the embedding.
    pub vocab: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// From first to last.
    pub blocks: Vec<BlockPart>,
    /// Whether the embedding trains (a tied head with it).
    pub embedding_trains: bool,
    /// Whether the final norm trains.
    pub norm_trains: bool,
    /// Whether the matrix of the output head is kept in another format than `f32`.
    pub head_converted: bool,
}

/// What one training pass reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PassPart {
    /// Tokens of all documents together.
    pub tokens: usize,
    /// Tokens that count in the loss.
    pub targets: usize,
    /// Tokens of the longest document.
    pub longest: usize,
    /// What is kept for the backward pass.
    pub keep: Keep,
    /// Threads that compute.
    pub threads: usize,
}

/// Bytes held at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StepMemory {
    /// Buffers of the pool: activations, their gradients, panels of converted weights.
    pub pool: usize,
    /// With the free buffers that the pool keeps, and what threads hold inside the attention.
    pub total: usize,
}

/// The most that a training pass holds beside weights, gradients of weights, and the optimiser's states.
pub fn training_pass(model: &ModelPart, pass: PassPart) -> StepMemory {
    let mut count = Count { tokens: pass.tokens, ..Count::default() };
    count.decoder(model, pass);
    let scratch = model.blocks.iter().map(|block| attention::scratch_len(pass.longest, block.shape.heads.dim));
    count.memory(scratch.max().unwrap_or(0) * pass.threads)
}

/// The most that reading a batch without training holds.
pub fn inference(model: &ModelPart, pass: PassPart) -> StepMemory {
    let mut count = Count { tokens: pass.tokens, ..Count::default() };
    count.take(pass.tokens * model.hidden);
    for block in &model.blocks {
        count.infer(block);
    }
    let rows = rows_at_once(model.vocab).min(pass.targets);
    count.hold(rows * (2 * model.hidden + 1));
    count.take(rows * (model.hidden + model.vocab));
    count.hold(if model.head_converted { panel_len(model.vocab, model.hidden) } else { 0 });
    count.memory(0)
}

/// Elements held now and at most.
#[derive(Default)]
struct Count {
    live: usize,
    peak: usize,
    tokens: usize,
}

/// Elements of the buffer through which a layer's weight is converted.
fn panel(linear: &LinearPart) -> usize {
    if linear.converted { panel_len(linear.outputs, linear.inputs) } else { 0 }
}

/// What a block keeps, in elements: its attention; its feed-forward layer, and how much of that belongs to adapters.
#[derive(Clone, Copy)]
struct Kept {
    attention: usize,
    feed_forward: usize,
    lows: usize,
}

impl Count {
    fn memory(&self, scratch_len: usize) -> StepMemory {
        let bytes = |len: usize| len * size_of::<f32>();
        StepMemory { pool: bytes(self.peak), total: bytes(self.peak + SPARE_LEN + scratch_len) }
    }

    fn take(&mut self, len: usize) {
        self.live += len;
        self.peak = self.peak.max(self.live);
    }

    fn give(&mut self, len: usize) {
        self.live -= len;
    }

    /// Takes and gives back.
    fn hold(&mut self, len: usize) {
        self.take(len);
        self.give(len);
    }

    fn decoder(&mut self, model: &ModelPart, pass: PassPart) {
        let (tokens, hidden, vocab) = (pass.tokens, model.hidden, model.vocab);
        let recompute = pass.keep == Keep::Inputs;
        let lowest = match model.embedding_trains {
            true => 0,
            false => model.blocks.iter().position(BlockPart::trains).unwrap_or(model.blocks.len()),
        };
        self.take(tokens * hidden);
        let mut kept = Vec::new();
        for (i, block) in model.blocks.iter().enumerate() {
            if i < lowest {
                self.infer(block);
            } else if recompute {
                self.take(tokens * hidden);
                self.infer(block);
                kept.push(None);
            } else {
                kept.push(Some(self.forward(block)));
            }
        }
        let need_dx = model.embedding_trains || lowest < model.blocks.len();
        let rows = rows_at_once(vocab).min(pass.targets);
        self.take(if need_dx { tokens * hidden } else { 0 });
        self.take(rows * (2 * hidden + 1));
        self.take(rows * vocab);
        if model.head_converted {
            self.hold(panel_len(vocab, hidden));
        }
        let d_normed = if need_dx || model.norm_trains { rows * hidden } else { 0 };
        self.take(d_normed);
        if model.head_converted {
            self.hold(panel_len(vocab, hidden));
        }
        self.hold(if need_dx { rows * hidden } else { 0 });
        self.give(d_normed + rows * (2 * hidden + 1 + vocab));
        // The last block's output.
        self.give(tokens * hidden);
        if !need_dx {
            return;
        }
        for i in (lowest..model.blocks.len()).rev() {
            let need_below = model.embedding_trains || i > lowest;
            let kept = kept.pop().flatten();
            if !self.backward(&model.blocks[i], kept, need_below) {
                return;
            }
        }
    }

    /// Takes the block's input, leaves its output.
    fn infer(&mut self, block: &BlockPart) {
        let tokens = self.tokens;
        let attention = self.attend(block);
        self.give(attention);
        self.give(tokens * block.shape.hidden);
        let (feed_forward, _) = self.feed_forward(block);
        self.give(feed_forward);
        // The stream after attention; the output takes its place.
        self.give(tokens * block.shape.hidden);
    }

    /// Takes what is kept and the output; the input stays.
    fn forward(&mut self, block: &BlockPart) -> Kept {
        let attention = self.attend(block);
        let (feed_forward, lows) = self.feed_forward(block);
        Kept { attention, feed_forward, lows }
    }

    /// Leaves the stream after attention and what is kept, whose length it gives.
    fn attend(&mut self, block: &BlockPart) -> usize {
        let tokens = self.tokens;
        let BlockShape { hidden, heads, .. } = block.shape;
        let (q_cols, k_cols) = (heads.queries * heads.dim, heads.keys * heads.dim);
        let before = self.live;
        self.take(tokens * (hidden + 1));
        for linear in &block.linears[..3] {
            self.linear_forward(linear);
        }
        self.give(tokens * hidden);
        if block.head_norms_train.is_some() {
            self.take(tokens * (q_cols + heads.queries));
            self.take(tokens * (k_cols + heads.keys));
        }
        self.take(tokens * (q_cols + heads.queries));
        self.linear_forward(&block.linears[3]);
        // The output of o is the stream after attention.
        self.live - before - tokens * hidden
    }

    /// Leaves the output and what is kept: its length, and how much of that belongs to adapters.
    fn feed_forward(&mut self, block: &BlockPart) -> (usize, usize) {
        let tokens = self.tokens;
        let BlockShape { hidden, intermediate, .. } = block.shape;
        let before = self.live;
        self.take(tokens * (hidden + 1));
        let mut lows = self.linear_forward(&block.linears[4]);
        lows += self.linear_forward(&block.linears[5]);
        self.give(tokens * hidden);
        self.take(tokens * intermediate);
        lows += self.linear_forward(&block.linears[6]);
        self.give(tokens * intermediate);
        (self.live - before - tokens * hidden, lows)
    }

    /// Leaves the output and what is kept, whose length it gives.
    fn linear_forward(&mut self, linear: &LinearPart) -> usize {
        let tokens = self.tokens;
        self.take(tokens * linear.outputs);
        self.hold(panel(linear));
        let mut kept = 0;
        if let Some(adapter) = linear.adapter {
            let dropped = if adapter.dropout { tokens * linear.inputs } else { 0 };
            self.take(dropped);
            kept = tokens * adapter.rank;
            self.take(kept);
            if adapter.dora {
                // The merged weight, whose rows' norms are taken; then the product and its scaled copy.
                self.hold(linear.outputs * linear.inputs);
                self.take(tokens * linear.outputs);
                kept += tokens * linear.outputs;
                self.hold(tokens * linear.outputs);
            }
            if adapter.dora && adapter.dropout {
                self.hold(panel(linear));
            }
            self.give(dropped);
        }
        kept
    }

    fn linear_backward(&mut self, linear: &LinearPart, need_dx: bool) {
        let (tokens, before) = (self.tokens, self.live);
        let Some(adapter) = linear.adapter else {
            self.hold(if need_dx { panel(linear) } else { 0 });
            return;
        };
        self.take(if adapter.dropout { tokens * linear.inputs } else { 0 });
        self.take(if adapter.dora { tokens * linear.outputs } else { 0 });
        self.take(tokens * adapter.rank);
        if need_dx {
            self.hold(panel(linear));
            if adapter.dropout {
                self.take(tokens * linear.inputs);
                if adapter.dora {
                    self.hold(tokens * linear.outputs + panel(linear));
                }
                self.take(tokens * linear.inputs);
            }
        }
        self.give(self.live - before);
    }

    /// Gives back the block's input and what it kept; says whether the gradient goes on below, which has then taken the
    /// place of that of the output.
    fn backward(&mut self, block: &BlockPart, kept: Option<Kept>, need_dx: bool) -> bool {
        let tokens = self.tokens;
        let BlockShape { hidden, intermediate, heads, .. } = block.shape;
        let (q_cols, k_cols) = (heads.queries * heads.dim, heads.keys * heads.dim);
        let [q, k, v, o, gate, up, down] = block.linears;
        let Kept { attention, feed_forward, lows } = kept.unwrap_or_else(|| {
            let kept = self.forward(block);
            // The output, made a second time, is not needed.
            self.give(tokens * hidden);
            kept
        });
        let before_attention = block.input_norm_trains
            || block.head_norms_train == Some(true)
            || [q, k, v].iter().any(LinearPart::any_trains);
        let need_qkv = need_dx || before_attention;
        let need_mid = need_qkv || o.any_trains();

        let need_normed = need_mid || block.post_norm_trains;
        let need_activation = need_normed || gate.any_trains() || up.any_trains();
        let activation = if down.needs_input() { tokens * intermediate } else { 0 };
        self.take(activation);
        let d_activation = if need_activation { tokens * intermediate } else { 0 };
        self.take(d_activation);
        self.linear_backward(&down, need_activation);
        self.give(activation + d_activation);
        if need_activation {
            let normed = if gate.needs_input() || up.needs_input() { tokens * hidden } else { 0 };
            let d_normed = if need_normed { tokens * hidden } else { 0 };
            self.take(normed);
            self.take(d_normed);
            self.linear_backward(&gate, need_normed);
            self.linear_backward(&up, need_normed);
            self.give(normed + d_normed);
        }
        // Gate, up, and the norms' numbers are gone with the stream after attention; what adapters kept stays to the end.
        self.give(feed_forward - lows + tokens * hidden);
        if !need_mid {
            return false;
        }

        let d_attended = if need_qkv { tokens * q_cols } else { 0 };
        self.take(d_attended);
        self.linear_backward(&o, need_qkv);
        if !need_qkv {
            return false;
        }
        self.take(tokens * (q_cols + 2 * k_cols));
        // q, k, v, the attention's output and its log-sum-exp.
        let inputs = tokens * (2 * q_cols + 2 * k_cols + heads.queries);
        self.give(d_attended + inputs);
        let mut head_norms = 0;
        if block.head_norms_train.is_some() {
            self.take(tokens * q_cols);
            self.give(tokens * (2 * q_cols + heads.queries));
            self.take(tokens * k_cols);
            self.give(tokens * (2 * k_cols + heads.keys));
            head_norms = tokens * (q_cols + k_cols + heads.queries + heads.keys);
        }
        let need_normed = need_dx || block.input_norm_trains;
        let normed = if [q, k, v].iter().any(LinearPart::needs_input) { tokens * hidden } else { 0 };
        let d_normed = if need_normed { tokens * hidden } else { 0 };
        self.take(normed);
        self.take(d_normed);
        for linear in [q, k, v] {
            self.linear_backward(&linear, need_normed);
        }
        self.give(normed + d_normed);
        self.give(tokens * (q_cols + 2 * k_cols));
        self.give(attention - inputs - head_norms + lows);
        // The block's input.
        self.give(tokens * hidden);
        need_dx
    }
}
