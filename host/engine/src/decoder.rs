//! A decoder-only language model: embedding, blocks, final norm, head; its loss and gradients, and its logits.

use std::sync::{Arc, Mutex, PoisonError};

use crate::batch::{Batch, IGNORE};
use crate::block::{Block, BlockKept, Pass};
use crate::cache::Cache;
use crate::error::{EngineError, Result, expect_shape};
use crate::linear::DropoutPass;
use crate::mat::Mat;
use crate::ops::attention::Span;
use crate::ops::matmul::{self, Into};
use crate::ops::{cross_entropy, embedding, rms_norm, rope};
use crate::param::Param;
use crate::pool::Pool;

/// Rotary embedding: the inverse frequencies, `[head_dim / 2]`, and the table made of them as far as it was needed.
#[derive(Debug)]
pub struct Rope {
    inverse_frequencies: Vec<f32>,
    table: Mutex<Arc<rope::Table>>,
}

impl Rope {
    /// The embedding with these inverse frequencies.
    pub fn new(inverse_frequencies: Vec<f32>) -> Self {
        Self { inverse_frequencies, table: Mutex::default() }
    }

    fn table(&self, positions: usize) -> Arc<rope::Table> {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        if table.positions() < positions {
            *table = Arc::new(rope::Table::new(&self.inverse_frequencies, positions.next_power_of_two()));
        }
        table.clone()
    }
}

/// What a training pass keeps for its backward pass.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Keep {
    /// All that is not cheap to make again.
    #[default]
    Activations,
    /// Each block's input: the block is computed a second time. Less memory, about a third more time.
    Inputs,
}

/// How to run a training pass.
#[derive(Clone, Copy, Debug)]
pub struct StepOptions {
    /// Factor on the sum of losses whose gradient is taken: 1 / target tokens of the whole optimiser step.
    pub grad_scale: f32,
    /// What to keep.
    pub keep: Keep,
    /// Seed and count of the pass, for dropout.
    pub dropout: DropoutPass,
}

/// A sum of losses.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct LossSum {
    /// `Σ -ln p(target)`, in nats.
    pub sum: f64,
    /// Over how many targets.
    pub targets: usize,
}

impl LossSum {
    /// The mean loss of a target, or 0 without any.
    pub fn mean(&self) -> f64 {
        if self.targets == 0 { 0.0 } else { self.sum / self.targets as f64 }
    }
}

impl std::ops::AddAssign for LossSum {
    fn add_assign(&mut self, other: Self) {
        self.sum += other.sum;
        self.targets += other.targets;
    }
}

/// The model.
#[derive(Debug)]
pub struct Decoder {
    /// `[vocab, hidden]`.
    pub embedding: Param,
    /// From first to last.
    pub blocks: Vec<Block>,
    /// Scale of the final norm, `[1, hidden]`.
    pub norm: Param,
    /// `[vocab, hidden]`, or `None` when the head is the embedding.
    pub head: Option<Param>,
    /// Rotary embedding of all blocks.
    pub rope: Rope,
    /// Where its buffers come from.
    pub pool: Pool,
}

/// Logits held at once, in elements (64 MiB): more rows make the products no faster.
const LOGITS_LEN: usize = 16 << 20;

impl Decoder {
    /// Fails unless all weights fit each other.
    ///
    /// # Errors
    /// Naming the first weight that does not.
    pub fn check(&self) -> Result<()> {
        let hidden = self.embedding.cols();
        expect_shape(self.norm.name(), hidden, self.norm.cols())?;
        if let Some(head) = &self.head {
            expect_shape(head.name(), [self.embedding.rows(), hidden], [head.rows(), head.cols()])?;
        }
        for block in &self.blocks {
            expect_shape("hidden size of a block", hidden, block.shape.hidden)?;
            expect_shape("inverse frequencies", block.shape.heads.dim / 2, self.rope.inverse_frequencies.len())?;
            block.check()?;
        }
        Ok(())
    }

