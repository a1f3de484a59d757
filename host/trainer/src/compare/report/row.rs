//! A method's row: its runs' results put together over seeds, and set against the others'.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;

use super::super::agreement::layer_map;
use super::super::budget::later_step_s;
use super::super::grid::{MethodResults, Results, Trained};
use super::super::job::OutputLine;
use super::super::score::Better;
use super::super::site::Site;
use super::super::stats::{Interval, Pair, Paired, interval, judge, mean, median};
use super::{BaseRow, Estimate, Memory, Point, Row, SeedRow, Status};
use crate::files::output_error;
use crate::report::metrics::Record;
use crate::{Error, Result};

/// Points of a curve in the report.
const POINTS: usize = 120;

/// All rows, compared with each other.
pub fn rows(site: &Site<'_>, results: &Results, base: &BaseRow) -> Result<Vec<Row>> {
    let mut rows = Vec::with_capacity(results.methods.len());
    let mut examples = Vec::with_capacity(results.methods.len());
    for method in &results.methods {
        rows.push(row(site, method, base)?);
        examples.push(examples_of(site, method)?);
    }
    let base_examples = match &results.base {
        Ok(_) => read_examples(&results.base_cell.dir, &site.comparison.score.name)?,
        Err(_) => None,
    };
    compare(site, &mut rows, &examples, base, base_examples);
    Ok(rows)
}

fn row(site: &Site<'_>, method: &MethodResults, base: &BaseRow) -> Result<Row> {
    let score_name = &site.comparison.score.name;
    let failure = method.failure();
    let chosen: Vec<&Trained> = match method.chosen {
        Some(chosen) => method.runs_of(chosen).filter_map(|run| run.outcome.as_ref().ok()).collect(),
        None => Vec::new(),
    };
    let mut seeds = Vec::new();
    if let Some(position) = method.chosen.filter(|_| failure.is_none()) {
        for ((run, (_, judged)), trained) in method.runs_of(position).zip(&method.tests).zip(&chosen) {
            let Ok(judged) = judged else { continue };
            let place = run.cell.dir.join("run");
            seeds.push(SeedRow {
                seed: run.seed,
                scores: judged.scores.clone(),
                general_loss: judged.general_loss,
                tokens_per_s: Some(speed(trained)),
                train_s: Some(trained.summary.seconds.train),
                memory_bytes: trained.summary.peak_memory.measured_bytes,
                plan_hash: trained.plan.hash(),
                run: place.strip_prefix(site.store.root()).unwrap_or(&place).display().to_string(),
            });
        }
    }
    let mut names: Vec<&String> = seeds.iter().flat_map(|seed| seed.scores.keys()).collect();
    names.sort();
    names.dedup();
    let scores: BTreeMap<String, Estimate> = names
        .into_iter()
        .filter_map(|name| {
            let values: Option<Vec<f64>> = seeds.iter().map(|seed| seed.scores.get(name).copied()).collect();
            Some((name.clone(), within(name, estimate(&values?))))
        })
        .collect();
    let forgetting: Option<Vec<f64>> = base.general_loss.and_then(|before| {
        let rises: Option<Vec<f64>> = seeds.iter().map(|seed| Some(seed.general_loss? - before)).collect();
        rises.filter(|rises| !rises.is_empty())
    });
    let thorough = method.tests.first().and_then(|(_, judged)| judged.as_ref().ok());
    let score = scores.get(score_name).copied();
    let reason = match (failure, score) {
        (Some(failure), _) => Some(failure.reason.clone()),
        (None, None) => Some(format!("no {score_name} that is a number")),
        (None, Some(_)) => None,
    };
    Ok(Row {
        name: method.method.name.clone(),
        policy: method.method.config.policy.name.clone(),
        settings: settings(method),
        files: site.policy_files(&method.method.config)?,
        control_of: method.method.control_of.clone(),
        status: match (failure.is_some_and(|failure| failure.out_of_memory), &reason) {
            (true, _) => Status::OutOfMemory,
            (false, Some(_)) => Status::Failed,
            (false, None) => Status::Ok,
        },
        reason,
        tried: method.tried(),
        lr: method.chosen.and_then(|chosen| method.method.learning_rates.get(chosen).copied()),
        score,
        scores,
        vs_baseline: None,
        vs_base: None,
        vs_control: None,
        curve: curve(&chosen),
        memory: memory(&chosen),
        tokens_per_s: (!chosen.is_empty()).then(|| median(&chosen.iter().map(|run| speed(run)).collect::<Vec<_>>())),
        train_s: (!chosen.is_empty())
            .then(|| mean(&chosen.iter().map(|run| run.summary.seconds.train).collect::<Vec<_>>())),
        steps: chosen.first().map(|run| run.summary.steps),
        tokens: chosen.first().map(|run| run.summary.tokens),
        selection: method.cost.as_ref().and_then(|cost| cost.as_ref().ok().cloned()),
        trainable_parameters: chosen.first().map(|run| run.summary.trained.trainable_parameters),
        deployed: thorough.and_then(|judged| judged.deployed.clone()),
        latency: thorough.map(|judged| judged.latency.clone()).unwrap_or_default(),
        forgetting: forgetting.map(|rises| estimate(&rises)),
        picks: chosen.first().map_or(0, |run| run.summary.picks),
        layers: chosen.first().map(|run| layer_map(&run.plan, &site.base.inventory)),
        on_memory_frontier: false,
        on_time_frontier: false,
        seeds,
    })
}

