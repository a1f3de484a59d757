//! Which methods fit a GPU that need not be here, for a model that need not be here either.
//!
//! In: a shape and the card's memory. Out: what `plan::fit` answers, with the least that a step takes by the engine's own count:
//! the step itself, run dry. A card with more than that keeps more, and is faster.

use liftplan_engine::cuda::{Builder, Context, Decoder, Options, StepPlan};
use liftplan_engine::{Batch, EngineError};

use super::card::{CardOptions, by_kind};
use super::card_specs;
use super::forecast::alone;
use crate::model::shapes::Shape;
use crate::plan::fit::{self, Fit, RANK};
use crate::plan::memory::Memory;
use crate::plan::{Plan, Storage};
use crate::report::text::memory;
use crate::{Error, Result};

/// What the driver, its context and the compiled kernels hold on a card beside the engine, and the margin that the engine keeps:
/// measured on an H100 (`host/docs/gpu.md`, the whole card less the engine's own).
pub const DRIVER_BYTES: u64 = 680 << 20;

/// The newest cards whose kernels the engine has; sizes are the same on others.
const CAPABILITY: (u32, u32) = (9, 0);

/// A plan laid out on a card that is not there.
pub struct Account {
    decoder: Decoder,
}

impl Account {
    /// Lays out the model of `plan` with the optimiser's states.
    ///
    /// # Errors
    /// When the plan asks for what a GPU does not do.
    pub fn new(shape: &Shape, plan: &Plan, options: Options) -> Result<Self> {
        let failed = |error: EngineError| Error::plan(format!("{}: {error}", shape.name));
        let specs = card_specs::specs(&shape.inventory, plan)?;
        let context = Context::dry(CAPABILITY);
        let builder = Builder::new(&context, &card_specs::shape(&shape.spec), &specs, options).map_err(failed)?;
        let mut decoder = builder.finish();
        decoder.prepare(&decoder.active()).map_err(failed)?;
        Ok(Self { decoder })
    }

    /// Bytes of weights, gradients, states and tables, where no batch is longer than this one.
    pub fn lasting_bytes(&self, batch: &Batch) -> u64 {
        self.decoder.account(&batch.positions).total() as u64
    }

    /// The fewest bytes that a pass over `batch` takes beside them, with everything computed again that can be.
    ///
    /// # Errors
    /// When the step cannot be laid out.
    pub fn least_bytes(&mut self, batch: &Batch) -> Result<u64> {
        // With no room at all the search says what the leanest step would need.
        self.decoder.set_budget(Some(0));
        match self.decoder.choose_plan(batch) {
            Err(EngineError::OutOfDeviceMemory { needed, .. }) => Ok(needed as u64),
            Err(error) => Err(Error::plan(format!("a step cannot be laid out: {error}"))),
            Ok(plan) => self.needed(batch, &plan),
        }
    }

    /// The bytes that a pass over `batch` takes beside them on a card of `card_bytes`, where it keeps what it can; `None` if it
    /// does not fit.
    ///
    /// # Errors
    /// When the step cannot be laid out.
    pub fn bytes_on(&mut self, card_bytes: u64, batch: &Batch) -> Result<Option<u64>> {
        self.decoder.set_budget(Some(card_bytes.saturating_sub(DRIVER_BYTES) as usize));
        match self.decoder.choose_plan(batch) {
            Err(EngineError::OutOfDeviceMemory { .. }) => Ok(None),
            Err(error) => Err(Error::plan(format!("a step cannot be laid out: {error}"))),
            Ok(plan) => self.needed(batch, &plan).map(Some),
        }
    }

    fn needed(&self, batch: &Batch, plan: &StepPlan) -> Result<u64> {
        let needed = self.decoder.needed(batch, plan);
        needed.map(|bytes| bytes as u64).map_err(|error| Error::plan(format!("a step cannot be laid out: {error}")))
    }
}

/// How what fits is counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Question {
    /// The GPU's memory, if the answer is to say what fits.
    pub available_bytes: Option<u64>,
    /// States in 8 bits.
    pub eight_bit_states: bool,
    /// The embedding lies in the host's memory, where it can.
    pub offload_embedding: bool,
    /// Blocks are updated inside the backward pass.
    pub update_in_backward: bool,
}

/// Answers for a shape on a GPU: weights in bf16 or 4 bits.
///
/// # Errors
/// When the model is of a kind that a GPU does not train.
pub fn fit_on_card(shape: &Shape, question: Question) -> Result<Fit> {
    let eight_bit = question.eight_bit_states;
    let note = format!(
        "on a GPU, the driver's {} counted: the least that a step takes, weights in bf16, nf4 in blocks of 64 with quantised scales; \
         gradients in f32{}; AdamW in {} bits; adapters of rank {RANK}{}. What a card has beyond that goes into speed",
        memory(DRIVER_BYTES),
        if question.update_in_backward { ", a block's at a time" } else { "" },
        if eight_bit { 8 } else { 32 },
        if question.offload_embedding { "; a frozen embedding in the host's memory" } else { "" },
    );
    fit::answer(shape, question.available_bytes, Storage::Bf16, note, |plan, tokens| {
        let offload_embedding =
            question.offload_embedding && card_specs::can_offload(&shape.inventory, &shape.spec, plan).is_ok();
        let update_in_backward = question.update_in_backward;
        let options = CardOptions {
            eight_bit_states: eight_bit,
            offload_embedding,
            update_in_backward,
            ..CardOptions::default()
        };
        let options = card_specs::settings(&shape.inventory, &shape.spec, plan, options)?;
        let mut account = Account::new(shape, plan, options)?;
        let batch = alone(tokens);
        let activations = account.least_bytes(&batch)?;
        let memory = by_kind(&account.decoder, &batch, activations);
        Ok(Memory { process_bytes: memory.process_bytes + DRIVER_BYTES, ..memory })
    })
}
