//! One optimiser step: the gradients of its micro-batches, then the update. Knows nothing of files, data or time.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::PathBuf;

use liftplan_engine::decoder::LossSum;
use liftplan_engine::optim::{self, AdamW, AdamWOptions};
use liftplan_engine::{Batch, Decoder, EngineError, Keep, Param, Pool, Rope, StepOptions, Weight};
use rayon::prelude::*;

use super::card::{Card, host_memory_error};
use super::trainable::{self, OptimizerTensors, Trainable};
use super::{AdapterNames, Model, not_finite};
use crate::checkpoint::{State, Store, TensorFile};
use crate::config::{Bf16Update, Config};
use crate::model::BaseModel;
use crate::plan::memory::Memory;
use crate::plan::{Plan, Treatment};
use crate::policy::Norms;
use crate::{Error, Result};

/// A decoder and what updates it.
pub struct Stepper {
    /// The model on the processor; empty when it is on a card.
    pub decoder: Decoder,
    /// The optimiser on the processor, with its states; without any when they are on a card.
    pub optimizer: AdamW,
    /// The model and its optimiser on a GPU.
    card: Option<RefCell<Card>>,
    /// What the plan says of each parameter that trains, by name.
    lines: BTreeMap<String, Line>,
    /// Norms of gradients and updates, where a policy may ask for them.
    pub norms: Option<Norms>,
    weight_decay: f64,
    max_grad_norm: f64,
    keep: Keep,
    seed: u64,
    /// The micro-batch, from 0, whose loss was not finite, if the last step ended so and it is known.
    pub not_finite_in: Option<usize>,
}

/// What the plan says of a parameter that trains.
struct Line {
    /// The tensor that it belongs to.
    tensor: String,
    /// Factor on the learning rate.
    rate: f64,
}

/// What a step tells.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepOutcome {
    /// The losses of all its target tokens.
    pub loss: LossSum,
    /// Norm of all gradients together, before clipping.
    pub grad_norm: f64,
    /// Tokens computed, targets or not.
    pub tokens: u64,
}

impl Stepper {
    /// A stepper for a decoder that was built by `plan`.
    pub fn new(decoder: Decoder, plan: &Plan, config: &Config) -> Self {
        let optimizer = AdamW::new(adamw(config));
        let optimizer = if config.optimizer.name.is_8bit() { optimizer.with_bits8() } else { optimizer };
        Self {
            decoder,
            optimizer,
            card: None,
            lines: lines(plan),
            norms: None,
            weight_decay: config.optimizer.weight_decay,
            max_grad_norm: config.train.max_grad_norm,
            keep: if config.train.recompute { Keep::Inputs } else { Keep::Activations },
            seed: config.seed,
            not_finite_in: None,
        }
    }

    /// Goes on by another plan: parameters start or stop training, and the optimiser forgets those that stop.
    ///
    /// # Errors
    /// When a card has no memory for it.
    pub fn follow(&mut self, base: &BaseModel, plan: &Plan) -> Result<()> {
        self.lines = lines(plan);
        if let Some(card) = &self.card {
            return card.borrow_mut().follow(base, plan);
        }
        for param in self.decoder.params_mut() {
            let trains = self.lines.contains_key(param.name());
            param.set_trained(trains);
        }
        self.optimizer.retain(|name| self.lines.contains_key(name));
        Ok(())
    }

    /// The model on a GPU, if it is on one.
    pub(super) fn card(&self) -> Option<&RefCell<Card>> {
        self.card.as_ref()
    }

    /// How many numbers train now.
    pub fn parameters_now(&self) -> u64 {
        let Some(card) = &self.card else { return Trainable::now(&self.decoder).parameters() };
        let card = card.borrow();
        card.decoder().trainables().iter().filter(|t| t.trains()).map(|trainable| trainable.len() as u64).sum()
    }

    /// A stepper for a model that was built by `plan` on a GPU.
    ///
    /// # Errors
    /// None that can happen: the decoder in its place is one of nothing.
    pub fn on_card(mut card: Card, plan: &Plan, config: &Config) -> Result<Self> {
        card.set_optimizer(adamw(config));
        Ok(Self { card: Some(RefCell::new(card)), ..Self::new(empty()?, plan, config) })
    }

    /// Makes a card ready for its first step; [`Card::prepare`] has what goes in and out. Nothing on the processor.
    ///
    /// # Errors
    /// As [`Card::prepare`].
    pub fn prepare(&self, room: Option<u64>) -> Result<Option<u64>, EngineError> {
        self.card.as_ref().map(|card| card.borrow_mut().prepare(room)).transpose()
    }

    /// What training takes on a card, if the model is on one; [`Card::forecast`] has the errors.
    pub fn forecast(&self, batch: &Batch) -> Option<Result<Memory, EngineError>> {
        self.card.as_ref().map(|card| card.borrow().forecast(batch))
    }

