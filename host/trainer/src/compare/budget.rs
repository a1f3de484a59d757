//! How long a run may train, and with how much memory: steps, tokens, wall time, bytes.
//!
//! Every run trains for a number of steps, so that its learning-rate schedule is known before it starts. A budget of tokens is
//! turned into steps by counting the tokens of the steps to come, which are the same for every method. A budget of
//! wall time is turned into steps by a probe: a few steps of each method, timed.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::planning::Planned;
use super::site::Site;
use super::stats;
use crate::config::{Config, Length, bytes};
use crate::data::{self, Dataset, Dealing, Sampler, SamplerOptions};
use crate::report::metrics::{self, Record};
use crate::report::{Event, Observer};
use crate::{Error, Result};

/// Steps that a probe does: the first ones warm up, the others are timed.
const PROBE_STEPS: u64 = 6;

/// A comparison's budget.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Budget {
    /// How long to train.
    pub length: BudgetLength,
    /// A run that needs more memory is stopped, and counts as failed.
    pub memory_bytes: Option<u64>,
}

/// How long a run may train.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", tag = "by", content = "amount")]
pub enum BudgetLength {
    /// As the base configuration says.
    AsConfigured,
    /// Optimiser steps.
    Steps(u64),
    /// As many steps as it takes to have read so many tokens.
    Tokens(u64),
    /// As many steps as a probe says fit into so many seconds of training.
    Seconds(f64),
}

/// `[budget]`, as written.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct WrittenBudget {
    pub steps: Option<u64>,
    pub tokens: Option<u64>,
    pub seconds: Option<f64>,
    pub memory: Option<String>,
}

impl WrittenBudget {
    pub(super) fn resolve(&self) -> Result<Budget> {
        let set: Vec<&str> =
            [("steps", self.steps.is_some()), ("tokens", self.tokens.is_some()), ("seconds", self.seconds.is_some())]
                .into_iter()
                .filter_map(|(name, is_set)| is_set.then_some(name))
                .collect();
        if let [first, second, ..] = set[..] {
            return Err(Error::config(format!("`budget.{first}` and `budget.{second}` are both set"))
                .help("keep one of them; budget.memory can stand beside it"));
        }
        let length = match (self.steps, self.tokens, self.seconds) {
            (Some(0), ..) => return Err(Error::config("`budget.steps` must be at least 1")),
            (_, Some(0), _) => return Err(Error::config("`budget.tokens` must be at least 1")),
            (Some(steps), ..) => BudgetLength::Steps(steps),
            (_, Some(tokens), _) => BudgetLength::Tokens(tokens),
            (.., Some(seconds)) if seconds.is_finite() && seconds > 0.0 => BudgetLength::Seconds(seconds),
            (.., Some(seconds)) => {
                return Err(Error::config(format!("`budget.seconds` must be above 0, not {seconds}")));
            }
            _ => BudgetLength::AsConfigured,
        };
        let memory_bytes = self
            .memory
            .as_deref()
            .map(|text| bytes::parse(text).map_err(|error| error.at("`budget.memory`")))
            .transpose()?;
        Ok(Budget { length, memory_bytes })
    }
}

/// The steps after which a run with this configuration has read at least `tokens` tokens of `data`.
///
/// # Errors
/// When there is nothing to train on.
pub fn steps_for_tokens(config: &Config, data: &Dataset, tokens: u64) -> Result<u64> {
    let lengths: Vec<usize> = data.examples.iter().map(|example| example.ids.len()).collect();
    let options = SamplerOptions {
        seed: config.seed,
        batch_size: config.train.batch_size,
        dealing: Dealing { packing: true, micro_batch_tokens: usize::MAX, micro_batch_examples: None },
        epochs: None,
    };
    let mut sampler = Sampler::new(lengths.clone(), options)?;
    let (mut steps, mut read) = (0, 0u64);
    while read < tokens {
        let Some(step) = sampler.next_step() else { break };
        read += step.micro_batches.iter().flatten().map(|&i| lengths[i] as u64).sum::<u64>();
        steps += 1;
    }
    Ok(steps)
}

/// Sets the number of steps that a run does.
pub fn set_steps(config: &mut Config, steps: u64) {
    config.train.steps = Some(steps.max(1));
    config.train.epochs = None;
}

