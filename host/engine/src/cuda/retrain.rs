//! Weights that begin or stop training between steps. In: a weight's place. Out: the same model, in which it trains or not.
//!
//! What begins has a gradient and, at the next update, moments, in memory of its own; both go when it stops. Its numbers stay
//! where they are.

use std::collections::BTreeMap;

use super::builder::{Place, unfit};
use super::decoder::Decoder;
use super::memory::View;
use super::slab::Slab;
use super::spec::{Role, Slot, Storage};
use super::trainable::{Grad, Trainable};
use crate::error::Result;

impl Decoder {
    /// Makes a weight one that can train, if it is not yet: its number among the trainables, and whether it is new. A new one in
    /// `f32` has the numbers that products read; [`Decoder::set_value`] gives it finer ones. A weight in 4 bits becomes bf16
    /// without numbers.
    ///
    /// # Errors
    /// When there is no such weight, it lies in the host's memory, or there is no memory.
    pub fn adopt(&mut self, slot: Slot, name: &str, storage: Storage) -> Result<(usize, bool)> {
        self.expect_own_gradients()?;
        self.context.bind()?;
        self.lower();
        if self.home(slot).is_some() {
            return Err(unfit(slot, "on the card, since it is to train", "in the host's memory"));
        }
        if let Some(Place::Packed(_)) = self.places.get(&slot) {
            self.store(&[(slot, Storage::Bf16)])?;
        }
        let place = self.places.get(&slot).cloned().ok_or_else(|| unfit(slot, "a weight of this model", "none"))?;
        let (copy, vector) = match place {
            Place::Matrix { trained: Some(index), .. } | Place::Vector { trained: Some(index), .. } => {
                return Ok((index, false));
            }
            Place::Matrix { view, .. } => (Some(view), None),
            Place::Vector { view, .. } => (None, Some(view)),
            Place::Packed(_) => return Err(unfit(slot, "a weight in 16 or 32 bits", "fewer")),
        };
        let wide = storage == Storage::F32 || self.options.masters;
        let (rows, cols) = match (copy, vector) {
            (Some(view), _) => (view.rows(), view.cols()),
            (None, Some(view)) => (1, view.cols()),
            (None, None) => (0, 0),
        };
        let master = match (vector, copy) {
            (None, Some(_)) if wide => Some(self.slab.take(rows, cols, 0)?),
            (vector, _) => vector,
        };
        let index = self.trainables.len();
        self.trainables.push(Trainable {
            name: name.into(),
            rows,
            cols,
            master,
            copy,
            scale: 1.0,
            on_bf16_grid: vector.is_some() && storage == Storage::Bf16,
            value_is_copy: copy.is_some() && storage != Storage::F32,
            grad: Grad::Wide(View::at(0, 0, 0, 0)),
            in_window: false,
            moments: None,
            updates: 0,
            key: (slot, 0),
            trains: false,
            own: Some(Slab::apart(&self.context)),
        });
        let trained = Some(index);
        let place = match (copy, vector) {
            (Some(view), _) => Place::Matrix { view, trained },
            (None, Some(view)) => Place::Vector { view, trained },
            (None, None) => return Err(unfit(slot, "a weight with numbers", "none")),
        };
        self.places.insert(slot, place);
        Ok((index, true))
    }

    /// Lets an adopted weight train from the next pass on.
    ///
    /// # Errors
    /// When it was not adopted, or there is no memory for its gradient.
    pub fn begin(&mut self, slot: Slot) -> Result<()> {
        let index = self.adopted(slot)?;
        if self.trainables[index].trains {
            return Ok(());
        }
        self.context.bind()?;
        self.forget_plans()?;
        let trainable = &mut self.trainables[index];
        let (rows, cols) = (trainable.rows, trainable.cols);
        if let Some(own) = &mut trainable.own {
            trainable.grad = Grad::Wide(own.zeros(rows, cols, 0)?);
        }
        trainable.trains = true;
        self.connect(slot, Some(index));
        Ok(())
    }

