//! The comparison's configuration: a TOML file in, a [`Comparison`] out, in which every method is a whole training
//! configuration over the same base.
//!
//! ```toml
//! base = "../quickstart.toml"      # a training configuration; [run] changes it for every method
//! baseline = "LoRA"
//! [run.data]
//! validation = "../data/tickets/validation.jsonl"
//! [budget]
//! steps = 100
//! [search]
//! learning_rates = [1e-3, 4e-3]    # each method tries each …
//! seeds = [1, 2, 3]                # … with each seed
//! [[method]]
//! name = "LoRA"
//! policy = { name = "lora", rank = 8 }
//! [[method]]
//! name = "Spectrum"
//! policy = { name = "spectrum", percent = 25 }
//! learning_rates = [2e-4, 1e-3]    # its own, as many as the others have
//! ```

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::budget::{Budget, WrittenBudget};
use super::score::Score;
use super::written::{OnOrLatency, Written, WrittenMethod, every_setting};
use crate::config::layers::Layer;
use crate::config::{Config, Places, settings, suggest};
use crate::{Error, Result, policy};

/// A comparison, as resolved.
#[derive(Clone, Debug)]
pub struct Comparison {
    /// The report's title.
    pub title: String,
    /// The directory of the comparison.
    pub out: PathBuf,
    /// The directory of its configuration, where the score's command runs.
    pub directory: PathBuf,
    /// The methods, in the order of the file.
    pub methods: Vec<Method>,
    /// The method that the others are compared with, by name.
    pub baseline: String,
    /// The seeds; every method trains with each.
    pub seeds: Vec<u64>,
    /// How long and with how much memory a run may train.
    pub budget: Budget,
    /// What is judged.
    pub score: Score,
    /// The general text on which forgetting is measured.
    pub forgetting: Option<Forgetting>,
    /// Whether each selection of layers gets a random one of the same size beside it.
    pub controls: bool,
    /// How many tokens are read and written to measure latency; none: it isn't measured.
    pub latency: Option<Latency>,
    /// Runs at the same time.
    pub jobs: usize,
    /// The comparison as written, for the report.
    pub text: String,
}

/// A method: a name, and the training configuration that it stands for, up to seed, learning rate and length.
#[derive(Clone, Debug)]
pub struct Method {
    /// Its name in the report.
    pub name: String,
    /// The configuration; seed and learning rate are put in for each run.
    pub config: Config,
    /// The learning rates that it tries.
    pub learning_rates: Vec<f64>,
    /// The method of whose selection this is the random counterpart.
    pub control_of: Option<String>,
}

/// `[forgetting]`: the loss on general text, before and after.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Forgetting {
    /// A file of rows with a `text`. Required.
    pub data: PathBuf,
    /// Only the first so many rows. Default: all.
    pub limit: Option<usize>,
}

/// `[latency]`: what is timed of each result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Latency {
    /// Tokens of the prompt. Default 64.
    pub prompt_tokens: usize,
    /// Tokens written after it. Default 32.
    pub new_tokens: usize,
    /// Measurements, of which the median counts. Default 5.
    pub repeats: usize,
}

impl Default for Latency {
    fn default() -> Self {
        Self { prompt_tokens: 64, new_tokens: 32, repeats: 5 }
    }
}

/// What belongs to the comparison as a whole, and what says so instead, by the setting's path.
const SHARED: [(&str, &str); 7] = [
    ("train.steps", "budget.steps"),
    ("train.epochs", "budget.steps"),
    ("train.batch_size", "run.train.batch_size"),
    ("train.eval_every", "run.train.eval_every"),
    ("train.early_stopping", "run.train.early_stopping"),
    ("train.checkpoint_every", "run.train.checkpoint_every"),
    ("train.keep_checkpoints", "run.train.keep_checkpoints"),
];

