//! Updates inside the backward pass (LOMO, arXiv 2306.09782): a block's weights change as soon as its gradients are complete,
//! so that the blocks' gradients take turns in one place among a step's activations. In: a batch, and how to update. Out:
//! the loss and the gradients' norm, with the same numbers to the bit as an update after the pass has.
//!
//! What an update reads lies on the card before the pass, so that nothing waits for the host. There is no way back once a block
//! has changed: a loss or a gradient that is not finite sets a number on the card that lets what is queued behind it change
//! nothing more.

use std::collections::BTreeMap;

use super::decoder::Decoder;
use super::memory::View;
use super::optim::{Descriptor, Update, descriptor, order};
use super::plan::StepPlan;
use super::trainable::{Grad, Trainable};
use crate::batch::Batch;
use crate::decoder::LossSum;
use crate::error::{EngineError, Result};
use crate::optim::AdamWOptions;

/// What becomes of a pass's gradients.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Gradients<'a> {
    /// They are added to those of the passes before.
    Added,
    /// They take the place of what was there.
    Replaced,
    /// They are used at once.
    Used(&'a Underway),
}

/// Where a block's gradients go.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Grads<'a> {
    pub trainables: &'a [Trainable],
    /// Where the place begins that blocks share; 0 where each gradient has memory of its own.
    pub window: u64,
}

impl Grads<'_> {
    /// That of a matrix that trains.
    pub fn matrix(&self, index: usize) -> Grad {
        match self.trainables[index].grad {
            Grad::Wide(view) => Grad::Wide(self.placed(view)),
            Grad::Narrow(view) => Grad::Narrow(view.moved(self.window)),
        }
    }

    /// That of several matrices, which lie one below another.
    pub fn placed(&self, view: View<f32>) -> View<f32> {
        view.moved(self.window)
    }
}

/// The updates of a pass under way.
#[derive(Debug)]
pub(crate) struct Underway {
    /// Which of the optimiser's tables has all gradients.
    squares: usize,
    /// Which have the moments of one format, and its bits.
    formats: Vec<(usize, i64)>,
    seed: u64,
}

impl Underway {
    /// Queues the update of a block, or of what is in none: its gradients are complete, and a block's begin at `window`.
    pub fn update(&self, decoder: &Decoder, block: Option<usize>, window: u64) -> Result<()> {
        let Some(squares) = decoder.optimizer.tables.get(self.squares) else { return Ok(()) };
        decoder.queue_squares(squares, squares.of_block(block), Some(window))?;
        for &(place, bits) in &self.formats {
            let Some(tables) = decoder.optimizer.tables.get(place) else { continue };
            decoder.queue_update(tables, tables.of_block(block), bits, self.seed, Some(window))?;
        }
        Ok(())
    }
}

impl Decoder {
    /// One training pass and its update in one: the gradients of `grad_scale` times the batch's losses change what `updates`
    /// names, each block as soon as its own are complete. Gives the sum of the losses and the norm of all gradients, with the
    /// same bits as [`Decoder::accumulate`], [`Decoder::grad_norm`] and [`Decoder::update`] one after another.
    ///
    /// # Errors
    /// As theirs. A loss that is not finite changes nothing; a gradient that is not, nothing from its block on.
    pub fn accumulate_and_update(
        &mut self,
        batch: &Batch,
        grad_scale: f32,
        options: &AdamWOptions,
        updates: &[Update],
    ) -> Result<(LossSum, f64)> {
        batch.check(self.shape.vocab)?;
        self.updating(options, updates, |this, underway| match batch.target_count() {
            0 => this.update_without_gradients(underway).map(|()| LossSum::default()),
            _ => this.pass(batch, grad_scale, Some(underway)),
        })
    }

    /// The same by a given plan.
    ///
    /// # Errors
    /// As [`Decoder::accumulate_and_update`].
    pub fn accumulate_and_update_with(
        &mut self,
        batch: &Batch,
        grad_scale: f32,
        (options, updates): (&AdamWOptions, &[Update]),
        plan: &StepPlan,
    ) -> Result<(LossSum, f64)> {
        batch.check(self.shape.vocab)?;
        self.updating(options, updates, |this, underway| match batch.target_count() {
            0 => this.update_without_gradients(underway).map(|()| LossSum::default()),
            _ => this.pass_with(batch, grad_scale, plan, Some(underway)),
        })
    }

