//! What a run needs before its first step: the model opened, the data read, the plan made and the decoder built.

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::time::Instant;

use liftplan_engine::Decoder;

use super::build::build;
use super::calibrate::Measured;
use super::card::{self, Card, CardOptions};
use super::picks::Picker;
use super::step::empty;
use super::{Model, trainable};
use crate::Result;
use crate::checkpoint::Source;
use crate::config::{Config, Device};
use crate::data::{self, Dataset};
use crate::device::{self, Chosen};
use crate::eval;
use crate::hash::{Hasher, sha256};
use crate::model::{self, BaseModel};
use crate::plan::{Entry, Origin, Picks, Plan, Storage, Treatment};
use crate::policy;
use crate::report::{Event, Hashes, Observer, PhaseSeconds};
use crate::stats::ModelStatistics;

/// Everything that was read and decided.
pub(super) struct Prepared {
    pub base: BaseModel,
    pub plan: Plan,
    /// What revises the plan, if it asked for that.
    pub picker: Option<Picker>,
    /// Seconds that the plan took in a plugin.
    pub plugin_s: f64,
    pub train: Dataset,
    pub validation: Option<Dataset>,
    pub test: Option<Dataset>,
    pub hashes: Hashes,
    pub seconds: PhaseSeconds,
}

/// Opens the model, reads the data and makes the plan.
///
/// # Errors
/// When any of them is not good.
pub(super) fn prepare(config: &Config, observer: &mut dyn Observer) -> Result<Prepared> {
    let started = Instant::now();
    observer.on(&Event::Phase("opening the model"));
    let base = model::open(&config.model, Path::new(""), observer)?;
    let opened = started.elapsed().as_secs_f64();

    // A policy that measures on data needs it before there is a plan; for all others what is quick to check comes first.
    let data_first = policy::needs_data(config).map_err(|error| config.locate(error))?;
    let mut seconds = PhaseSeconds { load: opened, ..PhaseSeconds::default() };
    let early = if data_first { Some(read_data(config, &base, &mut seconds, observer)?) } else { None };

    let started = Instant::now();
    observer.on(&Event::Phase("planning"));
    let made = match &early {
        Some(splits) => policy::start(config, &base.inventory, &Measured::new(&base, config, &splits.train, observer))?,
        None => policy::start(config, &base.inventory, &ModelStatistics::new(&base, observer).on(config.device))?,
    };
    policy::tell(&made.notes, &made.plan.origin.policy, observer);
    let policy::Started { policy, plan, state, .. } = made;
    let plugin = policy.plugin_sha256().map(str::to_string);
    let plugin_s = policy.seconds();
    let picker = Picker::new(policy, &plan, &state)?;
    seconds.plan = started.elapsed().as_secs_f64();
    let splits = match early {
        Some(splits) => splits,
        None => read_data(config, &base, &mut seconds, observer)?,
    };

    let hashes = Hashes {
        model: base.hash.clone(),
        plan: plan.hash(),
        config: config_hash(config)?,
        data: data_hash(&splits.train),
        plugin,
    };
    let data::Splits { train, validation, test } = splits;
    Ok(Prepared { base, plan, picker, plugin_s, train, validation, test, hashes, seconds })
}

fn read_data(
    config: &Config,
    base: &BaseModel,
    seconds: &mut PhaseSeconds,
    observer: &mut dyn Observer,
) -> Result<data::Splits> {
    let started = Instant::now();
    observer.on(&Event::Phase("reading the data"));
    let splits = data::load_splits(&config.data, config.seed, base, observer).map_err(|error| config.locate(error))?;
    for judged_by in [&splits.test, &splits.validation].into_iter().flatten() {
        eval::run::check(&config.eval, judged_by)?;
    }
    seconds.load += started.elapsed().as_secs_f64();
    Ok(splits)
}

/// The plan that `config` asks for, made as a run makes it: a policy that measures on data gets it.
///
/// # Errors
/// When the plan can't be made, or the data that it needs can't be read.
pub fn plan(config: &Config, base: &BaseModel, observer: &mut dyn Observer) -> Result<Plan> {
    if !policy::needs_data(config).map_err(|error| config.locate(error))? {
        return policy::plan(config, &base.inventory, &ModelStatistics::new(base, observer).on_if_there(config.device));
    }
    let splits = read_data(config, base, &mut PhaseSeconds::default(), observer)?;
    policy::plan(config, &base.inventory, &Measured::new(base, config, &splits.train, observer))
}

/// The sha256 of the configuration, wherever its run is written.
pub(super) fn config_hash(config: &Config) -> Result<String> {
    let placeless = Config { out: PathBuf::new(), ..config.clone() };
    Ok(sha256(placeless.to_toml()?))
}

/// The sha256 of what is trained on: every token and whether it counts.
fn data_hash(data: &Dataset) -> String {
    let mut hash = Hasher::default();
    for example in &data.examples {
        hash.update((example.ids.len() as u64).to_le_bytes());
        hash.update(bytemuck::cast_slice::<u32, u8>(&example.ids));
        hash.update(example.is_target.iter().map(|&target| u8::from(target)).collect::<Vec<_>>());
    }
    hash.finish()
}

