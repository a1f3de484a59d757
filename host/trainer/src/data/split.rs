//! A seeded split of examples into training and validation.

use super::rng::permutation;
use crate::{Error, Result};

/// Stream of the seed that chooses the held-out examples.
const SPLIT_STREAM: u64 = 0x7370_6c69_7400_0000;

/// Holds out `share` of `examples` (rounded, at least one), chosen by the seed. Both parts keep the order of the whole:
/// `(training, validation)`.
///
/// # Errors
/// If the share is not in `(0, 1)`, or either part would be empty.
pub fn split<T>(examples: Vec<T>, share: f64, seed: u64) -> Result<(Vec<T>, Vec<T>)> {
    if !(share > 0.0 && share < 1.0) {
        return Err(Error::config(format!("data.validation_split is {share}, but must lie between 0 and 1")));
    }
    let n = examples.len();
    let held_out = ((n as f64 * share).round() as usize).max(1);
    if held_out >= n {
        return Err(Error::data(format!("{n} examples are too few to hold out {share} of them for validation"))
            .help("add examples, or remove data.validation_split"));
    }
    let mut is_held_out = vec![false; n];
    for index in permutation(n, seed, SPLIT_STREAM).into_iter().take(held_out) {
        is_held_out[index] = true;
    }
    let (mut training, mut validation) = (Vec::with_capacity(n - held_out), Vec::with_capacity(held_out));
    for (example, held_out) in examples.into_iter().zip(is_held_out) {
        if held_out { validation.push(example) } else { training.push(example) }
    }
    Ok((training, validation))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

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