    /// Makes a pass with all ready for its updates.
    fn updating(
        &mut self,
        options: &AdamWOptions,
        updates: &[Update],
        pass: impl FnOnce(&mut Self, &Underway) -> Result<LossSum>,
    ) -> Result<(LossSum, f64)> {
        if self.optimizer.watched.is_some() {
            return Err(EngineError::Shape {
                what: "updates inside the backward pass".into(),
                expected: "nobody who watches them".into(),
                found: "a policy that does".into(),
            });
        }
        self.context.bind()?;
        let (all, named) = (self.active(), order(&self.trainables, updates));
        self.prepare(&named)?;
        let mut descriptors: BTreeMap<usize, Descriptor> =
            all.iter().map(|&index| (index, descriptor(&self.trainables[index]))).collect();
        for update in updates {
            let next = self.trainables[update.index].updates + 1;
            descriptors.insert(update.index, self.advanced(options, *update, next));
        }
        let formats = self.by_format(&named);
        // Once more, should the first have made room by forgetting others.
        for _ in 0..2 {
            self.tables(&all)?;
            for (_, of) in &formats {
                self.tables(of)?;
            }
        }
        let mut underway = Underway { squares: self.tables(&all)?, formats: Vec::new(), seed: options.seed };
        let ready = |this: &Self, place: usize, of: &[usize]| {
            let tables = &this.optimizer.tables[place];
            let of: Vec<Descriptor> = of.iter().filter_map(|index| descriptors.get(index).copied()).collect();
            this.context.upload(tables.factor.view(1, 1), &[1.0_f32])?;
            this.upload_descriptors(tables, &of)
        };
        ready(self, underway.squares, &all)?;
        for (format, of) in &formats {
            let place = self.tables(of)?;
            ready(self, place, of)?;
            underway.formats.push((place, format.bits()));
        }
        self.clear_stop()?;
        let loss = pass(self, &underway);
        // Blocks have changed behind the products that read their factors.
        self.lower_updated(updates);
        let loss = loss?;
        let place = underway.squares;
        let norm = self.norm_of(&self.optimizer.tables[place], &all)?;
        let (norm, reached) = match norm {
            Ok(norm) => (Ok(norm), None),
            Err((bad, value)) => {
                let (error, last) = self.stopped_at(&bad, value);
                (Err(error), Some(last))
            }
        };
        for update in updates {
            let trainable = &mut self.trainables[update.index];
            // A block is updated before those below it, and what is in none at the end.
            let changed = match (reached, trainable.key.0.0) {
                (None, _) | (Some(None), Some(_)) => true,
                (Some(Some(last)), Some(block)) => block > last,
                (Some(_), None) => false,
            };
            trainable.updates += u64::from(changed);
        }
        norm.map(|norm| (loss, norm))
    }

    /// The error for gradients that are not finite, and the block with which the updates stopped; `None`: behind all blocks.
    fn stopped_at(&self, bad: &[usize], value: f64) -> (EngineError, Option<usize>) {
        let key = |index: &usize| self.trainables[*index].key.0;
        // In the order of the updates: from the last block down, then what is in none.
        let first = bad.iter().copied().max_by_key(|index| (key(index).0, std::cmp::Reverse(key(index).1)));
        let block = first.and_then(|index| key(&index).0);
        let name = first.map_or("?", |index| &self.trainables[index].name);
        let what = format!("the gradient of {name}");
        let others = self.active().into_iter().filter_map(|index| key(&index).0);
        let changed: Vec<usize> = others.filter(|&other| block.is_none_or(|block| other > block)).collect();
        let error = match (changed.iter().min(), changed.iter().max()) {
            (Some(from), Some(to)) => {
                let updated = if from == to { format!("block {to}") } else { format!("blocks {from} to {to}") };
                EngineError::NotFiniteAmid { what, value, updated }
            }
            _ => EngineError::NotFinite { what, value },
        };
        (error, block)
    }

    /// The update of a batch in which nothing counts: moments fade, and weights move by them.
    fn update_without_gradients(&mut self, underway: &Underway) -> Result<()> {
        let bytes = self.blocks.iter().map(|block| block.window_bytes).max().unwrap_or(0);
        for trainable in &self.trainables {
            trainable.clear_grad(&self.context)?;
        }
        self.within(|this, arena| {
            let window = arena.high::<u8>(1, bytes, 0)?;
            this.context.fill_bytes(window, 0)?;
            if !this.context.is_dry() {
                for block in (0..this.blocks.len()).rev() {
                    underway.update(this, Some(block), window.ptr())?;
                }
                underway.update(this, None, 0)?;
            }
            Ok(())
        })
    }

    /// Fails where gradients don't outlast the pass.
    ///
    /// # Errors
    /// Then.
    pub(super) fn expect_own_gradients(&self) -> Result<()> {
        if !self.options.update_in_backward {
            return Ok(());
        }
        Err(EngineError::Shape {
            what: "gradients after a pass".into(),
            expected: "memory of their own".into(),
            found: "one place for all blocks, for updates inside the pass".into(),
        })
    }
}