    /// Rows of the embedding.
    pub fn vocab(&self) -> usize {
        self.embedding.rows()
    }

    /// All parameters, in the order of the forward pass.
    pub fn params(&self) -> impl Iterator<Item = &Param> {
        let blocks = self.blocks.iter().flat_map(Block::params);
        std::iter::once(&self.embedding).chain(blocks).chain([&self.norm]).chain(&self.head)
    }

    /// All parameters, in the same order.
    pub fn params_mut(&mut self) -> impl Iterator<Item = &mut Param> {
        let blocks = self.blocks.iter_mut().flat_map(Block::params_mut);
        std::iter::once(&mut self.embedding).chain(blocks).chain([&mut self.norm]).chain(&mut self.head)
    }

    /// Sets all gradients to zero.
    pub fn clear_grads(&mut self) {
        for grad in self.params_mut().filter_map(Param::grad_mut) {
            grad.fill(0.0);
        }
    }

    /// One training pass: the sum of the batch's losses, with the gradients of `grad_scale` times it added to the
    /// gradients of what trains.
    ///
    /// # Errors
    /// When the batch does not fit the model, or the loss is not finite (the gradients are not to be used then).
    pub fn accumulate(&mut self, batch: &Batch, options: StepOptions) -> Result<LossSum> {
        batch.check(self.vocab())?;
        let rows = target_rows(batch);
        if rows.is_empty() {
            return Ok(LossSum::default());
        }
        let spans = Span::documents(&batch.starts);
        let pass = self.pass(&batch.positions, &spans, options.dropout);
        // Below the lowest block that trains nothing is kept, and the backward pass never gets there.
        let lowest = match self.embedding.trains() {
            true => 0,
            false => self.blocks.iter().position(Block::trains).unwrap_or(self.blocks.len()),
        };
        let mut x = self.embed(&batch.ids);
        let mut kept: Vec<BlockKept> = Vec::with_capacity(self.blocks.len() - lowest);
        for (i, block) in self.blocks.iter().enumerate() {
            if i < lowest {
                x = block.infer(x, &pass, None);
            } else {
                let (out, block_kept) = block.forward(x, &pass, options.keep == Keep::Inputs);
                kept.push(block_kept);
                x = out;
            }
        }
        let need_dx = self.embedding.trains() || lowest < self.blocks.len();
        let (loss, d_x) = self.loss_and_gradient(x, batch, &rows, options.grad_scale, need_dx)?;
        let Some(mut d_x) = d_x else { return Ok(loss) };
        for i in (lowest..self.blocks.len()).rev() {
            let Some(block_kept) = kept.pop() else { break };
            let need_below = self.embedding.trains() || i > lowest;
            match self.blocks[i].backward(d_x, block_kept, &pass, need_below) {
                Some(below) => d_x = below,
                None => return Ok(loss),
            }
        }
        if let Some(d_table) = self.embedding.grad_mut() {
            embedding::backward(d_table, &d_x, &batch.ids);
        }
        Ok(loss)
    }

    /// `-ln p(target)` of each position that has a target, in their order.
    ///
    /// # Errors
    /// When the batch does not fit the model.
    pub fn losses(&self, batch: &Batch) -> Result<Vec<f32>> {
        batch.check(self.vocab())?;
        let rows = target_rows(batch);
        let x = self.last_hidden(batch);
        let mut losses = Vec::with_capacity(rows.len());
        for rows in rows.chunks(rows_at_once(self.vocab())) {
            let normed = self.final_normed(&gathered(&x, rows)).0;
            let mut logits = self.project(&normed);
            let targets: Vec<u32> = rows.iter().map(|&row| batch.targets[row]).collect();
            let mut chunk = vec![0.0; rows.len()];
            cross_entropy::rows(&mut chunk, &mut logits, &targets, None);
            losses.extend(chunk);
        }
        Ok(losses)
    }

