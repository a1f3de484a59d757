//! The model on the card: a training pass, losses, logits. In: batches on the host. Out: sums of losses, logits, and
//! gradients that stay on the card.

use std::collections::BTreeMap;

use half::bf16;

use super::arena::Arena;
use super::attention::Documents;
use super::block::{Block, Kept, Level, Pass, Scale};
use super::context::Context;
use super::gemm::{Layout, multiply};
use super::memory::{Buffer, View};
use super::ops;
use super::optim::Optimizer;
use super::plan::{self, StepPlan};
use super::profile::Kind;
use super::slab::Slab;
use super::spec::{ModelShape, Options};
use super::trainable::{Grad, Trainable};
use crate::batch::{Batch, IGNORE};
use crate::decoder::LossSum;
use crate::error::{EngineError, Result};

/// The vocabulary's matrix.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Table {
    pub view: View<bf16>,
    pub trained: Option<usize>,
}

/// The model.
#[derive(Debug)]
pub struct Decoder {
    pub(crate) context: Context,
    pub(crate) shape: ModelShape,
    pub(crate) options: Options,
    pub(crate) embedding: Table,
    pub(crate) blocks: Vec<Block>,
    pub(crate) norm: Scale,
    pub(crate) head: Option<Table>,
    pub(crate) trainables: Vec<Trainable>,
    pub(crate) slab: Slab,
    pub(crate) rope: Option<(Buffer, usize)>,
    pub(crate) arena: Arena,
    pub(crate) optimizer: Optimizer,
    pub(crate) plans: BTreeMap<(usize, usize, usize), (StepPlan, usize)>,
    pub(crate) budget: Option<usize>,
    /// Nothing was added to the gradients since they were cleared.
    pub(crate) fresh: bool,
}

/// A batch on the card.
struct Inputs {
    ids: View<i32>,
    positions: View<i32>,
    /// Rows with a target, and the targets.
    rows: View<i32>,
    targets: View<i32>,
    scale: View<f32>,
    documents: Documents,
    /// Distinct ids, where each one's places start, and the places.
    places: Option<[View<i32>; 3]>,
}

/// A vocabulary's row of logits has room up to the next multiple of this.
const VOCAB_PAD: usize = 64;

impl Decoder {
    /// The card.
    pub fn context(&self) -> &Context {
        &self.context
    }

    /// The dimensions.
    pub fn shape(&self) -> &ModelShape {
        &self.shape
    }

    /// What trains, in the order of the forward pass.
    pub fn trainables(&self) -> &[Trainable] {
        &self.trainables
    }

    /// Bytes of weights, gradients and states.
    pub fn model_bytes(&self) -> usize {
        self.slab.bytes()
    }

    /// Bytes of the buffer that activations live in.
    pub fn arena_bytes(&self) -> usize {
        self.arena.size()
    }

    /// Caps the bytes that the engine takes on the card, all together.
    pub fn set_budget(&mut self, bytes: Option<usize>) {
        self.budget = bytes;
        self.plans.clear();
    }

    /// Sets all gradients to zero.
    pub fn clear_grads(&mut self) {
        self.fresh = true;
    }

    /// One training pass: the sum of the batch's losses, with the gradients of `grad_scale` times it added to the
    /// gradients of what trains.
    ///
    /// # Errors
    /// When the batch does not fit the model or the memory, the device fails, or the loss is not finite.
    pub fn accumulate(&mut self, batch: &Batch, grad_scale: f32) -> Result<LossSum> {
        batch.check(self.shape.vocab)?;
        if batch.target_count() == 0 {
            return Ok(LossSum::default());
        }
        self.context.bind()?;
        self.ensure_rope(&batch.positions)?;
        let (plan, needed) = self.plan(batch)?;
        self.run_step(batch, grad_scale, &plan, needed)
    }

    /// The same by a given plan.
    ///
    /// # Errors
    /// As [`Decoder::accumulate`].
    pub fn accumulate_with(&mut self, batch: &Batch, grad_scale: f32, plan: &StepPlan) -> Result<LossSum> {
        batch.check(self.shape.vocab)?;
        self.context.bind()?;
        self.ensure_rope(&batch.positions)?;
        let needed = self.needed(batch, plan)?;
        self.run_step(batch, grad_scale, plan, needed)
    }

