//! A base model and a plan on a GPU: weights go to the card one by one, and only what trains comes back, for checkpoints.

use std::collections::{BTreeMap, BTreeSet};

use liftplan_engine::cuda::{self, Builder, Context, Loader, TensorSpec, Update};
use liftplan_engine::decoder::LossSum;
use liftplan_engine::optim::{self, AdamWOptions};
use liftplan_engine::{Batch, EngineError};

use super::card_load::{begin_adapters, load, load_trained};
pub use super::card_specs::check;
use super::card_specs::{settings, shape, specs};
use crate::checkpoint::{NamedTensor, TensorData, TensorFile};
use crate::config::{Bf16Update, Config};
use crate::model::BaseModel;
use crate::plan::memory::Memory;
use crate::plan::{Plan, Storage, Treatment};
use crate::report::process::memory_limit;
use crate::report::{Event, Observer};
use crate::{Error, Result};

/// A model on a GPU, with the optimiser's states of what trains.
pub struct Card {
    decoder: cuda::Decoder,
    optimizer: AdamWOptions,
    /// The shape and storage of what trains, in files, by name.
    files: BTreeMap<String, (Vec<usize>, Storage)>,
}

/// How a card's model differs from one decided by the plan alone.
#[derive(Clone, Copy, Debug, Default)]
pub struct CardOptions {
    /// First moments and second in 8 bits.
    pub eight_bit_states: bool,
    /// bf16 weights that train keep an `f32` copy.
    pub masters: bool,
    /// Every block is computed again in the backward pass, however much memory there is.
    pub recompute: bool,
    /// Sums may be made in whatever order is fastest.
    pub unordered: bool,
    /// The embedding lies in the host's memory.
    pub offload_embedding: bool,
    /// Blocks are updated inside the backward pass.
    pub update_in_backward: bool,
    /// The most that may be taken on the card, in bytes.
    pub vram: Option<u64>,
    /// The most of the machine's own memory that activations may wait in, in bytes; without it, as much as they like.
    pub waiting_limit: Option<u64>,
}

impl CardOptions {
    /// As the configuration says.
    pub fn of(config: &Config) -> Self {
        Self {
            eight_bit_states: config.optimizer.name.is_8bit(),
            masters: config.train.bf16_update_or_default() == Bf16Update::Master,
            recompute: config.train.recompute,
            unordered: config.train.deterministic == Some(false),
            offload_embedding: config.storage.offload_embedding,
            update_in_backward: config.train.update_in_backward,
            vram: config.vram.map(|bytes| bytes.0),
            // The same in every sitting on a machine, so that a run that goes on computes in the same pieces.
            waiting_limit: memory_limit().map(|bytes| bytes / 2),
        }
    }
}

impl Card {
    /// Builds the model of `plan` on a card that is open, or one that is not there ([`Context::dry`]), to train it. `seed` draws
    /// the adapters' first values, the same as on the processor.
    ///
    /// # Errors
    /// When memory is missing, the plan asks for what a GPU does not do, or a tensor can't be read.
    pub fn build(
        context: &Context,
        base: &BaseModel,
        plan: &Plan,
        seed: u64,
        options: CardOptions,
        observer: &mut dyn Observer,
    ) -> Result<Self> {
        Self::with(context, base, plan, seed, options, None, observer)
    }

    /// The same for a run whose plan is revised: what trains whole is frozen until [`Card::follow`].
    ///
    /// # Errors
    /// As [`Card::build`].
    pub fn to_revise(
        context: &Context,
        base: &BaseModel,
        plan: &Plan,
        seed: u64,
        options: CardOptions,
        observer: &mut dyn Observer,
    ) -> Result<Self> {
        let (frozen, _) = without_whole(plan);
        let mut card = Self::with(context, base, &frozen, seed, options, None, observer)?;
        card.adopt(base, plan, &[], seed)?;
        card.decoder.watch(true);
        Ok(card)
    }

    /// The same to ask it only: what trained is as `trained` has it, and has no gradients.
    ///
    /// # Errors
    /// As [`Card::build`], and when `trained` does not fit the plan.
    pub fn to_ask(
        context: &Context,
        base: &BaseModel,
        plan: &Plan,
        options: CardOptions,
        trained: &TensorFile,
        observer: &mut dyn Observer,
    ) -> Result<Self> {
        let (plan, whole) = without_whole(plan);
        let mut card = Self::with(context, base, &plan, 0, options, Some((trained, &whole)), observer)?;
        card.load(trained)?;
        Ok(card)
    }

