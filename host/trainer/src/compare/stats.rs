//! Is the difference real? Means and intervals over seeds, paired differences, and the bootstrap over test examples.
//! Pure functions of numbers.
//!
//! Two things vary: the seed, and which examples happen to be in the test data. A difference counts as real only if it
//! stands out against both: the paired t-test over seeds, with Holm's correction for as many methods as are compared
//! (Holm 1979), and the paired bootstrap over examples (Koehn 2004), where the score is a mean over examples.

use liftplan_engine::rng::philox;
use serde::{Deserialize, Serialize};
use statrs::distribution::{ContinuousCDF, StudentsT};

/// The level of intervals and, from 1, of tests.
pub const LEVEL: f64 = 0.95;
/// Resamples of the bootstrap.
pub const DRAWS: usize = 2000;

/// A range of values.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// Its lower end.
    pub low: f64,
    /// Its upper end.
    pub high: f64,
}

impl Interval {
    /// Whether the value lies inside, ends included.
    pub fn contains(&self, value: f64) -> bool {
        (self.low..=self.high).contains(&value)
    }
}

/// The arithmetic mean; of nothing, 0.
pub fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

/// The middle value; of nothing, 0.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => 0.0,
        n if n % 2 == 1 => sorted[n / 2],
        n => 0.5 * (sorted[n / 2 - 1] + sorted[n / 2]),
    }
}

/// The sample standard deviation, with n − 1; of fewer than two values, 0.
pub fn deviation(values: &[f64]) -> f64 {
    if values.len() < 2 {
        return 0.0;
    }
    let mean = mean(values);
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    (squares / (values.len() - 1) as f64).sqrt()
}

/// Student's interval of the mean at [`LEVEL`]; of fewer than two values there is none.
pub fn interval(values: &[f64]) -> Option<Interval> {
    let t = StudentsT::new(0.0, 1.0, values.len().checked_sub(1)?.max(1) as f64).ok()?;
    if values.len() < 2 {
        return None;
    }
    let half = t.inverse_cdf(0.5 + LEVEL / 2.0) * deviation(values) / (values.len() as f64).sqrt();
    Some(Interval { low: mean(values) - half, high: mean(values) + half })
}

/// The two-sided p-value of Student's t-test that the mean of `differences` is zero.
///
/// None where the test says nothing: of fewer than two differences, and where they are all the same and not zero, as
/// happens to scores that can take few values. All zero is 1: nothing differs.
pub fn p_value(differences: &[f64]) -> Option<f64> {
    if differences.len() < 2 {
        return None;
    }
    let (mean, deviation) = (mean(differences), deviation(differences));
    if differences.iter().all(|difference| *difference == 0.0) {
        return Some(1.0);
    }
    // Rounding leaves a little of nothing.
    if deviation <= 1e-12 * mean.abs() {
        return None;
    }
    let t = mean / (deviation / (differences.len() as f64).sqrt());
    let students = StudentsT::new(0.0, 1.0, (differences.len() - 1) as f64).ok()?;
    Some(2.0 * students.sf(t.abs()))
}

/// Whether the extremes of `count` methods stand apart, by the paired t-test over seeds of a number that each run has,
/// corrected for as many pairs as there are (Bonferroni). Differences that are all the same and not zero do, as of what is
/// counted and not timed; one seed tells nothing.
pub fn apart(most: &[f64], least: &[f64], count: usize) -> bool {
    if most.len() != least.len() || most.len() < 2 {
        return false;
    }
    let differences: Vec<f64> = most.iter().zip(least).map(|(a, b)| a - b).collect();
    let pairs = (count * count.saturating_sub(1) / 2).max(1);
    p_value(&differences).is_none_or(|p| p * pairs as f64 <= 1.0 - LEVEL)
}

/// Holm's correction: p-values of several tests at once, so that the chance of any false alarm stays at the level.
pub fn holm(p_values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..p_values.len()).collect();
    order.sort_by(|a, b| p_values[*a].total_cmp(&p_values[*b]));
    let mut corrected = vec![0.0; p_values.len()];
    let mut largest = 0.0f64;
    for (rank, &i) in order.iter().enumerate() {
        largest = largest.max((p_values[i] * (p_values.len() - rank) as f64).min(1.0));
        corrected[i] = largest;
    }
    corrected
}

