//! What flows through the model on the card, for statistics: each block's input and output, and what each linear layer reads. In: a
//! batch. Out: the same numbers as [`crate::observe`] shows, copied to the host one block at a time.

use std::cell::RefCell;

use half::bf16;

use super::block::{Attended, Block, Level};
use super::context::Launch;
use super::decoder::Decoder;
use super::kernels::{args, sources::ADAMW};
use super::memory::View;
use super::ops;
use super::plan::StepPlan;
use super::profile::Kind;
use super::spec::{Role, Slot};
use super::watched::tables_sums;
use crate::batch::Batch;
use crate::decoder::LossSum;
use crate::error::Result;
use crate::mat::Mat;
use crate::observe::Seen;
use crate::pool::Pool;

impl Decoder {
    /// Runs the blocks on a batch without dropout, and shows what `see` is to see, from the first block to the last; `name` says what a
    /// weight is called.
    ///
    /// # Errors
    /// When the batch does not fit the model or the memory, or the device fails.
    pub fn observe(
        &mut self,
        batch: &Batch,
        name: impl Fn(Slot) -> String,
        see: &mut dyn FnMut(Seen<'_>),
    ) -> Result<()> {
        batch.check(self.shape.vocab)?;
        self.context.bind()?;
        self.ensure_rope(&batch.positions)?;
        let (pool, see) = (Pool::new(), RefCell::new(see));
        self.within(|this, arena| {
            let context = &this.context;
            let mat = |view: View<bf16>| -> Result<Mat> {
                let values: Vec<f32> = context.download(view)?.into_iter().map(bf16::to_f32).collect();
                Ok(Mat::from_slice(&pool, view.cols(), &values))
            };
            let inputs = this.upload(arena, batch, 0.0, 1)?;
            let tokens = batch.tokens();
            let pass = this.forward_pass(&inputs.documents, inputs.positions, tokens);
            let mut x = arena.low::<bf16>(tokens, this.shape.hidden, 0)?;
            let mut out = arena.low::<bf16>(tokens, this.shape.hidden, 0)?;
            ops::embed(context, x, this.embedding.view, inputs.ids)?;
            for (index, block) in this.blocks.iter().enumerate() {
                let mark = arena.mark();
                let kept = block.forward(&pass, arena, x, out, Some(Level::All), None)?;
                let activation = arena.high::<bf16>(tokens, block.intermediate, 0)?;
                kept.gate_up.map_or(Ok(()), |gate_up| block.activate(context, activation, gate_up, None))?;
                // Made again: a block keeps them only where weights train.
                let normed = block.normed(&pass, arena, false, x, block.input_norm, 0)?;
                let behind = |attended: Attended| {
                    Ok((attended.out, block.normed(&pass, arena, false, attended.mid, block.post_norm, 0)?))
                };
                let attended = kept.attended.map(behind).transpose()?;
                if !context.is_dry() {
                    let read = [
                        (&[Role::Q, Role::K, Role::V][..], Some(normed)),
                        (&[Role::O], attended.map(|(out, _)| out)),
                        (&[Role::Gate, Role::Up], attended.map(|(_, normed)| normed)),
                        (&[Role::Down], Some(activation)),
                    ];
                    for (roles, view) in read {
                        let Some(view) = view else { continue };
                        let x = mat(view)?;
                        for &role in roles {
                            see.borrow_mut()(Seen::Input { weight: &name((Some(index), role)), x: &x });
                        }
                    }
                    see.borrow_mut()(Seen::Block { block: index, input: &mat(x)?, output: &mat(out)? });
                }
                arena.release_low(mark);
                arena.release_high(mark);
                std::mem::swap(&mut x, &mut out);
            }
            Ok(())
        })
    }

    /// The sum of the losses of the target tokens, without one block.
    ///
    /// # Errors
    /// As [`Decoder::losses`].
    pub fn loss_without(&mut self, block: usize, batch: &Batch) -> Result<LossSum> {
        let skipped: Block = self.blocks.remove(block);
        let loss = self.loss(batch);
        self.blocks.insert(block, skipped);
        loss
    }

    /// One training pass that keeps as little as it can, whatever the memory there is: its numbers depend on the model and the batch
    /// alone. [`Decoder::accumulate`] has what goes in and out.
    ///
    /// # Errors
    /// As [`Decoder::accumulate`].
    pub fn accumulate_leanest(&mut self, batch: &Batch, grad_scale: f32) -> Result<LossSum> {
        self.accumulate_with(batch, grad_scale, &leanest())
    }

    /// Bytes of activations that such a pass takes.
    ///
    /// # Errors
    /// When it cannot be laid out.
    pub fn leanest_bytes(&self, batch: &Batch) -> Result<usize> {
        self.needed(batch, &leanest())
    }
}

/// What is summed over a tensor's elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GradientSum {
    /// g².
    Squares,
    /// |g · w|.
    TimesWeights,
}

impl Decoder {
    /// A sum over the elements of each gradient, by the number of what trains now.
    ///
    /// # Errors
    /// When there is no memory, or the device fails.
    pub fn gradient_sums(&mut self, sum: GradientSum) -> Result<Vec<(usize, f64)>> {
        self.context.bind()?;
        self.settle_grads()?;
        let (all, place) = self.describe_active()?;
        let tables = &self.optimizer.tables[place];
        if tables.count == 0 {
            return Ok(Vec::new());
        }
        let parts: View<f64> = tables.sums.view(1, tables.count);
        match sum {
            GradientSum::Squares => self.queue_squares(tables, tables.all(), None)?,
            GradientSum::TimesWeights => {
                self.context.kind(Kind::Other);
                let arguments = args![parts, tables.descriptors.view::<u8>(1, 1), tables.chunks.view::<u32>(1, 1)];
                let launch = Launch::new(tables.count, 256);
                self.context.launch(&ADAMW, &[("MOMENTS", 32)], "weighted_gradients", launch, arguments)?;
            }
        }
        Ok(tables_sums(&self.trainables, &all, &self.context.download(parts)?))
    }
}

/// Nothing is kept but blocks' inputs, and few rows are taken at once.
fn leanest() -> StepPlan {
    StepPlan::new(0, 0, 0, 2048, 512)
}