    fn with(
        context: &Context,
        base: &BaseModel,
        plan: &Plan,
        seed: u64,
        options: CardOptions,
        trained: Option<(&TensorFile, &BTreeSet<String>)>,
        observer: &mut dyn Observer,
    ) -> Result<Self> {
        let specs = specs(&base.inventory, plan)?;
        let mut card = Self::of(builder(context, base, plan, &specs, options)?, seed, options);
        let mut loader = Loader::default();
        let total = specs.len() as u64;
        let from_run = |name: &str| trained.filter(|(_, whole)| whole.contains(name)).map(|(file, _)| file);
        let names = base.inventory.tensors.iter().map(|info| info.name.as_str());
        let names: Vec<&str> = names.filter(|name| from_run(name).is_none()).collect();
        base.read_ahead(&names, |reader| {
            for (i, ((info, entry), spec)) in base.inventory.tensors.iter().zip(&plan.entries).zip(&specs).enumerate() {
                match from_run(&info.name) {
                    Some(file) => load_trained(&mut loader, &card.decoder, file, info, spec.slot)?,
                    None => {
                        load(&mut loader, &card.decoder, base, plan, (i, spec.slot))?;
                        reader.has_read_one();
                    }
                }
                if entry.treatment == Treatment::Train {
                    card.note_file(&info.name, info.shape.clone(), entry.storage);
                }
                observer.on(&Event::Progress { unit: "tensors", done: i as u64 + 1, total });
            }
            Ok::<_, Error>(())
        })?;
        drop(loader);
        // Behind all weights, since each of their copies is waited for.
        let adapters = begin_adapters(&mut card.decoder, base, plan, seed, |_| true)?;
        card.note_adapters(adapters);
        Ok(card)
    }

    /// The model laid out and not loaded: enough to count its memory, on a card that is not there.
    ///
    /// # Errors
    /// When there is no memory, or the plan asks for what a GPU does not do.
    pub fn laid_out(context: &Context, base: &BaseModel, plan: &Plan, options: CardOptions) -> Result<Self> {
        let builder = builder(context, base, plan, &specs(&base.inventory, plan)?, options)?;
        Ok(Self::of(builder, 0, options))
    }

    fn of(builder: Builder, seed: u64, options: CardOptions) -> Self {
        let mut decoder = builder.finish();
        decoder.set_budget(options.vram.map(|bytes| bytes as usize));
        decoder.set_recompute(options.recompute);
        let optimizer =
            AdamWOptions { betas: (0.9, 0.999), eps: 1e-8, bf16_update: optim::Bf16Update::Stochastic, seed };
        Self { decoder, optimizer, files: BTreeMap::new() }
    }

    /// The engine's model.
    pub fn decoder(&self) -> &cuda::Decoder {
        &self.decoder
    }

    /// The same, to compute with.
    pub fn decoder_mut(&mut self) -> &mut cuda::Decoder {
        &mut self.decoder
    }

    /// Notes how a tensor that can train stands in files.
    pub(super) fn note_file(&mut self, name: &str, shape: Vec<usize>, storage: Storage) {
        self.files.insert(name.into(), (shape, storage));
    }

    /// Notes how adapters' matrices stand in files.
    pub(super) fn note_adapters(&mut self, adapters: Vec<(String, Vec<usize>)>) {
        self.files.extend(adapters.into_iter().map(|(name, shape)| (name, (shape, Storage::F32))));
    }

    /// How the optimiser updates.
    pub fn set_optimizer(&mut self, options: AdamWOptions) {
        self.optimizer = options;
    }

    /// Makes the optimiser's states and settles how much memory is left for activations; `room` is what another sitting of the
    /// run found, so that this one works in the same pieces and rounds alike. Gives what it is to be: less than `room` if
    /// there is less now.
    ///
    /// # Errors
    /// When there is no memory for the states, or the device fails.
    pub fn prepare(&mut self, room: Option<u64>) -> Result<u64, EngineError> {
        self.decoder.prepare(&self.decoder.active())?;
        let found = self.decoder.settle_room()?;
        if let Some(room) = room.filter(|&room| (room as usize) < found) {
            self.decoder.set_room(room as usize);
            return Ok(room);
        }
        Ok(found as u64)
    }

    /// How many numbers train or once did.
    pub fn parameters(&self) -> u64 {
        self.decoder.trainables().iter().map(|trainable| trainable.len() as u64).sum()
    }

