//! A seeded split of examples into training and validation, with the same share of every label.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use super::rng::permutation;
use crate::{Error, Result};

/// Stream of the seed that chooses the held-out examples.
const SPLIT_STREAM: u64 = 0x7370_6c69_7400_0000;

/// Holds out `share` of `examples` (rounded, at least one), chosen by the seed, of each `label` in proportion, so that a rare
/// label is neither missing from what is judged on nor used up by it. Both parts keep the order of the whole:
/// `(training, validation)`.
///
/// # Errors
/// If the share is not in `(0, 1)`, or either part would be empty.
pub fn split<T>(
    examples: Vec<T>,
    share: f64,
    seed: u64,
    label: impl Fn(&T) -> Option<usize>,
) -> Result<(Vec<T>, Vec<T>)> {
    if !(share > 0.0 && share < 1.0) {
        return Err(Error::config(format!("data.validation_split is {share}, but must lie between 0 and 1")));
    }
    let n = examples.len();
    let held_out = ((n as f64 * share).round() as usize).max(1);
    if held_out >= n {
        return Err(Error::data(format!("{n} examples are too few to hold out {share} of them for validation"))
            .help("add examples, or remove data.validation_split"));
    }
    let labels: Vec<Option<usize>> = examples.iter().map(label).collect();
    let mut left = quotas(&labels, held_out);
    let mut is_held_out = vec![false; n];
    for index in permutation(n, seed, SPLIT_STREAM) {
        if let Some(left) = left.get_mut(&labels[index]).filter(|left| **left > 0) {
            *left -= 1;
            is_held_out[index] = true;
        }
    }
    let (mut training, mut validation) = (Vec::with_capacity(n - held_out), Vec::with_capacity(held_out));
    for (example, held_out) in examples.into_iter().zip(is_held_out) {
        if held_out { validation.push(example) } else { training.push(example) }
    }
    Ok((training, validation))
}

/// How many examples of each label are held out, `held_out` in all: its share rounded down, and one more for those that
/// lost most by that, with labels that would have no example left to train on last.
fn quotas(labels: &[Option<usize>], held_out: usize) -> BTreeMap<Option<usize>, usize> {
    let mut counts: BTreeMap<Option<usize>, usize> = BTreeMap::new();
    for label in labels {
        *counts.entry(*label).or_default() += 1;
    }
    let mut quotas: BTreeMap<_, _> =
        counts.iter().map(|(label, count)| (*label, count * held_out / labels.len())).collect();
    let missing = held_out - quotas.values().sum::<usize>();
    let mut order: Vec<(bool, Reverse<usize>, Option<usize>)> = counts
        .iter()
        .map(|(label, count)| (quotas[label] + 1 >= *count, Reverse(count * held_out % labels.len()), *label))
        .collect();
    order.sort_unstable();
    for (.., label) in order.into_iter().take(missing) {
        *quotas.entry(label).or_default() += 1;
    }
    quotas
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn split<T>(examples: Vec<T>, share: f64, seed: u64) -> Result<(Vec<T>, Vec<T>)> {
        super::split(examples, share, seed, |_| None)
    }

    #[test]
    fn every_label_has_its_share_and_a_rare_one_is_not_used_up() {
        // 60 of label 0, 30 of label 1, 9 of label 2, one of label 3.
        let label = |i: &usize| {
            Some(if *i < 60 {
                0
            } else if *i < 90 {
                1
            } else if *i < 99 {
                2
            } else {
                3
            })
        };
        for seed in 0..20 {
            let (training, validation) = super::split((0..100).collect(), 0.1, seed, label).unwrap();
            let count = |part: &[usize], wanted| part.iter().filter(|i| label(i) == Some(wanted)).count();
            assert_eq!([0, 1, 2, 3].map(|wanted| count(&validation, wanted)), [6, 3, 1, 0], "seed {seed}");
            assert_eq!(training.len(), 90);
        }
        // Where most is held out, what is left still has each label that occurs twice.
        let (training, _) = super::split((0..100).collect(), 0.93, 1, label).unwrap();
        assert!((0..3).all(|wanted| training.iter().any(|i| label(i) == Some(wanted))), "{training:?}");
    }

    #[test]
    fn the_parts_are_disjoint_ordered_and_of_the_size_asked_for() {
        let (training, validation) = split((0..100).collect(), 0.1, 5).unwrap();
        assert_eq!((training.len(), validation.len()), (90, 10));
        assert!(training.is_sorted() && validation.is_sorted());
        let mut all = [training.clone(), validation.clone()].concat();
        all.sort_unstable();
        assert_eq!(all, (0..100).collect::<Vec<_>>());
        assert_eq!(split((0..100).collect(), 0.1, 5).unwrap(), (training, validation.clone()));
        assert_ne!(split((0..100).collect::<Vec<_>>(), 0.1, 6).unwrap().1, validation);
    }

    #[test]
    fn shares_that_leave_a_part_empty_are_errors() {
        for share in [0.0, 1.0, -0.1, 1.5, f64::NAN] {
            assert!(split(vec![1, 2, 3], share, 0).is_err());
        }
        assert!(split(vec![1], 0.5, 0).is_err());
        assert_eq!(split(vec![1, 2, 3], 0.01, 0).unwrap().1.len(), 1);
    }
}
