//! What a model thinks of each label as the answer to a prompt: `ln p(label | prompt)`, its ending included.
//!
//! Two ways to the same numbers. On the processor the prompt is read once and each label goes on from its keys and values,
//! which computes least. On a GPU that would be many launches with little to do in each, so prompt and label are packed
//! as documents of their own, several examples in a pass.

use liftplan_engine::{Batch, IGNORE};

use super::run::failed;
use crate::data::{Dealing, Example};
use crate::train::Model;
use crate::{Error, Result};

/// `ln p` of each of `labels` after each example's prompt; calls `each` with how many examples are done.
///
/// # Errors
/// When a label has no tokens, or the model can't read a prompt.
pub fn of_labels(
    model: Model<'_>,
    examples: &[Example],
    labels: &[Vec<u32>],
    micro_batch_tokens: usize,
    each: impl FnMut(usize),
) -> Result<Vec<Vec<f64>>> {
    match model {
        Model::Card(_) => packed(model, examples, labels, micro_batch_tokens, each),
        Model::Host(_) => from_caches(model, examples, labels, each),
    }
}

/// The prompt is read once; each label goes on from there.
///
/// # Errors
/// As [`of_labels`].
pub fn from_caches(
    model: Model<'_>,
    examples: &[Example],
    labels: &[Vec<u32>],
    mut each: impl FnMut(usize),
) -> Result<Vec<Vec<f64>>> {
    let mut all = Vec::with_capacity(examples.len());
    for (done, example) in examples.iter().enumerate() {
        let mut cache = model.cache();
        let first = model.extend(&mut cache, example.prompt_ids(), true).map_err(failed)?;
        let prompt = cache.tokens();
        let mut likelihoods = Vec::with_capacity(labels.len());
        for ids in labels {
            let Some((&last, before)) = ids.split_last() else { return Err(no_tokens()) };
            let next = before.first().copied().unwrap_or(last);
            let mut likelihood = log_probability(&first, next);
            if !before.is_empty() {
                let logits = model.extend(&mut cache, before, false).map_err(failed)?;
                for (row, &id) in ids[1..].iter().enumerate() {
                    likelihood += log_probability(logits.row(row), id);
                }
                cache.truncate(prompt);
            }
            likelihoods.push(likelihood);
        }
        all.push(likelihoods);
        each(done + 1);
    }
    Ok(all)
}

/// Each label behind a copy of the prompt, as documents that share passes of at most `micro_batch_tokens` tokens.
///
/// # Errors
/// As [`of_labels`].
pub fn packed(
    model: Model<'_>,
    examples: &[Example],
    labels: &[Vec<u32>],
    micro_batch_tokens: usize,
    mut each: impl FnMut(usize),
) -> Result<Vec<Vec<f64>>> {
    if labels.iter().any(Vec::is_empty) {
        return Err(no_tokens());
    }
    if let Some(example) = examples.iter().find(|example| example.prompt_ids().is_empty()) {
        return Err(Error::data(format!("{} has an empty prompt", example.source))
            .help("a label can be judged only behind some text"));
    }
    let documents: Vec<(usize, usize)> =
        (0..examples.len()).flat_map(|e| (0..labels.len()).map(move |l| (e, l))).collect();
    let lengths: Vec<usize> =
        documents.iter().map(|&(e, l)| examples[e].prompt_ids().len() + labels[l].len()).collect();
    let order: Vec<usize> = (0..documents.len()).collect();
    let dealing = Dealing { packing: true, micro_batch_tokens, micro_batch_examples: None };
    let mut all = vec![vec![0.0; labels.len()]; examples.len()];
    let mut done = 0;
    for micro in dealing.deal(&order, &lengths) {
        let texts: Vec<(Vec<u32>, Vec<bool>)> = micro
            .iter()
            .map(|&document| {
                let (e, l) = documents[document];
                let prompt = examples[e].prompt_ids();
                let is_target = (0..lengths[document]).map(|token| token >= prompt.len()).collect();
                ([prompt, &labels[l]].concat(), is_target)
            })
            .collect();
        let batch = Batch::pack(texts.iter().map(|(ids, is_target)| (ids.as_slice(), is_target.as_slice())));
        let losses = model.losses(&batch).map_err(failed)?;
        let mut rest = losses.as_slice();
        for (&document, bounds) in micro.iter().zip(batch.starts.windows(2)) {
            let targets = &batch.targets[bounds[0] as usize..bounds[1] as usize];
            let (of_document, after) = rest.split_at(targets.iter().filter(|target| **target != IGNORE).count());
            rest = after;
            let (e, l) = documents[document];
            all[e][l] = -of_document.iter().map(|&loss| f64::from(loss)).sum::<f64>();
        }
        done += micro.len();
        each(done / labels.len().max(1));
    }
    Ok(all)
}

fn no_tokens() -> Error {
    Error::data("a label has no tokens").help("give labels some text")
}

/// `ln softmax(logits)[id]`.
fn log_probability(logits: &[f32], id: u32) -> f64 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|x| f64::from(x - max).exp()).sum();
    f64::from(logits[id as usize] - max) - sum.ln()
}