    /// The model, to ask.
    pub fn model(&self) -> Model<'_> {
        self.card.as_ref().map_or(Model::Host(&self.decoder), Model::Card)
    }

    /// How many numbers train.
    pub fn parameters(&self) -> u64 {
        self.card.as_ref().map_or_else(|| Trainable::of(&self.decoder).parameters(), |card| card.borrow().parameters())
    }

    /// Bytes taken on the card now and at most, if the model is on one.
    pub fn card_bytes(&self) -> Option<(u64, u64)> {
        self.card.as_ref().map(|card| card.borrow().bytes())
    }

    /// Writes a checkpoint of what trains and of the optimiser.
    ///
    /// # Errors
    /// When it can't be written, or copied from the card.
    pub fn save(&self, store: &Store, state: State) -> Result<PathBuf> {
        let Some(card) = &self.card else {
            return store.write(state, &Trainable::of(&self.decoder), &OptimizerTensors::of(&self.optimizer));
        };
        let (tensors, states) = (card.borrow().trainable()?, card.borrow().states()?);
        store.write(state, &tensors, &OptimizerTensors::of_states(&states))
    }

    /// Puts a checkpoint's weights back.
    ///
    /// # Errors
    /// When one is missing or does not fit.
    pub fn load_weights(&mut self, file: &TensorFile) -> Result<()> {
        match &self.card {
            Some(card) => card.borrow_mut().load(file),
            None => trainable::load(&mut self.decoder, file),
        }
    }

    /// Puts a checkpoint's optimiser states back.
    ///
    /// # Errors
    /// When one is damaged or does not fit.
    pub fn load_states(&mut self, file: &TensorFile) -> Result<()> {
        if let Some(card) = &self.card {
            let mut states = BTreeMap::new();
            OptimizerTensors::each(file, |name, state| {
                states.insert(name, state);
                Ok(())
            })?;
            return card.borrow_mut().set_states(states);
        }
        self.optimizer.retain(|_| false);
        OptimizerTensors::each(file, |name, state| {
            self.optimizer.set_state(name, state).map_err(|error| Error::output(error.to_string()))
        })
    }

    /// Does step number `step`, from 1, at the learning rate `lr`. Every target token of the step weighs the same,
    /// however the tokens are dealt into micro-batches.
    ///
    /// # Errors
    /// When a batch does not fit the model, or the loss or a gradient is not finite. Nothing was updated then, or what the error
    /// says.
    pub fn step(&mut self, step: u64, batches: &[Batch], lr: f64) -> Result<StepOutcome> {
        let failed = |error| train_error(error, step);
        let tokens = batches.iter().map(|batch| batch.tokens() as u64).sum();
        if let Some(card) = &self.card {
            let rate = |name: &str| lr * self.lines.get(name).map_or(1.0, |line| line.rate);
            let done = card.borrow_mut().step(step, batches, rate, self.weight_decay, self.max_grad_norm);
            let (loss, grad_norm) = done.map_err(failed)?;
            if let Some(norms) = &mut self.norms {
                let card = card.borrow();
                let mut squares: BTreeMap<&str, [f64; 2]> = BTreeMap::new();
                for (index, [gradient, update]) in card.decoder().squares() {
                    let name = card.decoder().trainables().get(index).map_or("", |trainable| &trainable.name);
                    let Some(line) = self.lines.get(name) else { continue };
                    let sums = squares.entry(&line.tensor).or_default();
                    (sums[0], sums[1]) = (sums[0] + gradient, sums[1] + update);
                }
                for (tensor, [gradient, update]) in squares {
                    norms.add(tensor, gradient, update);
                }
            }
            return Ok(StepOutcome { loss, grad_norm, tokens });
        }
        let targets: usize = batches.iter().map(Batch::target_count).sum();
        self.decoder.clear_grads();
        let mut loss = LossSum::default();
        self.not_finite_in = None;
        for (i, batch) in batches.iter().enumerate() {
            let options = StepOptions {
                grad_scale: 1.0 / targets.max(1) as f32,
                keep: self.keep,
                dropout: Some((self.seed, pass_count(step, i))),
            };
            loss += self.decoder.accumulate(batch, options).map_err(|error| {
                let is_not_finite = matches!(error, EngineError::NotFinite { .. });
                let error = train_error(error, step);
                if !is_not_finite {
                    return error;
                }
                self.not_finite_in = Some(i);
                not_finite::by_weights(error, &self.decoder)
            })?;
        }
        let grad_norm = optim::grad_norm(self.decoder.params()).map_err(failed)?;
        let clip = clip(self.max_grad_norm, grad_norm);
        let mut squares: BTreeMap<&str, [f64; 2]> = BTreeMap::new();
        for param in self.decoder.params_mut().filter(|param| param.trains()) {
            let line = self.lines.get(param.name());
            let before = match (&self.norms, line) {
                (Some(_), Some(line)) => {
                    let gradient = optim::grad_norm(std::iter::once(&*param)).map_err(failed)?;
                    squares.entry(&line.tensor).or_default()[0] += gradient * gradient;
                    Some((param.value.as_f32().into_owned(), line))
                }
                _ => None,
            };
            let lr = lr * line.map_or(1.0, |line| line.rate);
            self.optimizer.update(param, lr, self.weight_decay, clip as f32).map_err(failed)?;
            if let Some((before, line)) = before {
                squares.entry(&line.tensor).or_default()[1] += distance_squared(&before, &param.value.as_f32());
            }
        }
        if let Some(norms) = &mut self.norms {
            for (tensor, [gradient, update]) in squares {
                norms.add(tensor, gradient, update);
            }
        }
        Ok(StepOutcome { loss, grad_norm, tokens })
    }
}