/// The policy's settings as they were given; a control's are the plan that it copies, of which the name is enough.
fn settings(method: &MethodResults) -> Value {
    match method.method.control_of {
        Some(_) => Value::Object(serde_json::Map::new()),
        None => Value::Object(method.method.config.policy.settings.clone()),
    }
}

fn estimate(values: &[f64]) -> Estimate {
    Estimate { mean: mean(values), interval: interval(values) }
}

/// Scores between 0 and 1.
const SHARES: [&str; 6] = ["accuracy", "macro_f1", "ece", "rouge_1", "rouge_2", "rouge_l"];

/// Student's interval knows nothing of the ends of a scale; what lies beyond them is cut off.
fn within(name: &str, estimate: Estimate) -> Estimate {
    let clipped = |interval: Interval| match SHARES.contains(&name) {
        true => Interval { low: interval.low.clamp(0.0, 1.0), high: interval.high.clamp(0.0, 1.0) },
        false => interval,
    };
    Estimate { interval: estimate.interval.map(clipped), ..estimate }
}

/// A difference of two shares lies between −1 and 1, which Student's interval knows nothing of either.
fn possible(name: &str, paired: Paired) -> Paired {
    let clipped = |interval: Interval| Interval { low: interval.low.max(-1.0), high: interval.high.min(1.0) };
    let interval = paired.interval.map(|interval| if SHARES.contains(&name) { clipped(interval) } else { interval });
    Paired { interval, ..paired }
}

fn speed(run: &Trained) -> f64 {
    let steps = run.records.iter().filter(|record| matches!(record, Record::Step(_))).count().max(1) as f64;
    run.summary.tokens as f64 / steps / later_step_s(&run.records).max(1e-9)
}

fn memory(runs: &[&Trained]) -> Memory {
    let Some(largest) = runs.iter().max_by_key(|run| run.summary.peak_memory.measured_bytes) else {
        return Memory::default();
    };
    let peak = &largest.summary.peak_memory;
    let measured_bytes = peak.measured_bytes;
    let mut kinds = BTreeMap::new();
    if let Some(predicted) = peak.predicted {
        // What lasts through training is exact, being the plan's; the rest is the prediction's.
        for (kind, bytes) in [
            ("weights", predicted.weights_bytes),
            ("adapters", predicted.adapters_bytes),
            ("gradients", predicted.gradients_bytes),
            ("optimizer", predicted.optimizer_bytes),
            ("activations", predicted.activations_bytes),
            ("process", predicted.process_bytes),
        ] {
            kinds.insert(kind.to_string(), bytes);
        }
        kinds.insert("rest".to_string(), measured_bytes.unwrap_or(0).saturating_sub(predicted.total()));
    }
    kinds.retain(|_, bytes| *bytes > 0);
    Memory { predicted_bytes: peak.predicted_bytes, measured_bytes, kinds }
}

