//! Whether a run fits on a GPU, before anything is loaded onto it.
//!
//! In: the plan, the largest batch, the bytes that may be taken. Out: nothing, or an error with the settings that would fit. Both
//! are the card's own account: the model is laid out on a card that is not there, and a step is run on it dry.

use std::collections::BTreeSet;

use liftplan_engine::cuda::Context;
use liftplan_engine::{Batch, EngineError};

use super::card::{Card, CardOptions};
use super::card_specs::can_offload;
use crate::model::BaseModel;
use crate::model::inventory::Kind;
use crate::plan::memory::Memory;
use crate::plan::{Plan, Storage, Treatment};
use crate::report::text::memory;
use crate::{Error, Result};

/// What the driver, cuBLASLt and the kernels may still take once a run is under way.
const MARGIN: u64 = 128 << 20;

/// A run on a card, as far as memory goes.
#[derive(Clone)]
pub struct Run<'a> {
    /// The model.
    pub base: &'a BaseModel,
    /// What becomes of its weights.
    pub plan: Plan,
    /// How states are kept.
    pub options: CardOptions,
    /// The batch with the most tokens.
    pub batch: Batch,
    /// The settings by which blocks would be updated inside the backward pass, where they can.
    pub offer_update: Option<String>,
    /// Where the plan is revised on the way: the weights whose adapters rest now. They take their place, and their gradients are not
    /// made.
    pub resting: Option<BTreeSet<String>>,
}

/// What the run takes where `available` bytes may be taken on a card of this compute capability; or, at least, what it would.
///
/// # Errors
/// When the card can't carry out the plan.
pub fn forecast(run: &Run<'_>, available: u64, capability: (u32, u32)) -> Result<Result<Memory, u64>> {
    let context = Context::dry(capability);
    let options = CardOptions { vram: Some(available), ..run.options };
    let mut card = Card::laid_out(&context, run.base, &run.plan, options)?;
    let broken = |error: EngineError| Error::internal(format!("a step cannot be laid out: {error}"));
    card.prepare(None).map_err(broken)?;
    if let Some(resting) = &run.resting {
        card.rest(resting).map_err(broken)?;
    }
    match card.forecast(&run.batch) {
        Ok(memory) => Ok(Ok(memory)),
        Err(EngineError::OutOfDeviceMemory { needed, .. }) => Ok(Err(card.lasting_bytes(&run.batch) + needed as u64)),
        Err(error) => Err(broken(error)),
    }
}

/// A card, as far as memory goes.
#[derive(Clone, Debug)]
pub struct Place {
    /// As `device` names it.
    pub device: String,
    /// Compute capability.
    pub capability: (u32, u32),
    /// Bytes that no program holds.
    pub free: u64,
    /// Bytes in all.
    pub total: u64,
}

impl Place {
    /// A card that is open.
    ///
    /// # Errors
    /// When the device fails.
    pub fn of(context: &Context) -> Result<Self> {
        let (free, total) = context.memory().map_err(|error| Error::train(error.to_string()))?;
        let device = format!("cuda:{}", context.ordinal());
        Ok(Self { device, capability: context.capability(), free: free as u64, total: total as u64 })
    }
}

/// Fails if the run does not fit on the card.
///
/// # Errors
/// With what was needed, what there is, and the settings of [`ways`].
pub fn check(place: &Place, run: &Run<'_>) -> Result<()> {
    let Place { device, capability, free, total } = place;
    let available = match run.options.vram {
        // What others hold counts against the cap, as it would on a card of that size.
        Some(vram) => vram.saturating_sub(total - free).min(*free),
        None => *free,
    };
    let usable = available.saturating_sub(MARGIN);
    let Err(needed) = forecast(run, usable, *capability)? else { return Ok(()) };
    let there = match run.options.vram {
        Some(vram) if available < *free => {
            format!("`vram` leaves it {} of {} on {device}", memory(available), memory(vram))
        }
        _ => format!("{device} has {} free of {}", memory(*free), memory(*total)),
    };
    Err(Error::train(format!("training takes at least {} on the GPU, and {there}", memory(needed + MARGIN)))
        .help(in_words(&ways(run, usable, *capability)?)))
}

/// Settings with which the run fits, and the bytes it takes at least; or, if nothing helps, the leanest and its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ways {
    /// Each fits by itself.
    Any(Vec<(String, u64)>),
    /// All together fit.
    Together(Vec<String>, u64),
    /// Not even all together fit.
    None(Vec<String>, u64),
}

