//! What a comparison found, as data: `report.json`, from which the page, the text and the table are made. Its fields are
//! described in `host/docs/compare.md`.

mod costs;
mod html;
mod machine;
mod row;
mod text;
mod words;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::agreement::{LayerMap, chosen, jaccard};
use super::grid::{MethodResults, Results, Tried};
use super::job::{Deployed, Timing};
use super::planning::Selection;
use super::score::Better;
use super::site::Site;
use super::stats::{Interval, Paired};
use crate::files::write_atomically;
use crate::{Error, Result};

pub use html::page;
pub use machine::Machine;
pub use text::{markdown, table};

/// The version of `report.json`: it rises when a field changes its meaning or goes away.
pub const VERSION: u32 = 1;

/// The report.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// `liftplan-compare`.
    pub schema: String,
    /// [`VERSION`].
    pub version: u32,
    /// The comparison's title.
    pub title: String,
    /// When it was made, RFC 3339, UTC.
    pub made: String,
    /// What was compared on what.
    pub setup: Setup,
    /// What the numbers say.
    pub summary: Vec<Statement>,
    /// The untouched model.
    pub base: BaseRow,
    /// One row a method, controls behind their methods.
    pub methods: Vec<Row>,
    /// How far the selections of layers agree.
    pub agreement: Agreement,
}

/// What was compared on what, and everything to do it again.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Setup {
    /// The base model, as configured.
    pub model: String,
    /// Its family.
    pub architecture: String,
    /// Its decoder blocks.
    pub blocks: usize,
    /// Its parameters.
    pub parameters: u64,
    /// `lm`, `classification` or `summarization`.
    pub task: String,
    /// The score's name.
    pub score: String,
    /// Which way it is better.
    pub better: Better,
    /// The command that makes the score, if it isn't one of the task's.
    pub score_command: Option<Vec<String>>,
    /// The method that the others are compared with.
    pub baseline: String,
    /// The length of training, in words.
    pub budget: String,
    /// The most memory that a run may take, in bytes.
    pub memory_budget_bytes: Option<u64>,
    /// The seeds.
    pub seeds: Vec<u64>,
    /// Learning rates that each method tried.
    pub learning_rates: usize,
    /// Test examples.
    pub test_examples: usize,
    /// The data files with their sha256, by split.
    pub data: BTreeMap<String, Vec<(String, String)>>,
    /// Runs at the same time.
    pub jobs: usize,
    /// Hash of the base model's weights.
    pub model_hash: String,
    /// Versions of what computed.
    pub versions: BTreeMap<String, String>,
    /// sha256 of the program.
    pub executable: String,
    /// The machine.
    pub machine: Machine,
    /// What the runs computed on, each once: `cpu`, or a GPU with its name. Nothing in reports of older versions.
    #[serde(default)]
    pub devices: Vec<String>,
    /// The comparison's configuration, as written.
    pub configuration: String,
}

/// A sentence of the summary.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Statement {
    /// What kind it is.
    pub kind: StatementKind,
    /// The sentence.
    pub text: String,
}

/// Whether the numbers support something, leave it open, or have a limit to be known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StatementKind {
    /// The numbers support it.
    Supported,
    /// The numbers leave it open.
    Open,
    /// What one should know before drawing conclusions.
    Caution,
}

/// The untouched model.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct BaseRow {
    /// Its scores by name.
    pub scores: BTreeMap<String, f64>,
    /// Its loss on the general text, in nats a token.
    pub general_loss: Option<f64>,
    /// How fast it writes.
    pub latency: Vec<Timing>,
    /// Why it has no scores, if it has none.
    pub failure: Option<String>,
}

