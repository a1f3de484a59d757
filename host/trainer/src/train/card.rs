//! A base model and a plan on a GPU: weights go to the card one by one, and only what trains comes back, for checkpoints.

use std::collections::BTreeMap;

use liftplan_engine::cuda::nf4::Parts;
use liftplan_engine::cuda::{self, Builder, Context, Data, MomentFormat, Options, Role, Slot, TensorSpec, Update};
use liftplan_engine::decoder::LossSum;
use liftplan_engine::optim::{self, AdamWOptions};
use liftplan_engine::storage::nf4::Scales;
use liftplan_engine::{Batch, EngineError, Nf4Options, Weight};

use super::AdapterNames;
use super::build::{initial_a, read};
use crate::checkpoint::{NamedTensor, TensorData, TensorFile};
use crate::config::{Bf16Update, Config, Device};
use crate::device;
use crate::model::BaseModel;
use crate::model::inventory::{Kind, TensorInfo};
use crate::plan::{Entry, Plan, Storage, Treatment};
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
    /// The most that may be taken on the card, in bytes.
    pub vram: Option<u64>,
}

impl CardOptions {
    /// As the configuration says.
    ///
    /// # Errors
    /// When it asks for what a GPU does not do.
    pub fn of(config: &Config) -> Result<Self> {
        if config.train.recompute {
            return Err(Error::config(
                "`train.recompute` has no effect on a GPU: what is kept is chosen by its memory",
            )
            .help("leave recompute out; `vram = \"24GiB\"` caps the memory"));
        }
        if config.optimizer.name.is_paged() {
            return Err(Error::config(
                "`optimizer.name`: a GPU keeps the optimiser's states in its memory, not in files",
            )
            .help("set optimizer.name to \"adamw8bit\" or \"adamw\", or device to \"cpu\""));
        }
        Ok(Self {
            eight_bit_states: config.optimizer.name.is_8bit(),
            masters: config.train.bf16_update_or_default() == Bf16Update::Master,
            vram: config.vram.map(|bytes| bytes.0),
        })
    }
}

impl Card {
    /// Builds the model of `plan` on `device`. `seed` draws the adapters' first values, the same as on the processor.
    ///
    /// # Errors
    /// When the card, a library or memory is missing, the plan asks for what a GPU does not do, or a tensor can't be read.
    pub fn build(
        base: &BaseModel,
        plan: &Plan,
        seed: u64,
        device: Device,
        options: CardOptions,
        observer: &mut dyn Observer,
    ) -> Result<Self> {
        check(base, plan)?;
        Self::on(&device::open(device)?, base, plan, seed, options, observer)
    }

    /// The same on a card that is open, or one that is not there ([`Context::dry`]).
    ///
    /// # Errors
    /// As [`Card::build`].
    pub fn on(
        context: &Context,
        base: &BaseModel,
        plan: &Plan,
        seed: u64,
        options: CardOptions,
        observer: &mut dyn Observer,
    ) -> Result<Self> {
        let specs = specs(base, plan)?;
        let shape = shape(base);
        let settings = Options {
            moments: if options.eight_bit_states { MomentFormat::EightBit } else { MomentFormat::Wide },
            narrow_grads: false,
            masters: options.masters,
            ..Options::default()
        };
        let made = |error| memory_error(error, "the model", plan);
        let mut builder = Builder::new(context, &shape, &specs, settings).map_err(made)?;
        let mut files = BTreeMap::new();
        let total = specs.len() as u64;
        for (i, ((info, entry), spec)) in base.inventory.tensors.iter().zip(&plan.entries).zip(&specs).enumerate() {
            load(&mut builder, base, info, entry, spec.slot)?;
            match &entry.treatment {
                Treatment::Frozen => {}
                Treatment::Train => {
                    files.insert(info.name.clone(), (info.shape.clone(), entry.storage));
                }
                Treatment::Adapt(adapter) => {
                    let [out, input] = *info.shape.as_slice() else {
                        return Err(Error::internal(format!("`{}` is no matrix", info.name)));
                    };
                    let names = AdapterNames::of(&info.name);
                    let a = initial_a(adapter.rank, input, seed, i as u32);
                    for (name, shape, values) in [
                        (names.a, vec![adapter.rank, input], a),
                        (names.b, vec![out, adapter.rank], vec![0.0; out * adapter.rank]),
                    ] {
                        let index = builder.trainable(&name).ok_or_else(|| missing(&name))?;
                        builder.set_trainable(index, &values).map_err(failed)?;
                        files.insert(name, (shape, Storage::F32));
                    }
                }
            }
            observer.on(&Event::Progress { unit: "tensors", done: i as u64 + 1, total });
        }
        let mut decoder = builder.finish();
        decoder.set_budget(options.vram.map(|bytes| bytes as usize));
        let optimizer =
            AdamWOptions { betas: (0.9, 0.999), eps: 1e-8, bf16_update: optim::Bf16Update::Stochastic, seed };
        Ok(Self { decoder, optimizer, files })
    }