    /// Bytes that this process takes on the card now, and the most that it took.
    pub fn bytes(&self) -> (u64, u64) {
        let (now, most) = self.decoder.context().allocated_bytes();
        (now as u64, most as u64)
    }

    /// Bytes that last through training, before the first batch: weights, gradients, states, tables.
    pub fn lasting_bytes(&self, batch: &Batch) -> u64 {
        self.decoder.account(&batch.positions).total() as u64
    }

    /// What training takes on the card if no batch is larger than this one, by kind.
    ///
    /// # Errors
    /// When not even the leanest step fits into what is free.
    pub fn forecast(&self, batch: &Batch) -> Result<Memory, EngineError> {
        let activations = match batch.target_count() {
            0 => 0,
            _ => self.decoder.needed(batch, &self.decoder.choose_plan(batch)?)?,
        };
        Ok(by_kind(&self.decoder, batch, activations as u64))
    }

    /// Step number `step`, from 1: the gradients of `batches`, clipped to `max_grad_norm` if that is above 0, and the update. `rate` is the learning rate
    /// of a tensor by its name. Gives the losses and the gradients' norm before clipping.
    ///
    /// # Errors
    /// When a batch does not fit the model or the memory, or the loss or a gradient is not finite; nothing was updated then, or what the error says.
    pub fn step(
        &mut self,
        step: u64,
        batches: &[Batch],
        rate: impl Fn(&str) -> f64,
        weight_decay: f64,
        max_grad_norm: f64,
    ) -> Result<(LossSum, f64), EngineError> {
        let targets: usize = batches.iter().map(Batch::target_count).sum();
        let lr = |index: usize| self.decoder.trainables().get(index).map_or(0.0, |trainable| rate(&trainable.name));
        let updates: Vec<Update> =
            self.decoder.active().into_iter().map(|index| Update { index, lr: lr(index), weight_decay }).collect();
        if self.decoder.options().update_in_backward {
            let [batch] = batches else { return Err(several(batches.len())) };
            self.decoder.set_dropout(self.optimizer.seed, super::step::pass_count(step, 0));
            let scale = 1.0 / targets.max(1) as f32;
            return self.decoder.accumulate_and_update(batch, scale, &self.optimizer, &updates);
        }
        self.decoder.clear_grads();
        let mut loss = LossSum::default();
        for (i, batch) in batches.iter().enumerate() {
            self.decoder.set_dropout(self.optimizer.seed, super::step::pass_count(step, i));
            loss += self.decoder.accumulate(batch, 1.0 / targets.max(1) as f32)?;
        }
        let grad_norm = self.decoder.grad_norm()?;
        let clip = super::step::clip(max_grad_norm, grad_norm);
        self.decoder.update(&self.optimizer, &updates, clip as f32)?;
        Ok((loss, grad_norm))
    }

    /// What trains, copied from the card, as a checkpoint holds it.
    ///
    /// # Errors
    /// When the device fails.
    pub fn trainable(&self) -> Result<Vec<NamedTensor>> {
        let all = self.decoder.in_order().into_iter();
        let tensors = all.filter_map(|index| self.decoder.trainables().get(index)).map(|trainable| {
            let (shape, storage) = self.files.get(&trainable.name).ok_or_else(|| missing(&trainable.name))?;
            let values = trainable.value(self.decoder.context()).map_err(failed)?;
            let data = match storage {
                Storage::Bf16 => TensorData::Bf16(values.into_iter().map(half::bf16::from_f32).collect()),
                _ => TensorData::F32(values),
            };
            Ok(NamedTensor { name: trainable.name.clone(), shape: shape.clone(), data })
        });
        tensors.collect()
    }

    /// Puts the tensors of a checkpoint on the card.
    ///
    /// # Errors
    /// When one is missing or does not fit, or the device fails.
    pub fn load(&mut self, file: &TensorFile) -> Result<()> {
        for index in 0..self.decoder.trainables().len() {
            let trainable = &self.decoder.trainables()[index];
            let tensor = file.get(&trainable.name)?;
            let (shape, storage) = self.files.get(&trainable.name).ok_or_else(|| missing(&trainable.name))?;
            let values = match (tensor.data, storage) {
                (TensorData::F32(values), Storage::F32) if tensor.shape == *shape => values,
                (TensorData::Bf16(values), Storage::Bf16) if tensor.shape == *shape => {
                    values.into_iter().map(half::bf16::to_f32).collect()
                }
                (data, _) => {
                    return Err(Error::output(format!(
                        "{}: `{}` is {:?} of {:?}, where the plan has {shape:?} in {storage}",
                        file.path().display(),
                        trainable.name,
                        data.dtype(),
                        tensor.shape,
                    )));
                }
            };
            self.decoder.set_value(index, &values).map_err(failed)?;
        }
        Ok(())
    }