    /// The sum of the losses of a batch.
    ///
    /// # Errors
    /// When the batch does not fit the model.
    pub fn loss(&self, batch: &Batch) -> Result<LossSum> {
        let losses = self.losses(batch)?;
        Ok(LossSum { sum: losses.iter().map(|&loss| f64::from(loss)).sum(), targets: losses.len() })
    }

    /// The logits at the given rows of the batch, `[rows, vocab]`.
    ///
    /// # Errors
    /// When the batch does not fit the model.
    pub fn logits(&self, batch: &Batch, rows: &[usize]) -> Result<Mat> {
        batch.check(self.vocab())?;
        let x = self.last_hidden(batch);
        Ok(self.project(&self.final_normed(&gathered(&x, rows)).0))
    }

    /// An empty cache for [`Decoder::extend`].
    pub fn cache(&self) -> Cache {
        Cache::new(self.blocks.len())
    }

    /// Reads `ids` behind what the cache holds; gives the logits after each of them, `[ids, vocab]`, or with
    /// `last_only` after the last, `[1, vocab]`.
    ///
    /// # Errors
    /// When an id lies outside the vocabulary or there is none.
    pub fn extend(&self, cache: &mut Cache, ids: &[u32], last_only: bool) -> Result<Mat> {
        if ids.is_empty() {
            return Err(EngineError::Shape {
                what: "tokens to read".into(),
                expected: "at least one".into(),
                found: "none".into(),
            });
        }
        if let Some((position, &id)) = ids.iter().enumerate().find(|(_, id)| **id as usize >= self.vocab()) {
            return Err(EngineError::TokenId { id, position, vocab: self.vocab() });
        }
        let total = cache.tokens + ids.len();
        let positions: Vec<u32> = (cache.tokens as u32..total as u32).collect();
        let spans = [Span { query_start: 0, queries: ids.len(), key_start: 0, keys: total }];
        let pass = self.pass(&positions, &spans, None);
        let mut x = self.embed(ids);
        for (block, layer) in self.blocks.iter().zip(&mut cache.layers) {
            x = block.infer(x, &pass, Some(layer));
        }
        cache.tokens = total;
        if last_only {
            x = gathered(&x, &[ids.len() - 1]);
        }
        Ok(self.project(&self.final_normed(&x).0))
    }

    pub(crate) fn pass<'a>(&self, positions: &'a [u32], spans: &'a [Span], dropout: DropoutPass) -> Pass<'a> {
        let longest = positions.iter().max().map_or(0, |&last| last as usize + 1);
        Pass { table: self.rope.table(longest), positions, spans, dropout }
    }

    pub(crate) fn embed(&self, ids: &[u32]) -> Mat {
        let mut x = Mat::uninit(&self.pool, ids.len(), self.embedding.cols());
        embedding::forward(&mut x, &self.embedding.value, ids);
        x
    }

    fn last_hidden(&self, batch: &Batch) -> Mat {
        let spans = Span::documents(&batch.starts);
        let pass = self.pass(&batch.positions, &spans, None);
        self.blocks.iter().fold(self.embed(&batch.ids), |x, block| block.infer(x, &pass, None))
    }

    fn final_normed(&self, x: &Mat) -> (Mat, Mat) {
        let mut normed = Mat::uninit(&self.pool, x.rows(), x.cols());
        let mut inverse_rms = Mat::uninit(&self.pool, x.rows(), 1);
        // All blocks share one epsilon, and so does the norm behind them.
        let eps = self.blocks.first().map_or(1e-6, |block| block.shape.rms_eps);
        rms_norm::forward(&mut normed, &mut inverse_rms, x, &self.norm.value.as_f32(), eps);
        (normed, inverse_rms)
    }

    fn head(&self) -> &Param {
        self.head.as_ref().unwrap_or(&self.embedding)
    }

