//! The stages of a comparison: plans and controls ([`super::planning`]), runs, the choice of learning rates, the test.

use serde::{Deserialize, Serialize};
use serde_json::Map;

use super::budget;
use super::config::Method;
use super::job::{Judgement, Split};
use super::meter::Meter;
use super::planning::{self, Selection};
use super::site::Site;
use super::store::{Cell, Failure};
use super::{queue, stats};
use crate::Result;
use crate::config::{Config, PolicyConfig};
use crate::plan::{self, Plan};
use crate::report::metrics::Record;
use crate::report::{Observer, Summary, metrics};

/// Everything that a comparison has found.
pub struct Results {
    /// One entry a method, controls behind the methods that they belong to.
    pub methods: Vec<MethodResults>,
    /// The untouched model on the test data.
    pub base: std::result::Result<Judgement, Failure>,
    /// Where its outputs are.
    pub base_cell: Cell,
}

/// What a comparison has found of a method.
pub struct MethodResults {
    /// The method.
    pub method: Method,
    /// What its plan costs to make; none for a control, which costs nothing.
    pub cost: Option<std::result::Result<Selection, Failure>>,
    /// Its runs: learning rates in their order, and of each the seeds.
    pub runs: Vec<Run>,
    /// The learning rate that was chosen, as a position among the method's.
    pub chosen: Option<usize>,
    /// The chosen runs on the test data, by seed.
    pub tests: Vec<(Cell, std::result::Result<Judgement, Failure>)>,
}

/// One training run.
pub struct Run {
    /// Its learning rate.
    pub lr: f64,
    /// Its seed.
    pub seed: u64,
    /// Its place.
    pub cell: Cell,
    /// Its configuration.
    pub config: Config,
    /// What came of it.
    pub outcome: std::result::Result<Trained, Failure>,
}

/// A run that ended well.
#[derive(Clone, Debug)]
pub struct Trained {
    /// Its summary.
    pub summary: Summary,
    /// Its metrics.
    pub records: Vec<Record>,
    /// Its plan.
    pub plan: Plan,
    /// Its score on the validation data, where there was something to choose.
    pub validation: Option<f64>,
}

/// The mean validation score of a learning rate.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Tried {
    /// The learning rate.
    pub lr: f64,
    /// The mean over the seeds; none where a run failed, or nothing was to choose.
    pub validation: Option<f64>,
    /// Why a run with it failed, if one did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed: Option<String>,
}

impl MethodResults {
    /// The runs with the learning rate at `position`.
    pub fn runs_of(&self, position: usize) -> impl Iterator<Item = &Run> {
        let lr = self.method.learning_rates.get(position).copied();
        self.runs.iter().filter(move |run| Some(run.lr) == lr)
    }

    /// The learning rates and what they scored on the validation data.
    pub fn tried(&self) -> Vec<Tried> {
        let tried = |(i, lr): (usize, &f64)| {
            let scores: Option<Vec<f64>> =
                self.runs_of(i).map(|run| run.outcome.as_ref().ok().and_then(|trained| trained.validation)).collect();
            let failed = self.runs_of(i).find_map(|run| run.outcome.as_ref().err());
            Tried {
                lr: *lr,
                validation: scores.filter(|scores| !scores.is_empty()).map(|scores| stats::mean(&scores)),
                failed: failed.map(|failure| failure.reason.clone()),
            }
        };
        self.method.learning_rates.iter().enumerate().map(tried).collect()
    }

    /// Why the method has no result, if it has none.
    pub fn failure(&self) -> Option<&Failure> {
        if let Some(Err(failure)) = &self.cost {
            return Some(failure);
        }
        let of_tests = self.tests.iter().find_map(|(_, judged)| judged.as_ref().err());
        match self.chosen {
            Some(_) => of_tests,
            None => self.runs.iter().find_map(|run| run.outcome.as_ref().err()),
        }
    }
}