    fn run_step(&mut self, batch: &Batch, grad_scale: f32, plan: &StepPlan, needed: usize) -> Result<LossSum> {
        let targets = batch.target_count();
        self.make_room(needed)?;
        let first = std::mem::take(&mut self.fresh);
        if first {
            // What is added to and never replaced.
            for trainable in &self.trainables {
                if self.is_summed(trainable) {
                    trainable.clear_grad(&self.context)?;
                }
            }
        }
        let mut arena = std::mem::replace(&mut self.arena, Arena::counting());
        arena.clear();
        let losses = self.step(&mut arena, batch, plan, grad_scale, first);
        self.arena = arena;
        let losses = self.context.download(losses?)?;
        let sum: f64 = losses.iter().map(|&loss| f64::from(loss)).sum();
        if !sum.is_finite() {
            return Err(EngineError::NotFinite { what: "the loss".into(), value: sum });
        }
        Ok(LossSum { sum, targets })
    }

    /// Whether kernels only ever add to its gradient: norms, biases, the embedding.
    fn is_summed(&self, trainable: &Trainable) -> bool {
        let table = self.embedding.trained.is_some_and(|index| std::ptr::eq(&self.trainables[index], trainable));
        trainable.rows == 1 || table
    }

    /// The plan for batches of this size.
    fn plan(&mut self, batch: &Batch) -> Result<(StepPlan, usize)> {
        let longest = batch.starts.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or(0);
        let key = (batch.tokens(), batch.target_count(), longest as usize);
        if let Some(plan) = self.plans.get(&key) {
            return Ok(plan.clone());
        }
        let plan = self.choose_plan(batch)?;
        let needed = self.needed(batch, &plan)?;
        self.plans.insert(key, (plan.clone(), needed));
        Ok((plan, needed))
    }

    fn make_room(&mut self, needed: usize) -> Result<()> {
        if needed > self.arena.size() {
            // The old arena goes first, so that both never stand beside each other.
            self.release_arena()?;
            self.arena = Arena::new(&self.context, needed)?;
        }
        Ok(())
    }

    /// Gives the activations' memory back; the next pass takes what it needs.
    ///
    /// # Errors
    /// When the device fails.
    pub fn release_arena(&mut self) -> Result<()> {
        self.context.synchronize()?;
        self.arena = Arena::counting();
        Ok(())
    }

    /// Bytes of activations that a step of this batch takes with a plan.
    ///
    /// # Errors
    /// When the step cannot be laid out.
    pub fn needed(&self, batch: &Batch, plan: &StepPlan) -> Result<usize> {
        let mut arena = Arena::counting();
        self.context.dry_run(|| self.step(&mut arena, batch, plan, 1.0, true))?;
        Ok(arena.peak())
    }

    /// The plan that the memory at hand allows.
    ///
    /// # Errors
    /// When not even the leanest step fits.
    pub fn choose_plan(&self, batch: &Batch) -> Result<StepPlan> {
        let blocks = self.blocks.len() - self.lowest();
        let (mut available, mut total) = (usize::MAX / 4, usize::MAX / 4);
        if !self.context.is_dry() {
            let (free, all) = self.context.memory()?;
            let held = self.arena.size();
            // The driver and cuBLASLt take more when their kernels are first loaded.
            let margin = if self.loaded() { 32 << 20 } else { 256 << 20 };
            (available, total) = ((free + held).saturating_sub(margin), all);
            if let Some(budget) = self.budget {
                let used = all - free - held;
                available = available.min(budget.saturating_sub(used + margin));
            }
        }
        plan::search(blocks, batch.tokens(), batch.target_count(), available, total, |plan| self.needed(batch, plan))
    }

    fn loaded(&self) -> bool {
        self.arena.size() > 0
    }

    /// The lowest block that the backward pass reaches.
    fn lowest(&self) -> usize {
        match self.embedding.trained {
            Some(_) => 0,
            None => self.blocks.iter().position(Block::trains).unwrap_or(self.blocks.len()),
        }
    }

