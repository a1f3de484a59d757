//! Policies: from the inventory and the policy's settings to a plan, and from plan to plan at a pick.
//!
//! [`Policy`] is the one trait behind which every policy stands: the built-in ones here, and adapters to plugins. A
//! policy sees the model through a [`ModelView`], which has no weights, and speaks to a [`PlanBuilder`], which checks each
//! call. [`plan`] is the whole way from a configuration to a [`Plan`].

use serde::Serialize;
use serde_json::{Map, Value};

use crate::config::{Config, PolicyConfig, Weights, presets::PRESETS, suggest};
use crate::model::inventory::Inventory;
use crate::plan::{Origin, Plan, PlanBuilder, Storage, Treatment};
use crate::plugin;
use crate::report::{Event, Observer};
use crate::stats::Statistics;
use crate::{Error, Result};

mod full;
mod lora;
mod mixed;
mod random;
pub mod select;
mod spectrum;
mod spectrum_source;
mod storage;
mod view;

pub(crate) use storage::rule as storage_rule;
pub use view::{Level, ModelView, Moment, Norms, Note, PolicyState};

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

    /// Whether it measures the model on data, so that there must be some before there is a plan.
    fn needs_data(&self) -> bool {
        false
    }

    /// Whether its choice may depend on how weights are kept, or it says how: false only of a policy that never asks its builder
    /// for a storage nor gives it one, and so makes the same choice over any.
    fn heeds_storage(&self) -> bool {
        true
    }

    /// The SHA-256 of the plugin that it lives in, in hexadecimal; built-in policies have none.
    fn plugin_sha256(&self) -> Option<&str> {
        None
    }

    /// Seconds spent in its plugin so far, without what the host computed for it.
    fn seconds(&self) -> f64 {
        0.0
    }

    /// Makes the first plan, from settings that [`Policy::resolve`] returned.
    fn make_plan(&self, settings: &Value, view: &ModelView<'_>, builder: &mut PlanBuilder<'_>) -> Result<()>;

    /// Revises the plan between two steps, at a pick that the plan asked for. What isn't named stays as it was.
    fn revise(&self, moment: &Moment<'_>, builder: &mut PlanBuilder<'_>) -> Result<()> {
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

/// The policy that the configuration names, in a plugin or built in.
///
/// # Errors
/// There is none, or the plugin can't be loaded.
pub fn open(config: &Config) -> Result<Box<dyn Policy>> {
    let PolicyConfig { name, plugin, project, .. } = &config.policy;
    match plugin {
        Some(file) => plugin::open(file, project.as_deref(), &config.plugins)
            .map_err(|error| Error::config(format!("`policy.plugin`: {}", error.message())).help_of(error)),
        None => find(name).or_else(|unknown| {
            let Some(project) = project else { return Err(unknown) };
            plugin::open_installed(name, project, &config.plugins)?.ok_or(unknown)
        }),
    }
}

/// Whether `name` is a built-in policy's.
pub fn is_built_in(name: &str) -> bool {
    built_in().iter().any(|policy| policy.describe().name == name)
}

/// Finds the policy and resolves its settings: all that can be checked before a model is opened.
pub fn prepare(config: &Config) -> Result<(Box<dyn Policy>, Value)> {
    let policy = open(config)?;
    let settings = policy.resolve(&Value::Object(config.policy.settings.clone()))?;
    Ok((policy, settings))
}

/// Whether the configuration's policy measures the model on data.
///
/// # Errors
/// As [`open`].
pub fn needs_data(config: &Config) -> Result<bool> {
    Ok(open(config)?.needs_data())
}

/// Checks the policy's name and settings before a model is opened. Errors name file and line.
pub fn check(config: &Config) -> Result<()> {
    prepare(config).map(|_| ()).map_err(|error| config.locate(error))
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

/// A first plan, and what goes on from it.
pub struct Started {
    /// What made it.
    pub policy: Box<dyn Policy>,
    /// The plan.
    pub plan: Plan,
    /// What the policy keeps until its first pick.
    pub state: PolicyState,
    /// What it has to say.
    pub notes: Vec<Note>,
}

/// Makes the plan that `config` asks for, for the model with `inventory`, whose weights have these `statistics`. Errors
/// name file and line where they can.
pub fn plan(config: &Config, inventory: &Inventory, statistics: &dyn Statistics) -> Result<Plan> {
    Ok(start(config, inventory, statistics)?.plan)
}

/// The same, with what a run needs to go on from it.
///
/// # Errors
/// As [`plan`].
pub fn start(config: &Config, inventory: &Inventory, statistics: &dyn Statistics) -> Result<Started> {
    make(config, inventory, statistics).map_err(|error| config.locate(error))
}

/// What a policy may know of the model and of the run that `config` asks for, without statistics.
pub(crate) fn view<'a>(config: &Config, inventory: &'a Inventory) -> ModelView<'a> {
    ModelView::new(inventory, config.seed).with_memory_budget(config.vram.map(|bytes| bytes.0))
}

