//! The model on the card: a training pass, losses, logits. In: batches on the host. Out: sums of losses, logits, and
//! gradients that stay on the card.

use std::collections::BTreeMap;

use half::bf16;

use super::arena::Arena;
use super::block::{Block, Scale};
use super::builder::Place;
use super::context::Context;
use super::in_backward::{Gradients, Underway};
use super::locked::Locked;
use super::memory::{Buffer, View};
use super::offload::Offload;
use super::optim::Optimizer;
use super::packed::Map;
use super::plan::{self, StepPlan};
use super::slab::Slab;
use super::spec::{ModelShape, Options, Role, Slot};
use super::trainable::Trainable;
use crate::batch::Batch;
use crate::decoder::LossSum;
use crate::error::{EngineError, Result};

/// The vocabulary's matrix.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Table {
    pub view: View<bf16>,
    pub trained: Option<usize>,
}

/// From which hidden size on attention's part may wait on the host. Copying a block's 24 bytes a token and hidden column at 50 GB/s
/// takes as long as its forward pass at 700 TFLOP/s where that is 2,300; other cards' buses and products differ alike.
const ATTENDED_FROM_HIDDEN: usize = 2048;

/// The plan of the last batch.
#[derive(Debug)]
pub(crate) struct Planned {
    plan: StepPlan,
    starts: Vec<u32>,
    targets: usize,
    bytes: usize,
}

/// The model.
#[derive(Debug)]
pub struct Decoder {
    pub(crate) context: Context,
    pub(crate) shape: ModelShape,
    pub(crate) options: Options,
    pub(crate) embedding: Table,
    /// The embedding's memory, if that is the host's.
    pub(crate) embedding_home: Option<Locked>,
    pub(crate) blocks: Vec<Block>,
    pub(crate) norm: Scale,
    pub(crate) head: Option<Table>,
    pub(crate) trainables: Vec<Trainable>,
    /// Where each weight lies, and which trainable it is or was.
    pub(crate) places: BTreeMap<Slot, Place>,
    pub(crate) map: Map,
    pub(crate) slab: Slab,
    pub(crate) rope: Option<(Buffer, usize)>,
    pub(crate) arena: Arena,
    pub(crate) optimizer: Optimizer,
    pub(crate) plan: Option<Planned>,
    /// Inputs of blocks that wait on the host, and what attention gave.
    pub(crate) inputs_away: Offload,
    pub(crate) attended_away: Offload,
    pub(crate) budget: Option<usize>,
    /// Bytes that activations may take, once that is settled.
    pub(crate) room: Option<usize>,
    /// Whether every block keeps its input only.
    pub(crate) recompute: bool,
    /// Seed and count of the training pass, for dropout.
    pub(crate) dropout: (u64, u64),
    /// Nothing was added to the gradients since they were cleared.
    pub(crate) fresh: bool,
}

impl Decoder {
    /// The card.
    pub fn context(&self) -> &Context {
        &self.context
    }

    /// The dimensions.
    pub fn shape(&self) -> &ModelShape {
        &self.shape
    }

    /// What holds for the whole model.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// What trains or once did.
    pub fn trainables(&self) -> &[Trainable] {
        &self.trainables
    }

    /// The numbers of what trains or once did, by their place in the model, whenever they began.
    pub fn in_order(&self) -> Vec<usize> {
        let mut all: Vec<usize> = (0..self.trainables.len()).collect();
        all.sort_by_key(|&index| self.trainables[index].key);
        all
    }

    /// Of these, the ones that train now.
    pub fn active(&self) -> Vec<usize> {
        self.in_order().into_iter().filter(|&index| self.trainables[index].trains).collect()
    }

    /// Bytes of weights, gradients and states.
    pub fn model_bytes(&self) -> usize {
        let own = self.trainables.iter().filter_map(|trainable| trainable.own.as_ref()).map(Slab::bytes);
        self.slab.bytes() + own.sum::<usize>()
    }

    /// The host's memory that a weight lies in, if it lies there.
    pub(super) fn home(&self, slot: Slot) -> Option<&Locked> {
        self.embedding_home.as_ref().filter(|_| slot == (None, Role::Embedding))
    }

    /// Bytes of the host's memory that weights lie in.
    pub fn host_bytes(&self) -> usize {
        self.embedding_home.as_ref().map_or(0, Locked::bytes)
    }