/// A setting, and what it makes of a run.
struct Way {
    setting: String,
    change: Box<dyn Fn(&mut Run<'_>)>,
    /// Whether it goes with all the others.
    joins: bool,
}

impl Way {
    fn new(setting: impl Into<String>, change: impl Fn(&mut Run<'_>) + 'static) -> Self {
        Self { setting: setting.into(), change: Box::new(change), joins: true }
    }
}

/// Looks for settings with which the run fits into `available` bytes.
///
/// # Errors
/// As [`forecast`].
pub fn ways(run: &Run<'_>, available: u64, capability: (u32, u32)) -> Result<Ways> {
    let ways = candidates(run);
    let taken = |run: &Run<'_>| -> Result<Result<u64, u64>> {
        Ok(forecast(run, available, capability)?.map(|memory| memory.total()))
    };
    let mut fitting = Vec::new();
    for way in &ways {
        let mut changed = run.clone();
        (way.change)(&mut changed);
        if let Ok(bytes) = taken(&changed)? {
            fitting.push((way.setting.clone(), bytes));
        }
    }
    if !fitting.is_empty() {
        return Ok(Ways::Any(fitting));
    }
    let (mut changed, mut settings, mut least) = (run.clone(), Vec::new(), u64::MAX);
    for way in ways.iter().filter(|way| way.joins) {
        (way.change)(&mut changed);
        settings.push(way.setting.clone());
        match taken(&changed)? {
            Ok(bytes) => return Ok(Ways::Together(settings, bytes)),
            Err(bytes) => least = bytes,
        }
    }
    Ok(Ways::None(settings, least))
}

/// What can be changed of a run, that which changes its result least first.
fn candidates(run: &Run<'_>) -> Vec<Way> {
    let mut ways: Vec<Way> = Vec::new();
    let entries = &run.plan.entries;
    let longest = run.batch.starts.windows(2).map(|pair| (pair[1] - pair[0]) as usize).max().unwrap_or(0);
    if !run.options.offload_embedding && can_offload(&run.base.inventory, &run.base.spec, &run.plan).is_ok() {
        ways.push(Way::new("storage.offload_embedding = true", |run| run.options.offload_embedding = true));
    }
    if let (Some(setting), false) = (&run.offer_update, run.options.update_in_backward) {
        // A step of several examples is one pass or, as the next setting has it, several.
        let joins = run.batch.starts.len() <= 2;
        ways.push(Way { joins, ..Way::new(setting, |run| run.options.update_in_backward = true) });
    }
    if run.batch.starts.len() > 2 && !run.options.update_in_backward {
        let one = alone(longest);
        ways.push(Way::new("train.micro_batch_examples = 1", move |run| run.batch = one.clone()));
    }
    if !run.options.eight_bit_states && entries.iter().any(|entry| entry.treatment == Treatment::Train) {
        ways.push(Way::new("optimizer.name = \"adamw8bit\"", |run| run.options.eight_bit_states = true));
    }
    let trained_wide =
        |treatment: &Treatment, storage: Storage| *treatment == Treatment::Train && storage == Storage::F32;
    if entries.iter().any(|entry| trained_wide(&entry.treatment, entry.storage)) {
        ways.push(Way::new("train.weights = \"bf16\"", move |run| {
            for entry in run.plan.entries.iter_mut().filter(|e| trained_wide(&e.treatment, e.storage)) {
                entry.storage = Storage::Bf16;
            }
        }));
    }
    let packable: Vec<usize> = (run.base.inventory.tensors.iter().zip(entries).enumerate())
        .filter(|(_, (info, entry))| {
            info.block.is_some()
                && info.kind == Kind::Linear
                && info.shape.last().is_some_and(|columns| columns % 64 == 0)
                && entry.treatment != Treatment::Train
                && entry.storage.can_train()
        })
        .map(|(index, _)| index)
        .collect();
    if !packable.is_empty() {
        let nf4 = Storage::Nf4 { block_size: 64, double_quantization: true };
        ways.push(Way::new("storage.frozen = \"nf4\"", move |run| {
            for index in &packable {
                run.plan.entries[*index].storage = nf4;
            }
        }));
    }
    for length in [longest / 2, longest / 4].into_iter().filter(|&length| length >= 64) {
        let one = alone(length);
        let documents = run.batch.starts.len() - 1;
        let setting = match documents {
            1 => format!("data.max_length = {length}"),
            _ if run.options.update_in_backward => format!("data.max_length = {length} with train.batch_size = 1"),
            _ => format!("data.max_length = {length} with train.micro_batch_examples = 1"),
        };
        ways.push(Way::new(setting, move |run| run.batch = one.clone()));
    }
    ways
}

/// One example of so many tokens, all of which count.
pub(super) fn alone(tokens: usize) -> Batch {
    let (ids, targets) = (vec![0; tokens], vec![true; tokens]);
    Batch::pack([(ids.as_slice(), targets.as_slice())])
}

fn in_words(ways: &Ways) -> String {
    let room = "or make room on the card (nvidia-smi lists who holds what)";
    let memory = |bytes: u64| memory(bytes + MARGIN);
    match ways {
        Ways::Any(settings) => {
            let each: Vec<_> = settings.iter().map(|(set, bytes)| format!("{set} ({})", memory(*bytes))).collect();
            format!("any of these fits: {}; {room}", each.join(", "))
        }
        Ways::Together(settings, bytes) => format!("this fits: {} ({}); {room}", settings.join(", "), memory(*bytes)),
        Ways::None(settings, bytes) => format!(
            "even {} takes {}: train a smaller model, {room}, or set device to \"cpu\"",
            settings.join(", "),
            memory(*bytes)
        ),
    }
}