    /// The engine's model.
    pub fn decoder(&self) -> &cuda::Decoder {
        &self.decoder
    }

    /// The same, to compute with.
    pub fn decoder_mut(&mut self) -> &mut cuda::Decoder {
        &mut self.decoder
    }

    /// How the optimiser updates.
    pub fn set_optimizer(&mut self, options: AdamWOptions) {
        self.optimizer = options;
    }

    /// How many numbers train.
    pub fn parameters(&self) -> u64 {
        self.decoder.trainables().iter().map(|trainable| trainable.len() as u64).sum()
    }

    /// Bytes that this process takes on the card now, and the most that it took.
    pub fn bytes(&self) -> (u64, u64) {
        let (now, most) = self.decoder.context().allocated_bytes();
        (now as u64, most as u64)
    }

    /// The gradients of `batches`, clipped to `max_grad_norm` if that is above 0, and the update. `rate` is the learning rate
    /// of a tensor by its name. Gives the losses and the gradients' norm before clipping.
    ///
    /// # Errors
    /// When a batch does not fit the model or the memory, or the loss or a gradient is not finite; nothing was updated then.
    pub fn step(
        &mut self,
        batches: &[Batch],
        rate: impl Fn(&str) -> f64,
        weight_decay: f64,
        max_grad_norm: f64,
    ) -> Result<(LossSum, f64), EngineError> {
        let targets: usize = batches.iter().map(Batch::target_count).sum();
        self.decoder.clear_grads();
        let mut loss = LossSum::default();
        for batch in batches {
            loss += self.decoder.accumulate(batch, 1.0 / targets.max(1) as f32)?;
        }
        let grad_norm = self.decoder.grad_norm()?;
        let clip = super::step::clip(max_grad_norm, grad_norm);
        let names = self.decoder.trainables().iter().enumerate();
        let updates: Vec<Update> =
            names.map(|(index, trainable)| Update { index, lr: rate(&trainable.name), weight_decay }).collect();
        self.decoder.update(&self.optimizer, &updates, clip as f32)?;
        Ok((loss, grad_norm))
    }

