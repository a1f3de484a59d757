//! ROUGE-1, ROUGE-2 and ROUGE-L (Lin 2004), as the Python package `rouge_score` computes them without its stemmer.
//!
//! In: a reference text and a candidate. Out: F-measures in `[0, 1]`. As there, only the letters a to z and digits count,
//! in lower case: a text in another script has no tokens, and so scores 0.

use std::collections::BTreeMap;

/// F-measures of one candidate, or their means over many.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Rouge {
    /// Single words.
    pub rouge_1: f64,
    /// Pairs of neighbouring words.
    pub rouge_2: f64,
    /// Longest common subsequence of words.
    pub rouge_l: f64,
}

/// The scores of `candidate` against `reference`.
pub fn rouge(reference: &str, candidate: &str) -> Rouge {
    let (reference, candidate) = (tokens(reference), tokens(candidate));
    Rouge {
        rouge_1: ngram_f(&reference, &candidate, 1),
        rouge_2: ngram_f(&reference, &candidate, 2),
        rouge_l: f_measure(lcs_len(&reference, &candidate), reference.len(), candidate.len()),
    }
}

/// The mean scores over pairs of reference and candidate; of no pairs, 0.
pub fn mean_rouge<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> Rouge {
    let (mut sum, mut n) = (Rouge::default(), 0u64);
    for (reference, candidate) in pairs {
        let one = rouge(reference, candidate);
        sum.rouge_1 += one.rouge_1;
        sum.rouge_2 += one.rouge_2;
        sum.rouge_l += one.rouge_l;
        n += 1;
    }
    let n = n.max(1) as f64;
    Rouge { rouge_1: sum.rouge_1 / n, rouge_2: sum.rouge_2 / n, rouge_l: sum.rouge_l / n }
}

/// Lower case first, then everything but a–z and 0–9 separates.
fn tokens(text: &str) -> Vec<String> {
    text.to_lowercase()
        .split(|c: char| !(c.is_ascii_lowercase() || c.is_ascii_digit()))
        .filter(|t| !t.is_empty())
        .map(str::to_string)
        .collect()
}

fn ngram_f(reference: &[String], candidate: &[String], n: usize) -> f64 {
    let mut left: BTreeMap<&[String], usize> = BTreeMap::new();
    for ngram in reference.windows(n) {
        *left.entry(ngram).or_default() += 1;
    }
    let mut matches = 0;
    for ngram in candidate.windows(n) {
        if let Some(count) = left.get_mut(ngram).filter(|c| **c > 0) {
            *count -= 1;
            matches += 1;
        }
    }
    f_measure(matches, (reference.len() + 1).saturating_sub(n), (candidate.len() + 1).saturating_sub(n))
}

/// Length of the longest common subsequence, one row of the table at a time.
fn lcs_len(reference: &[String], candidate: &[String]) -> usize {
    let mut row = vec![0; candidate.len() + 1];
    for word in reference {
        let mut diagonal = 0;
        for (j, other) in candidate.iter().enumerate() {
            let above = row[j + 1];
            row[j + 1] = if word == other { diagonal + 1 } else { above.max(row[j]) };
            diagonal = above;
        }
    }
    row[candidate.len()]
}

fn f_measure(matches: usize, in_reference: usize, in_candidate: usize) -> f64 {
    let precision = matches as f64 / in_candidate.max(1) as f64;
    let recall = matches as f64 / in_reference.max(1) as f64;
    if precision + recall > 0.0 { 2.0 * precision * recall / (precision + recall) } else { 0.0 }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// Made with the package itself: `tests/golden/rouge/make.py`.
    const GOLDEN: &str = include_str!("../../../../tests/golden/rouge/cases.json");

    #[test]
    fn scores_are_those_of_the_python_package() {
        let cases: Vec<serde_json::Value> = serde_json::from_str(GOLDEN).unwrap();
        assert!(cases.len() >= 40);
        for case in &cases {
            let got = rouge(case["reference"].as_str().unwrap(), case["candidate"].as_str().unwrap());
            for (name, got) in [("rouge1", got.rouge_1), ("rouge2", got.rouge_2), ("rougeL", got.rouge_l)] {
                let expected = case[name].as_f64().unwrap();
                assert!((got - expected).abs() < 1e-12, "{name}: {got} instead of {expected} in {case}");
            }
        }
    }

    #[test]
    fn the_mean_is_over_pairs() {
        let mean = mean_rouge([("a b", "a b"), ("a b", "c d")]);
        assert_eq!(mean, Rouge { rouge_1: 0.5, rouge_2: 0.5, rouge_l: 0.5 });
        assert_eq!(mean_rouge([]), Rouge::default());
    }
}
