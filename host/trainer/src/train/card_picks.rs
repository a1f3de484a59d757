//! A card's model whose plan is revised between steps: what begins to train, what stops, and what is kept in another way.
//!
//! In: the plan as it stands. Out: the same model, in which its weights train and no others. What once trained keeps its numbers,
//! and is in checkpoints; what never did is read again where its storage is another.

use std::collections::{BTreeMap, BTreeSet};

use liftplan_engine::EngineError;
use liftplan_engine::cuda::{Loader, Slot};

use super::AdapterNames;
use super::build::read;
use super::card::{Card, failed, memory_error};
use super::card_load::{begin_adapters, load};
use super::card_specs::{adapter, kept_as, role};
use crate::model::BaseModel;
use crate::model::inventory::TensorInfo;
use crate::plan::{Entry, Plan, Treatment};
use crate::{Error, Result};

impl Card {
    /// Makes what the plan trains whole something that can train, with the base model's numbers if it never did; and puts adapters
    /// where the plan has some and the card has none, with the first numbers that `seed` draws for them on every device. Before all
    /// that, tensors that never trained and are kept otherwise than before, at the positions `anew` of the plan, are read again.
    ///
    /// # Errors
    /// When there is no memory, or a tensor can't be read.
    pub fn adopt(&mut self, base: &BaseModel, plan: &Plan, anew: &[usize], seed: u64) -> Result<()> {
        self.store_anew(base, plan, anew)?;
        for (info, entry, slot) in trained(base, plan)? {
            let adopted = self.decoder_mut().adopt(slot, &info.name, kept_as(entry.storage));
            let (index, new) = adopted.map_err(|error| memory_error(error, "what is to train", plan))?;
            if new {
                let values = read(base, info, entry.storage)?;
                self.decoder_mut().set_value(index, &values.as_f32()).map_err(failed)?;
                self.note_file(&info.name, info.shape.clone(), entry.storage);
            }
        }
        let there: BTreeSet<&str> = self.decoder().trainables().iter().map(|matrix| matrix.name.as_str()).collect();
        let mut begins = BTreeMap::new();
        for (i, (info, entry)) in base.inventory.tensors.iter().zip(&plan.entries).enumerate() {
            if let Treatment::Adapt(spec) = &entry.treatment
                && !there.contains(AdapterNames::of(&info.name).a.as_str())
            {
                begins.insert(info.name.as_str(), (place(info)?, adapter(info, spec, i)));
            }
        }
        if begins.is_empty() {
            return Ok(());
        }
        let adapters: Vec<_> = begins.values().cloned().collect();
        let adapted = self.decoder_mut().adapt(&adapters);
        adapted.map_err(|error| memory_error(error, "what is to be adapted", plan))?;
        let begun = begin_adapters(self.decoder_mut(), base, plan, seed, |name| begins.contains_key(name))?;
        self.note_adapters(begun);
        Ok(())
    }

    /// Keeps tensors as the plan says now, and reads what does not train whole again in that storage.
    fn store_anew(&mut self, base: &BaseModel, plan: &Plan, positions: &[usize]) -> Result<()> {
        if positions.is_empty() {
            return Ok(());
        }
        let mut anew = Vec::with_capacity(positions.len());
        for &position in positions {
            if let (Some(info), Some(entry)) = (base.inventory.tensors.get(position), plan.entries.get(position)) {
                anew.push((position, place(info)?, entry));
            }
        }
        let storages: Vec<_> = anew.iter().map(|(_, slot, entry)| (*slot, kept_as(entry.storage))).collect();
        let stored = self.decoder_mut().store(&storages);
        stored.map_err(|error| memory_error(error, "what is to be kept in another storage", plan))?;
        let mut loader = Loader::default();
        for (position, slot, _) in anew.into_iter().filter(|(.., entry)| entry.treatment != Treatment::Train) {
            load(&mut loader, self.decoder(), base, plan, (position, slot))?;
        }
        Ok(())
    }

    /// Lets what the plan trains train, and nothing else; all of it was adopted.
    ///
    /// # Errors
    /// When there is no memory, or the device fails.
    pub fn follow(&mut self, base: &BaseModel, plan: &Plan) -> Result<()> {
        let made = |error: EngineError| memory_error(error, "what is to train", plan);
        let trained: Vec<Slot> = trained(base, plan)?.into_iter().map(|(_, _, slot)| slot).collect();
        for slot in self.whole() {
            if !trained.contains(&slot) {
                self.decoder_mut().cease(slot).map_err(failed)?;
            }
        }
        for slot in trained {
            self.decoder_mut().begin(slot).map_err(made)?;
        }
        let adapted: Vec<AdapterNames> = (plan.entries.iter())
            .filter(|entry| matches!(entry.treatment, Treatment::Adapt(_)))
            .map(|entry| AdapterNames::of(&entry.tensor))
            .collect();
        let trains = |matrix: &str| adapted.iter().any(|names| names.has(matrix));
        self.decoder_mut().set_active(trains).map_err(failed)
    }

    /// Lets the adapters of these weights rest in a model that is laid out, and has the memory that all others' updates take.
    ///
    /// # Errors
    /// When there is no memory.
    pub fn rest(&mut self, weights: &BTreeSet<String>) -> Result<(), EngineError> {
        let rest: Vec<AdapterNames> = weights.iter().map(|weight| AdapterNames::of(weight)).collect();
        self.decoder_mut().set_active(|matrix| !rest.iter().any(|names| names.has(matrix)))?;
        self.decoder_mut().watch(true);
        self.prepare(None).map(|_| ())
    }

    /// Whole weights that train.
    fn whole(&self) -> Vec<Slot> {
        let trainables = self.decoder().trainables().iter();
        trainables.filter(|trainable| trainable.trains()).filter_map(|trainable| trainable.whole()).collect()
    }
}

/// What the plan trains whole, with its place on the card.
fn trained<'a>(base: &'a BaseModel, plan: &'a Plan) -> Result<Vec<(&'a TensorInfo, &'a Entry, Slot)>> {
    let pairs = base.inventory.tensors.iter().zip(&plan.entries);
    let trained = pairs.filter(|(_, entry)| entry.treatment == Treatment::Train);
    trained.map(|(info, entry)| Ok((info, entry, place(info)?))).collect()
}

/// A tensor's place on the card.
fn place(info: &TensorInfo) -> Result<Slot> {
    let role = role(info).ok_or_else(|| Error::internal(format!("`{}` has no place on the card", info.name)))?;
    Ok((info.block, role))
}