    /// What trains, copied from the card, as a checkpoint holds it.
    ///
    /// # Errors
    /// When the device fails.
    pub fn trainable(&self) -> Result<Vec<NamedTensor>> {
        let tensors = self.decoder.trainables().iter().map(|trainable| {
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
        for trainable in self.decoder.trainables() {
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
            trainable.set_value(self.decoder.context(), &values).map_err(failed)?;
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

fn missing(name: &str) -> Error {
    Error::internal(format!("there is no `{name}` on the card"))
}

fn failed(error: EngineError) -> Error {
    Error::train(error.to_string())
}

/// Whether a GPU can do what the plan asks, wherever that is asked.
///
/// # Errors
/// Names the first tensor with which it can't, and the way out.
pub fn check(base: &BaseModel, plan: &Plan) -> Result<()> {
    specs(base, plan).map(|_| ())
}

/// What the model's tensors are to the card, and whether it can do what the plan asks.
fn specs(base: &BaseModel, plan: &Plan) -> Result<Vec<TensorSpec>> {
    let tensors = base.inventory.tensors.iter().enumerate();
    tensors
        .map(|(i, info)| {
            let entry = plan.entries.get(i).filter(|entry| entry.tensor == info.name).ok_or_else(|| {
                Error::plan(format!("the plan has no entry {i} for `{}`: it was made for another model", info.name))
            })?;
            let on_cpu = "or set device to \"cpu\"";
            let role = role(info).ok_or_else(|| {
                Error::plan(format!("`{}`: a GPU knows no {} of this kind yet", info.name, info.role))
                    .help("set device to \"cpu\"")
            })?;
            let treatment = match &entry.treatment {
                Treatment::Frozen => cuda::Treatment::Frozen,
                Treatment::Train => cuda::Treatment::Train,
                Treatment::Adapt(spec) if spec.dora => {
                    return Err(Error::plan(format!("`{}`: DoRA does not run on a GPU yet", info.name))
                        .help(format!("set policy.dora to false, {on_cpu}")));
                }
                Treatment::Adapt(spec) if spec.dropout > 0.0 => {
                    return Err(Error::plan(format!("`{}`: dropout in adapters does not run on a GPU yet", info.name))
                        .help(format!("set policy.dropout to 0, {on_cpu}")));
                }
                Treatment::Adapt(spec) => {
                    let AdapterNames { a, b, .. } = AdapterNames::of(&info.name);
                    cuda::Treatment::Adapt(cuda::AdapterSpec { rank: spec.rank, scale: spec.scale() as f32, a, b })
                }
            };
            let storage = match entry.storage {
                Storage::Nf4 { .. } if info.shape.last().is_none_or(|columns| columns % 64 != 0) => {
                    return Err(Error::plan(format!(
                        "`{}` is {:?}: a GPU keeps a weight in 4 bits if its columns are a multiple of 64",
                        info.name, info.shape
                    ))
                    .help(format!("name it in storage.exclude, {on_cpu}")));
                }
                Storage::F32 => cuda::Storage::F32,
                Storage::Bf16 => cuda::Storage::Bf16,
                Storage::Nf4 { block_size: 64, double_quantization } => {
                    cuda::Storage::Nf4 { double: double_quantization }
                }
                Storage::Nf4 { block_size, .. } => {
                    return Err(Error::plan(format!(
                        "`{}`: a GPU keeps 4-bit weights in blocks of 64, not of {block_size}",
                        info.name
                    ))
                    .help(format!("leave storage.block_size out, {on_cpu}")));
                }
                Storage::Int8 => {
                    return Err(Error::plan(format!("`{}`: int8 storage does not run on a GPU yet", info.name))
                        .help(format!("set storage.frozen to \"nf4\" or \"bf16\", {on_cpu}")));
                }
            };
            Ok(TensorSpec { slot: (info.block, role), name: info.name.clone(), treatment, storage })
        })
        .collect()
}

fn role(info: &TensorInfo) -> Option<Role> {
    Some(match (info.role.as_str(), info.kind == Kind::Bias) {
        ("embed_tokens", false) => Role::Embedding,
        ("input_layernorm", false) => Role::InputNorm,
        ("q_proj", false) => Role::Q,
        ("k_proj", false) => Role::K,
        ("v_proj", false) => Role::V,
        ("q_proj", true) => Role::QBias,
        ("k_proj", true) => Role::KBias,
        ("v_proj", true) => Role::VBias,
        ("q_norm", false) => Role::QNorm,
        ("k_norm", false) => Role::KNorm,
        ("o_proj", false) => Role::O,
        ("post_attention_layernorm", false) => Role::PostNorm,
        ("gate_proj", false) => Role::Gate,
        ("up_proj", false) => Role::Up,
        ("down_proj", false) => Role::Down,
        ("norm", false) => Role::FinalNorm,
        ("lm_head", false) => Role::Head,
        _ => return None,
    })
}

fn shape(base: &BaseModel) -> cuda::ModelShape {
    let spec = &base.spec;
    cuda::ModelShape {
        vocab: spec.vocab,
        hidden: spec.hidden,
        intermediate: spec.intermediate,
        blocks: spec.blocks,
        heads: spec.heads,
        kv_heads: spec.kv_heads,
        dim: spec.head_dim,
        windows: spec.windows.clone(),
        rms_eps: spec.rms_eps as f32,
        tied: spec.tied,
        inverse_frequencies: spec.rope.inverse_frequencies(spec.head_dim),
    }
}

/// Reads one tensor and copies it to its place. The card packs what is to be kept in 4 bits, unless the checkpoint has it so.
fn load(builder: &mut Builder, base: &BaseModel, info: &TensorInfo, entry: &Entry, slot: Slot) -> Result<()> {
    let fit = |error: EngineError| Error::model(format!("`{}`: {error}", info.name));
    if let (Storage::Nf4 { block_size, double_quantization }, Some(Weight::Nf4(packed))) =
        (entry.storage, base.packed(&info.name)?)
        && packed.options() == (Nf4Options { block_size, double_quantization })
    {
        let parts = match packed.scales() {
            Scales::Plain(scales) => Parts::Single(packed.codes(), scales),
            Scales::Double { codes, absmax, offset } => Parts::Double(packed.codes(), codes, absmax, &[], *offset),
        };
        return builder.load(slot, Data::Nf4(parts)).map_err(fit);
    }
    let storage = if entry.storage == Storage::F32 { Storage::F32 } else { Storage::Bf16 };
    match read(base, info, storage)? {
        Weight::F32(values) => builder.load(slot, Data::F32(&values)).map_err(fit),
        Weight::Bf16(values) => builder.load(slot, Data::Bf16(&values)).map_err(fit),
        other => Err(Error::internal(format!("`{}` was read as {}", info.name, other.format()))),
    }
}

/// The error for the user, with what would need less memory.
pub(super) fn memory_error(error: EngineError, what: &str, plan: &Plan) -> Error {
    let EngineError::OutOfDeviceMemory { .. } = &error else { return failed(error) };
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
