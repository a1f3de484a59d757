//! The configuration: a TOML file and `--set` overrides in, one typed [`Config`] out, every default filled in.
//!
//! Two types, as written and as resolved. [`written::Written`] is what a file may say, every key optional; [`Config`]
//! is what a run works from: defaults filled, paths absolute, contradictions refused. Writing a `Config` as TOML and
//! loading that file gives an equal `Config`, which is how a run directory's `config.toml` starts the same run again.
//!
//! ```toml
//! model = "models/tiny"            # a Hugging Face directory, a .gguf file, or a hub id
//! [data]
//! train = "data/train.jsonl"
//! [policy]
//! name = "lora"
//! rank = 8
//! [train]
//! epochs = 2
//! [optimizer]
//! lr = 2e-4
//! ```

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

pub mod bytes;
pub mod data;
pub mod device;
pub mod presets;
pub mod settings;
pub mod storage;
pub mod suggest;
pub(crate) mod layers;
mod places;
mod resolve;
mod source;
mod written;

pub use data::{DataConfig, DataFormat, FieldNames, LossOn, OnProblem, TooLong};
pub use device::{Bytes, Device};
pub use places::Places;
pub use storage::{FrozenStorage, StorageConfig};

use crate::plugin::Limits;
use crate::{Error, ErrorKind, Result};

/// Everything a run works from, as resolved: defaults filled in, paths absolute.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The base model: a Hugging Face directory, a `.gguf` file, or a hub id `org/name`. Required.
    pub model: String,
    /// Where the run's directory is made. Default: `runs/<name of the configuration file>` beside that file.
    pub out: PathBuf,
    /// Seed of everything random: adapters' first values, shuffling, dropout, stochastic rounding. Default 0.
    pub seed: u64,
    /// What computes: `cpu`, `cuda:0`, or `auto`, a GPU if there is one. Default `cpu`; a run records what it was.
    pub device: Device,
    /// The most that is taken of a GPU's memory, such as `24GiB`. Default: what is free.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vram: Option<Bytes>,
    /// What to train on.
    pub data: DataConfig,
    /// Which policy makes the plan, and its settings.
    pub policy: PolicyConfig,
    /// How long and in what portions to train.
    pub train: TrainConfig,
    /// How frozen weights are kept.
    pub storage: StorageConfig,
    /// The optimiser.
    pub optimizer: OptimizerConfig,
    /// The learning rate over time.
    pub schedule: ScheduleConfig,
    /// How the model is judged, before, during and after training.
    pub eval: EvalConfig,
    /// What a plugin may use; all at their defaults where it is left out.
    #[serde(default, skip_serializing_if = "Limits::is_default")]
    pub plugins: Limits,
    /// Where each setting was written, for error messages; not part of the configuration's value.
    #[serde(skip)]
    pub places: Places,
}

/// Which policy makes the plan. Everything in `[policy]` beside `name` is the policy's own.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PolicyConfig {
    /// The policy's name: a built-in one's, `lora`, `full` or `spectrum`, a preset's (see [`presets`]), which stands for one,
    /// or that of an installed plugin. Required unless `plugin` is there, and empty then.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// A plugin's file, instead of a name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plugin: Option<PathBuf>,
    /// The directory of `liftplan.lock`, where plugins are installed and native ones allowed. Default: the
    /// configuration's own, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub project: Option<PathBuf>,
    /// The policy's settings, checked by the policy (see [`crate::policy`]).
    #[serde(flatten)]
    pub settings: Map<String, Value>,
}

/// `[train]`: how long and in what portions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainConfig {
    /// Optimiser steps to do. Either this or `epochs` is set.
    pub steps: Option<u64>,
    /// Passes over the training data, fractions allowed. Default 1, unless `steps` is set.
    pub epochs: Option<f64>,
    /// Examples in one optimiser step. Default 8. Gradients are averaged over the step's target tokens, however many
    /// micro-batches they came in.
    pub batch_size: usize,
    /// Most tokens computed at once: a step's examples are cut into micro-batches of at most so many (an example
    /// longer than this makes one of its own). Default 2048.
    pub micro_batch_tokens: usize,
    /// Most examples computed at once. Default: no limit but `micro_batch_tokens`.
    pub micro_batch_examples: Option<usize>,
    /// Gradients whose norm (over all of them together) is larger are scaled down to it; 0 never clips. Default 1.
    pub max_grad_norm: f64,
    /// How the weights that train are kept, and those that `[storage]` says nothing about. Default `f32`, with presets
    /// `bf16`.
    pub weights: Weights,
    /// How weights kept in bf16 take updates smaller than their precision. Default `stochastic`; only where such weights
    /// train. See [`TrainConfig::bf16_update_or_default`].
    pub bf16_update: Option<Bf16Update>,
    /// Evaluate every so many steps, beside the evaluations before the first and after the last. Needs validation data.
    pub eval_every: Option<u64>,
    /// Write a checkpoint every so many steps, beside the one at the end or when stopped.
    pub checkpoint_every: Option<u64>,
    /// How many checkpoints stay on disk, the newest ones. Default 2.
    pub keep_checkpoints: usize,
    /// Stop once evaluations no longer improve. Needs `eval_every`.
    pub early_stopping: Option<EarlyStopping>,
    /// Compute blocks' activations again in the backward pass instead of keeping them: less memory, more time.
    /// Default false.
    pub recompute: bool,
    /// Whether a run repeated on the same GPU gives the same bits. `false` lets a GPU make sums of attention's backward
    /// pass in whatever order is fastest: on an H100 nothing with texts of 2,048 tokens, 1 % of a step with 16,384. Default true.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deterministic: Option<bool>,
    /// Update each block's weights inside the backward pass, as soon as its gradients are complete, so that a GPU holds one
    /// block's gradients and not the model's: the same numbers in less memory. It needs `max_grad_norm = 0`, and each step in
    /// one micro-batch. Default false.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub update_in_backward: bool,
}

