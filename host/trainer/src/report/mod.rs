//! What a run tells about itself: events while it works, and what they are written to.

use std::path::Path;

use serde::{Deserialize, Serialize};

/// One training step, as written to `metrics.jsonl`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepRecord {
    /// Optimiser steps done, from 1.
    pub step: u64,
    /// Mean loss over the step's target tokens, in nats.
    pub loss: f64,
    /// Learning rate of this step.
    pub lr: f64,
    /// Norm of all gradients together, before clipping.
    pub grad_norm: f64,
    /// Tokens processed in this step, targets or not.
    pub tokens: u64,
    /// Tokens a second in this step.
    pub tokens_per_s: f64,
    /// The process's resident memory, in bytes.
    pub mem_bytes: u64,
}

/// One evaluation during training, as written to `metrics.jsonl`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EvalRecord {
    /// Optimiser steps done before it; 0 is the untouched model.
    pub step: u64,
    /// Mean loss over target tokens, in nats.
    pub eval_loss: f64,
    /// The task's own scores by name (`accuracy`, `macro_f1`, `rouge_l`, …).
    #[serde(flatten)]
    pub scores: std::collections::BTreeMap<String, f64>,
}

/// What happens during long work.
#[derive(Clone, Debug)]
pub enum Event<'a> {
    /// A new part of the work begins, `loading SmolLM2-135M-Instruct.Q4_1.gguf`.
    Phase(&'a str),
    /// Progress within a part, in the given unit (`bytes`, `tensors`, `rows`, `examples`).
    Progress {
        /// What is counted.
        unit: &'a str,
        /// Done so far.
        done: u64,
        /// Of how many.
        total: u64,
    },
    /// A training step ended; `total` steps are planned.
    Step {
        /// Its figures.
        record: &'a StepRecord,
        /// Steps planned in all.
        total: u64,
    },
    /// An evaluation ended.
    Eval(&'a EvalRecord),
    /// A checkpoint was written.
    Checkpoint(&'a Path),
    /// Something the user should know, though the work goes on.
    Warning(&'a str),
}

/// Receives events: a progress bar, a log file, both, or nothing.
pub trait Observer {
    /// Called for each event, in order, on the thread that does the work.
    fn on(&mut self, event: &Event<'_>);
}

/// Ignores every event.
pub struct Silent;

impl Observer for Silent {
    fn on(&mut self, _: &Event<'_>) {}
}
