//! The final norm, the head and the loss: chunk by chunk of rows, so that the logits of a batch are never held.

use half::bf16;

use super::arena::Arena;
use super::attention::Documents;
use super::block::Pass;
use super::decoder::{Decoder, Table};
use super::gemm::{Layout, multiply};
use super::inputs::Inputs;
use super::memory::View;
use super::ops;
use super::plan::StepPlan;
use super::profile::Kind;
use super::trainable::Grad;
use crate::batch::Batch;
use crate::decoder::LossSum;
use crate::error::Result;

/// A vocabulary's row of logits has room up to the next multiple of this.
const VOCAB_PAD: usize = 64;

impl Decoder {
    /// The losses of the rows with targets; with `d`, the gradient of `x` there, and the head's and the norm's added.
    #[allow(clippy::too_many_arguments)]
    pub(crate) fn head_loss(
        &self,
        arena: &mut Arena,
        plan: &StepPlan,
        inputs: &Inputs,
        x: View<bf16>,
        losses: View<f32>,
        d: Option<View<bf16>>,
        first: bool,
    ) -> Result<()> {
        let (context, hidden, eps) = (&self.context, self.shape.hidden, self.shape.rms_eps);
        let count = inputs.rows.cols();
        if let Some(d) = d
            && count < x.rows()
        {
            context.kind(Kind::Other);
            context.fill_bytes(d, 0)?;
        }
        let head = self.head();
        let grad_of = |index: Option<usize>| index.map(|index| self.trainables[index].grad);
        let need_d = d.is_some() || self.norm.trained.is_some();
        let mut at = 0;
        while at < count {
            let rows = plan.loss_rows.min(count - at);
            let mark = arena.mark();
            let (index, targets) = (inputs.rows.slice_cols(at, rows), inputs.targets.slice_cols(at, rows));
            let normed = arena.high::<bf16>(rows, hidden, 0)?;
            ops::rms_norm(context, normed, x, self.norm.view, Some(index), eps)?;
            let logits = self.project(arena, normed, head)?;
            let scale = (need_d || head.trained.is_some()).then_some(inputs.scale);
            ops::cross_entropy(context, losses.slice_cols(at, rows), logits, targets, scale)?;
            // A tied head's gradient is the embedding's, which is cleared and only added to.
            let adds = !first || at > 0 || self.head.is_none();
            context.kind(Kind::Head);
            match grad_of(head.trained) {
                Some(Grad::Wide(grad)) => {
                    multiply(context, Layout::Tn, grad, 1.0, logits, normed, adds.then_some((1.0, grad)))?;
                }
                Some(Grad::Narrow(grad)) => {
                    multiply(context, Layout::Tn, grad, 1.0, logits, normed, adds.then_some((1.0, grad)))?;
                }
                None => {}
            }
            if need_d {
                let d_normed = arena.high::<bf16>(rows, hidden, 0)?;
                multiply(context, Layout::Nn, d_normed, 1.0, logits, head.view, None)?;
                let norm_grad = match grad_of(self.norm.trained) {
                    Some(Grad::Wide(grad)) => Some(grad),
                    _ => None,
                };
                let inverse_rms = norm_grad.map(|_| arena.high::<f32>(1, rows, 0)).transpose()?;
                let to = match d {
                    Some(d) => d,
                    None => arena.high::<bf16>(x.rows(), hidden, 0)?,
                };
                ops::rms_norm_backward(context, to, inverse_rms, d_normed, x, self.norm.view, None, Some(index), eps)?;
                if let (Some(grad), Some(inverse_rms)) = (norm_grad, inverse_rms) {
                    let parts = arena.high::<f32>(1, ops::parts_len(rows, hidden), 0)?;
                    ops::rms_norm_weight(context, grad, d_normed, x, inverse_rms, Some(index), parts)?;
                }
            }
            arena.release_high(mark);
            at += rows;
        }
        Ok(())
    }

    pub(crate) fn project(&self, arena: &mut Arena, normed: View<bf16>, head: Table) -> Result<View<bf16>> {
        let vocab = self.shape.vocab;
        let logits = arena.high::<bf16>(normed.rows(), vocab, vocab.next_multiple_of(VOCAB_PAD) - vocab)?;
        self.context.kind(Kind::Head);
        multiply(&self.context, Layout::Nt, logits, 1.0, normed, head.view, None)?;
        Ok(logits)
    }