    fn head(&self) -> Table {
        self.head.unwrap_or(self.embedding)
    }

    fn upload(&self, arena: &mut Arena, batch: &Batch, grad_scale: f32) -> Result<Inputs> {
        let rows: Vec<i32> = (0..batch.tokens()).filter(|&i| batch.targets[i] != IGNORE).map(|i| i as i32).collect();
        let targets: Vec<i32> = rows.iter().map(|&row| batch.targets[row as usize] as i32).collect();
        let signed = |values: &[u32]| values.iter().map(|&x| x as i32).collect::<Vec<_>>();
        let mut lists = vec![
            signed(&batch.ids),
            signed(&batch.positions),
            rows,
            targets,
            signed(&batch.starts),
            vec![grad_scale.to_bits() as i32],
        ];
        if self.embedding.trained.is_some() {
            let mut places = BTreeMap::<u32, Vec<i32>>::new();
            for (place, &id) in batch.ids.iter().enumerate() {
                places.entry(id).or_default().push(place as i32);
            }
            lists.push(places.keys().map(|&id| id as i32).collect());
            let mut starts = vec![0];
            for list in places.values() {
                starts.push(starts.last().copied().unwrap_or(0) + list.len() as i32);
            }
            lists.push(starts);
            lists.push(places.into_values().flatten().collect());
        }
        let mut all = Vec::new();
        let mut parts = Vec::new();
        for list in &lists {
            parts.push((all.len(), list.len()));
            all.extend_from_slice(list);
            all.resize(all.len().next_multiple_of(4), 0);
        }
        let whole = arena.low::<i32>(1, all.len(), 0)?;
        self.context.upload(whole, &all)?;
        let part = |i: usize| whole.slice_cols(parts[i].0, parts[i].1);
        let scale = part(5);
        Ok(Inputs {
            ids: part(0),
            positions: part(1),
            rows: part(2),
            targets: part(3),
            documents: Documents::new(part(4), batch.starts.clone()),
            scale: View::at(scale.ptr(), 1, 1, 1),
            places: (lists.len() > 6).then(|| [part(6), part(7), part(8)]),
        })
    }

    pub(crate) fn ensure_rope(&mut self, positions: &[u32]) -> Result<()> {
        let needed = positions.iter().max().map_or(1, |&last| last as usize + 1);
        if self.rope.as_ref().is_some_and(|(_, have)| *have >= needed) || self.context.is_dry() {
            return Ok(());
        }
        let count = needed.next_power_of_two().max(1024);
        let half = self.shape.inverse_frequencies.len();
        let mut table = Vec::with_capacity(count * 2 * half);
        for position in 0..count {
            // The angle is rounded to f32 before the functions are taken, as on the CPU.
            let angles = self.shape.inverse_frequencies.iter().map(|f| f64::from(position as f32 * f));
            table.extend(angles.clone().map(|angle| angle.cos() as f32));
            table.extend(angles.map(|angle| angle.sin() as f32));
        }
        let buffer = Buffer::new(&self.context, table.len() * 4)?;
        self.context.upload(buffer.view(1, table.len()), &table)?;
        self.rope = Some((buffer, count));
        Ok(())
    }

    pub(crate) fn rope_view(&self) -> View<f32> {
        let dim = self.shape.dim;
        self.rope.as_ref().map_or(View::at(0, 0, dim, dim), |(buffer, count)| buffer.view(*count, dim))
    }