    /// Caps the bytes that the engine takes on the card, all together.
    pub fn set_budget(&mut self, bytes: Option<usize>) {
        (self.budget, self.room, self.plan) = (bytes, None, None);
    }

    /// Whether every block is to keep its input only, however much memory there is.
    pub fn set_recompute(&mut self, recompute: bool) {
        (self.recompute, self.plan) = (recompute, None);
    }

    /// Seed and count of the training passes to come: with the same, adapters drop the same of their inputs, as on the processor.
    pub fn set_dropout(&mut self, seed: u64, count: u64) {
        self.dropout = (seed, count);
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
        self.expect_own_gradients()?;
        batch.check(self.shape.vocab)?;
        match batch.target_count() {
            0 => Ok(LossSum::default()),
            _ => self.pass(batch, grad_scale, None),
        }
    }

    /// The same by a given plan.
    ///
    /// # Errors
    /// As [`Decoder::accumulate`].
    pub fn accumulate_with(&mut self, batch: &Batch, grad_scale: f32, plan: &StepPlan) -> Result<LossSum> {
        self.expect_own_gradients()?;
        batch.check(self.shape.vocab)?;
        match batch.target_count() {
            0 => Ok(LossSum::default()),
            _ => self.pass_with(batch, grad_scale, plan, None),
        }
    }

    /// A training pass by the plan that the memory at hand allows, with the updates that are made on the way.
    pub(super) fn pass(&mut self, batch: &Batch, grad_scale: f32, underway: Option<&Underway>) -> Result<LossSum> {
        self.context.bind()?;
        self.ensure_rope(&batch.positions)?;
        self.settle_room()?;
        // What went wrong with the host's memory, and whether the card's was settled a second time.
        let (mut refused, mut settled_again) = (None, false);
        loop {
            let (plan, needed) = match self.plan(batch) {
                Ok(planned) => planned,
                Err(error) => return Err(refused.unwrap_or(error)),
            };
            match self.make_room(needed) {
                Ok(()) => (),
                Err(EngineError::OutOfDeviceMemory { .. }) if !settled_again && needed > 0 => {
                    // Another program took what was there: what is left is the room from now on.
                    (self.room, self.plan, settled_again) = (None, None, true);
                    self.settle_room()?;
                    continue;
                }
                Err(error) => return Err(error),
            }
            let Err(error) = self.lock_waiting(batch, &plan) else {
                return self.run_step(batch, grad_scale, &plan, underway);
            };
            // The host's memory is short, or may not be locked: inputs alone wait there from now on, and then nothing.
            let limit = self.options.waiting_limit.unwrap_or(usize::MAX);
            if limit == 0 {
                return Err(error);
            }
            let (_, [input, attended]) = self.waiting(&plan, batch.tokens());
            let of_inputs = self.blocks.len() * input;
            let less = if attended > 0 && of_inputs < limit { of_inputs } else { 0 };
            (self.inputs_away, self.attended_away) = Default::default();
            (self.options.waiting_limit, self.plan, refused) = (Some(less), None, Some(error));
        }
    }

    /// The same by a given plan.
    pub(super) fn pass_with(
        &mut self,
        batch: &Batch,
        grad_scale: f32,
        plan: &StepPlan,
        underway: Option<&Underway>,
    ) -> Result<LossSum> {
        self.context.bind()?;
        self.ensure_rope(&batch.positions)?;
        let needed = self.needed(batch, plan)?;
        self.make_room(needed)?;
        self.lock_waiting(batch, plan)?;
        self.run_step(batch, grad_scale, plan, underway)
    }

