//! Statistics of a weight's elements: norms, moments and quantiles.
//!
//! Sums are made in f64 in one fixed order, so that they are the same on every machine; none depends on the number of
//! cores.

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// Norms and moments of a weight's elements.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct ElementStatistics {
    /// Sum of the magnitudes.
    pub l1: f64,
    /// Root of the sum of the squares (Frobenius).
    pub l2: f64,
    /// The largest magnitude.
    pub max: f64,
    /// Their mean.
    pub mean: f64,
    /// Mean squared distance from the mean.
    pub variance: f64,
    /// Third standardised moment; 0 where all elements are alike.
    pub skewness: f64,
    /// Fourth standardised moment less 3, which is that of a normal distribution; 0 where all elements are alike.
    pub kurtosis: f64,
}

impl ElementStatistics {
    /// How many numbers it has on disk.
    pub(super) const LEN: usize = 7;

    /// Of these elements.
    ///
    /// # Errors
    /// There are none, or one is not finite.
    pub fn of(elements: &[f32]) -> Result<Self> {
        check(elements)?;
        let count = elements.len() as f64;
        let (mut sum, mut l1, mut squares, mut max) = (0.0, 0.0, 0.0, 0f64);
        for element in elements {
            let x = f64::from(*element);
            sum += x;
            l1 += x.abs();
            squares += x * x;
            max = max.max(x.abs());
        }
        let mean = sum / count;
        let (mut second, mut third, mut fourth) = (0.0, 0.0, 0.0);
        for element in elements {
            let d = f64::from(*element) - mean;
            let square = d * d;
            second += square;
            third += square * d;
            fourth += square * square;
        }
        let variance = second / count;
        let (skewness, kurtosis) = match variance > 0.0 {
            true => (third / count / variance.powf(1.5), fourth / count / (variance * variance) - 3.0),
            false => (0.0, 0.0),
        };
        Ok(Self { l1, l2: squares.sqrt(), max, mean, variance, skewness, kurtosis })
    }

    pub(super) fn to_numbers(self) -> [f64; Self::LEN] {
        [self.l1, self.l2, self.max, self.mean, self.variance, self.skewness, self.kurtosis]
    }

    pub(super) fn from_numbers(numbers: &[f64]) -> Option<Self> {
        let [l1, l2, max, mean, variance, skewness, kurtosis] = *numbers else { return None };
        Some(Self { l1, l2, max, mean, variance, skewness, kurtosis })
    }
}

/// Quantiles of the elements, or of their magnitudes, at `parts` (each in 0 to 1), with linear interpolation between
/// neighbours, which is the default of NumPy and PyTorch.
///
/// # Errors
/// There are no elements, or one is not finite.
pub fn quantiles(mut elements: Vec<f32>, parts: &[f64], of_magnitudes: bool) -> Result<Vec<f64>> {
    use rayon::slice::ParallelSliceMut;
    check(&elements)?;
    if of_magnitudes {
        elements.iter_mut().for_each(|element| *element = element.abs());
    }
    elements.par_sort_unstable_by(f32::total_cmp);
    let last = elements.len() - 1;
    let at = |part: &f64| {
        let place = part.clamp(0.0, 1.0) * last as f64;
        let below = place.floor() as usize;
        let (low, high) = (f64::from(elements[below.min(last)]), f64::from(elements[(below + 1).min(last)]));
        low + (high - low) * (place - below as f64)
    };
    Ok(parts.iter().map(at).collect())
}

fn check(elements: &[f32]) -> Result<()> {
    match elements.iter().position(|element| !element.is_finite()) {
        _ if elements.is_empty() => Err(Error::model("a weight without elements has no statistics")),
        Some(place) => {
            Err(Error::model(format!("element {place} is {}, and statistics need finite numbers", elements[place])))
        }
        None => Ok(()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn norms_and_moments_are_those_of_the_definition() {
        let found = ElementStatistics::of(&[1.0, -2.0, 3.0, 6.0]).unwrap();
        assert_eq!((found.l1, found.max, found.mean, found.variance), (12.0, 6.0, 2.0, 8.5));
        assert_eq!(found.l2, 50f64.sqrt());
        assert_eq!((found.skewness, found.kurtosis), (0.0, 128.5 / 72.25 - 3.0));
        // scipy.stats.skew and kurtosis of the same numbers.
        let leaning = ElementStatistics::of(&[0.0, 0.0, 0.0, 4.0]).unwrap();
        assert!((leaning.skewness - 1.154700538).abs() < 1e-9, "{}", leaning.skewness);
        assert!((leaning.kurtosis + 2.0 / 3.0).abs() < 1e-12, "{}", leaning.kurtosis);
        let alike = ElementStatistics::of(&[0.5; 9]).unwrap();
        assert_eq!((alike.variance, alike.skewness, alike.kurtosis), (0.0, 0.0, 0.0));
        assert!(ElementStatistics::of(&[1.0, f32::NAN]).unwrap_err().message().contains("element 1 is NaN"));
        assert!(ElementStatistics::of(&[]).is_err());
        assert_eq!(ElementStatistics::from_numbers(&found.to_numbers()), Some(found));
    }

    #[test]
    fn quantiles_interpolate_between_neighbours() {
        let elements = || vec![4.0, -1.0, 2.0, -3.0, 0.0];
        assert_eq!(quantiles(elements(), &[0.0, 0.5, 0.625, 1.0], false).unwrap(), [-3.0, 0.0, 1.0, 4.0]);
        assert_eq!(quantiles(elements(), &[0.0, 0.5, 1.0], true).unwrap(), [0.0, 2.0, 4.0]);
        assert!(quantiles(vec![f32::INFINITY], &[0.5], false).is_err());
    }
}