/// A count of its own for each micro-batch, the same after a resume and on every device.
pub(super) fn pass_count(step: u64, micro_batch: usize) -> u64 {
    step << 16 | micro_batch as u64
}

/// The factor on gradients of this norm, as torch's clip_grad_norm_, its small constant included.
pub(super) fn clip(max_grad_norm: f64, grad_norm: f64) -> f64 {
    if max_grad_norm > 0.0 { (max_grad_norm / (grad_norm + 1e-6)).min(1.0) } else { 1.0 }
}

/// How AdamW updates by this configuration.
fn adamw(config: &Config) -> AdamWOptions {
    AdamWOptions {
        betas: config.optimizer.betas.into(),
        eps: config.optimizer.eps,
        bf16_update: match config.train.bf16_update_or_default() {
            Bf16Update::Stochastic => optim::Bf16Update::Stochastic,
            Bf16Update::Master => optim::Bf16Update::Master,
        },
        seed: config.seed,
    }
}

/// A decoder of nothing, in the place of one that is on a card.
pub(super) fn empty() -> Result<Decoder> {
    let nothing =
        |name| Param::frozen(name, 0, 0, Weight::F32(Vec::new())).map_err(|error| Error::internal(error.to_string()));
    Ok(Decoder {
        embedding: nothing("embedding")?,
        blocks: Vec::new(),
        norm: nothing("norm")?,
        head: None,
        rope: Rope::new(Vec::new()),
        pool: Pool::new(),
    })
}

/// What the plan says of every parameter that trains, by its name.
fn lines(plan: &Plan) -> BTreeMap<String, Line> {
    let mut lines = BTreeMap::new();
    for entry in plan.trained() {
        let line = |rate| Line { tensor: entry.tensor.clone(), rate };
        match entry.treatment {
            Treatment::Adapt(_) => {
                let names = AdapterNames::of(&entry.tensor);
                let of_b = entry.lr_scale * entry.lr_scale_b;
                lines.extend([(names.a, line(entry.lr_scale)), (names.b, line(of_b)), (names.magnitude, line(of_b))]);
            }
            Treatment::Train | Treatment::Frozen => {
                lines.insert(entry.tensor.clone(), line(entry.lr_scale));
            }
        }
    }
    lines
}

/// The squared Euclidean distance, summed in a fixed order whatever the number of cores.
fn distance_squared(before: &[f32], after: &[f32]) -> f64 {
    const STRETCH: usize = 1 << 16;
    let part = |(before, after): (&[f32], &[f32])| -> f64 {
        before.iter().zip(after).map(|(b, a)| (f64::from(*a) - f64::from(*b)).powi(2)).sum()
    };
    let sums: Vec<f64> = before.par_chunks(STRETCH).zip(after.par_chunks(STRETCH)).map(part).collect();
    sums.iter().sum()
}

fn train_error(error: EngineError, step: u64) -> Error {
    match error {
        EngineError::NotFinite { .. } => Error::train(format!("step {step}: {error}; nothing was updated"))
            .help("lower optimizer.lr, set train.max_grad_norm, or look for damaged rows in the data"),
        EngineError::NotFiniteAmid { .. } => Error::train(format!("step {step}: {error}")).help(
            "lower optimizer.lr or look for damaged rows in the data, and go on from the newest checkpoint with --resume; without \
             train.update_in_backward such a step updates nothing",
        ),
        EngineError::Pages { .. } => {
            Error::train(format!("step {step}: {error}; the states lie in the run's directory"))
                .help("free some space there, or set optimizer.name to \"adamw\" or \"adamw8bit\"")
        }
        EngineError::OutOfDeviceMemory { .. } => Error::train(format!("step {step}: {error}; nothing was updated")).help(
            "lower train.micro_batch_tokens, set train.micro_batch_examples to 1 or data.max_length lower, keep frozen weights \
             in 4 bits by storage.frozen = \"nf4\", or make room on the card",
        ),
        EngineError::OutOfHostMemory { .. } => host_memory_error(&format!("step {step}"), &error),
        EngineError::Device { .. } => Error::train(format!("step {step}: the GPU failed: {error}")).help(
            "the same command with --resume goes on from the newest checkpoint, to the bit (train.checkpoint_every makes some); if \
             it happens again at the same step, report it",
        ),
        other => Error::train(format!("step {step}: {other}")),
    }
}
