//! What a policy makes its plan with. Each call is checked where it is made; [`PlanBuilder::build`] freezes the rest.

use std::collections::BTreeMap;

use super::{AdapterSpec, Entry, Origin, Picks, Plan, Storage, StorageRule, Treatment};
use crate::config::suggest;
use crate::model::inventory::{Inventory, Kind, TensorInfo};
use crate::{Error, Result};

/// Builds a plan for one model, call by call.
///
/// A tensor is treated once: `freeze`, `train` or `adapt`. What is never named stays frozen (or, when a plan is
/// revised, as it was). Learning-rate factors follow the treatment they belong to.
pub struct PlanBuilder<'a> {
    inventory: &'a Inventory,
    positions: BTreeMap<&'a str, usize>,
    lines: Vec<Line>,
    previous: Option<&'a Plan>,
    storage_rule: StorageRule,
    picks: Picks,
    scores: BTreeMap<String, f64>,
}

#[derive(Clone, Default)]
struct Line {
    treatment: Option<Treatment>,
    storage: Option<Storage>,
    lr_scale: Option<f64>,
    lr_scale_b: Option<f64>,
}

impl<'a> PlanBuilder<'a> {
    /// Starts a plan for the tensors of `inventory`, kept as `storage_rule` says unless said otherwise.
    pub fn new(inventory: &'a Inventory, storage_rule: impl Into<StorageRule>) -> Self {
        Self {
            inventory,
            positions: inventory.tensors.iter().enumerate().map(|(i, tensor)| (tensor.name.as_str(), i)).collect(),
            lines: vec![Line::default(); inventory.tensors.len()],
            previous: None,
            storage_rule: storage_rule.into(),
            picks: Picks::default(),
            scores: BTreeMap::new(),
        }
    }

    /// Starts the revision of `plan`: what isn't named stays as it is there, its picks included.
    /// A tensor that begins to train whole gets the rule's storage for that, and keeps it when it stops.
    pub fn revising(inventory: &'a Inventory, plan: &'a Plan, storage_rule: impl Into<StorageRule>) -> Self {
        let mut builder = Self::new(inventory, storage_rule);
        builder.previous = Some(plan);
        builder.picks = plan.picks.clone();
        builder.scores = plan.scores.clone();
        builder
    }

    /// Leaves the tensor as it is.
    pub fn freeze(&mut self, tensor: &str) -> Result<()> {
        self.treat(tensor, Treatment::Frozen)
    }

    /// Trains all of the tensor.
    pub fn train(&mut self, tensor: &str) -> Result<()> {
        self.treat(tensor, Treatment::Train)
    }

    /// Trains a low-rank adapter beside the tensor, which must be a linear layer's weight.
    ///
    /// The rank must lie between 1 and the weight's smaller dimension, alpha above 0, and dropout in `[0, 1)`.
    pub fn adapt(&mut self, tensor: &str, adapter: AdapterSpec) -> Result<()> {
        let info = self.info(tensor)?;
        if info.kind != Kind::Linear {
            return Err(Error::plan(format!(
                "cannot adapt `{tensor}`: it is {}, and only linear layers' weights take an adapter",
                kind_in_words(info.kind)
            ))
            .help("train it whole, or leave it frozen"));
        }
        let largest = info.shape.iter().copied().min().unwrap_or(0);
        if adapter.rank == 0 || adapter.rank > largest {
            return Err(Error::plan(format!(
                "rank {} does not fit `{tensor}` of shape {:?}: it must be between 1 and {largest}",
                adapter.rank, info.shape
            ))
            .help(format!("lower the rank to at most {largest}, or leave this tensor out")));
        }
        if !(adapter.alpha.is_finite() && adapter.alpha > 0.0) {
            return Err(Error::plan(format!("alpha of `{tensor}` must be a number above 0, not {}", adapter.alpha)));
        }
        if !(0.0..1.0).contains(&adapter.dropout) {
            return Err(Error::plan(format!("dropout of `{tensor}` must be in [0, 1), not {}", adapter.dropout)));
        }
        self.treat(tensor, Treatment::Adapt(adapter))
    }

    /// Says how the tensor is kept, once.
    pub fn storage(&mut self, tensor: &str, storage: Storage) -> Result<()> {
        let position = self.position(tensor)?;
        match self.lines[position].storage.replace(storage) {
            None => Ok(()),
            Some(_) => Err(Error::plan(format!("the storage of `{tensor}` is set twice"))),
        }
    }