    /// Queues a training pass; the losses of the rows with targets will lie in the view.
    fn step(
        &self,
        arena: &mut Arena,
        batch: &Batch,
        plan: &StepPlan,
        grad_scale: f32,
        first: bool,
    ) -> Result<View<f32>> {
        let inputs = self.upload(arena, batch, grad_scale)?;
        let losses = arena.low::<f32>(1, inputs.rows.cols(), 0)?;
        let (context, hidden, tokens) = (&self.context, self.shape.hidden, batch.tokens());
        let pass = Pass {
            context,
            documents: &inputs.documents,
            positions: inputs.positions,
            table: self.rope_view(),
            mlp_rows: plan.mlp_rows,
            first,
        };
        let lowest = self.lowest();
        let mut x = arena.low::<bf16>(tokens, hidden, 0)?;
        ops::embed(context, x, self.embedding.view, inputs.ids)?;
        // Below the lowest block that trains two buffers take turns.
        let mut other = if lowest > 0 { Some(arena.low::<bf16>(tokens, hidden, 0)?) } else { None };
        let mut kept: Vec<(Kept, super::arena::Mark)> = Vec::with_capacity(self.blocks.len() - lowest);
        for (i, block) in self.blocks.iter().enumerate() {
            if i < lowest {
                let Some(out) = other.replace(x) else { break };
                block.forward(&pass, arena, x, out, None)?;
                x = out;
            } else {
                let mark = arena.mark();
                let out = arena.low::<bf16>(tokens, hidden, 0)?;
                let level = plan.levels.get(i - lowest).copied().unwrap_or(Level::Input);
                kept.push((block.forward(&pass, arena, x, out, Some(level))?, mark));
                x = out;
            }
        }
        let need_dx = self.embedding.trained.is_some() || lowest < self.blocks.len();
        let room = self.blocks.iter().map(Block::residual_room).max().unwrap_or(0);
        let d = need_dx.then(|| arena.high::<bf16>(tokens, hidden, room)).transpose()?;
        self.head_loss(arena, plan, &inputs, x, losses, d, first)?;
        let Some(d) = d else { return Ok(losses) };
        for (i, block) in self.blocks.iter().enumerate().rev().take(kept.len()) {
            let Some((block_kept, mark)) = kept.pop() else { break };
            let need_below = self.embedding.trained.is_some() || i > lowest;
            if !block.backward(&pass, arena, &self.trainables, d, &block_kept, need_below)? {
                return Ok(losses);
            }
            arena.release_low(mark);
        }
        if let (Some(index), Some(places)) = (self.embedding.trained, inputs.places)
            && let Grad::Wide(grad) = self.trainables[index].grad
        {
            ops::embed_backward(context, grad, d, places)?;
        }
        Ok(losses)
    }

    /// The losses of the rows with targets; with `d`, the gradient of `x` there, and the head's and the norm's added.
    #[allow(clippy::too_many_arguments)]
    fn head_loss(
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

    /// The last block's output, without keeping anything.
    fn last_hidden(&self, arena: &mut Arena, inputs: &Inputs, tokens: usize) -> Result<View<bf16>> {
        let pass = Pass {
            context: &self.context,
            documents: &inputs.documents,
            positions: inputs.positions,
            table: self.rope_view(),
            mlp_rows: 4096,
            first: true,
        };
        let mut x = arena.low::<bf16>(tokens, self.shape.hidden, 0)?;
        let mut other = arena.low::<bf16>(tokens, self.shape.hidden, 0)?;
        ops::embed(&self.context, x, self.embedding.view, inputs.ids)?;
        for block in &self.blocks {
            block.forward(&pass, arena, x, other, None)?;
            std::mem::swap(&mut x, &mut other);
        }
        Ok(x)
    }

    /// Runs `work` in the arena, dry first to see that it is large enough.
    pub(crate) fn within<T>(&mut self, work: impl Fn(&Self, &mut Arena) -> Result<T>) -> Result<T> {
        self.context.bind()?;
        let mut counting = Arena::counting();
        self.context.dry_run(|| work(self, &mut counting))?;
        self.make_room(counting.peak())?;
        let mut arena = std::mem::replace(&mut self.arena, Arena::counting());
        arena.clear();
        let out = work(self, &mut arena);
        self.arena = arena;
        out
    }

    /// `-ln p(target)` of each position that has a target, in their order.
    ///
    /// # Errors
    /// When the batch does not fit the model or the memory, or the device fails.
    pub fn losses(&mut self, batch: &Batch) -> Result<Vec<f32>> {
        batch.check(self.shape.vocab)?;
        self.ensure_rope(&batch.positions)?;
        let plan = StepPlan { levels: Vec::new(), mlp_rows: 4096, loss_rows: 1024 };
        let losses = self.within(|this, arena| {
            let inputs = this.upload(arena, batch, 0.0)?;
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
            let inputs = this.upload(arena, batch, 0.0)?;
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