impl Comparison {
    /// Reads the file at `path` with `overrides` (`a.b=c`) over it.
    ///
    /// # Errors
    /// Of kind [`crate::ErrorKind::Config`]; they name file and line, or the override.
    pub fn load(path: &Path, overrides: &[String]) -> Result<Self> {
        let (file, text) = Layer::load(path, overrides)?;
        let absolute = std::path::absolute(path)
            .map_err(|error| Error::io(crate::ErrorKind::Config, "find the directory of", path, &error))?;
        let places = file.places.clone();
        let text = match overrides.is_empty() {
            true => text,
            false => format!("{text}\n# with --set {}\n", overrides.join(" --set ")),
        };
        resolve(file, &absolute, text).map_err(|error| places.locate(error))
    }

    /// The method called `name`.
    pub fn method(&self, name: &str) -> Option<&Method> {
        self.methods.iter().find(|method| method.name == name)
    }
}

impl Method {
    /// The configuration of the run with this learning rate and seed.
    pub fn run(&self, lr: f64, seed: u64) -> Config {
        let mut config = self.config.clone();
        config.seed = seed;
        config.optimizer.lr = lr;
        config
    }
}

fn resolve(file: Layer, absolute: &Path, text: String) -> Result<Comparison> {
    let directory = absolute.parent().unwrap_or(Path::new("/"));
    let written: Written = settings::parse(Value::Object(file.value.clone()), "", &every_setting(), Error::config)?;
    if let Some(title) = &written.title {
        check_label("title", title)?;
    }
    // Before the methods, which would blame the budget's steps on the base.
    let budget = written.budget.resolve()?;
    let shared = shared_layer(&file, &written, directory)?;
    let methods = methods(&file, &written, &shared, absolute, directory)?;
    let first = methods.first().ok_or_else(|| {
        Error::config("there is no method to compare").help("add some: [[method]] with a name and a policy")
    })?;
    let seeds = written.search.seeds.unwrap_or_else(|| vec![first.config.seed]);
    check_seeds(&seeds)?;
    if first.config.data.test.is_empty() {
        return Err(Error::config("there is no test data, and scores are measured on it").help(
            "set test in [run.data]; learning rates are chosen on the validation data, and never on the test data",
        ));
    }
    if first.learning_rates.len() > 1 && !first.config.data.has_validation() {
        return Err(Error::config(format!(
            "there is no validation data to choose among {} learning rates by",
            first.learning_rates.len()
        ))
        .help("set validation or validation_split in [run.data], or give one learning rate"));
    }
    let controls = written.controls.unwrap_or(true);
    if let Some(method) = methods.iter().find(|m| controls && methods.iter().any(|of| m.name == control_name(&of.name)))
    {
        return Err(Error::config(format!("a method is called \"{}\", as a random counterpart will be", method.name))
            .help("give it another name, or set controls = false"));
    }
    let baseline = baseline(written.baseline, &methods)?;
    let jobs = written.jobs.unwrap_or(1);
    if jobs == 0 {
        return Err(Error::config("`jobs` must be at least 1").help("leave it out for its default"));
    }
    let latency = match written.latency {
        None | Some(OnOrLatency::On(true)) => Some(Latency::default()),
        Some(OnOrLatency::On(false)) => None,
        Some(OnOrLatency::Settings(table)) => {
            Some(settings::parse(Value::Object(table), "latency", &[], Error::config)?)
        }
        Some(OnOrLatency::Other(other)) => {
            return Err(Error::config(format!("`latency` must be true, false or a table, not {other}"))
                .help("as in latency = { prompt_tokens = 64, new_tokens = 32, repeats = 5 }"));
        }
    };
    if let Some(Latency { prompt_tokens, new_tokens, repeats }) = latency {
        for (name, number) in [("prompt_tokens", prompt_tokens), ("new_tokens", new_tokens), ("repeats", repeats)] {
            if number == 0 {
                return Err(Error::config(format!("`latency.{name}` must be at least 1")));
            }
        }
    }
    let forgetting =
        written.forgetting.map(|forgetting| Forgetting { data: directory.join(forgetting.data), ..forgetting });
    if forgetting.as_ref().is_some_and(|forgetting| forgetting.limit == Some(0)) {
        return Err(Error::config("`forgetting.limit` must be at least 1").help("leave it out for all rows"));
    }
    if let Some(missing) = forgetting.as_ref().filter(|forgetting| !forgetting.data.is_file()) {
        return Err(Error::config(format!("`forgetting.data`: there is no file {}", missing.data.display())));
    }
    let stem = absolute.file_stem().unwrap_or_default();
    Ok(Comparison {
        title: written.title.unwrap_or_else(|| stem.to_string_lossy().into_owned()),
        out: written.out.map_or_else(|| directory.join("runs").join(stem), |out| directory.join(out)),
        directory: directory.to_path_buf(),
        score: written.score.resolve(&first.config.eval)?,
        budget,
        baseline,
        seeds,
        forgetting,
        controls,
        latency,
        jobs,
        methods,
        text,
    })
}

