//! A card's model whose plan is revised between steps: what begins to train, and what stops.
//!
//! In: the plan as it stands. Out: the same model, in which its weights train and no others. What once trained keeps its numbers,
//! and is in checkpoints.

use std::collections::{BTreeMap, BTreeSet};

use liftplan_engine::EngineError;
use liftplan_engine::cuda::{self, Slot};

use super::AdapterNames;
use super::build::read;
use super::card::{Card, failed, memory_error};
use super::card_load::begin_adapters;
use super::card_specs::{adapter, check, role};
use crate::model::BaseModel;
use crate::model::inventory::TensorInfo;
use crate::plan::{Entry, Plan, Storage, Treatment};
use crate::{Error, Result};

impl Card {
    /// Whether the card can go on by `plan` from `before`.
    ///
    /// # Errors
    /// Names the first tensor with which it can't, and the way out.
    pub fn can_follow(base: &BaseModel, before: &Plan, plan: &Plan) -> Result<()> {
        check(base, plan)?;
        for (old, new) in before.entries.iter().zip(&plan.entries) {
            // What is not packed lies on the card in bf16, whatever it is called; what begins to train whole becomes that.
            let plain = |entry: &Entry| entry.storage.can_train();
            if new.treatment != Treatment::Train && old.storage != new.storage && !(plain(old) && plain(new)) {
                return Err(Error::plan(format!(
                    "`{}`: a GPU keeps it as {} from its start on, and not as {} from a pick on",
                    new.tensor, old.storage, new.storage
                ))
                .help("leave its storage as it is, or set device to \"cpu\""));
            }
        }
        Ok(())
    }

    /// Makes what the plan trains whole something that can train, with the base model's numbers if it never did; and puts adapters
    /// where the plan has some and the card has none, with the first numbers that `seed` draws for them on every device.
    ///
    /// # Errors
    /// When there is no memory, or a tensor can't be read.
    pub fn adopt(&mut self, base: &BaseModel, plan: &Plan, seed: u64) -> Result<()> {
        for (info, entry, slot) in trained(base, plan)? {
            let storage = if entry.storage == Storage::F32 { cuda::Storage::F32 } else { cuda::Storage::Bf16 };
            let adopted = self.decoder_mut().adopt(slot, &info.name, storage);
            let (index, new) = adopted.map_err(|error| memory_error(error, "what is to train", plan))?;
            if new {
                let values = read(base, info, entry.storage)?;
                self.set_value(index, &values.as_f32()).map_err(failed)?;
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
