//! Building a model on the card: what each weight is lays out the memory, and then the weights are loaded, one by one.

use std::collections::BTreeMap;

use half::bf16;

use super::arena::Arena;
use super::context::Context;
use super::decoder::Decoder;
use super::layout::Maker;
use super::loader::{Data, Loader};
use super::memory::View;
use super::offload::Offload;
use super::ops::{self, Filled};
use super::optim::Optimizer;
use super::packed::{Map, Packed};
use super::slab::Slab;
use super::spec::{ModelShape, Options, Role, Slot, TensorSpec};
use crate::error::{EngineError, Result};

/// A model whose weights are being loaded.
#[derive(Debug)]
pub struct Builder {
    decoder: Decoder,
    loader: Loader,
}

/// Where a weight lies.
#[derive(Clone, Debug)]
pub(crate) enum Place {
    Matrix { view: View<bf16>, trained: Option<usize> },
    Packed(Packed),
    Vector { view: View<f32>, trained: Option<usize> },
}

impl Builder {
    /// Memory for a model of `shape` whose weights are treated as `specs` says.
    ///
    /// # Errors
    /// When a weight is missing or cannot be treated so, or there is no memory.
    pub fn new(context: &Context, shape: &ModelShape, specs: &[TensorSpec], options: Options) -> Result<Self> {
        context.bind()?;
        shape.check()?;
        let mut maker = Maker {
            context,
            shape,
            options,
            specs: specs.iter().map(|spec| (spec.slot, spec)).collect(),
            slab: Slab::new(context),
            trainables: Vec::new(),
            places: BTreeMap::new(),
            map: Map::default(),
            embedding_home: None,
            window: None,
        };
        let embedding = maker.table((None, Role::Embedding))?;
        let blocks = (0..shape.blocks).map(|block| maker.block(block)).collect::<Result<Vec<_>>>()?;
        let norm = maker.scale((None, Role::FinalNorm))?;
        let head = if shape.tied { None } else { Some(maker.table((None, Role::Head))?) };
        let Maker { slab, trainables, places, map, embedding_home, .. } = maker;
        let decoder = Decoder {
            context: context.clone(),
            shape: shape.clone(),
            options,
            embedding,
            embedding_home,
            blocks,
            norm,
            head,
            trainables,
            slab,
            rope: None,
            arena: Arena::counting(),
            places,
            map,
            optimizer: Optimizer::default(),
            plan: None,
            inputs_away: Offload::default(),
            attended_away: Offload::default(),
            budget: None,
            room: None,
            recompute: false,
            dropout: (0, 0),
            fresh: true,
        };
        Ok(Self { decoder, loader: Loader::default() })
    }

    /// Copies a weight to its place ([`Loader::load`]).
    ///
    /// # Errors
    /// As there.
    pub fn load(&mut self, slot: Slot, data: Data<'_>) -> Result<()> {
        self.loader.load(&self.decoder, slot, data)
    }

    /// Random weights, for measurements: normal with the given spread, adapters' too, norms 1, biases 0.
    ///
    /// # Errors
    /// When the device fails.
    pub fn randomise(&mut self, spread: f32, adapter_spread: f32, seed: u64) -> Result<()> {
        let context = self.decoder.context.clone();
        let places: Vec<(Slot, Place)> =
            self.decoder.places.iter().map(|(slot, place)| (*slot, place.clone())).collect();
        for (purpose, (slot, place)) in places.into_iter().enumerate() {
            let purpose = purpose as u32;
            match place {
                Place::Matrix { view, .. } if self.decoder.home(slot).is_some() => {
                    let (whole, _) = self.loader.scratch(&context, view.rows(), view.cols(), 0)?;
                    ops::random_normal(&context, Filled::Narrow(whole), spread, seed, purpose)?;
                    self.decoder.home(slot).map_or(Ok(()), |home| home.fetch(whole))?;
                }
                Place::Matrix { view, trained } => {
                    ops::random_normal(&context, Filled::Narrow(view), spread, seed, purpose)?;
                    if let Some(master) = trained.and_then(|index| self.decoder.trainables[index].master) {
                        ops::random_normal(&context, Filled::Wide(master), spread, seed, purpose)?;
                    }
                }
                Place::Packed(Packed::Int8(_)) => return Err(unfit(slot, "4 bits or plain numbers", "8 bits")),
                Place::Packed(Packed::Nf4(packed)) => {
                    let (whole, maxima) =
                        self.loader.scratch(&context, packed.rows, packed.cols, packed.scratch_len())?;
                    ops::random_normal(&context, Filled::Narrow(whole), spread, seed, purpose)?;
                    packed.pack(&context, whole, maxima)?;
                }
                Place::Vector { view, .. } => {
                    let bias = slot.1.biases().is_some();
                    context.upload(view, &vec![if bias { 0.0_f32 } else { 1.0 }; view.len()])?;
                }
            }
        }
        for (i, trainable) in self.decoder.trainables.iter().enumerate() {
            // An adapter's matrices: a master and a copy that is no weight of its own.
            if let (Some(master), Some(copy)) = (trainable.master, trainable.copy)
                && !self
                    .decoder
                    .places
                    .values()
                    .any(|place| matches!(place, Place::Matrix { trained, .. } if *trained == Some(i)))
            {
                ops::random_normal(&context, Filled::Wide(master), adapter_spread, seed, 1 << 20 | i as u32)?;
                ops::scaled_copy(&context, copy, master, trainable.scale)?;
            }
        }
        self.decoder.begin_magnitudes(|_| true)
    }

    /// Which trainable has this name.
    pub fn trainable(&self, name: &str) -> Option<usize> {
        self.decoder.trainables.iter().position(|trainable| trainable.name == name)
    }

    /// Sets an adapter's matrix, or any tensor that trains, by its number.
    ///
    /// # Errors
    /// When the numbers do not fit it, or the device fails.
    pub fn set_trainable(&mut self, index: usize, values: &[f32]) -> Result<()> {
        self.decoder.set_value(index, values)
    }

    /// The model, loaded.
    pub fn finish(self) -> Decoder {
        self.decoder
    }
}

pub(super) fn unfit(slot: Slot, expected: &str, found: &str) -> EngineError {
    EngineError::Shape { what: format!("{slot:?}"), expected: expected.into(), found: found.into() }
}