    fn run_step(
        &mut self,
        batch: &Batch,
        grad_scale: f32,
        plan: &StepPlan,
        underway: Option<&Underway>,
    ) -> Result<LossSum> {
        let targets = batch.target_count();
        let first = std::mem::take(&mut self.fresh);
        let gradients = match underway {
            Some(underway) => Gradients::Used(underway),
            None if first => Gradients::Replaced,
            None => Gradients::Added,
        };
        if !matches!(gradients, Gradients::Added) {
            // What is added to and never replaced.
            for trainable in self.trainables.iter().filter(|trainable| trainable.trains) {
                if self.is_summed(trainable) {
                    trainable.clear_grad(&self.context)?;
                }
            }
        }
        let mut arena = std::mem::replace(&mut self.arena, Arena::counting());
        arena.clear();
        let losses = self.step(&mut arena, batch, plan, grad_scale, gradients);
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

    /// The plan for this batch, and the bytes it takes. It depends on the batch and on the room there is, never on the
    /// batches before, so that a run that was stopped goes on to the bit.
    fn plan(&mut self, batch: &Batch) -> Result<(StepPlan, usize)> {
        let targets = batch.target_count();
        if let Some(last) = &self.plan
            && last.starts == batch.starts
            && last.targets == targets
        {
            return Ok((last.plan.clone(), last.bytes));
        }
        let plan = self.choose_plan(batch)?;
        let bytes = self.needed(batch, &plan)?;
        self.plan = Some(Planned { plan: plan.clone(), starts: batch.starts.clone(), targets, bytes });
        Ok((plan, bytes))
    }

    /// The bytes that activations may take, settled now if they are not yet: what is free, less a margin.
    ///
    /// # Errors
    /// When the device fails.
    pub fn settle_room(&mut self) -> Result<usize> {
        let room = match self.room {
            Some(room) => room,
            None => self.free_room()?.0,
        };
        self.room = Some(room);
        Ok(room)
    }

    /// Settles the bytes that activations may take, as another run of the same found them.
    pub fn set_room(&mut self, bytes: usize) {
        self.room = Some(bytes);
        self.plan = None;
    }

    /// Has the host's memory for what waits there.
    fn lock_waiting(&mut self, batch: &Batch, plan: &StepPlan) -> Result<()> {
        let (away, bytes) = self.waiting(plan, batch.tokens());
        for (offload, bytes) in [&mut self.inputs_away, &mut self.attended_away].into_iter().zip(bytes) {
            offload.prepare(&self.context, away, bytes)?;
        }
        Ok(())
    }

    pub(crate) fn make_room(&mut self, needed: usize) -> Result<()> {
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
        self.context.dry_run(|| self.step(&mut arena, batch, plan, 1.0, Gradients::Replaced))?;
        Ok(arena.peak())
    }

    /// The plan that the memory at hand allows.
    ///
    /// # Errors
    /// When not even the leanest step fits.
    pub fn choose_plan(&self, batch: &Batch) -> Result<StepPlan> {
        let blocks = self.blocks.len() - self.lowest();
        let (free, total) = self.free_room()?;
        let available = self.room.unwrap_or(free);
        let kept = if self.recompute { 0 } else { blocks };
        let of_input = StepPlan::new(blocks, 0, 0, 0, 0);
        let of_attention = of_input.clone().attended();
        let most_away = [of_input, of_attention].map(|plan| self.most_away(&plan, batch.tokens()));
        plan::search([blocks, kept], most_away, batch.tokens(), batch.target_count(), available, total, |plan| {
            self.needed(batch, plan)
        })
    }

    /// Of how many blocks what such a plan keeps may wait on the host.
    fn most_away(&self, plan: &StepPlan, tokens: usize) -> usize {
        let (_, [input, attended]) = self.waiting(plan, tokens);
        // By the time that both take, copying attention's part outlasts the forward pass of narrow models.
        if attended > 0 && self.shape.hidden < ATTENDED_FROM_HIDDEN {
            return 0;
        }
        let most = self.options.waiting_limit.map_or(usize::MAX, |limit| limit / (input + attended).max(1));
        most.min(plan.levels.len())
    }

    /// The bytes that activations can have now, and the memory in all.
    fn free_room(&self) -> Result<(usize, usize)> {
        if self.context.is_dry() {
            let total = self.budget.unwrap_or(usize::MAX / 4);
            return Ok((total.saturating_sub(self.account(&[]).total()), total));
        }
        let (free, total) = self.context.memory()?;
        let held = self.arena.size();
        // The driver and cuBLASLt take more when their kernels are first loaded.
        let margin = if held > 0 { 32 << 20 } else { 128 << 20 };
        let mut room = (free + held).saturating_sub(margin);
        if let Some(budget) = self.budget {
            let used = total - free - held;
            room = room.min(budget.saturating_sub(used + margin));
        }
        Ok((room, total))
    }

    /// The lowest block that the backward pass reaches.
    pub(crate) fn lowest(&self) -> usize {
        match self.embedding.trained {
            Some(_) => 0,
            None => self.blocks.iter().position(Block::trains).unwrap_or(self.blocks.len()),
        }
    }

    pub(crate) fn head(&self) -> Table {
        self.head.unwrap_or(self.embedding)
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
}
