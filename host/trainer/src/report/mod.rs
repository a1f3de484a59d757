//! What a run tells about itself: events while it works, and what they are written to.

pub mod log;
pub mod metrics;
pub mod process;
pub mod summary;
pub mod tensorboard;
pub mod text;

pub use log::RunLog;
pub use metrics::{MetricsLog, Record};
pub use summary::{Ending, Hashes, LossAt, PeakMemory, PhaseSeconds, Summary, Trained};

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
    /// On which data: `validation` while training, `test` before and after it where there is test data.
    pub split: String,
    /// Mean loss over target tokens, in nats.
    pub eval_loss: f64,
    /// The task's own scores by name (`accuracy`, `macro_f1`, `rouge_l`, …).
    #[serde(flatten)]
    pub scores: std::collections::BTreeMap<String, f64>,
}

/// One revision of the plan while training, as written to `metrics.jsonl`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PickRecord {
    /// The step before which it happened.
    pub step: u64,
    /// How many there were, this one included.
    pub pick: u64,
    /// The hash of the plan that training goes on by.
    pub plan: String,
    /// Parameters that train from now on.
    pub trainable_parameters: u64,
    /// Tensors that train whole from now on.
    pub trained_tensors: usize,
    /// Tensors whose adapters train from now on.
    pub adapted_tensors: usize,
    /// Seconds spent in the plugin.
    pub plugin_s: f64,
    /// Seconds that all of it took.
    pub seconds: f64,
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
    /// The policy revised its plan.
    Pick(&'a PickRecord),
    /// A checkpoint was written.
    Checkpoint(&'a Path),
    /// A cell of a comparison began or ended.
    Cell(&'a CellProgress<'a>),
    /// Something that a policy says.
    Note(&'a str),
    /// Something the user should know, though the work goes on.
    Warning(&'a str),
}

/// How far a comparison is.
#[derive(Clone, Debug, PartialEq)]
pub struct CellProgress<'a> {
    /// Cells that have ended.
    pub done: u64,
    /// Of how many.
    pub total: u64,
    /// The cell that began or ended.
    pub doing: &'a str,
    /// What came of it, if it has ended.
    pub ended: Option<&'a str>,
    /// Seconds that are left, if the cells to come take as long as those before.
    pub left_s: Option<f64>,
    /// The best so far.
    pub best: Option<&'a str>,
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

/// Hands every event to several observers, in their order.
#[derive(Default)]
pub struct Fanout<'a> {
    observers: Vec<&'a mut dyn Observer>,
}

impl<'a> Fanout<'a> {
    /// No observers yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an observer after those already there.
    pub fn with(mut self, observer: &'a mut dyn Observer) -> Self {
        self.observers.push(observer);
        self
    }
}

impl Observer for Fanout<'_> {
    fn on(&mut self, event: &Event<'_>) {
        for observer in &mut self.observers {
            observer.on(event);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    struct Counter(Vec<String>);

    impl Observer for Counter {
        fn on(&mut self, event: &Event<'_>) {
            if let Event::Phase(name) = event {
                self.0.push(name.to_string());
            }
        }
    }

    #[test]
    fn a_fanout_hands_each_event_to_every_observer() {
        let (mut first, mut second) = (Counter(Vec::new()), Counter(Vec::new()));
        let mut both = Fanout::new().with(&mut first).with(&mut second);
        both.on(&Event::Phase("loading"));
        both.on(&Event::Phase("training"));
        assert_eq!(first.0, ["loading", "training"]);
        assert_eq!(second.0, first.0);
    }
}
