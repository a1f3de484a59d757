//! `summary.json`: what a run did, reached and needed, for people, scripts and `compare`.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::EvalRecord;
use crate::files::{output_error, write_atomically};
use crate::plan::memory::Memory;
use crate::{Error, Result};

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "how")]
pub enum Ending {
    /// All steps were done.
    Completed,
    /// Evaluation stopped improving; the result is that of `best_step`.
    EarlyStopped {
        /// The step of the best evaluation.
        best_step: u64,
    },
    /// The user stopped it; a checkpoint was written.
    Interrupted,
    /// An error stopped it.
    Failed {
        /// Its message.
        error: String,
    },
}

/// A loss and the step after which it was measured.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LossAt {
    /// Optimiser steps done.
    pub step: u64,
    /// Mean loss over target tokens, in nats.
    pub loss: f64,
}

/// What trained.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trained {
    /// Parameters that trained, those of adapters included.
    pub trainable_parameters: u64,
    /// Parameters of the base model.
    pub total_parameters: u64,
    /// Tensors that trained whole.
    pub trained_tensors: usize,
    /// Tensors that had an adapter.
    pub adapted_tensors: usize,
}

/// The most memory that the process held, in bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeakMemory {
    /// As computed from plan and shapes before training.
    pub predicted_bytes: Option<u64>,
    /// The same by kind.
    #[serde(default)]
    pub predicted: Option<Memory>,
    /// As the system counted it.
    pub measured_bytes: Option<u64>,
}

/// Wall time by phase, in seconds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PhaseSeconds {
    /// Opening the base model, tokenizer and data.
    pub load: f64,
    /// Statistics and the policy.
    pub plan: f64,
    /// Reading the weights and building the model as planned.
    pub build: f64,
    /// Training steps and checkpoints.
    pub train: f64,
    /// Evaluations.
    pub eval: f64,
}

/// Content hashes (sha256, hexadecimal) of what a run was made from. A checkpoint only fits a run with the same.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hashes {
    /// The base model's weights.
    pub model: String,
    /// The plan.
    pub plan: String,
    /// The configuration as resolved.
    pub config: String,
    /// The data.
    pub data: String,
    /// The plugin's file, if the policy lives in one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plugin: Option<String>,
}

/// The content of `summary.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// The format's version, 1.
    pub version: u32,
    /// The base model, as the configuration names it.
    pub model: String,
    /// What computed, such as `cuda:0, NVIDIA H100 80GB HBM3`; nothing in summaries of older versions.
    #[serde(default)]
    pub device: String,
    /// The policy's name.
    pub policy: String,
    /// How the run ended.
    pub ended: Ending,
    /// What trained, at any time.
    pub trained: Trained,
    /// How often the policy revised its plan.
    #[serde(default)]
    pub picks: u64,
    /// Seconds spent in a plugin, in this session of the run.
    #[serde(default)]
    pub plugin_s: f64,
    /// Optimiser steps done.
    pub steps: u64,
    /// Optimiser steps planned.
    pub planned_steps: u64,
    /// Tokens processed in training, over the whole run.
    pub tokens: u64,
    /// Tokens processed a second of training time.
    pub tokens_per_s: f64,
    /// Training loss of the last step.
    pub final_loss: Option<f64>,
    /// Lowest training loss of a step.
    pub best_loss: Option<LossAt>,
    /// Lowest evaluation loss.
    pub best_eval_loss: Option<LossAt>,
    /// Evaluation of the untouched model.
    pub eval_before: Option<EvalRecord>,
    /// Evaluation of the result.
    pub eval_after: Option<EvalRecord>,
    /// The most memory held.
    pub peak_memory: PeakMemory,
    /// Wall time by phase.
    pub seconds: PhaseSeconds,
    /// From the start of the process to the end of the first step, in seconds.
    pub first_step_s: Option<f64>,
    /// Versions of Liftplan and of what computes.
    pub versions: BTreeMap<String, String>,
    /// Hashes of what the run was made from.
    pub hashes: Hashes,
}

impl Summary {
    /// Writes `RUN/summary.json`, all or nothing.
    ///
    /// # Errors
    /// When the file can't be written.
    pub fn write(&self, run: &Path) -> Result<()> {
        let mut text = serde_json::to_string_pretty(self)
            .map_err(|e| Error::internal(format!("the summary of {} is not JSON: {e}", run.display())))?;
        text.push('\n');
        write_atomically(&run.join("summary.json"), text.as_bytes())
    }

    /// Reads `RUN/summary.json`.
    ///
    /// # Errors
    /// When it is missing or isn't a summary.
    pub fn read(run: &Path) -> Result<Self> {
        let path = run.join("summary.json");
        let text = std::fs::read_to_string(&path).map_err(|e| output_error("read", &path, &e))?;
        serde_json::from_str(&text).map_err(|e| Error::output(format!("{}: not a summary: {e}", path.display())))
    }
}

/// Versions for [`Summary::versions`].
pub fn versions() -> BTreeMap<String, String> {
    [("liftplan".to_string(), env!("CARGO_PKG_VERSION").to_string())].into()
}