/// A method's row.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// Its name.
    pub name: String,
    /// Its policy's name.
    pub policy: String,
    /// What it set, as JSON: its policy's settings.
    pub settings: serde_json::Value,
    /// The sha256 of its plugin, and of each file that its policy reads, by setting.
    #[serde(default)]
    pub files: BTreeMap<String, String>,
    /// The method of whose selection this is the random counterpart.
    pub control_of: Option<String>,
    /// `ok`, `failed` or `out_of_memory`.
    pub status: Status,
    /// Why, if not ok.
    pub reason: Option<String>,
    /// The learning rates and their mean validation scores.
    pub tried: Vec<Tried>,
    /// The one that was chosen.
    pub lr: Option<f64>,
    /// Of the chosen runs, one a seed.
    pub seeds: Vec<SeedRow>,
    /// The test score over seeds.
    pub score: Option<Estimate>,
    /// All test scores over seeds, by name.
    pub scores: BTreeMap<String, Estimate>,
    /// Against the baseline.
    pub vs_baseline: Option<Paired>,
    /// Against the untouched model.
    pub vs_base: Option<Paired>,
    /// Against its random counterpart.
    pub vs_control: Option<Paired>,
    /// The loss while training, mean over seeds.
    pub curve: Vec<Point>,
    /// Memory.
    pub memory: Memory,
    /// Tokens a second while training, the first step left out; median over seeds.
    pub tokens_per_s: Option<f64>,
    /// Seconds of training, mean over seeds.
    pub train_s: Option<f64>,
    /// Optimiser steps, of the first seed.
    pub steps: Option<u64>,
    /// Tokens, of the first seed.
    pub tokens: Option<u64>,
    /// What choosing the layers costs.
    pub selection: Option<Selection>,
    /// Parameters that train.
    pub trainable_parameters: Option<u64>,
    /// What is deployed.
    pub deployed: Option<Deployed>,
    /// How fast it writes.
    pub latency: Vec<Timing>,
    /// The rise of the loss on general text over the untouched model's, in nats a token, over seeds.
    pub forgetting: Option<Estimate>,
    /// Which layers train, in the first seed's plan.
    pub layers: Option<LayerMap>,
    /// How often that plan was revised while it trained.
    #[serde(default)]
    pub picks: u64,
    /// No other method is both better and smaller.
    pub on_memory_frontier: bool,
    /// No other method is both better and faster.
    pub on_time_frontier: bool,
}

/// How a method ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// It has scores.
    Ok,
    /// It has none.
    Failed,
    /// It has none for want of memory.
    OutOfMemory,
}

/// A mean over seeds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    /// The mean.
    pub mean: f64,
    /// Its interval; none for one seed.
    pub interval: Option<Interval>,
}

/// One of the chosen runs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SeedRow {
    /// Its seed.
    pub seed: u64,
    /// Its test scores by name.
    pub scores: BTreeMap<String, f64>,
    /// Its loss on the general text, in nats a token.
    pub general_loss: Option<f64>,
    /// Tokens a second, the first step left out. Unknown in reports of older versions, as what follows.
    #[serde(default)]
    pub tokens_per_s: Option<f64>,
    /// Seconds of training.
    #[serde(default)]
    pub train_s: Option<f64>,
    /// The most memory that it held, in bytes.
    #[serde(default)]
    pub memory_bytes: Option<u64>,
    /// The hash of its plan.
    pub plan_hash: String,
    /// Its directory, within the comparison's.
    pub run: String,
}

/// A point of the loss curve.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Point {
    /// Steps done.
    pub step: f64,
    /// Seconds of training.
    pub seconds: f64,
    /// Loss in nats a token.
    pub loss: f64,
}

/// The memory of a method's runs, in bytes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Memory {
    /// As computed before training.
    pub predicted_bytes: Option<u64>,
    /// The most that any chosen run held.
    pub measured_bytes: Option<u64>,
    /// By what it is for: `weights`, `adapters`, `gradients`, `optimizer`, predicted `activations` and `process`, and the `rest`
    /// that was measured and not predicted.
    pub kinds: BTreeMap<String, u64>,
}

/// How far selections agree.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Agreement {
    /// The methods, in the order of rows and columns.
    pub methods: Vec<String>,
    /// The share of what either chose that both chose, mean over seeds.
    pub overlap: Vec<Vec<f64>>,
}

/// Puts together what a comparison has found.
///
/// # Errors
/// When a result that a cell left can't be read.
pub fn gather(site: &Site<'_>, results: &Results) -> Result<Report> {
    let base = match &results.base {
        Ok(judged) => BaseRow {
            scores: judged.scores.clone(),
            general_loss: judged.general_loss,
            latency: judged.latency.clone(),
            failure: None,
        },
        Err(failure) => BaseRow { failure: Some(failure.reason.clone()), ..BaseRow::default() },
    };
    let mut methods = row::rows(site, results, &base)?;
    row::frontiers(&mut methods, site.comparison.score.better);
    let mut report = Report {
        schema: "liftplan-compare".into(),
        version: VERSION,
        title: site.comparison.title.clone(),
        made: machine::now(),
        setup: setup(site, results)?,
        summary: Vec::new(),
        base,
        methods,
        agreement: agreement(site, results),
    };
    report.summary = words::summary(&report);
    Ok(report)
}

