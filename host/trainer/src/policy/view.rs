//! What a policy sees: the model without its weights, the run at a pick, and what it keeps between picks.

use std::cell::{Ref, RefCell, RefMut};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use liftplan_engine::rng::philox;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::Result;
use crate::model::inventory::{Inventory, TensorInfo};
use crate::stats::{Calibration, ElementStatistics, NoStatistics, Statistics};

/// What a policy may know of the model: everything but the weights, of which it can ask for statistics.
pub struct ModelView<'a> {
    pub(super) inventory: &'a Inventory,
    statistics: &'a dyn Statistics,
    seed: u64,
    memory_budget: Option<u64>,
    state: RefCell<PolicyState>,
    notes: RefCell<Vec<Note>>,
}

impl<'a> ModelView<'a> {
    /// A view of the model with `inventory`, for a run with `seed`. Asked for a statistic, it answers with an error.
    pub fn new(inventory: &'a Inventory, seed: u64) -> Self {
        Self {
            inventory,
            statistics: &NoStatistics,
            seed,
            memory_budget: None,
            state: RefCell::default(),
            notes: RefCell::default(),
        }
    }

    /// The same view, with statistics of the weights.
    pub fn with_statistics(self, statistics: &'a dyn Statistics) -> Self {
        Self { statistics, ..self }
    }

    /// The same view of a run that may use so many bytes of memory.
    pub fn with_memory_budget(self, bytes: Option<u64>) -> Self {
        Self { memory_budget: bytes, ..self }
    }

    /// The same view, with what the policy kept at the last pick.
    pub fn with_state(self, state: PolicyState) -> Self {
        Self { state: RefCell::new(state), ..self }
    }

    /// The singular values of each of these two-dimensional weights, descending; computed when asked for, and kept.
    ///
    /// # Errors
    /// As [`Statistics::singular_values`].
    pub fn singular_values(&self, tensors: &[&TensorInfo]) -> Result<Vec<Arc<[f64]>>> {
        self.statistics.singular_values(tensors)
    }

    /// Norms and moments of the elements of each of these weights.
    ///
    /// # Errors
    /// As [`Statistics::elements`].
    pub fn elements(&self, tensors: &[&TensorInfo]) -> Result<Vec<ElementStatistics>> {
        self.statistics.elements(tensors)
    }

    /// Quantiles of a weight's elements, or of their magnitudes, at these parts (0 to 1).
    ///
    /// # Errors
    /// As [`Statistics::quantiles`].
    pub fn quantiles(&self, tensor: &TensorInfo, parts: &[f64], of_magnitudes: bool) -> Result<Vec<f64>> {
        self.statistics.quantiles(tensor, parts, of_magnitudes)
    }

    /// Measurements of the untrained model on so many batches of the training data.
    ///
    /// # Errors
    /// As [`Statistics::calibration`].
    pub fn calibration(&self, batches: usize) -> Result<Rc<dyn Calibration>> {
        self.statistics.calibration(batches)
    }

    /// The family's name.
    pub fn architecture(&self) -> &'a str {
        &self.inventory.architecture
    }

    /// The tensors, in the order of the forward pass.
    pub fn tensors(&self) -> &'a [TensorInfo] {
        &self.inventory.tensors
    }

    /// The number of decoder blocks.
    pub fn blocks(&self) -> usize {
        self.inventory.blocks
    }

    /// Whether the output head is the embedding.
    pub fn tied(&self) -> bool {
        self.inventory.tied
    }

    /// The run's seed.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Bytes of memory that the run may use, if the user set a limit.
    pub fn memory_budget(&self) -> Option<u64> {
        self.memory_budget
    }

    /// The `draw`-th random number at `step` (0 for the first plan): 64 bits that depend on seed, step and `draw` alone.
    pub fn random(&self, step: u64, draw: u64) -> u64 {
        let counter = [draw as u32, (draw >> 32) as u32, step as u32, (step >> 32) as u32];
        let [low, high, ..] = philox(self.seed, counter);
        u64::from(low) | u64::from(high) << 32
    }

    /// What the policy keeps between picks.
    pub fn state(&self) -> Ref<'_, PolicyState> {
        self.state.borrow()
    }

    /// The same, to change it.
    pub fn state_mut(&self) -> RefMut<'_, PolicyState> {
        self.state.borrow_mut()
    }

    /// Leaves a message for the user.
    pub fn note(&self, level: Level, text: String) {
        self.notes.borrow_mut().push(Note { level, text });
    }

    /// What the policy keeps and the messages that it left, when its call is over.
    pub fn into_parts(self) -> (PolicyState, Vec<Note>) {
        (self.state.into_inner(), self.notes.into_inner())
    }
}

/// What a policy keeps between picks. It is part of every checkpoint, so that a resumed run goes on exactly.
pub type PolicyState = BTreeMap<String, Vec<u8>>;

/// How much a message matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// For the policy's author.
    Debug,
    /// Good to know.
    Info,
    /// The user should know it.
    Warn,
}

/// A message of a policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// How much it matters.
    pub level: Level,
    /// The message, fit for a terminal.
    pub text: String,
}

/// A pick: the step before which the plan can change, and what has happened so far.
pub struct Moment<'a> {
    /// The step about to be done, from 1.
    pub step: u64,
    /// Steps planned in all.
    pub total_steps: u64,
    /// The first step after the last pick, or 1.
    pub since: u64,
    /// The loss of each step done, in nats a target token.
    pub losses: &'a [f64],
    /// Norms of gradients and updates since the last pick.
    pub norms: &'a Norms,
    /// The policy's settings, every default filled in.
    pub settings: &'a Value,
    /// The model, with what the policy keeps between picks.
    pub view: &'a ModelView<'a>,
}

impl Moment<'_> {
    /// The `draw`-th random number of this pick: 64 bits that depend on nothing but seed, step and `draw`.
    pub fn random(&self, draw: u64) -> u64 {
        self.view.random(self.step, draw)
    }
}

/// Norms of each tensor's gradients and updates, those of its adapter if it has one, summed up over steps.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Norms(BTreeMap<String, NormSums>);

/// The sums of one tensor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
struct NormSums {
    steps: u64,
    /// Sum of the squares of the gradients' norms.
    gradient: f64,
    /// Sum of the squares of the updates' norms.
    update: f64,
}

impl Norms {
    /// Adds a step's squared norms of the tensor called `tensor`.
    pub fn add(&mut self, tensor: &str, gradient_squared: f64, update_squared: f64) {
        let sums = self.0.entry(tensor.to_string()).or_default();
        sums.steps += 1;
        sums.gradient += gradient_squared;
        sums.update += update_squared;
    }

    /// Root mean square over the steps of the norm of the tensor's gradient, before clipping, if it trained.
    pub fn gradient(&self, tensor: &str) -> Option<f64> {
        self.0.get(tensor).map(|sums| (sums.gradient / sums.steps as f64).sqrt())
    }

    /// The same of the change that a step made.
    pub fn update(&self, tensor: &str) -> Option<f64> {
        self.0.get(tensor).map(|sums| (sums.update / sums.steps as f64).sqrt())
    }
}
