//! Policies: from the inventory and the policy's settings to a plan, and from plan to plan at a pick.
//!
//! [`Policy`] is the one trait behind which every policy stands: the built-in ones here, and adapters to plugins. A
//! policy sees the model through a [`ModelView`], which has no weights, and speaks to a [`PlanBuilder`], which checks each
//! call. [`plan`] is the whole way from a configuration to a [`Plan`].

use std::collections::BTreeMap;
use std::sync::Arc;

use liftplan_engine::rng::philox;
use serde::Serialize;
use serde_json::{Map, Value};

use crate::config::{Config, PolicyConfig, Weights, presets::PRESETS, suggest};
use crate::model::inventory::{Inventory, TensorInfo};
use crate::plan::{Origin, Plan, PlanBuilder, Storage, Treatment};
use crate::stats::{NoStatistics, Statistics};
use crate::{Error, Result};

mod full;
mod lora;
mod mixed;
mod random;
pub mod select;
mod spectrum;
mod spectrum_source;
mod storage;

/// What makes a plan.
pub trait Policy {
    /// Its name, version and settings.
    fn describe(&self) -> PolicyInfo;

    /// Checks the settings, which are a JSON object, and fills in every default. Messages begin with the setting's
    /// path in backquotes (`` `policy.rank` ``), which becomes file and line.
    fn resolve(&self, settings: &Value) -> Result<Value>;

    /// Whether it ranks by statistics of the weights, so that an inventory alone makes no plan.
    fn reads_weights(&self) -> bool {
        false
    }

    /// Makes the first plan, from settings that [`Policy::resolve`] returned.
    fn make_plan(&self, settings: &Value, view: &ModelView<'_>, builder: &mut PlanBuilder<'_>) -> Result<()>;

    /// Revises the plan between two steps, at a pick that the plan asked for. What isn't named stays as it was.
    fn revise(&self, moment: &mut Moment<'_>, builder: &mut PlanBuilder<'_>) -> Result<()> {
        let _ = (moment, builder);
        Ok(())
    }
}

/// What a policy says about itself.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PolicyInfo {
    /// The name by which configurations call it.
    pub name: String,
    /// Its version, which plans record.
    pub version: String,
    /// One sentence.
    pub about: String,
    /// Its settings.
    pub settings: Vec<SettingInfo>,
}

/// One setting of a policy.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SettingInfo {
    /// The key in `[policy]`.
    pub name: String,
    /// What it does, in which unit, and its default.
    pub about: String,
}

/// What a policy may know of the model: everything but the weights, of which it can ask for statistics.
pub struct ModelView<'a> {
    inventory: &'a Inventory,
    statistics: &'a dyn Statistics,
    seed: u64,
}

impl<'a> ModelView<'a> {
    /// A view of the model with `inventory`, for a run with `seed`. Asked for a statistic, it answers with an error.
    pub fn new(inventory: &'a Inventory, seed: u64) -> Self {
        Self { inventory, statistics: &NoStatistics, seed }
    }

    /// The same view, with statistics of the weights.
    pub fn with_statistics(self, statistics: &'a dyn Statistics) -> Self {
        Self { statistics, ..self }
    }

    /// The singular values of each of these two-dimensional weights, descending; computed when asked for, and kept.
    ///
    /// # Errors
    /// As [`Statistics::singular_values`].
    pub fn singular_values(&self, tensors: &[&TensorInfo]) -> Result<Vec<Arc<[f64]>>> {
        self.statistics.singular_values(tensors)
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
}

/// What a policy keeps between picks. It is part of every checkpoint, so that a resumed run goes on exactly.
pub type PolicyState = BTreeMap<String, Value>;

/// A pick: the step before which the plan can change, and what has happened so far.
pub struct Moment<'a> {
    /// The step about to be done, from 1.
    pub step: u64,
    /// Steps planned in all.
    pub total_steps: u64,
    /// The loss of each step done, in nats a target token.
    pub losses: &'a [f64],
    /// The policy's settings, every default filled in.
    pub settings: &'a Value,
    /// The model.
    pub view: &'a ModelView<'a>,
    /// What the policy keeps between picks.
    pub state: &'a mut PolicyState,
}

impl Moment<'_> {
    /// The `draw`-th random number of this pick: 64 bits that depend on nothing but seed, step and `draw`.
    pub fn random(&self, draw: u64) -> u64 {
        let counter = [draw as u32, (draw >> 32) as u32, self.step as u32, (self.step >> 32) as u32];
        let [low, high, ..] = philox(self.view.seed, counter);
        u64::from(low) | u64::from(high) << 32
    }
}

/// The policy that chooses by chance: a control for others, and no method of its own.
pub const CONTROL: &str = "random";