/// The steps that fit into `budget_s` seconds, where the steps after the first took `step_s` seconds each in a probe.
pub fn steps_for_seconds(budget_s: f64, step_s: f64) -> u64 {
    ((budget_s / step_s.max(1e-9)).floor() as u64).max(1)
}

/// The length of training in words.
pub fn in_words(length: BudgetLength, config: &Config) -> String {
    match (length, config.train.length()) {
        (BudgetLength::Steps(steps), _) | (BudgetLength::AsConfigured, Length::Steps(steps)) => {
            format!("{steps} steps")
        }
        (BudgetLength::AsConfigured, Length::Epochs(epochs)) => {
            format!("{epochs} {} over the training data", if epochs == 1.0 { "pass" } else { "passes" })
        }
        (BudgetLength::Tokens(tokens), _) => format!("{} tokens", crate::report::text::grouped(tokens)),
        (BudgetLength::Seconds(seconds), _) => format!("{} of training", crate::report::text::duration(seconds)),
    }
}

/// The steps of each method's runs by seed, where the budget is not in steps.
pub(super) fn lengths(
    site: &Site<'_>,
    methods: &mut [Planned],
    observer: &mut dyn Observer,
) -> Result<BTreeMap<(usize, u64), u64>> {
    let seeds = &site.comparison.seeds;
    let mut lengths = BTreeMap::new();
    match site.comparison.budget.length {
        BudgetLength::AsConfigured | BudgetLength::Steps(_) => {}
        BudgetLength::Tokens(tokens) => {
            observer.on(&Event::Phase("counting the tokens of the steps"));
            for seed in seeds {
                let config = methods[0].0.run(1.0, *seed);
                let data = data::load_splits(&config.data, *seed, &site.base, observer)?;
                let steps = steps_for_tokens(&config, &data.train, tokens)?;
                lengths.extend((0..methods.len()).map(|i| ((i, *seed), steps)));
            }
        }
        BudgetLength::Seconds(seconds) => {
            observer.on(&Event::Phase("timing a few steps of each method"));
            for (i, (method, cost)) in methods.iter_mut().enumerate() {
                if matches!(cost, Some(Err(_))) {
                    continue;
                }
                let mut config = method.run(method.config.optimizer.lr, seeds.first().copied().unwrap_or(0));
                set_steps(&mut config, PROBE_STEPS);
                config.schedule.warmup_steps = None;
                config.train.eval_every = None;
                config.train.early_stopping = None;
                config.train.checkpoint_every = None;
                let (cell, ended) = site.train("probe", &format!("probe {}", method.name), &config)?;
                if let Err(failure) = ended {
                    *cost = Some(Err(failure));
                    continue;
                }
                let step_s = later_step_s(&metrics::read(&cell.dir.join("run/metrics.jsonl"))?);
                let steps = steps_for_seconds(seconds, step_s);
                lengths.extend(seeds.iter().map(|seed| ((i, *seed), steps)));
            }
        }
    }
    Ok(lengths)
}

/// The median time of a step, the first one left out if there are others.
pub fn later_step_s(records: &[Record]) -> f64 {
    let seconds = |record: &Record| match record {
        Record::Step(step) => Some(step.tokens as f64 / step.tokens_per_s.max(1e-9)),
        Record::Eval(_) | Record::Pick(_) => None,
    };
    let all: Vec<f64> = records.iter().filter_map(seconds).collect();
    stats::median(if all.len() > 1 { &all[1..] } else { &all })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn one_length_only() {
        let both = WrittenBudget { steps: Some(1), tokens: Some(2), ..Default::default() };
        assert_eq!(both.resolve().unwrap_err().message(), "`budget.steps` and `budget.tokens` are both set");
        let none = WrittenBudget { memory: Some("1MiB".into()), ..Default::default() };
        assert_eq!(none.resolve().unwrap(), Budget { length: BudgetLength::AsConfigured, memory_bytes: Some(1 << 20) });
    }

    #[test]
    fn time_becomes_steps() {
        assert_eq!(steps_for_seconds(10.0, 0.3), 33);
        assert_eq!(steps_for_seconds(0.1, 5.0), 1);
    }
}