    /// Multiplies the learning rate of what trains in the tensor. It must be a number above 0, and set once, after the
    /// treatment.
    pub fn lr_scale(&mut self, tensor: &str, factor: f64) -> Result<()> {
        let position = self.position(tensor)?;
        self.check_factor("learning-rate factor", tensor, position, factor)?;
        match self.lines[position].lr_scale.replace(factor) {
            None => Ok(()),
            Some(_) => Err(Error::plan(format!("the learning-rate factor of `{tensor}` is set twice"))),
        }
    }

    /// Multiplies the learning rate of an adapter's B matrix and magnitude further (LoRA+).
    pub fn lr_scale_b(&mut self, tensor: &str, factor: f64) -> Result<()> {
        let position = self.position(tensor)?;
        self.check_factor("learning-rate factor of B", tensor, position, factor)?;
        if !matches!(self.treatment(position), Some(Treatment::Adapt(_))) {
            return Err(Error::plan(format!(
                "`{tensor}` has no B matrix to scale the learning rate of: it isn't adapted"
            )));
        }
        match self.lines[position].lr_scale_b.replace(factor) {
            None => Ok(()),
            Some(_) => Err(Error::plan(format!("the learning-rate factor of B of `{tensor}` is set twice"))),
        }
    }

    /// Treats the tensor as `entry` treats its own, at the same learning rates; what is frozen there is left alone. The storage is
    /// this plan's own matter.
    pub fn treat_like(&mut self, tensor: &str, entry: &Entry) -> Result<()> {
        match &entry.treatment {
            Treatment::Frozen => return Ok(()),
            Treatment::Train => self.train(tensor)?,
            Treatment::Adapt(adapter) => self.adapt(tensor, adapter.clone())?,
        }
        if entry.lr_scale != 1.0 {
            self.lr_scale(tensor, entry.lr_scale)?;
        }
        if entry.lr_scale_b != 1.0 {
            self.lr_scale_b(tensor, entry.lr_scale_b)?;
        }
        Ok(())
    }

    /// Notes the tensor's score, for reports. It must be finite.
    pub fn score(&mut self, tensor: &str, score: f64) -> Result<()> {
        self.position(tensor)?;
        if !score.is_finite() {
            return Err(Error::plan(format!("the score of `{tensor}` must be a finite number, not {score}")));
        }
        self.scores.insert(tensor.to_string(), score);
        Ok(())
    }

    /// Asks to be called again after every `steps` steps.
    pub fn pick_every(&mut self, steps: u64) -> Result<()> {
        if steps == 0 {
            return Err(Error::plan("a policy cannot revise its plan every 0 steps").help("ask for 1 or more"));
        }
        self.picks.every = Some(steps);
        Ok(())
    }

    /// Asks to be called again before `step`, counted from 1; the first revision can be before step 2.
    pub fn pick_at(&mut self, step: u64) -> Result<()> {
        if step < 2 {
            return Err(Error::plan(format!(
                "a plan cannot be revised before step {step}: the first plan is step 1's"
            ))
            .help("ask for 2 or more"));
        }
        if let Err(place) = self.picks.at.binary_search(&step) {
            self.picks.at.insert(place, step);
        }
        Ok(())
    }

    /// When it asks to be called again, as things stand.
    pub fn picks(&self) -> &Picks {
        &self.picks
    }

