//! A model judged on a data set: its loss, and the task's scores.

use std::collections::BTreeMap;

use liftplan_engine::decoder::LossSum;
use liftplan_engine::{EngineError, IGNORE};

use super::generate::{Generator, Sampling};
use super::{likelihood, metrics, rouge};
use crate::config::{EvalBy, EvalConfig, Task};
use crate::data::{self, Dataset, Dealing, Example};
use crate::model::TextTokenizer;
use crate::report::{Event, Observer};
use crate::train::Model;
use crate::{Error, Result};

/// What to judge, and how.
pub struct Job<'a> {
    /// The model.
    pub decoder: Model<'a>,
    /// Its tokenizer.
    pub tokenizer: &'a TextTokenizer,
    /// The data.
    pub data: &'a Dataset,
    /// The task.
    pub config: &'a EvalConfig,
    /// Most tokens computed at once.
    pub micro_batch_tokens: usize,
}

/// Bins of the calibration error, as in its paper.
const CALIBRATION_BINS: usize = 15;

/// The outcome.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// Mean loss of the target tokens, in nats.
    pub loss: f64,
    /// Scores by name: `perplexity` always; `accuracy`, `macro_f1` and, by likelihood, `ece` for classification;
    /// `rouge_1`, `rouge_2` and `rouge_l` for summarisation.
    pub scores: BTreeMap<String, f64>,
    /// Each example by itself, in the order of the data.
    pub examples: Vec<Judged>,
}

/// What the model made of one example.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Judged {
    /// The losses of its target tokens, summed, in nats.
    pub loss: f64,
    /// How many target tokens it has.
    pub targets: usize,
    /// What the model answered: a label, or what it wrote; nothing for language modelling.
    pub answer: Option<String>,
    /// Scores of this example that the task's scores are means of: `accuracy` (0 or 1), `rouge_1`, `rouge_2`, `rouge_l`.
    pub scores: BTreeMap<String, f64>,
}

/// Checks that the data has what the task compares answers with: labels, or references.
///
/// # Errors
/// Names the first row that has not.
pub fn check(config: &EvalConfig, data: &Dataset) -> Result<()> {
    for example in data.examples.iter().take(config.limit.unwrap_or(usize::MAX)) {
        match config.task {
            Task::Lm => {}
            Task::Classification => {
                label(example)?;
            }
            Task::Summarization => {
                reference(example)?;
            }
        }
    }
    Ok(())
}

fn label(example: &Example) -> Result<usize> {
    example.label.ok_or_else(|| {
        Error::data(format!("{} has no label", example.source))
            .help("classification needs rows with a text and a label; set eval.task for other data")
    })
}

fn reference(example: &Example) -> Result<&str> {
    example.reference.as_deref().ok_or_else(|| {
        Error::data(format!("{} has no answer to compare a summary with", example.source))
            .help("use rows with a completion, or set eval.task = \"lm\"")
    })
}