/// The base configuration with `[run]` over it.
fn shared_layer(file: &Layer, written: &Written, directory: &Path) -> Result<Layer> {
    for (key, help) in
        [("out", "the comparison's directory is `out`, outside [run]"), ("seed", "the seeds are search.seeds")]
    {
        if written.run.contains_key(key) {
            return Err(Error::config(format!("`run.{key}` has no effect in a comparison")).help(help));
        }
    }
    let run = file.part(written.run.clone(), "run").absolute(directory)?;
    let Some(base) = &written.base else { return Ok(run) };
    let path = directory.join(base);
    let (base, _) = Layer::load(&path, &[]).map_err(|error| if path.is_file() { error } else { error.at("`base`") })?;
    Ok(run.over(base.absolute(path.parent().unwrap_or(directory))?))
}

fn methods(file: &Layer, written: &Written, shared: &Layer, absolute: &Path, directory: &Path) -> Result<Vec<Method>> {
    let mut methods: Vec<Method> = Vec::new();
    let mut names = BTreeSet::new();
    for (i, value) in written.method.iter().enumerate() {
        let path = format!("method.{i}");
        let table: WrittenMethod = settings::parse(value.clone(), &path, &[], Error::config)?;
        let name = table.name.clone().ok_or_else(|| Error::config(format!("`{path}.name` is missing")))?;
        check_label(&format!("{path}.name"), &name)?;
        if !names.insert(name.clone()) {
            return Err(
                Error::config(format!("`{path}.name` is \"{name}\" twice")).help("give each method a name of its own")
            );
        }
        let rates = table.learning_rates.as_ref().or(written.search.learning_rates.as_ref());
        let layer = method_layer(file, &table, &path, rates.is_some())?.absolute(directory)?.over(shared.clone());
        let layer = budgeted(layer, &written.budget);
        let mut config = layer.resolve(absolute)?;
        policy::check(&config)?;
        let learning_rates = rates.cloned().unwrap_or_else(|| vec![config.optimizer.lr]);
        check_rates(&learning_rates, if table.learning_rates.is_some() { &path } else { "search" })?;
        if let Some(first) = methods.first().filter(|first| first.learning_rates.len() != learning_rates.len()) {
            return Err(Error::config(format!(
                "`{path}.learning_rates`: \"{name}\" tries {} of them, and \"{}\" {}",
                learning_rates.len(),
                first.name,
                first.learning_rates.len()
            ))
            .help("give every method as many learning rates: one that searches longer finds more"));
        }
        // Judging is the comparison's own work, in a process that never trains.
        config.eval.before_and_after = false;
        config.places = Places::default();
        methods.push(Method { name, config, learning_rates, control_of: None });
    }
    Ok(methods)
}

/// The name of a method's random counterpart.
pub(super) fn control_name(method: &str) -> String {
    format!("{method} · random layers")
}