    /// The optimiser's states, copied from the card.
    ///
    /// # Errors
    /// When the device fails.
    pub fn states(&self) -> Result<BTreeMap<String, optim::State>> {
        self.decoder.states().map_err(failed)
    }

    /// Puts the optimiser's states of a checkpoint on the card.
    ///
    /// # Errors
    /// When one does not fit, or the device fails.
    pub fn set_states(&mut self, states: BTreeMap<String, optim::State>) -> Result<()> {
        self.decoder.set_states(states).map_err(failed)
    }
}

/// A plan in which what trains whole is frozen, and the names of what that was.
fn without_whole(plan: &Plan) -> (Plan, BTreeSet<String>) {
    let (mut plan, mut whole) = (plan.clone(), BTreeSet::new());
    for entry in plan.entries.iter_mut().filter(|entry| entry.treatment == Treatment::Train) {
        entry.treatment = Treatment::Frozen;
        whole.insert(entry.tensor.clone());
    }
    (plan, whole)
}

/// What a pass over `batch` with so many bytes of activations takes, the model included, by kind.
pub(super) fn by_kind(decoder: &cuda::Decoder, batch: &Batch, activations_bytes: u64) -> Memory {
    let account = decoder.account(&batch.positions);
    let adapters = decoder.trainables().iter().filter(|trainable| trainable.name.contains(".lora_"));
    let adapters: usize = adapters.map(|trainable| 4 * trainable.len()).sum();
    Memory {
        weights_bytes: account.weights.saturating_sub(adapters) as u64,
        adapters_bytes: adapters as u64,
        gradients_bytes: account.gradients as u64,
        optimizer_bytes: account.states as u64,
        activations_bytes,
        process_bytes: account.other as u64,
    }
}

/// Memory for the model of `plan`, whose weights are `specs`.
fn builder(
    context: &Context,
    base: &BaseModel,
    plan: &Plan,
    specs: &[TensorSpec],
    options: CardOptions,
) -> Result<Builder> {
    let settings = settings(&base.inventory, &base.spec, plan, options)?;
    Builder::new(context, &shape(&base.spec), specs, settings).map_err(|error| memory_error(error, "the model", plan))
}

/// The error for a step of several passes where one is all there can be.
fn several(passes: usize) -> EngineError {
    EngineError::Shape {
        what: "micro-batches of a step that is updated inside the backward pass".into(),
        expected: "1".into(),
        found: passes.to_string(),
    }
}

pub(super) fn missing(name: &str) -> Error {
    Error::internal(format!("there is no `{name}` on the card"))
}

pub(super) fn failed(error: EngineError) -> Error {
    Error::train(error.to_string())
}

/// The error for the user where the machine's own memory is short.
pub(super) fn host_memory_error(what: &str, error: &EngineError) -> Error {
    Error::train(format!("{what}: {error}")).help(
        "leave storage.offload_embedding out, lower train.micro_batch_tokens, or end other programs on this machine",
    )
}

/// The error for the user, with what would need less memory.
pub(super) fn memory_error(error: EngineError, what: &str, plan: &Plan) -> Error {
    match &error {
        EngineError::OutOfDeviceMemory { .. } => (),
        EngineError::OutOfHostMemory { .. } => return host_memory_error(what, &error),
        _ => return failed(error),
    }
    let mut ways = Vec::new();
    let whole = plan.entries.iter().any(|entry| entry.treatment == Treatment::Train);
    if plan.entries.iter().any(|entry| entry.storage == Storage::F32) {
        ways.push("train.weights = \"bf16\" halves what the weights take");
    }
    if plan.entries.iter().all(|entry| entry.storage.can_train()) {
        ways.push("storage.frozen = \"nf4\" quarters the frozen weights");
    }
    if whole {
        ways.push("optimizer.name = \"adamw8bit\" takes a quarter of the states' memory");
        ways.push("policy \"lora\" trains adapters only");
    }
    ways.push("other programs on the card may be taking the rest: nvidia-smi lists them");
    Error::train(format!("{what} does not fit on the card: {error}")).help(ways.join("; "))
}