/// The loss over steps, mean over seeds, in at most [`POINTS`] points, each the mean of the steps that it stands for.
fn curve(runs: &[&Trained]) -> Vec<Point> {
    let of_run = |run: &&Trained| -> Vec<Point> {
        let mut seconds = 0.0;
        let steps = run.records.iter().filter_map(|record| match record {
            Record::Step(step) => Some(step),
            Record::Eval(_) | Record::Pick(_) => None,
        });
        steps
            .map(|step| {
                seconds += step.tokens as f64 / step.tokens_per_s.max(1e-9);
                Point { step: step.step as f64, seconds, loss: step.loss }
            })
            .collect()
    };
    let curves: Vec<Vec<Point>> = runs.iter().map(of_run).collect();
    let length = curves.iter().map(Vec::len).min().unwrap_or(0);
    let bucket = length.div_ceil(POINTS).max(1);
    (0..length.div_ceil(bucket))
        .map(|i| {
            let steps = bucket * i..(bucket * (i + 1)).min(length);
            let all: Vec<&Point> = curves.iter().flat_map(|curve| &curve[steps.clone()]).collect();
            let mean_of = |value: fn(&Point) -> f64| mean(&all.iter().map(|point| value(point)).collect::<Vec<_>>());
            Point { step: mean_of(|p| p.step), seconds: mean_of(|p| p.seconds), loss: mean_of(|p| p.loss) }
        })
        .collect()
}

/// The score of each test example with its weight.
type Examples = Vec<(f64, f64)>;

/// The examples' scores of each seed, if the score is a mean over examples.
fn examples_of(site: &Site<'_>, method: &MethodResults) -> Result<Option<Vec<Examples>>> {
    let mut all = Vec::new();
    for (cell, judged) in &method.tests {
        match judged {
            Ok(_) => match read_examples(&cell.dir, &site.comparison.score.name)? {
                Some(examples) => all.push(examples),
                None => return Ok(None),
            },
            Err(_) => return Ok(None),
        }
    }
    Ok((!all.is_empty()).then_some(all))
}

fn read_examples(dir: &Path, score: &str) -> Result<Option<Examples>> {
    let path = dir.join("outputs.jsonl");
    let text = std::fs::read_to_string(&path).map_err(|error| output_error("read", &path, &error))?;
    let mut examples = Vec::new();
    for (i, line) in text.lines().enumerate() {
        let line: OutputLine = serde_json::from_str(line)
            .map_err(|error| Error::output(format!("{}:{}: no output: {error}", path.display(), i + 1)))?;
        match (score, line.scores.get(score)) {
            ("loss", _) if line.targets > 0 => examples.push((line.loss / line.targets as f64, line.targets as f64)),
            ("loss", _) => examples.push((0.0, 0.0)),
            (_, Some(score)) => examples.push((*score, 1.0)),
            (_, None) => return Ok(None),
        }
    }
    Ok(Some(examples))
}