/// How long to train.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Length {
    /// So many optimiser steps.
    Steps(u64),
    /// So many passes over the training data.
    Epochs(f64),
}

impl TrainConfig {
    /// How long to train: `steps` if set, else `epochs`.
    pub fn length(&self) -> Length {
        match (self.steps, self.epochs) {
            (Some(steps), _) => Length::Steps(steps),
            (None, epochs) => Length::Epochs(epochs.unwrap_or(1.0)),
        }
    }

    /// How bf16 weights take small updates, where the setting is left open.
    pub fn bf16_update_or_default(&self) -> Bf16Update {
        self.bf16_update.unwrap_or(Bf16Update::Stochastic)
    }
}

/// How the base model's weights are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Weights {
    /// 32-bit floats.
    F32,
    /// bfloat16: half the memory, 8 bits of precision.
    Bf16,
}

/// How bf16 weights take updates that are smaller than their precision.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Bf16Update {
    /// Rounded up or down at random, so that the expected value is exact.
    Stochastic,
    /// Applied to an f32 copy of the trained weights, which is rounded to bf16 for use.
    Master,
}

/// `[train] early_stopping`: when to stop early.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EarlyStopping {
    /// Stop after so many evaluations in a row without improvement. Required.
    pub patience: u64,
    /// The evaluation loss (nats a token) must fall by more than this to count as improvement. Default 0.
    #[serde(default)]
    pub min_delta: f64,
}

/// `[optimizer]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OptimizerConfig {
    /// Which optimiser. Default `adamw`.
    pub name: OptimizerName,
    /// Highest learning rate. Default 1e-4; 2e-4 is usual for LoRA, 2e-5 for training whole weights.
    pub lr: f64,
    /// Decay of the running means of the gradient and of its square. Default `[0.9, 0.999]`.
    pub betas: [f64; 2],
    /// Added to the root of the second mean. Default 1e-8.
    pub eps: f64,
    /// Share of a weight that is taken off it at each step, times the learning rate (decoupled). Default 0. It is taken off
    /// everything that trains, norms and biases too, as PyTorch's AdamW does with what it is given; Hugging Face's trainer
    /// leaves those out. The runs that this trainer is compared with, number by number, are PyTorch's.
    pub weight_decay: f64,
}

/// The optimisers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum OptimizerName {
    /// Adam with decoupled weight decay (arXiv 1711.05101).
    #[serde(rename = "adamw")]
    Adamw,
    /// The same with its states in 8 bits (arXiv 2110.02861), as bitsandbytes' `AdamW8bit`.
    #[serde(rename = "adamw8bit")]
    Adamw8bit,
    /// AdamW whose states lie in mapped files in the run's directory: they leave the process's memory between updates, and
    /// the system keeps as much of them in its file cache as it has room for.
    #[serde(rename = "paged_adamw")]
    PagedAdamw,
    /// Both.
    #[serde(rename = "paged_adamw8bit")]
    PagedAdamw8bit,
}

impl OptimizerName {
    /// Whether states are kept in 8 bits.
    pub fn is_8bit(self) -> bool {
        matches!(self, Self::Adamw8bit | Self::PagedAdamw8bit)
    }

    /// Whether states lie in files.
    pub fn is_paged(self) -> bool {
        matches!(self, Self::PagedAdamw | Self::PagedAdamw8bit)
    }
}

/// `[schedule]`: the learning rate over time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScheduleConfig {
    /// Which curve. Default `cosine`.
    pub name: ScheduleName,
    /// Steps over which the rate rises from 0 to `lr`. Default 0.
    pub warmup_steps: Option<u64>,
    /// The same as a share of all steps, in `[0, 1)`. At most one of the two is set.
    pub warmup_ratio: Option<f64>,
    /// The last rate as a share of `lr`, in `[0, 1]`; not for `constant`. Default 0.
    pub min_lr_ratio: Option<f64>,
    /// Share of all steps, in `(0, 1]`, over which `wsd` falls at its end; only for `wsd`. Default 0.1.
    pub decay_ratio: Option<f64>,
}