    /// What happens to the tensor as things stand: `frozen`, `train` or `adapt`.
    pub fn treatment_now(&self, tensor: &str) -> Result<&'static str> {
        Ok(match self.treatment(self.position(tensor)?) {
            None | Some(Treatment::Frozen) => "frozen",
            Some(Treatment::Train) => "train",
            Some(Treatment::Adapt(_)) => "adapt",
        })
    }

    /// How the tensor is kept as things stand.
    pub fn storage_now(&self, tensor: &str) -> Result<Storage> {
        let position = self.position(tensor)?;
        Ok(self.entry(position, &self.inventory.tensors[position]).storage)
    }

    /// Parameters that train as things stand, those of adapters included, and an estimate of the bytes that weights,
    /// gradients and the optimiser's states take; activations are left out.
    pub fn needs_now(&self) -> (u64, u64) {
        let origin = Origin { policy: String::new(), version: String::new(), settings: serde_json::Value::Null };
        let (picks, scores) = (Picks::default(), BTreeMap::new());
        let summary =
            Plan { version: Plan::VERSION, origin, entries: self.entries(), picks, scores }.summary(self.inventory);
        (summary.trainable_parameters, summary.memory.total())
    }

    fn entries(&self) -> Vec<Entry> {
        self.inventory.tensors.iter().enumerate().map(|(i, info)| self.entry(i, info)).collect()
    }

    /// The error for a name that the model doesn't have.
    pub(crate) fn unknown(&self, tensor: &str) -> Error {
        match self.position(tensor) {
            Err(error) => error,
            Ok(_) => Error::internal(format!("`{tensor}` is there")),
        }
    }

    /// The finished plan, with an entry for each tensor. A plan in which nothing trains is an error.
    pub fn build(self, origin: Origin) -> Result<Plan> {
        let entries = self.entries();
        if entries.iter().all(|entry| entry.treatment == Treatment::Frozen) {
            return Err(Error::plan(format!("policy `{}` made an empty plan: no tensor trains", origin.policy))
                .help("choose at least one tensor to train or adapt"));
        }
        let packed = |entry: &&Entry| entry.treatment == Treatment::Train && !entry.storage.can_train();
        if let Some(entry) = entries.iter().find(packed) {
            return Err(Error::plan(format!("`{}` trains whole and can't be kept as {}", entry.tensor, entry.storage))
                .help("keep what trains in bf16 or f32, or adapt it"));
        }
        Ok(Plan { version: Plan::VERSION, origin, entries, picks: self.picks, scores: self.scores })
    }

    fn entry(&self, position: usize, info: &TensorInfo) -> Entry {
        let line = &self.lines[position];
        let before = self.previous.and_then(|plan| plan.entries.get(position));
        // A new treatment starts with new factors; an old one keeps those it had.
        let old = before.filter(|_| line.treatment.is_none());
        let treatment = self.treatment(position).cloned().unwrap_or(Treatment::Frozen);
        let begins = |entry: &Entry| treatment == Treatment::Train && entry.treatment != Treatment::Train;
        let kept = before.filter(|entry| !begins(entry)).map(|entry| entry.storage);
        let storage = line.storage.or(kept).unwrap_or_else(|| self.storage_rule.of(&info.name, &treatment));
        Entry {
            tensor: info.name.clone(),
            treatment,
            storage,
            lr_scale: line.lr_scale.or(old.map(|entry| entry.lr_scale)).unwrap_or(1.0),
            lr_scale_b: line.lr_scale_b.or(old.map(|entry| entry.lr_scale_b)).unwrap_or(1.0),
        }
    }

    fn treatment(&self, position: usize) -> Option<&Treatment> {
        let before = self.previous.and_then(|plan| plan.entries.get(position)).map(|entry| &entry.treatment);
        self.lines[position].treatment.as_ref().or(before)
    }

    fn treat(&mut self, tensor: &str, treatment: Treatment) -> Result<()> {
        let position = self.position(tensor)?;
        match &self.lines[position].treatment {
            None => {
                self.lines[position].treatment = Some(treatment);
                Ok(())
            }
            Some(first) => Err(Error::plan(format!(
                "`{tensor}` is treated twice: first {}, then {}",
                first.in_words(),
                treatment.in_words()
            ))),
        }
    }

    fn check_factor(&self, what: &str, tensor: &str, position: usize, factor: f64) -> Result<()> {
        if !(factor.is_finite() && factor > 0.0) {
            return Err(Error::plan(format!("the {what} of `{tensor}` must be a number above 0, not {factor}")));
        }
        match self.treatment(position) {
            None | Some(Treatment::Frozen) => {
                Err(Error::plan(format!("the {what} of `{tensor}` has no effect: the tensor is frozen"))
                    .help("train or adapt the tensor first"))
            }
            Some(_) => Ok(()),
        }
    }

    fn info(&self, tensor: &str) -> Result<&'a TensorInfo> {
        Ok(&self.inventory.tensors[self.position(tensor)?])
    }

    fn position(&self, tensor: &str) -> Result<usize> {
        if let Some(position) = self.positions.get(tensor) {
            return Ok(*position);
        }
        let error = Error::plan(format!("the model has no tensor `{tensor}`"));
        if self.inventory.tied && tensor.starts_with("lm_head") {
            let embedding = self.inventory.tensors.iter().find(|info| info.kind == Kind::Embedding);
            let embedding = embedding.map_or("the embedding", |info| info.name.as_str());
            return Err(error.help(format!("its output head is tied: it is `{embedding}`")));
        }
        Err(match suggest::nearest(tensor, self.positions.keys().copied()) {
            Some(near) => error.help(format!("did you mean `{near}`?")),
            None => error,
        })
    }
}

impl Treatment {
    /// `frozen`, `trained` or `adapted`.
    pub fn in_words(&self) -> &'static str {
        match self {
            Treatment::Frozen => "frozen",
            Treatment::Train => "trained",
            Treatment::Adapt(_) => "adapted",
        }
    }
}

pub(crate) fn kind_in_words(kind: Kind) -> &'static str {
    match kind {
        Kind::Embedding => "the token embedding",
        Kind::Linear => "a linear layer's weight",
        Kind::Bias => "a bias",
        Kind::Norm => "a normalisation's scale",
        Kind::Head => "the output head",
    }
}
