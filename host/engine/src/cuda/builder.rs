//! Building a model on the card: first what each weight is, which lays out the memory; then the weights, one by one, so
//! that no more than one is ever held on the host.

use std::collections::BTreeMap;

use half::bf16;

use super::arena::Arena;
use super::context::Context;
use super::decoder::Decoder;
use super::layout::Maker;
use super::memory::{Buffer, View};
use super::nf4::Parts;
use super::offload::Offload;
use super::ops::{self, Filled};
use super::optim::Optimizer;
use super::packed::Packed;
use super::slab::Slab;
use super::spec::{ModelShape, Options, Role, Slot, TensorSpec};
use super::staging::Staging;
use crate::error::{EngineError, Result, expect_shape};

/// A model whose weights are being loaded.
#[derive(Debug)]
pub struct Builder {
    pub(super) decoder: Decoder,
    scratch: Option<Buffer>,
    pub(super) staging: Staging,
}

/// Where a weight lies.
#[derive(Clone, Debug)]
pub(crate) enum Place {
    Matrix { view: View<bf16>, trained: Option<usize> },
    Packed(Packed),
    Vector { view: View<f32>, trained: Option<usize> },
}

/// A weight's numbers on the host.
#[derive(Clone, Copy, Debug)]
pub enum Data<'a> {
    /// 32-bit floats.
    F32(&'a [f32]),
    /// bfloat16.
    Bf16(&'a [bf16]),
    /// 4 bits, as bitsandbytes packs them.
    Nf4(Parts<'a>),
    /// 8-bit codes and each row's largest magnitude.
    Int8(&'a [i8], &'a [f32]),
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
            map: None,
            embedding_home: None,
            window: None,
        };
        let embedding = maker.table((None, Role::Embedding))?;
        let blocks = (0..shape.blocks).map(|block| maker.block(block)).collect::<Result<Vec<_>>>()?;
        let norm = maker.scale((None, Role::FinalNorm))?;
        let head = if shape.tied { None } else { Some(maker.table((None, Role::Head))?) };
        let Maker { slab, trainables, places, embedding_home, .. } = maker;
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
        Ok(Self { decoder, scratch: None, staging: Staging::default() })
    }

    /// Copies a weight to its place, packing it if it is to be kept in 4 bits.
    ///
    /// # Errors
    /// When there is no such weight, the numbers do not fit it, or the device fails.
    pub fn load(&mut self, slot: Slot, data: Data<'_>) -> Result<()> {
        self.decoder.lower();
        let context = self.decoder.context.clone();
        let [rows, cols] = self.decoder.shape.shape_of(slot.1);
        let found = match data {
            Data::F32(values) => values.len(),
            Data::Bf16(values) => values.len(),
            Data::Nf4(Parts::Single(codes, ..) | Parts::Double(codes, ..)) => codes.len() * 2,
            Data::Int8(codes, _) => codes.len(),
        };
        expect_shape(&format!("{slot:?}"), rows * cols, found)?;
        let narrow = |data: Data<'_>| match data {
            Data::F32(values) => Ok(values.iter().map(|&x| bf16::from_f32(x)).collect::<Vec<_>>()),
            Data::Bf16(values) => Ok(values.to_vec()),
            Data::Nf4(_) | Data::Int8(..) => Err(unfit(slot, "numbers of 16 or 32 bits", "codes")),
        };
        let wide = |data: Data<'_>| match data {
            Data::F32(values) => Ok(values.to_vec()),
            Data::Bf16(values) => Ok(values.iter().map(|x| x.to_f32()).collect::<Vec<_>>()),
            Data::Nf4(_) | Data::Int8(..) => Err(unfit(slot, "numbers of 16 or 32 bits", "codes")),
        };
        match self.decoder.places.get(&slot) {
            Some(Place::Matrix { trained: Some(index), .. } | Place::Vector { trained: Some(index), .. }) => {
                self.decoder.trainables[*index].set_value(&context, &wide(data)?)
            }
            Some(Place::Matrix { view, .. }) => {
                let put = |values: &[bf16]| match self.decoder.home(slot) {
                    Some(home) => home.write(values),
                    None => context.upload(*view, values),
                };
                match data {
                    Data::Bf16(values) => put(values),
                    data => put(&narrow(data)?),
                }
            }
            Some(Place::Vector { view, .. }) => context.upload(*view, &wide(data)?),
            Some(Place::Packed(packed)) => match (packed, data) {
                (Packed::Nf4(packed), Data::Nf4(parts)) => packed.load(&context, parts),
                (Packed::Int8(packed), Data::Int8(codes, absmax)) => packed.load(&context, codes, absmax),
                (Packed::Int8(_), _) => Err(unfit(slot, "8-bit codes", "other numbers")),
                (Packed::Nf4(packed), data) => {
                    let (packed, values) = (*packed, narrow(data)?);
                    let (whole, maxima) = self.scratch(rows, cols, packed.scratch_len())?;
                    context.upload(whole, &values)?;
                    packed.pack(&context, whole, maxima)
                }
            },
            None => Err(unfit(slot, "a weight of this model", "none")),
        }
    }

    /// Memory for a whole weight in bf16, and for so many numbers of its packed form.
    pub(super) fn scratch(&mut self, rows: usize, cols: usize, numbers: usize) -> Result<(View<bf16>, View<f32>)> {
        let weight = rows * cols * 2;
        let bytes = weight.next_multiple_of(256) + numbers * 4;
        if self.scratch.as_ref().is_none_or(|buffer| buffer.bytes() < bytes) {
            self.scratch = None;
            self.scratch = Some(Buffer::new(&self.decoder.context, bytes)?);
        }
        match &self.scratch {
            Some(buffer) => Ok((buffer.view(rows, cols), buffer.part(weight.next_multiple_of(256), 1, numbers))),
            None => Err(unfit((None, Role::Embedding), "scratch memory", "none")),
        }
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
                    let (whole, _) = self.scratch(view.rows(), view.cols(), 0)?;
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
                    let (whole, maxima) = self.scratch(packed.rows, packed.cols, packed.scratch_len())?;
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
        let Self { decoder, scratch, staging } = self;
        // The copies end before what they go through does.
        drop(staging);
        drop(scratch);
        decoder
    }
}

pub(super) fn unfit(slot: Slot, expected: &str, found: &str) -> EngineError {
    EngineError::Shape { what: format!("{slot:?}"), expected: expected.into(), found: found.into() }
}