/// Names stand in one line of tables and messages.
pub(super) fn check_label(path: &str, label: &str) -> Result<()> {
    let wrong = match label.chars().find(|c| c.is_control()) {
        Some(c) => format!("has the control character {c:?}"),
        None if label.trim().is_empty() => "is empty".to_string(),
        None => return Ok(()),
    };
    Err(Error::config(format!("`{path}` {wrong}")).help("it is a line of text in the report"))
}

/// What the method changes in the configuration.
fn method_layer(file: &Layer, table: &WrittenMethod, path: &str, has_rates: bool) -> Result<Layer> {
    let sections = [
        ("policy", &table.policy),
        ("storage", &table.storage),
        ("train", &table.train),
        ("optimizer", &table.optimizer),
        ("schedule", &table.schedule),
    ];
    let mut value = Map::new();
    for (section, settings) in sections {
        if let Some(settings) = settings {
            value.insert(section.to_string(), Value::Object(settings.clone()));
        }
    }
    let has = |path: &str| {
        let (section, key) = path.split_once('.').unwrap_or((path, ""));
        value.get(section).is_some_and(|table| table.get(key).is_some())
    };
    for (setting, instead) in SHARED {
        if has(setting) {
            return Err(Error::config(format!(
                "`{path}.{setting}` cannot differ between methods, which share data, order and budget"
            ))
            .help(format!("set it for all of them, as {instead}")));
        }
    }
    if has_rates && has("optimizer.lr") {
        return Err(Error::config(format!("`{path}.optimizer.lr` has no effect: the learning rates are searched"))
            .help("set learning_rates of the method"));
    }
    Ok(file.part(value, path))
}

/// A budget in steps takes the place of the base's length, for which tokens and time are turned into steps later.
fn budgeted(layer: Layer, budget: &WrittenBudget) -> Layer {
    match budget.steps {
        Some(steps) => layer.set("train.steps", Value::from(steps)),
        None => layer,
    }
}

fn check_rates(rates: &[f64], path: &str) -> Result<()> {
    let name = format!("{path}.learning_rates");
    if rates.is_empty() {
        return Err(Error::config(format!("`{name}` is an empty list")).help("leave it out for optimizer.lr"));
    }
    if let Some(rate) = rates.iter().find(|rate| !(rate.is_finite() && **rate > 0.0)) {
        return Err(Error::config(format!("`{name}` must be above 0, not {rate}")));
    }
    match rates.iter().enumerate().find(|(i, rate)| rates[..*i].contains(rate)) {
        Some((_, rate)) => Err(Error::config(format!("`{name}` has {rate} twice"))),
        None => Ok(()),
    }
}

fn check_seeds(seeds: &[u64]) -> Result<()> {
    if seeds.is_empty() {
        return Err(Error::config("`search.seeds` is an empty list").help("leave it out for the base's seed"));
    }
    if let Some(seed) = seeds.iter().find(|seed| i64::try_from(**seed).is_err()) {
        return Err(Error::config(format!("`search.seeds` must be below 2^63, not {seed}")));
    }
    match seeds.iter().enumerate().find(|(i, seed)| seeds[..*i].contains(seed)) {
        Some((_, seed)) => Err(Error::config(format!("`search.seeds` has {seed} twice"))
            .help("the same seed gives the same run, which would count twice")),
        None => Ok(()),
    }
}

fn baseline(written: Option<String>, methods: &[Method]) -> Result<String> {
    let names: Vec<&str> = methods.iter().map(|method| method.name.as_str()).collect();
    match written {
        None => Ok(names.first().copied().unwrap_or_default().to_string()),
        Some(name) if names.contains(&name.as_str()) => Ok(name),
        Some(name) => {
            let error = Error::config(format!("`baseline`: there is no method \"{name}\""));
            Err(match suggest::nearest(&name, names.iter().copied()) {
                Some(near) => error.help(format!("did you mean \"{near}\"?")),
                None => error.help(format!("the methods are {}", suggest::list(&names))),
            })
        }
    }
}
