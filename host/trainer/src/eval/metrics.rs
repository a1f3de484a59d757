//! Scores of predictions: accuracy, macro-F1, expected calibration error, perplexity. Pure functions of numbers.

use std::collections::BTreeMap;

/// The share of predictions that are right; of none, 0. `None` is a prediction that names no label, and is wrong.
pub fn accuracy(truth: &[usize], predicted: &[Option<usize>]) -> f64 {
    let right = truth.iter().zip(predicted).filter(|(t, p)| Some(**t) == **p).count();
    right as f64 / truth.len().max(1) as f64
}

/// The mean over labels of the F1 score, as scikit-learn's `f1_score(…, average="macro", zero_division=0)` with its
/// labels left to default: over every label that occurs in the truth or in the predictions, and no other.
/// A prediction that names no label counts as a miss of the true one, and is not a label of its own.
pub fn macro_f1(truth: &[usize], predicted: &[Option<usize>]) -> f64 {
    #[derive(Default)]
    struct Counts {
        right: u64,
        true_or_predicted: u64,
    }
    let mut labels: BTreeMap<usize, Counts> = BTreeMap::new();
    for (t, p) in truth.iter().zip(predicted) {
        labels.entry(*t).or_default().true_or_predicted += 1;
        if let Some(p) = p {
            let counts = labels.entry(*p).or_default();
            counts.true_or_predicted += 1;
            counts.right += u64::from(p == t);
        }
    }
    // F1 = 2·tp / (2·tp + fp + fn), and the denominator is how often the label is true plus how often it is predicted.
    let sum: f64 = labels.values().map(|c| 2.0 * c.right as f64 / c.true_or_predicted as f64).sum();
    sum / labels.len().max(1) as f64
}

/// Expected calibration error (arXiv 1706.04599): the mean over predictions of |confidence − accuracy| of their bin,
/// in `bins` equal bins `(lo, hi]` of the confidence. Each item is the probability of the predicted label and whether it
/// was right; of none, 0.
pub fn calibration_error(predictions: &[(f64, bool)], bins: usize) -> f64 {
    let bins = bins.max(1);
    let mut sums = vec![0.0f64; bins];
    for (confidence, right) in predictions {
        let bin = ((confidence * bins as f64).ceil() as usize).clamp(1, bins) - 1;
        sums[bin] += confidence - f64::from(u8::from(*right));
    }
    // |Σ confidence − Σ right| of a bin is its size times |mean confidence − accuracy|.
    sums.iter().map(|s| s.abs()).sum::<f64>() / predictions.len().max(1) as f64
}

/// The exponential of a mean loss in nats.
pub fn perplexity(mean_loss: f64) -> f64 {
    mean_loss.exp()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// Made with scikit-learn: `tests/golden/rouge/make.py`.
    const GOLDEN: &str = include_str!("../../../../tests/golden/rouge/classification.json");

    #[test]
    fn accuracy_and_f1_are_those_of_scikit_learn() {
        let cases: Vec<serde_json::Value> = serde_json::from_str(GOLDEN).unwrap();
        assert!(cases.len() >= 10);
        for case in &cases {
            let list = |key: &str| -> Vec<usize> { serde_json::from_value(case[key].clone()).unwrap() };
            let truth = list("truth");
            let predicted: Vec<Option<usize>> = list("predicted").into_iter().map(Some).collect();
            for (name, got) in [("accuracy", accuracy(&truth, &predicted)), ("macro_f1", macro_f1(&truth, &predicted))]
            {
                let expected = case[name].as_f64().unwrap();
                assert!((got - expected).abs() < 1e-12, "{name}: {got} instead of {expected} in {case}");
            }
        }
    }

    #[test]
    fn a_prediction_of_no_label_is_a_miss_and_no_label() {
        assert_eq!(accuracy(&[0, 1], &[Some(0), None]), 0.5);
        assert_eq!(macro_f1(&[0, 1], &[Some(0), None]), 0.5);
        assert_eq!(accuracy(&[], &[]), 0.0);
        assert_eq!(macro_f1(&[], &[]), 0.0);
    }

    #[test]
    fn calibration_error_of_a_case_by_hand() {
        // Two bins: (0, 0.5] holds 0.5 (right), (0.5, 1] holds 0.9 (right) and 0.7 (wrong).
        let predictions = [(0.5, true), (0.9, true), (0.7, false)];
        let expected = (0.5 + 2.0 * (0.8f64 - 0.5).abs()) / 3.0;
        assert!((calibration_error(&predictions, 2) - expected).abs() < 1e-12);
        assert_eq!(calibration_error(&[(1.0, true), (0.0, false)], 15), 0.0);
        assert_eq!(calibration_error(&[], 15), 0.0);
    }

    #[test]
    fn perplexity_of_a_uniform_guess_is_the_number_of_choices() {
        assert!((perplexity((50.0f64).ln()) - 50.0).abs() < 1e-9);
    }
}
