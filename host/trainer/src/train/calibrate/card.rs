//! The model that is measured, on a GPU, in bf16: its blocks are groups, and each weight outside them is one, since a vocabulary's
//! gradient is as large as several blocks'.
//!
//! What is measured depends on the model and the batches alone, never on the memory there is, so that a run that goes on
//! measures the same again.

use std::collections::BTreeMap;

use liftplan_engine::cuda::{self, Context, GradientSum, Slot};
use liftplan_engine::decoder::LossSum;
use liftplan_engine::observe::Seen;
use liftplan_engine::{Batch, EngineError};

use super::super::card::{Card, CardOptions};
use super::super::card_specs::specs;
use super::super::forecast::Place;
use super::super::prepare::untouched;
use super::{Gradient, Measurable, broken, targets};
use crate::Result;
use crate::config::Config;
use crate::model::BaseModel;
use crate::plan::{Plan, Storage, Treatment};
use crate::report::Silent;
use crate::report::text::memory;

pub(super) struct OnCard {
    card: Card,
    groups: Vec<Vec<(Slot, String)>>,
    names: BTreeMap<Slot, String>,
    blocks: usize,
}

/// Bytes beside the model's: the driver's own, and the scratch memory of packing and of products.
const MARGIN: usize = 512 << 20;

impl OnCard {
    /// Whether the card holds the model with the gradients of its largest group; why not.
    ///
    /// # Errors
    /// When the device fails.
    pub fn fits(
        context: &Context,
        base: &BaseModel,
        config: &Config,
        longest: Option<&Batch>,
    ) -> Result<std::result::Result<(), String>> {
        let mut plan = untouched(base, Storage::Bf16);
        let groups = match groups(base, &plan) {
            Ok(groups) => groups,
            Err(error) => return Ok(Err(error.message().to_string())),
        };
        let size = |name: &String| base.inventory.tensors.iter().find(|t| t.name == *name).map_or(0, |t| t.len());
        let largest = groups.iter().max_by_key(|group| group.iter().map(|(_, name)| size(name)).sum::<usize>());
        for (_, name) in largest.into_iter().flatten() {
            for entry in plan.entries.iter_mut().filter(|entry| entry.tensor == *name) {
                entry.treatment = Treatment::Train;
            }
        }
        let dry = Context::dry(context.capability());
        let card = match Card::laid_out(&dry, base, &plan, CardOptions::default()) {
            Ok(card) => card,
            Err(error) => return Ok(Err(error.message().to_string())),
        };
        let step = longest.map_or(Ok(0), |batch| card.decoder().leanest_bytes(batch)).map_err(broken)?;
        let needed = longest.map_or(0, |batch| card.lasting_bytes(batch)) + (step + MARGIN) as u64;
        let Place { free, .. } = Place::of(context)?;
        let free = config.vram.map_or(free, |vram| vram.0.min(free));
        Ok(if needed <= free {
            Ok(())
        } else {
            Err(format!("it takes {} of the GPU, and {} are free", memory(needed), memory(free)))
        })
    }

    /// The model on the card.
    ///
    /// # Errors
    /// When there is no memory, or a tensor can't be read.
    pub fn new(context: &Context, base: &BaseModel, config: &Config) -> Result<Self> {
        let plan = untouched(base, Storage::Bf16);
        let groups = groups(base, &plan)?;
        let card = Card::build(context, base, &plan, config.seed, CardOptions::default(), &mut Silent)?;
        let names = groups.iter().flatten().cloned().collect();
        Ok(Self { card, groups, names, blocks: base.spec.blocks })
    }
}

/// The blocks, and each weight outside them.
fn groups(base: &BaseModel, plan: &Plan) -> Result<Vec<Vec<(Slot, String)>>> {
    let mut blocks: BTreeMap<usize, Vec<(Slot, String)>> = BTreeMap::new();
    let mut outside = Vec::new();
    for spec in specs(&base.inventory, plan)? {
        match spec.slot.0 {
            Some(block) => blocks.entry(block).or_default().push((spec.slot, spec.name)),
            None => outside.push(vec![(spec.slot, spec.name)]),
        }
    }
    Ok(blocks.into_values().chain(outside).collect())
}

/// The gradients of what trains now: of each batch alone, and, unless there is only one, of all of them in a second sweep, so that no
/// sum needs memory of its own.
fn measure(decoder: &mut cuda::Decoder, batches: &[Vec<Batch>]) -> Result<BTreeMap<String, Gradient>, EngineError> {
    let all: f32 = batches.iter().map(|batch| targets(batch)).sum();
    let mut gradients: BTreeMap<usize, Gradient> = BTreeMap::new();
    for batch in batches {
        decoder.clear_grads();
        for micro in batch {
            decoder.accumulate_leanest(micro, 1.0 / targets(batch))?;
        }
        for (index, squared) in decoder.gradient_sums(GradientSum::Squares)? {
            gradients.entry(index).or_default().squared += squared / batches.len() as f64;
        }
    }
    if batches.len() > 1 {
        decoder.clear_grads();
        for micro in batches.iter().flatten() {
            decoder.accumulate_leanest(micro, 1.0 / all)?;
        }
    }
    for (index, squared) in decoder.gradient_sums(GradientSum::Squares)? {
        gradients.entry(index).or_default().norm = squared.sqrt();
    }
    for (index, by_weight) in decoder.gradient_sums(GradientSum::TimesWeights)? {
        gradients.entry(index).or_default().by_weight = by_weight;
    }
    let named = |(index, gradient): (usize, Gradient)| {
        decoder.trainables().get(index).map(|trainable| (trainable.name.clone(), gradient))
    };
    Ok(gradients.into_iter().filter_map(named).collect())
}

impl Measurable for OnCard {
    fn blocks(&self) -> usize {
        self.blocks
    }

    fn groups(&self) -> usize {
        self.groups.len()
    }

    fn gradients(&mut self, group: usize, batches: &[Vec<Batch>]) -> Result<BTreeMap<String, Gradient>, EngineError> {
        let decoder = self.card.decoder_mut();
        let group = self.groups.get(group).map_or(&[][..], Vec::as_slice);
        for (slot, name) in group {
            decoder.adopt(*slot, name, cuda::Storage::Bf16)?;
            decoder.begin(*slot)?;
        }
        let measured = measure(decoder, batches);
        for (slot, _) in group {
            decoder.cease(*slot)?;
        }
        measured
    }

    fn loss(&mut self, batch: &Batch, without: Option<usize>) -> Result<LossSum, EngineError> {
        match without {
            Some(block) => self.card.decoder_mut().loss_without(block, batch),
            None => self.card.decoder_mut().loss(batch),
        }
    }

    fn observe(&mut self, batch: &Batch, see: &mut dyn FnMut(Seen<'_>)) -> Result<(), EngineError> {
        let names = &self.names;
        self.card.decoder_mut().observe(batch, |slot| names.get(&slot).cloned().unwrap_or_default(), see)
    }
}
