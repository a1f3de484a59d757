//! A card's model whose plan is revised between steps: what begins to train, and what stops.
//!
//! In: the plan as it stands. Out: the same model, in which its weights train and no others. What once trained keeps its numbers,
//! and is in checkpoints.

use liftplan_engine::EngineError;
use liftplan_engine::cuda::{self, Slot};

use super::AdapterNames;
use super::build::read;
use super::card::{Card, failed, memory_error};
use super::card_specs::role;
use crate::model::BaseModel;
use crate::model::inventory::TensorInfo;
use crate::plan::{Entry, Plan, Storage, Treatment};
use crate::{Error, Result};

impl Card {
    /// Whether the card can go on by this plan.
    ///
    /// # Errors
    /// Names the first tensor with which it can't, and the way out.
    pub fn can_follow(&self, base: &BaseModel, plan: &Plan) -> Result<()> {
        for (info, entry) in base.inventory.tensors.iter().zip(&plan.entries) {
            let begins = match &entry.treatment {
                Treatment::Adapt(_) => {
                    let a = AdapterNames::of(&info.name).a;
                    !self.decoder().trainables().iter().any(|trainable| trainable.name == a)
                }
                Treatment::Frozen | Treatment::Train => false,
            };
            if begins {
                return Err(Error::plan(format!(
                    "`{}`: an adapter that begins at a pick does not run on a GPU yet",
                    info.name
                ))
                .help("adapt it in the first plan, or set device to \"cpu\""));
            }
        }
        Ok(())
    }

    /// Makes what the plan trains whole something that can train, with the base model's numbers if it never did.
    ///
    /// # Errors
    /// When there is no memory, or a tensor can't be read.
    pub fn adopt(&mut self, base: &BaseModel, plan: &Plan) -> Result<()> {
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
        let trains = |name: &str| adapted.iter().any(|names| names.a == name || names.b == name);
        self.decoder_mut().set_active(trains).map_err(failed)
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
    let unknown = |info: &TensorInfo| Error::internal(format!("`{}` has no place on the card", info.name));
    trained.map(|(info, entry)| Ok((info, entry, (info.block, role(info).ok_or_else(|| unknown(info))?)))).collect()
}