/// Runs all stages.
///
/// # Errors
/// When something fails that is no cell's own, or the user stops it.
pub fn run(site: &Site<'_>, observer: &mut dyn Observer) -> Result<Results> {
    let comparison = site.comparison;
    let (jobs, stop) = (comparison.jobs, &site.options.stop);
    let mut methods = planning::run(site, observer)?;
    let lengths = budget::lengths(site, &mut methods, observer)?;
    let mut wanted: Vec<(usize, f64, u64)> = Vec::new();
    for (i, (method, cost)) in methods.iter().enumerate() {
        if !matches!(cost, Some(Err(_))) {
            let seeds = |lr: &f64| comparison.seeds.iter().map(|seed| (i, *lr, *seed)).collect::<Vec<_>>();
            wanted.extend(method.learning_rates.iter().flat_map(seeds));
        }
    }
    let tests = methods.iter().filter(|(_, cost)| !matches!(cost, Some(Err(_)))).count() * comparison.seeds.len() + 1;
    let mut meter = Meter::new(site, observer, (wanted.len() + tests) as u64, comparison.jobs);

    let name = |&(i, lr, seed): &(usize, f64, u64)| format!("{}, lr {lr}, seed {seed}", methods[i].0.name);
    let train = |item: &(usize, f64, u64)| -> Result<Run> {
        let (i, lr, seed) = *item;
        let mut config = methods[i].0.run(lr, seed);
        if let Some(steps) = lengths.get(&(i, seed)) {
            budget::set_steps(&mut config, *steps);
        }
        let validate = methods[i].0.learning_rates.len() > 1;
        train(site, &name(item), lr, seed, config, validate)
    };
    let runs = queue::run(&wanted, jobs, stop, train, |i, run| match run {
        None => meter.tell(&name(&wanted[i]), None),
        Some(run) => {
            meter.done += 1;
            let words = match &run.outcome {
                Err(failure) => format!("failed: {}", failure.reason),
                Ok(Trained { validation: Some(score), .. }) => {
                    meter.scored(*score, &methods[wanted[i].0].0.name);
                    format!("{} {score:.4} on the validation data", comparison.score.name)
                }
                Ok(trained) => format!("loss {:.4}", trained.summary.final_loss.unwrap_or(f64::NAN)),
            };
            meter.tell(&name(&wanted[i]), Some(&words));
        }
    })?;

    let mut results: Vec<MethodResults> = methods
        .into_iter()
        .map(|(method, cost)| MethodResults { method, cost, runs: Vec::new(), chosen: None, tests: Vec::new() })
        .collect();
    for ((i, ..), run) in wanted.iter().zip(runs) {
        results[*i].runs.push(run);
    }
    for result in &mut results {
        result.chosen = choose(result, site);
    }
    let (base_cell, base) = test(site, &mut results, &mut meter)?;
    Ok(Results { methods: results, base, base_cell })
}

/// The chosen runs, and the untouched model, on the test data. This is the first and only time that it is opened.
fn test(
    site: &Site<'_>,
    results: &mut [MethodResults],
    meter: &mut Meter<'_>,
) -> Result<(Cell, std::result::Result<Judgement, Failure>)> {
    let comparison = site.comparison;
    let mut wanted: Vec<Option<(usize, usize)>> = vec![None];
    for (i, result) in results.iter().enumerate() {
        let of_chosen = |run: &Run| result.chosen.is_some_and(|c| result.method.learning_rates.get(c) == Some(&run.lr));
        wanted.extend(result.runs.iter().enumerate().filter(|(_, run)| of_chosen(run)).map(|(j, _)| Some((i, j))));
    }
    meter.total = meter.done + wanted.len() as u64;
    meter.begin_stage();
    // What was best on the validation data is no measure for these.
    meter.best = None;
    let name = |item: &Option<(usize, usize)>| match item {
        None => "untouched model".to_string(),
        Some((i, j)) => format!("{}, seed {}, test", results[*i].method.name, results[*i].runs[*j].seed),
    };
    let judge = |item: &Option<(usize, usize)>| match item {
        None => {
            let method = &results[0].method;
            let seed = comparison.seeds.first().copied().unwrap_or(0);
            let config = untouched(&method.run(method.config.optimizer.lr, seed))?;
            site.judge(None, "untouched model", &config, Split::Test, true)
        }
        Some((i, j)) => {
            let run = &results[*i].runs[*j];
            let thorough = Some(&run.seed) == comparison.seeds.first();
            site.judge(Some(&run.cell), "", &run.config, Split::Test, thorough)
        }
    };
    let judged = queue::run(&wanted, comparison.jobs, &site.options.stop, judge, |i, judged| match judged {
        None => meter.tell(&name(&wanted[i]), None),
        Some((_, judged)) => {
            meter.done += 1;
            let words = match judged {
                Err(failure) => format!("failed: {}", failure.reason),
                Ok(judged) => match judged.scores.get(&comparison.score.name) {
                    Some(score) => {
                        if let Some((method, _)) = wanted[i] {
                            meter.scored(*score, &results[method].method.name);
                        }
                        format!("{} {score:.4} on the test data", comparison.score.name)
                    }
                    None => format!("no {}", comparison.score.name),
                },
            };
            meter.tell(&name(&wanted[i]), Some(&words));
        }
    })?;
    let mut base = None;
    for (item, judged) in wanted.iter().zip(judged) {
        match item {
            None => base = Some(judged),
            Some((i, _)) => results[*i].tests.push(judged),
        }
    }
    base.ok_or_else(|| crate::Error::internal("the untouched model was not judged"))
}