/// The built-in policies.
pub fn built_in() -> Vec<Box<dyn Policy>> {
    vec![
        Box::new(lora::Lora),
        Box::new(full::Full),
        Box::new(spectrum::Spectrum),
        Box::new(random::Random),
        Box::new(mixed::Mixed),
    ]
}

/// The policy called `name`.
pub fn find(name: &str) -> Result<Box<dyn Policy>> {
    let mut names = Vec::new();
    for policy in built_in() {
        let info = policy.describe();
        if info.name == name {
            return Ok(policy);
        }
        names.push(info.name);
    }
    let error = Error::config(format!("`policy.name`: there is no policy \"{name}\""));
    names.extend(PRESETS.iter().map(|preset| preset.name.to_string()));
    let list = suggest::list(&names);
    Err(match suggest::nearest(name, names.iter().map(String::as_str)) {
        Some(near) => error.help(format!("did you mean \"{near}\"? There are {list}")),
        None => error.help(format!("there are {list}")),
    })
}

/// Finds the policy and resolves its settings: all that can be checked before a model is opened.
pub fn prepare(config: &PolicyConfig) -> Result<(Box<dyn Policy>, Value)> {
    let policy = find(&config.name)?;
    let settings = policy.resolve(&Value::Object(config.settings.clone()))?;
    Ok((policy, settings))
}

/// Checks the policy's name and settings before a model is opened. Errors name file and line.
pub fn check(config: &Config) -> Result<()> {
    prepare(&config.policy).map(|_| ()).map_err(|error| config.locate(error))
}

/// The plan that `policy` makes with its default settings. The policy must not need statistics of the weights.
pub fn plan_by_default(policy: &dyn Policy, inventory: &Inventory, weights: Weights) -> Result<Plan> {
    let info = policy.describe();
    let settings = policy.resolve(&Value::Object(Map::new()))?;
    let mut builder = PlanBuilder::new(inventory, storage_of(weights));
    policy.make_plan(&settings, &ModelView::new(inventory, 0), &mut builder)?;
    builder.build(Origin { policy: info.name, version: info.version, settings })
}

/// How plans keep tensors that the configuration wants as `weights`.
pub fn storage_of(weights: Weights) -> Storage {
    match weights {
        Weights::F32 => Storage::F32,
        Weights::Bf16 => Storage::Bf16,
    }
}

/// Makes the plan that `config` asks for, for the model with `inventory`, whose weights have these `statistics`. Errors
/// name file and line where they can.
pub fn plan(config: &Config, inventory: &Inventory, statistics: &dyn Statistics) -> Result<Plan> {
    make(config, inventory, statistics).map_err(|error| config.locate(error))
}

fn make(config: &Config, inventory: &Inventory, statistics: &dyn Statistics) -> Result<Plan> {
    let (policy, settings) = prepare(&config.policy)?;
    let info = policy.describe();
    let view = ModelView::new(inventory, config.seed).with_statistics(statistics);
    let mut builder = PlanBuilder::new(inventory, storage::rule(config, &view)?);
    policy.make_plan(&settings, &view, &mut builder)?;
    let plan = builder.build(Origin { policy: info.name, version: info.version, settings })?;
    let rounds = |entry: &crate::plan::Entry| entry.treatment == Treatment::Train && entry.storage == Storage::Bf16;
    if config.train.bf16_update.is_some() && plan.picks.is_empty() && !plan.entries.iter().any(rounds) {
        return Err(Error::plan(format!(
            "`train.bf16_update` has no effect: policy `{}` trains no weight that is kept in bf16",
            plan.origin.policy
        ))
        .help("leave it out; adapters are always kept in f32"));
    }
    storage::check(config, &plan)?;
    Ok(plan)
}

/// Describes settings: name and what it does.
fn setting_infos(settings: &[(&str, &str)]) -> Vec<SettingInfo> {
    settings.iter().map(|(name, about)| SettingInfo { name: name.to_string(), about: about.to_string() }).collect()
}

/// The typed settings `T` of a built-in policy, from JSON. A key that another built-in policy knows is said to be its.
fn read_settings<T: serde::de::DeserializeOwned>(policy: &str, settings: &Value) -> Result<T> {
    let settings = match settings {
        Value::Null => Value::Object(Map::new()),
        other => other.clone(),
    };
    crate::config::settings::parse(settings, "policy", &[], Error::config).map_err(|error| {
        let text = error.message().to_string();
        match text.strip_suffix(" is not a known setting") {
            Some(key) => {
                let help = error.help_text().map(str::to_string);
                let error = Error::config(format!("{key} is not a setting of policy `{policy}`"));
                match help {
                    Some(help) => error.help(help),
                    None => error,
                }
            }
            None => error,
        }
    })
}

#[cfg(test)]
mod tests;
#[cfg(test)]
mod spectrum_tests;