fn make(config: &Config, inventory: &Inventory, statistics: &dyn Statistics) -> Result<Started> {
    let (policy, settings) = prepare(config)?;
    let info = policy.describe();
    let view = view(config, inventory).with_statistics(statistics);
    let mut builder = PlanBuilder::new(inventory, storage::rule(config, &view)?);
    policy.make_plan(&settings, &view, &mut builder)?;
    let plan = builder.build(Origin { policy: info.name, version: info.version, settings })?;
    check_effects(config, &plan)?;
    let (state, notes) = view.into_parts();
    Ok(Started { policy, plan, state, notes })
}

/// The plan that `config` asks for, whose policy made `made` for the same model, but for weights kept otherwise. The policy, which
/// must be one that does not heed storage, is not asked again.
///
/// # Errors
/// As [`plan`], where they come of storage.
pub fn kept_otherwise(config: &Config, inventory: &Inventory, made: &Plan) -> Result<Plan> {
    let again = || {
        let mut builder = PlanBuilder::new(inventory, storage::rule(config, &view(config, inventory))?);
        made.entries.iter().try_for_each(|entry| builder.treat_like(&entry.tensor, entry))?;
        made.scores.iter().try_for_each(|(tensor, score)| builder.score(tensor, *score))?;
        let plan = Plan { picks: made.picks.clone(), ..builder.build(made.origin.clone())? };
        check_effects(config, &plan)?;
        Ok(plan)
    };
    again().map_err(|error| config.locate(error))
}

/// Refuses settings of storage that change nothing in this plan.
fn check_effects(config: &Config, plan: &Plan) -> Result<()> {
    let rounds = |entry: &crate::plan::Entry| entry.treatment == Treatment::Train && entry.storage == Storage::Bf16;
    if config.train.bf16_update.is_some() && plan.picks.is_empty() && !plan.entries.iter().any(rounds) {
        return Err(Error::plan(format!(
            "`train.bf16_update` has no effect: policy `{}` trains no weight that is kept in bf16",
            plan.origin.policy
        ))
        .help("leave it out; adapters are always kept in f32"));
    }
    storage::check(config, plan)
}

/// Hands what a policy said on to the user; what is for its author alone stays unsaid.
pub fn tell(notes: &[Note], policy: &str, observer: &mut dyn Observer) {
    for note in notes {
        let text = format!("{policy}: {}", note.text);
        match note.level {
            Level::Debug => {}
            Level::Info => observer.on(&Event::Note(&text)),
            Level::Warn => observer.on(&Event::Warning(&text)),
        }
    }
}

/// Describes settings: name and what it does.
fn setting_infos(settings: &[(&str, &str)]) -> Vec<SettingInfo> {
    settings.iter().map(|(name, about)| SettingInfo { name: name.to_string(), about: about.to_string() }).collect()
}

/// The settings of a built-in policy, every default filled in, as JSON.
fn resolved(policy: &str, settings: &impl Serialize) -> Result<Value> {
    serde_json::to_value(settings).map_err(|error| Error::internal(format!("policy {policy}: {error}")))
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