/// The configuration for judging the untouched model: how methods train means nothing there, and is the same whichever method
/// comes first, but for `train.micro_batch_tokens`, which is the first one's.
fn untouched(config: &Config) -> Result<Config> {
    let policy = PolicyConfig { name: "lora".into(), plugin: None, project: None, settings: Map::new() };
    let mut judged =
        Config { policy, ..config.clone() }.with_defaults(&["optimizer", "schedule", "storage", "train"])?;
    judged.train.micro_batch_tokens = config.train.micro_batch_tokens;
    Ok(judged)
}

fn train(site: &Site<'_>, name: &str, lr: f64, seed: u64, config: Config, validate: bool) -> Result<Run> {
    let (cell, ended) = site.train("train", name, &config)?;
    let run = cell.dir.join("run");
    let outcome = match ended {
        Err(failure) => Err(failure),
        Ok(()) => {
            let summary = Summary::read(&run)?;
            let limit = site.comparison.budget.memory_bytes;
            // What a card holds is known only from the run's own account of it.
            match summary.peak_memory.measured_bytes.zip(limit).filter(|(held, limit)| held > limit) {
                Some((held, limit)) => Err(Failure {
                    out_of_memory: true,
                    reason: format!(
                        "needed {}: the budget is {}",
                        crate::report::text::memory(held),
                        crate::report::text::memory(limit)
                    ),
                }),
                None => Ok(Trained {
                    summary,
                    records: metrics::read(&run.join("metrics.jsonl"))?,
                    plan: plan::file::read(&run.join("plan.json"))?,
                    validation: None,
                }),
            }
        }
    };
    let outcome = match outcome {
        Ok(trained) if validate => {
            let (_, judged) = site.judge(Some(&cell), "", &config, Split::Validation, false)?;
            judged.and_then(|judged| {
                let score = judged.scores.get(&site.comparison.score.name).copied();
                let score =
                    score.ok_or_else(|| Failure::new(format!("no {} that is a number", site.comparison.score.name)))?;
                Ok(Trained { validation: Some(score), ..trained })
            })
        }
        other => other,
    };
    Ok(Run { lr, seed, cell, config, outcome })
}

/// The learning rate with the best mean on the validation data, among those of which every run ended well; the smaller
/// one of equals.
fn choose(result: &MethodResults, site: &Site<'_>) -> Option<usize> {
    let mut best: Option<(usize, f64)> = None;
    let tried = result.tried();
    if result.runs.is_empty() {
        return None;
    }
    if let [_] = tried[..] {
        return result.runs.iter().all(|run| run.outcome.is_ok()).then_some(0);
    }
    for (i, tried_i) in tried.iter().enumerate() {
        let Some(score) = tried_i.validation else { continue };
        let better = best.is_none_or(|(j, best)| {
            site.comparison.score.better.is(score, best) || (score == best && tried_i.lr < tried[j].lr)
        });
        if better {
            best = Some((i, score));
        }
    }
    best.map(|(i, _)| i)
}