    fn project(&self, normed: &Mat) -> Mat {
        let (rows, vocab, hidden) = (normed.rows(), self.vocab(), normed.cols());
        let mut logits = Mat::uninit(&self.pool, rows, vocab);
        let head = (&self.head().value, &self.pool);
        matmul::nt_weight(Into::Replace, &mut logits, 1.0, normed, head, [rows, vocab, hidden]);
        logits
    }

    /// The loss over `rows` of `x`, the last block's output; the head's and the final norm's gradients are added, and
    /// the gradient of `x` is given if it is needed.
    fn loss_and_gradient(
        &mut self,
        x: Mat,
        batch: &Batch,
        rows: &[usize],
        grad_scale: f32,
        need_dx: bool,
    ) -> Result<(LossSum, Option<Mat>)> {
        let (tokens, hidden, vocab) = (x.rows(), x.cols(), self.vocab());
        let need_d_normed = need_dx || self.norm.trains();
        let at_once = rows_at_once(self.vocab());
        let mut d_x = need_dx.then(|| Mat::zeros(&self.pool, tokens, hidden));
        let mut loss = LossSum::default();
        for rows in rows.chunks(at_once) {
            let chunk = gathered(&x, rows);
            let (normed, inverse_rms) = self.final_normed(&chunk);
            let mut logits = self.project(&normed);
            let targets: Vec<u32> = rows.iter().map(|&row| batch.targets[row]).collect();
            let mut losses = vec![0.0; rows.len()];
            cross_entropy::rows(&mut losses, &mut logits, &targets, Some(grad_scale));
            loss += LossSum { sum: losses.iter().map(|&loss| f64::from(loss)).sum(), targets: rows.len() };
            if !loss.sum.is_finite() {
                return Err(EngineError::NotFinite { what: "the loss".into(), value: loss.sum });
            }
            let d_logits = logits;
            let d_normed = need_d_normed.then(|| {
                let mut d_normed = Mat::uninit(&self.pool, rows.len(), hidden);
                let head = (&self.head().value, &self.pool);
                matmul::nn_weight(Into::Replace, &mut d_normed, 1.0, &d_logits, head, [rows.len(), hidden, vocab]);
                d_normed
            });
            if let Some(d_head) = self.head.as_mut().unwrap_or(&mut self.embedding).grad_mut() {
                matmul::tn(Into::Add, d_head, 1.0, &d_logits, &normed, [vocab, hidden, rows.len()]);
            }
            let Some(d_normed) = d_normed else { continue };
            if let Some(d_norm) = self.norm.grad_mut() {
                rms_norm::backward_weight(d_norm, &d_normed, &chunk, &inverse_rms);
            }
            if let Some(d_x) = &mut d_x {
                let mut d_chunk = Mat::uninit(&self.pool, rows.len(), hidden);
                let norm = self.norm.value.as_f32();
                rms_norm::backward_input(false, &mut d_chunk, &d_normed, &chunk, &inverse_rms, &norm);
                for (i, &row) in rows.iter().enumerate() {
                    d_x[row * hidden..(row + 1) * hidden].copy_from_slice(d_chunk.row(i));
                }
            }
        }
        Ok((loss, d_x))
    }
}

/// Rows of logits held at once.
pub(crate) fn rows_at_once(vocab: usize) -> usize {
    (LOGITS_LEN / vocab.max(1)).max(32)
}

/// The positions that have a target.
fn target_rows(batch: &Batch) -> Vec<usize> {
    (0..batch.tokens()).filter(|&row| batch.targets[row] != IGNORE).collect()
}

fn gathered(x: &Mat, rows: &[usize]) -> Mat {
    let mut chosen = Mat::uninit(x.pool(), rows.len(), x.cols());
    for (i, &row) in rows.iter().enumerate() {
        let cols = x.cols();
        chosen[i * cols..(i + 1) * cols].copy_from_slice(x.row(row));
    }
    chosen
}