fn setup(site: &Site<'_>, results: &Results) -> Result<Setup> {
    let comparison = site.comparison;
    let first = comparison.methods.first().ok_or_else(|| Error::internal("no method"))?;
    let data = &first.config.data;
    let mut files = BTreeMap::new();
    for (split, paths) in [("train", &data.train), ("validation", &data.validation), ("test", &data.test)] {
        let hashed = paths.iter().map(|path| Ok((path.display().to_string(), site.store.file_hash(path)?)));
        files.insert(split.to_string(), hashed.collect::<Result<Vec<_>>>()?);
    }
    if let Some(forgetting) = &comparison.forgetting {
        let hash = site.store.file_hash(&forgetting.data)?;
        files.insert("general".into(), vec![(forgetting.data.display().to_string(), hash)]);
    }
    let parameters = site.base.inventory.tensors.iter().map(|info| info.len() as u64).sum();
    let task = serde_json::to_value(first.config.eval.task).ok().and_then(|task| task.as_str().map(str::to_string));
    Ok(Setup {
        model: first.config.model.clone(),
        architecture: site.base.inventory.architecture.clone(),
        blocks: site.base.inventory.blocks,
        parameters,
        task: task.unwrap_or_default(),
        score: comparison.score.name.clone(),
        better: comparison.score.better,
        score_command: comparison.score.command.clone(),
        baseline: comparison.baseline.clone(),
        budget: super::budget::in_words(comparison.budget.length, &first.config),
        memory_budget_bytes: comparison.budget.memory_bytes,
        seeds: comparison.seeds.clone(),
        learning_rates: first.learning_rates.len(),
        test_examples: results.base.as_ref().map_or(0, |judged| judged.examples),
        data: files,
        jobs: comparison.jobs,
        model_hash: site.base.hash.clone(),
        versions: crate::report::summary::versions(),
        executable: site.executable_hash().to_string(),
        machine: Machine::here(),
        devices: devices(results),
        configuration: comparison.text.clone(),
    })
}

/// What the runs computed on, without what changes from run to run.
fn devices(results: &Results) -> Vec<String> {
    let runs = results.methods.iter().flat_map(|method| &method.runs);
    let of_runs = runs.filter_map(|run| run.outcome.as_ref().ok()).map(|trained| {
        let parts: Vec<&str> = trained.summary.device.split(", ").collect();
        if trained.summary.device.starts_with("cpu") { "cpu".into() } else { parts[..parts.len().min(2)].join(", ") }
    });
    of_runs.filter(|device: &String| !device.is_empty()).collect::<BTreeSet<_>>().into_iter().collect()
}

/// The overlap of what the methods chose, over seeds. Methods that adapt or train every layer are among them: their
/// overlap with a selection is its share.
fn agreement(site: &Site<'_>, results: &Results) -> Agreement {
    let inventory = &site.base.inventory;
    let of = |method: &MethodResults| -> Option<Vec<crate::plan::Plan>> {
        let runs = method.runs_of(method.chosen?);
        runs.map(|run| run.outcome.as_ref().ok().map(|trained| trained.plan.clone())).collect()
    };
    let plans: Vec<(String, Vec<crate::plan::Plan>)> =
        results.methods.iter().filter_map(|method| Some((method.method.name.clone(), of(method)?))).collect();
    let overlap = |a: &Vec<crate::plan::Plan>, b: &Vec<crate::plan::Plan>| {
        let each: Vec<f64> =
            a.iter().zip(b).map(|(a, b)| jaccard(&chosen(a, inventory), &chosen(b, inventory))).collect();
        super::stats::mean(&each)
    };
    Agreement {
        methods: plans.iter().map(|(name, _)| name.clone()).collect(),
        overlap: plans.iter().map(|(_, a)| plans.iter().map(|(_, b)| overlap(a, b)).collect()).collect(),
    }
}

/// Writes `report.json`, `report.md` and `report.html` into the comparison's directory.
///
/// # Errors
/// When they can't be written.
pub fn write(report: &Report, dir: &Path) -> Result<()> {
    let json = serde_json::to_string_pretty(report).map_err(|error| Error::internal(format!("the report: {error}")))?;
    write_atomically(&dir.join("report.json"), json.as_bytes())?;
    write_atomically(&dir.join("report.md"), markdown(report).as_bytes())?;
    write_atomically(&dir.join("report.html"), page(report)?.as_bytes())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