    /// Lets a weight stop training: its gradient and its states go.
    ///
    /// # Errors
    /// When it was not adopted, or the device fails.
    pub fn cease(&mut self, slot: Slot) -> Result<()> {
        let index = self.adopted(slot)?;
        self.context.synchronize()?;
        let context = self.context.clone();
        let trainable = &mut self.trainables[index];
        trainable.trains = false;
        trainable.moments = None;
        trainable.updates = 0;
        trainable.grad = Grad::Wide(View::at(0, 0, 0, 0));
        trainable.own = Some(Slab::apart(&context));
        if trainable.value_is_copy {
            // What is finer than the value is the optimiser's, which forgets.
            if let (Some(master), Some(copy)) = (trainable.master, trainable.copy) {
                let values: Vec<f32> = context.download(copy)?.into_iter().map(half::bf16::to_f32).collect();
                if values.len() == master.len() {
                    context.upload(master, &values)?;
                }
            }
        }
        self.connect(slot, None);
        self.forget_plans()
    }

    /// Lets adapters' matrices train or stop, by their names. What stops keeps its numbers, and memory for the next time: its
    /// gradient and its moments are zero then. An adapter of which nothing trains has no gradients made.
    ///
    /// # Errors
    /// When the device fails.
    pub fn set_active(&mut self, trains: impl Fn(&str) -> bool) -> Result<()> {
        self.context.bind()?;
        let mut adapters = BTreeMap::<Slot, bool>::new();
        for trainable in self.trainables.iter_mut().filter(|trainable| trainable.key.1 > 0) {
            let now = trains(&trainable.name);
            match (trainable.trains, now) {
                (true, false) => {
                    trainable.updates = 0;
                    trainable.clear_moments(&self.context)?;
                }
                // Others' gradients may be sums already, to which the next pass adds.
                (false, true) => trainable.clear_grad(&self.context)?,
                _ => {}
            }
            trainable.trains = now;
            *adapters.entry(trainable.key.0).or_default() |= now;
        }
        for (slot, now) in adapters {
            if let Some(adapter) = self.part_mut(slot).and_then(|part| part.adapter.as_mut()) {
                adapter.trains = now;
            }
        }
        self.forget_plans()
    }

    fn adopted(&self, slot: Slot) -> Result<usize> {
        match self.places.get(&slot) {
            Some(Place::Matrix { trained: Some(index), .. } | Place::Vector { trained: Some(index), .. }) => Ok(*index),
            _ => Err(unfit(slot, "a weight that was adopted", "another")),
        }
    }

    /// What was planned, tabled and made for what trained before goes, and the activations' memory for what begins now.
    pub(super) fn forget_plans(&mut self) -> Result<()> {
        (self.plan, self.room) = (None, None);
        self.lower();
        self.optimizer.tables.clear();
        self.release_arena()
    }

    /// Says where the passes look which trainable a weight is.
    fn connect(&mut self, slot: Slot, trained: Option<usize>) {
        if let Some(part) = self.part_mut(slot) {
            part.trained = trained;
            return;
        }
        if let Some(part) = slot.1.biases().and_then(|role| self.part_mut((slot.0, role))) {
            part.bias = trained;
            return;
        }
        match slot {
            (None, Role::Embedding) => self.embedding.trained = trained,
            (None, Role::FinalNorm) => self.norm.trained = trained,
            (None, Role::Head) => {
                if let Some(head) = &mut self.head {
                    head.trained = trained;
                }
            }
            (Some(block), role) => {
                let Some(block) = self.blocks.get_mut(block) else { return };
                match role {
                    Role::InputNorm => block.input_norm.trained = trained,
                    Role::PostNorm => block.post_norm.trained = trained,
                    Role::QNorm => block.q_norm.iter_mut().for_each(|norm| norm.trained = trained),
                    Role::KNorm => block.k_norm.iter_mut().for_each(|norm| norm.trained = trained),
                    _ => {}
                }
            }
            _ => {}
        }
    }
}