/// The learning rate's curves, each after warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ScheduleName {
    /// Stays at `lr`.
    Constant,
    /// Falls in a straight line.
    Linear,
    /// Falls along half a cosine.
    Cosine,
    /// Warm-up, stable, decay: stays at `lr`, then falls in a straight line over `decay_ratio`.
    Wsd,
}

/// `[eval]`: how the model is judged.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EvalConfig {
    /// What the data is about. Default `lm`. Loss and perplexity are measured for each.
    pub task: Task,
    /// How labels are chosen; only for `classification`, where the default is `likelihood`.
    pub by: Option<EvalBy>,
    /// Most tokens generated for an answer; only where answers are generated. Default 64.
    pub max_new_tokens: Option<usize>,
    /// Evaluate only the first so many examples. Default: all.
    pub limit: Option<usize>,
    /// Judge the untouched model before the first step and the result after the last. Default true.
    #[serde(default = "yes")]
    pub before_and_after: bool,
}

fn yes() -> bool {
    true
}

/// What the data is about, and so which scores are computed beside the loss.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Task {
    /// Language modelling: loss and perplexity only.
    Lm,
    /// Labels: accuracy and macro-F1.
    Classification,
    /// Summaries or other free answers with a reference: ROUGE-1, -2 and -L.
    Summarization,
}

/// How a label is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EvalBy {
    /// The label whose tokens are likeliest after the prompt.
    Likelihood,
    /// The label that the model writes.
    Generation,
}

impl Config {
    /// Reads the file at `path` with `overrides` (`a.b=c`, see [`source`]) over it.
    ///
    /// Errors are of kind [`ErrorKind::Config`] and name file and line, or the override.
    pub fn load(path: &Path, overrides: &[String]) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|error| {
            let error_shown = Error::io(ErrorKind::Config, "read the configuration", path, &error);
            match error.kind() {
                std::io::ErrorKind::NotFound => error_shown.help("give the path of a TOML file; see examples/"),
                _ => error_shown,
            }
        })?;
        let absolute = std::path::absolute(path)
            .map_err(|error| Error::io(ErrorKind::Config, "find the directory of", path, &error))?;
        Self::parse(&text, &absolute, &path.display().to_string(), overrides)
    }

    /// As [`Config::load`], from the text of the file at `absolute`, which messages call `shown`.
    pub fn parse(text: &str, absolute: &Path, shown: &str, overrides: &[String]) -> Result<Self> {
        let source = source::read(text, shown, overrides)?;
        let places = source.places.clone();
        resolve::resolve(source, absolute).map_err(|error| places.locate(error))
    }

    /// The configuration by which an untouched model is judged on `files`: defaults, with `overrides` over them. Paths
    /// are seen from the directory `here`. Its policy and training settings mean nothing.
    pub fn for_evaluation(model: &str, files: &[PathBuf], here: &Path, overrides: &[String]) -> Result<Self> {
        if files.is_empty() {
            return Err(Error::config("there is no data to judge the model on").help("name some with --data FILE"));
        }
        let mut train = Vec::new();
        for file in files {
            let name = file.to_str().ok_or_else(|| Error::config(format!("{} is no UTF-8", file.display())))?;
            train.push(toml::Value::String(name.to_string()));
        }
        let data = toml::Table::from_iter([("train".to_string(), toml::Value::Array(train))]);
        let policy = toml::Table::from_iter([("name".to_string(), toml::Value::String("lora".into()))]);
        let document = toml::Table::from_iter([
            ("model".to_string(), toml::Value::String(model.to_string())),
            ("data".to_string(), toml::Value::Table(data)),
            ("policy".to_string(), toml::Value::Table(policy)),
        ]);
        Self::parse(&document.to_string(), &here.join("command-line.toml"), "the command line", overrides)
    }

    /// The configuration as TOML text, which loads to an equal `Config`.
    pub fn to_toml(&self) -> Result<String> {
        toml::Value::try_from(self)
            .and_then(|value| toml::to_string(&value))
            .map_err(|error| Error::internal(format!("the configuration cannot be written as TOML: {error}")))
    }

    /// The same with these sections as if nobody had written them.
    ///
    /// # Errors
    /// When the rest cannot do without them.
    pub fn with_defaults(&self, sections: &[&str]) -> Result<Self> {
        let broken = |error: &dyn std::fmt::Display| Error::internal(format!("the configuration: {error}"));
        let mut table: toml::Table = self.to_toml()?.parse().map_err(|error| broken(&error))?;
        table.retain(|section, _| !sections.contains(&section));
        let text = toml::to_string(&table).map_err(|error| broken(&error))?;
        let parsed = Self::parse(&text, &self.out.join("config.toml"), "the configuration", &[])?;
        Ok(Self { places: self.places.clone(), ..parsed })
    }

    /// Puts file and line in front of an error whose message begins with a setting's name in backquotes.
    pub fn locate(&self, error: Error) -> Error {
        self.places.locate(error)
    }
}

#[cfg(test)]
mod tests;