impl Job<'_> {
    /// Judges the model.
    ///
    /// # Errors
    /// When the data does not fit the task.
    pub fn run(&self, observer: &mut dyn Observer) -> Result<Outcome> {
        let examples = &self.data.examples[..self.config.limit.unwrap_or(usize::MAX).min(self.data.examples.len())];
        let (loss, mut judged) = self.losses(examples, observer)?;
        let mut scores = BTreeMap::from([("perplexity".to_string(), metrics::perplexity(loss))]);
        match (self.config.task, self.config.by) {
            (Task::Lm, _) => {}
            (Task::Classification, Some(EvalBy::Generation)) => {
                self.labels_written(examples, &mut scores, &mut judged, observer)?;
            }
            (Task::Classification, _) => self.labels_by_likelihood(examples, &mut scores, &mut judged, observer)?,
            (Task::Summarization, _) => self.summaries(examples, &mut scores, &mut judged, observer)?,
        }
        Ok(Outcome { loss, scores, examples: judged })
    }

    /// The mean loss of all target tokens, and each example's own.
    fn losses(&self, examples: &[Example], observer: &mut dyn Observer) -> Result<(f64, Vec<Judged>)> {
        let lengths: Vec<usize> = examples.iter().map(|example| example.ids.len()).collect();
        let all: Vec<usize> = (0..examples.len()).collect();
        let dealing =
            Dealing { packing: true, micro_batch_tokens: self.micro_batch_tokens, micro_batch_examples: None };
        let mut judged = vec![Judged::default(); examples.len()];
        let mut sum = LossSum::default();
        let mut done = 0;
        for micro in dealing.deal(&all, &lengths) {
            let batch = data::collate(&micro.iter().map(|&i| &examples[i]).collect::<Vec<_>>());
            let losses = self.decoder.losses(&batch).map_err(failed)?;
            let mut rest = losses.as_slice();
            for (&i, bounds) in micro.iter().zip(batch.starts.windows(2)) {
                let document = &batch.targets[bounds[0] as usize..bounds[1] as usize];
                let targets = document.iter().filter(|target| **target != IGNORE).count();
                let (of_document, after) = rest.split_at(targets);
                rest = after;
                judged[i].loss = of_document.iter().map(|&loss| f64::from(loss)).sum();
                judged[i].targets = targets;
            }
            sum += LossSum { sum: losses.iter().map(|&loss| f64::from(loss)).sum(), targets: losses.len() };
            done += micro.len();
            observer.on(&Event::Progress { unit: "examples", done: done as u64, total: examples.len() as u64 });
        }
        Ok((sum.mean(), judged))
    }

    /// The label of which the model thinks the most, its ending included, is its answer.
    fn labels_by_likelihood(
        &self,
        examples: &[Example],
        scores: &mut BTreeMap<String, f64>,
        judged: &mut [Judged],
        observer: &mut dyn Observer,
    ) -> Result<()> {
        let truth = examples.iter().map(label).collect::<Result<Vec<usize>>>()?;
        let total = examples.len() as u64;
        let labels = &self.data.label_ids;
        let likelihoods = likelihood::of_labels(self.decoder, examples, labels, self.micro_batch_tokens, |done| {
            observer.on(&Event::Progress { unit: "examples", done: done as u64, total });
        })?;
        let (mut answers, mut predictions) = (Vec::new(), Vec::new());
        for (&label, likelihoods) in truth.iter().zip(&likelihoods) {
            let best = argmax(likelihoods);
            let all: f64 = likelihoods.iter().map(|l| (l - likelihoods[best]).exp()).sum();
            answers.push(Some(best));
            predictions.push((1.0 / all, best == label));
        }
        scores.insert("ece".to_string(), metrics::calibration_error(&predictions, CALIBRATION_BINS));
        for (judged, best) in judged.iter_mut().zip(&answers) {
            judged.answer = best.and_then(|best| self.data.labels.get(best).cloned());
        }
        label_scores(&truth, &answers, scores, judged);
        Ok(())
    }

    fn labels_written(
        &self,
        examples: &[Example],
        scores: &mut BTreeMap<String, f64>,
        judged: &mut [Judged],
        observer: &mut dyn Observer,
    ) -> Result<()> {
        let (mut truth, mut answers) = (Vec::new(), Vec::new());
        for ((example, answer), judged) in examples.iter().zip(self.answers(examples, observer)?).zip(judged.iter_mut())
        {
            truth.push(label(example)?);
            answers.push(self.data.labels.iter().position(|label| label.trim() == answer.trim()));
            judged.answer = Some(answer);
        }
        label_scores(&truth, &answers, scores, judged);
        Ok(())
    }

    fn summaries(
        &self,
        examples: &[Example],
        scores: &mut BTreeMap<String, f64>,
        judged: &mut [Judged],
        observer: &mut dyn Observer,
    ) -> Result<()> {
        let answers = self.answers(examples, observer)?;
        for ((example, answer), judged) in examples.iter().zip(answers).zip(judged.iter_mut()) {
            let rouge = rouge::rouge(reference(example)?, &answer);
            for (name, value) in [("rouge_1", rouge.rouge_1), ("rouge_2", rouge.rouge_2), ("rouge_l", rouge.rouge_l)] {
                judged.scores.insert(name.to_string(), value);
                *scores.entry(name.to_string()).or_default() += value / examples.len() as f64;
            }
            judged.answer = Some(answer);
        }
        Ok(())
    }

    fn answers(&self, examples: &[Example], observer: &mut dyn Observer) -> Result<Vec<String>> {
        let most = self.config.max_new_tokens.unwrap_or(64);
        let mut answers = Vec::with_capacity(examples.len());
        for (done, example) in examples.iter().enumerate() {
            let mut generator = Generator::new(self.decoder, self.tokenizer, &Sampling::greedy())?;
            answers.push(generator.answer(example.prompt_ids(), most)?);
            observer.on(&Event::Progress { unit: "answers", done: done as u64 + 1, total: examples.len() as u64 });
        }
        Ok(answers)
    }
}

fn label_scores(truth: &[usize], answers: &[Option<usize>], scores: &mut BTreeMap<String, f64>, judged: &mut [Judged]) {
    scores.insert("accuracy".to_string(), metrics::accuracy(truth, answers));
    scores.insert("macro_f1".to_string(), metrics::macro_f1(truth, answers));
    for ((truth, answer), judged) in truth.iter().zip(answers).zip(judged) {
        judged.scores.insert("accuracy".to_string(), f64::from(u8::from(*answer == Some(*truth))));
    }
}

pub(super) fn failed(error: EngineError) -> Error {
    Error::train(format!("evaluation: {error}"))
}

fn argmax(values: &[f64]) -> usize {
    let mut best = 0;
    for (i, value) in values.iter().enumerate() {
        if *value > values[best] {
            best = i;
        }
    }
    best
}