    /// A pass that goes forward only, without dropout.
    pub(super) fn forward_pass<'a>(
        &'a self,
        documents: &'a Documents,
        positions: View<i32>,
        mlp_rows: usize,
    ) -> Pass<'a> {
        Pass {
            context: &self.context,
            documents,
            pieces: &[],
            positions,
            table: self.rope_view(),
            mlp_rows,
            first: true,
            dropping: None,
            factors: true,
        }
    }

    /// The last block's output, without keeping anything.
    fn last_hidden(&self, arena: &mut Arena, inputs: &Inputs, tokens: usize) -> Result<View<bf16>> {
        let pass = self.forward_pass(&inputs.documents, inputs.positions, 4096);
        let mut x = arena.low::<bf16>(tokens, self.shape.hidden, 0)?;
        let mut other = arena.low::<bf16>(tokens, self.shape.hidden, 0)?;
        ops::embed(&self.context, x, self.embedding.view, inputs.ids)?;
        for block in &self.blocks {
            block.forward(&pass, arena, x, other, None, None)?;
            std::mem::swap(&mut x, &mut other);
        }
        Ok(x)
    }

    /// `-ln p(target)` of each position that has a target, in their order.
    ///
    /// # Errors
    /// When the batch does not fit the model or the memory, or the device fails.
    pub fn losses(&mut self, batch: &Batch) -> Result<Vec<f32>> {
        batch.check(self.shape.vocab)?;
        self.ensure_rope(&batch.positions)?;
        let plan = StepPlan::new(0, 0, 0, 4096, 1024);
        let losses = self.within(|this, arena| {
            let inputs = this.upload(arena, batch, 0.0, 1)?;
            let losses = arena.low::<f32>(1, inputs.rows.cols(), 0)?;
            let x = this.last_hidden(arena, &inputs, batch.tokens())?;
            this.loss_only(arena, &plan, &inputs, x, losses)?;
            Ok(losses)
        })?;
        self.context.download(losses)
    }

    fn loss_only(
        &self,
        arena: &mut Arena,
        plan: &StepPlan,
        inputs: &Inputs,
        x: View<bf16>,
        losses: View<f32>,
    ) -> Result<()> {
        let mut at = 0;
        while at < inputs.rows.cols() {
            let rows = plan.loss_rows.min(inputs.rows.cols() - at);
            let mark = arena.mark();
            let normed = arena.high::<bf16>(rows, self.shape.hidden, 0)?;
            let index = inputs.rows.slice_cols(at, rows);
            ops::rms_norm(&self.context, normed, x, self.norm.view, Some(index), self.shape.rms_eps)?;
            let logits = self.project(arena, normed, self.head())?;
            let targets = inputs.targets.slice_cols(at, rows);
            ops::cross_entropy(&self.context, losses.slice_cols(at, rows), logits, targets, None)?;
            arena.release_high(mark);
            at += rows;
        }
        Ok(())
    }

    /// The sum of the losses of a batch.
    ///
    /// # Errors
    /// As [`Decoder::losses`].
    pub fn loss(&mut self, batch: &Batch) -> Result<LossSum> {
        let losses = self.losses(batch)?;
        Ok(LossSum { sum: losses.iter().map(|&loss| f64::from(loss)).sum(), targets: losses.len() })
    }

    /// The logits at the given rows of the batch, `[rows, vocab]`, in `f32`.
    ///
    /// # Errors
    /// As [`Decoder::losses`].
    pub fn logits(&mut self, batch: &Batch, rows: &[usize]) -> Result<Vec<f32>> {
        batch.check(self.shape.vocab)?;
        self.ensure_rope(&batch.positions)?;
        let list: Vec<i32> = rows.iter().map(|&row| row as i32).collect();
        let logits = self.within(|this, arena| {
            let inputs = this.upload(arena, batch, 0.0, 1)?;
            let index = arena.low::<i32>(1, list.len(), 0)?;
            this.context.upload(index, &list)?;
            let x = this.last_hidden(arena, &inputs, batch.tokens())?;
            let normed = arena.high::<bf16>(list.len(), this.shape.hidden, 0)?;
            ops::rms_norm(&this.context, normed, x, this.norm.view, Some(index), this.shape.rms_eps)?;
            this.project(arena, normed, this.head())
        })?;
        Ok(self.context.download(logits)?.into_iter().map(bf16::to_f32).collect())
    }

    pub(crate) fn final_logits(&self, arena: &mut Arena, x: View<bf16>) -> Result<View<bf16>> {
        let normed = arena.high::<bf16>(x.rows(), self.shape.hidden, 0)?;
        ops::rms_norm(&self.context, normed, x, self.norm.view, None, self.shape.rms_eps)?;
        self.project(arena, normed, self.head())
    }
}
