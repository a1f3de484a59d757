//! A comparison's configuration as it is written: TOML in, tables of optional settings out, which [`super::config`] resolves.

use std::path::PathBuf;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::budget::WrittenBudget;
use super::config::Forgetting;
use super::score::WrittenScore;
use crate::config::{Config, settings};

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Written {
    pub title: Option<String>,
    pub out: Option<PathBuf>,
    pub base: Option<PathBuf>,
    pub run: Map<String, Value>,
    pub method: Vec<Value>,
    pub baseline: Option<String>,
    pub search: WrittenSearch,
    pub budget: WrittenBudget,
    pub score: WrittenScore,
    pub forgetting: Option<Forgetting>,
    pub controls: Option<bool>,
    pub latency: Option<OnOrLatency>,
    pub jobs: Option<usize>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct WrittenSearch {
    pub learning_rates: Option<Vec<f64>>,
    pub seeds: Option<Vec<u64>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct WrittenMethod {
    pub name: Option<String>,
    pub learning_rates: Option<Vec<f64>>,
    pub policy: Option<Map<String, Value>>,
    pub storage: Option<Map<String, Value>>,
    pub train: Option<Map<String, Value>>,
    pub optimizer: Option<Map<String, Value>>,
    pub schedule: Option<Map<String, Value>>,
}

#[derive(Deserialize)]
#[serde(untagged)]
pub(super) enum OnOrLatency {
    On(bool),
    Settings(Map<String, Value>),
    Other(Value),
}

/// The full paths of all settings, for keys written in the wrong section, with a training configuration's sections under `run`.
pub(super) fn every_setting() -> Vec<String> {
    let sections = [
        ("", settings::names::<Written>()),
        ("search", settings::names::<WrittenSearch>()),
        ("budget", settings::names::<WrittenBudget>()),
        ("score", settings::names::<WrittenScore>()),
        ("forgetting", settings::names::<Forgetting>()),
    ];
    // What all methods share of a training configuration; the rest of it is a method's, or the comparison's.
    let mut of_run = settings::names::<Config>();
    of_run.retain(|name| !matches!(name.as_str(), "out" | "seed" | "policy"));
    let sections = sections.into_iter().chain([("run", of_run)]);
    let path = |section: &str, name: String| if section.is_empty() { name } else { format!("{section}.{name}") };
    sections.flat_map(|(section, names)| names.into_iter().map(move |name| path(section, name))).collect()
}
