//! The configuration as written: every setting optional, unknown ones refused. Documented where they are resolved, in
//! [`super::Config`] and its sections.

use std::path::PathBuf;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::storage::WrittenStorage;
use super::{
    Bf16Update, Bytes, DataConfig, Device, EarlyStopping, EvalBy, OptimizerName, ScheduleName, Task, Weights, settings,
};
use crate::plugin::Limits;
use crate::{Error, Result};

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Written {
    pub model: Option<String>,
    pub out: Option<PathBuf>,
    pub seed: Option<u64>,
    pub device: Option<Device>,
    pub vram: Option<Bytes>,
    pub data: Option<DataConfig>,
    pub policy: Option<Map<String, Value>>,
    pub train: WrittenTrain,
    pub storage: WrittenStorage,
    pub optimizer: WrittenOptimizer,
    pub schedule: WrittenSchedule,
    pub eval: WrittenEval,
    pub plugins: Limits,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct WrittenTrain {
    pub steps: Option<u64>,
    pub epochs: Option<f64>,
    pub batch_size: Option<usize>,
    pub micro_batch_tokens: Option<usize>,
    pub micro_batch_examples: Option<usize>,
    pub max_grad_norm: Option<f64>,
    pub weights: Option<Weights>,
    pub bf16_update: Option<Bf16Update>,
    pub eval_every: Option<u64>,
    pub checkpoint_every: Option<u64>,
    pub keep_checkpoints: Option<usize>,
    pub early_stopping: Option<EarlyStopping>,
    pub recompute: Option<bool>,
    pub deterministic: Option<bool>,
    pub update_in_backward: bool,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct WrittenOptimizer {
    pub name: Option<OptimizerName>,
    pub lr: Option<f64>,
    pub betas: Option<[f64; 2]>,
    pub eps: Option<f64>,
    pub weight_decay: Option<f64>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct WrittenSchedule {
    pub name: Option<ScheduleName>,
    pub warmup_steps: Option<u64>,
    pub warmup_ratio: Option<f64>,
    pub min_lr_ratio: Option<f64>,
    pub decay_ratio: Option<f64>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct WrittenEval {
    pub task: Option<Task>,
    pub by: Option<EvalBy>,
    pub max_new_tokens: Option<usize>,
    pub limit: Option<usize>,
    pub before_and_after: Option<bool>,
}

/// Reads what was written, or says what in it isn't a setting, or isn't of its kind.
pub(super) fn read(value: Map<String, Value>) -> Result<Written> {
    settings::parse(Value::Object(value), "", &every_setting(), Error::config)
}

/// The full paths of all settings, for keys written in the wrong section.
fn every_setting() -> Vec<String> {
    let sections = [
        ("", settings::names::<Written>()),
        ("train", settings::names::<WrittenTrain>()),
        ("storage", settings::names::<WrittenStorage>()),
        ("optimizer", settings::names::<WrittenOptimizer>()),
        ("schedule", settings::names::<WrittenSchedule>()),
        ("eval", settings::names::<WrittenEval>()),
        ("data", settings::names::<DataConfig>()),
        ("plugins", settings::names::<Limits>()),
    ];
    let path = |section: &str, name: String| if section.is_empty() { name } else { format!("{section}.{name}") };
    sections.into_iter().flat_map(|(section, names)| names.into_iter().map(move |name| path(section, name))).collect()
}