/// The paired bootstrap over examples: the interval of `Σ difference·weight / Σ weight` when the examples are drawn anew,
/// with replacement. Differences are those of one example, mean over the seeds. Reproducible by `seed`. None for fewer than two examples.
pub fn bootstrap(differences: &[f64], weights: &[f64], seed: u64) -> Option<Interval> {
    let n = differences.len();
    if n < 2 || weights.len() != n {
        return None;
    }
    let mut means = Vec::with_capacity(DRAWS);
    for draw in 0..DRAWS {
        let (mut sum, mut weight) = (0.0, 0.0);
        for four in 0..n.div_ceil(4) {
            let words = philox(seed, [four as u32, draw as u32, 0x626f_6f74, 0]);
            for word in words.into_iter().take(n - 4 * four) {
                let i = ((u64::from(word) * n as u64) >> 32) as usize;
                sum += differences[i] * weights[i];
                weight += weights[i];
            }
        }
        if weight > 0.0 {
            means.push(sum / weight);
        }
    }
    means.sort_by(f64::total_cmp);
    let at = |share: f64| means.get(((means.len().max(1) - 1) as f64 * share).round() as usize).copied();
    Some(Interval { low: at((1.0 - LEVEL) / 2.0)?, high: at((1.0 + LEVEL) / 2.0)? })
}

/// What a comparison of two methods says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Finding {
    /// The method scores better.
    Better,
    /// The method scores worse.
    Worse,
    /// Every run scored exactly as its counterpart.
    Identical,
    /// The difference, if there is one, is too small for so few seeds and examples.
    Undecided,
    /// One seed says nothing of the spread between seeds.
    OneSeed,
}

/// A method's scores against another's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Paired {
    /// The method that it is compared with.
    pub with: String,
    /// Mean over the seeds of score − score of the other.
    pub difference: f64,
    /// Its interval over seeds.
    pub interval: Option<Interval>,
    /// The p-value of the paired t-test over seeds.
    pub p_value: Option<f64>,
    /// The same, corrected for the number of methods that were compared at once.
    pub p_corrected: Option<f64>,
    /// The interval of the difference over test examples, where the score is a mean over examples.
    pub example_interval: Option<Interval>,
    /// What all this says.
    pub finding: Finding,
}

/// One comparison's numbers: score by seed of the method and of the other, and, where the score is a mean over
/// examples, the difference of each example (mean over the seeds) with its weight.
#[derive(Clone, Debug, Default)]
pub struct Pair {
    /// The other's name.
    pub with: String,
    /// The method's score of each seed.
    pub scores: Vec<f64>,
    /// The other's score of the same seeds.
    pub others: Vec<f64>,
    /// Of each example: difference and weight.
    pub examples: Option<(Vec<f64>, Vec<f64>)>,
}

/// Judges several comparisons at once. `higher_is_better` says which way a finding points.
pub fn judge(pairs: &[Pair], higher_is_better: bool) -> Vec<Paired> {
    let differences: Vec<Vec<f64>> =
        pairs.iter().map(|pair| pair.scores.iter().zip(&pair.others).map(|(a, b)| a - b).collect()).collect();
    let p_values: Vec<Option<f64>> = differences.iter().map(|differences| p_value(differences)).collect();
    let tested: Vec<f64> = p_values.iter().flatten().copied().collect();
    let mut corrected = holm(&tested).into_iter();
    let mut judged = Vec::with_capacity(pairs.len());
    for ((pair, differences), p_value) in pairs.iter().zip(&differences).zip(p_values) {
        let p_corrected = p_value.and_then(|_| corrected.next());
        let of_examples = pair.examples.as_ref();
        let example_interval = of_examples.and_then(|(differences, weights)| bootstrap(differences, weights, 0));
        let identical = differences.iter().all(|difference| *difference == 0.0)
            && of_examples.is_none_or(|(differences, _)| differences.iter().all(|difference| *difference == 0.0));
        let mean = mean(differences);
        let by_seeds = p_corrected.map(|p| p <= 1.0 - LEVEL);
        let by_examples = example_interval.map(|interval| !interval.contains(0.0));
        let real = match (by_seeds, by_examples) {
            (Some(by_seeds), by_examples) => by_seeds && by_examples != Some(false),
            // All seeds differ by the same amount: the examples decide alone.
            (None, by_examples) => by_examples == Some(true),
        };
        let finding = match differences.len() {
            0 => Finding::Undecided,
            _ if identical => Finding::Identical,
            1 => Finding::OneSeed,
            _ if !real => Finding::Undecided,
            _ if (mean > 0.0) == higher_is_better => Finding::Better,
            _ => Finding::Worse,
        };
        judged.push(Paired {
            with: pair.with.clone(),
            difference: mean,
            interval: interval(differences),
            p_value,
            p_corrected,
            example_interval,
            finding,
        });
    }
    judged
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