/// Sets every method against the baseline, the untouched model, and its random counterpart.
fn compare(
    site: &Site<'_>,
    rows: &mut [Row],
    examples: &[Option<Vec<Examples>>],
    base: &BaseRow,
    base_examples: Option<Examples>,
) {
    let name = &site.comparison.score.name;
    let higher = site.comparison.score.better == Better::Higher;
    let scores_of =
        |row: &Row| -> Vec<f64> { row.seeds.iter().filter_map(|seed| seed.scores.get(name).copied()).collect() };
    let scores: Vec<Vec<f64>> = rows.iter().map(scores_of).collect();
    let pair = |i: usize, with: &str, others: Vec<f64>, of_others: Option<&Vec<Examples>>| -> Option<Pair> {
        let complete = !scores[i].is_empty() && scores[i].len() == others.len();
        complete.then(|| Pair {
            with: with.to_string(),
            scores: scores[i].clone(),
            others,
            examples: examples[i].as_ref().zip(of_others).and_then(|(ours, theirs)| differences(ours, theirs)),
        })
    };
    let position = |wanted: &str| rows.iter().position(|row| row.name == wanted);

    let mut families: [Vec<(usize, Pair)>; 3] = Default::default();
    for (i, row) in rows.iter().enumerate() {
        if let Some(baseline) =
            position(&site.comparison.baseline).filter(|baseline| *baseline != i && row.control_of.is_none())
        {
            let others = scores[baseline].clone();
            families[0]
                .extend(pair(i, &rows[baseline].name, others, examples[baseline].as_ref()).map(|pair| (i, pair)));
        }
        if let Some(score) = base.scores.get(name) {
            let repeated = base_examples.clone().map(|examples| vec![examples; scores[i].len()]);
            let others = vec![*score; scores[i].len()];
            families[1].extend(pair(i, "untouched model", others, repeated.as_ref()).map(|pair| (i, pair)));
        }
        if let Some(control) = rows.iter().position(|other| other.control_of.as_deref() == Some(&row.name)) {
            let others = scores[control].clone();
            families[2].extend(pair(i, &rows[control].name, others, examples[control].as_ref()).map(|pair| (i, pair)));
        }
    }
    let [against_baseline, against_base, against_control] = families.map(|family| {
        let (places, pairs): (Vec<usize>, Vec<Pair>) = family.into_iter().unzip();
        let judged = judge(&pairs, higher).into_iter().map(|paired| possible(name, paired));
        places.into_iter().zip(judged).collect::<Vec<(usize, Paired)>>()
    });
    for (i, paired) in against_baseline {
        rows[i].vs_baseline = Some(paired);
    }
    for (i, paired) in against_base {
        rows[i].vs_base = Some(paired);
    }
    for (i, paired) in against_control {
        rows[i].vs_control = Some(paired);
    }
}

/// Of each example the difference, mean over the seeds, and its weight. None where the examples are not the same ones.
fn differences(ours: &[Examples], theirs: &[Examples]) -> Option<(Vec<f64>, Vec<f64>)> {
    let count = ours.first()?.len();
    if ours.len() != theirs.len() || ours.iter().chain(theirs).any(|examples| examples.len() != count) {
        return None;
    }
    let difference = |e: usize| mean(&ours.iter().zip(theirs).map(|(a, b)| a[e].0 - b[e].0).collect::<Vec<_>>());
    Some(((0..count).map(difference).collect(), (0..count).map(|e| ours[0][e].1).collect()))
}

/// Marks the methods that no other beats in score without costing more.
pub fn frontiers(rows: &mut [Row], better: Better) {
    let point = |row: &Row, cost: Option<f64>| Some((row.score?.mean, cost?));
    let beaten = |points: &[Option<(f64, f64)>], i: usize| {
        let Some((score, cost)) = points[i] else { return true };
        points.iter().enumerate().any(|(j, other)| {
            other.is_some_and(|(s, c)| {
                let no_worse = !better.is(score, s) && c <= cost;
                // Of two that are alike in both, the first one stands for both.
                no_worse && (better.is(s, score) || c < cost || j < i)
            })
        })
    };
    let memory: Vec<_> =
        rows.iter().map(|row| point(row, row.memory.measured_bytes.map(|bytes| bytes as f64))).collect();
    let time: Vec<_> = rows.iter().map(|row| point(row, row.train_s)).collect();
    for (i, row) in rows.iter_mut().enumerate() {
        row.on_memory_frontier = !beaten(&memory, i);
        row.on_time_frontier = !beaten(&time, i);
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::stats::Finding;
    use super::*;

    #[test]
    fn no_difference_of_shares_is_larger_than_one() {
        let paired = || Paired {
            with: "A".into(),
            difference: -0.1,
            interval: Some(Interval { low: -2.4, high: 2.2 }),
            p_value: None,
            p_corrected: None,
            example_interval: None,
            finding: Finding::Undecided,
        };
        assert_eq!(possible("accuracy", paired()).interval, Some(Interval { low: -1.0, high: 1.0 }));
        assert_eq!(possible("loss", paired()).interval, paired().interval);
    }
}