/// A model ready to compute, and what it was made from.
pub struct Reopened {
    /// The base model.
    pub base: BaseModel,
    /// The decoder, with the run's trained weights if it is a run's; empty when it is on a card.
    pub decoder: Decoder,
    /// The model on a GPU, if it is there.
    card: Option<RefCell<Card>>,
    /// The run's configuration, if it is a run's.
    pub config: Option<Config>,
    /// The step of the checkpoint whose weights these are.
    pub step: Option<u64>,
    /// The quantised storage that some of the weights are kept in, if any.
    pub kept_as: Option<Storage>,
}

impl Reopened {
    /// The model, to ask.
    pub fn model(&self) -> Model<'_> {
        self.card.as_ref().map_or(Model::Host(&self.decoder), Model::Card)
    }
}

/// Opens an untouched model for evaluation or generation: in `f32` on the processor, in bf16 on a GPU. Without a `device` it is the
/// GPU if there is one.
///
/// # Errors
/// When it can't be opened or read, or the device is not there.
pub fn open_model(
    reference: &str,
    relative_to: &Path,
    device: Option<Device>,
    observer: &mut dyn Observer,
) -> Result<Reopened> {
    let base = model::open(reference, relative_to, observer)?;
    observer.on(&Event::Phase("loading the weights"));
    let plan = untouched(&base, Storage::F32);
    let mut chosen = device::choose(device.unwrap_or_default())?;
    if let (Some(_), None | Some(Device::Auto), Err(error)) = (&chosen.context, device, card::check(&base, &plan)) {
        chosen = Chosen::processor(&format!("the GPU cannot carry out this model: {}", error.message()));
    }
    chosen.tell(observer);
    let (decoder, card) = match &chosen.context {
        None => (build(&base, &plan, 0, observer)?, None),
        Some(context) => {
            let card = Card::build(context, &base, &plan, 0, CardOptions::default(), observer)?;
            (empty()?, Some(RefCell::new(card)))
        }
    };
    Ok(Reopened { base, decoder, card, config: None, step: None, kept_as: None })
}

/// Opens the result of the run in `run`, or its state after `step` steps: its model with what was trained. Without a `device` it is
/// the one that the run was trained on, or else what there is.
///
/// # Errors
/// When there is no such run, checkpoint or device, or the model is not the one it was trained from.
pub fn reopen(run: &Path, step: Option<u64>, device: Option<Device>, observer: &mut dyn Observer) -> Result<Reopened> {
    reopen_with(run, step, device, |_| {}, observer)
}

/// As [`reopen`], with the base model's original weights in `f32` where the run kept them quantised.
///
/// # Errors
/// As [`reopen`].
pub fn reopen_over_original(
    run: &Path,
    step: Option<u64>,
    device: Option<Device>,
    observer: &mut dyn Observer,
) -> Result<Reopened> {
    let original = |plan: &mut Plan| {
        for entry in plan.entries.iter_mut().filter(|entry| !entry.storage.can_train()) {
            entry.storage = Storage::F32;
        }
    };
    reopen_with(run, step, device, original, observer)
}

fn reopen_with(
    run: &Path,
    step: Option<u64>,
    device: Option<Device>,
    change: impl FnOnce(&mut Plan),
    observer: &mut dyn Observer,
) -> Result<Reopened> {
    let Source { config, base, mut plan, checkpoint, .. } = Source::open(run, step, observer)?;
    change(&mut plan);
    observer.on(&Event::Phase("loading the weights"));
    let chosen = match device {
        Some(device) => device::choose(device)?,
        None => device::choose_like(config.device)?,
    };
    chosen.tell(observer);
    let (decoder, card) = match &chosen.context {
        None => {
            let mut decoder = build(&base, &plan, config.seed, observer)?;
            trainable::load(&mut decoder, &checkpoint.trainable)?;
            for param in decoder.params_mut() {
                param.set_trained(false);
            }
            (decoder, None)
        }
        Some(context) => {
            let options = CardOptions {
                vram: config.vram.map(|bytes| bytes.0),
                offload_embedding: config.storage.offload_embedding,
                ..CardOptions::default()
            };
            let card = Card::to_ask(context, &base, &plan, options, &checkpoint.trainable, observer)?;
            (empty()?, Some(RefCell::new(card)))
        }
    };
    let kept_as = plan.entries.iter().map(|entry| entry.storage).find(|storage| !storage.can_train());
    Ok(Reopened { base, decoder, card, config: Some(config), step: Some(checkpoint.state.step), kept_as })
}

/// The plan in which nothing trains.
pub(super) fn untouched(base: &BaseModel, storage: Storage) -> Plan {
    let entry = |tensor: &crate::model::inventory::TensorInfo| Entry {
        tensor: tensor.name.clone(),
        treatment: Treatment::Frozen,
        storage,
        lr_scale: 1.0,
        lr_scale_b: 1.0,
    };
    Plan {
        version: Plan::VERSION,
        origin: Origin {
            policy: "none".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            settings: serde_json::json!({}),
        },
        entries: base.inventory.tensors.iter().map(entry).collect(),
        picks: Picks::default(),
        scores: Default::default(),
    }
}
