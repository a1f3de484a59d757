//! Numbers made of singular values, by which tensors are ranked.

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// The standard deviation of a normal distribution is the width of its middle half over this; Spectrum's own constant.
const IQR_OF_NORMAL: f64 = 1.349;
/// A noise set whose sum is below this part of the largest value counts as so much: f32 weights tell no finer.
const LEAST_NOISE: f64 = f32::EPSILON as f64;

/// What a tensor is ranked by. Higher ranks first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Statistic {
    /// Spectrum's signal-to-noise ratio: see [`snr`].
    #[default]
    Snr,
    /// The largest singular value.
    SpectralNorm,
    /// The sum of the singular values.
    NuclearNorm,
    /// The sum of the squared singular values over the largest one's square.
    StableRank,
    /// The exponential of the entropy of the singular values' shares in their sum (Roy, Vetterli 2007).
    EffectiveRank,
}

impl Statistic {
    /// Its name in configurations.
    pub fn name(self) -> &'static str {
        match self {
            Statistic::Snr => "snr",
            Statistic::SpectralNorm => "spectral_norm",
            Statistic::NuclearNorm => "nuclear_norm",
            Statistic::StableRank => "stable_rank",
            Statistic::EffectiveRank => "effective_rank",
        }
    }

    /// The statistic of a `[rows, cols]` matrix with these singular values, descending; 0 for a zero matrix. Rounded by
    /// [`round_score`].
    ///
    /// # Errors
    /// There are no values, or one is not finite or is negative.
    pub fn of(self, values: &[f64], rows: usize, cols: usize) -> Result<f64> {
        check(values)?;
        let largest = values[0];
        if largest == 0.0 {
            return Ok(0.0);
        }
        let sum: f64 = values.iter().sum();
        let score = match self {
            Statistic::Snr => snr(values, rows, cols)?,
            Statistic::SpectralNorm => largest,
            Statistic::NuclearNorm => sum,
            Statistic::StableRank => values.iter().map(|value| (value / largest).powi(2)).sum(),
            Statistic::EffectiveRank => {
                let shares = values.iter().map(|value| value / sum).filter(|share| *share > 0.0);
                shares.map(|share| -share * share.ln()).sum::<f64>().exp()
            }
        };
        Ok(round_score(score))
    }
}

impl std::str::FromStr for Statistic {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let all = [
            Statistic::Snr,
            Statistic::SpectralNorm,
            Statistic::NuclearNorm,
            Statistic::StableRank,
            Statistic::EffectiveRank,
        ];
        let names: Vec<&str> = all.iter().map(|statistic| statistic.name()).collect();
        let found = all.into_iter().find(|statistic| statistic.name() == text);
        found.ok_or_else(|| format!("it can be {}", crate::config::suggest::list(&names)))
    }
}

/// Spectrum's signal-to-noise ratio (arXiv 2406.06623) of a `[rows, cols]` matrix with these singular values, descending,
/// exactly as its script has it: sigma = (q75 − q25) / 1.349, threshold = sigma · (1 + √β) with β = shorter over longer
/// side, and the sum of the values above the threshold over the sum of the others, over the largest value.
///
/// Where the script divides by zero, we differ: a noise set whose sum is below 2⁻²³ of the largest value (an empty one, a
/// matrix of rank one, a constant one) counts as that much, so that the ratio is finite and ranks above what has noise, as
/// the script's infinity does, yet still orders such matrices among each other. A zero matrix has no signal and scores 0.
///
/// # Errors
/// There are no values, or one is not finite or is negative.
pub fn snr(values: &[f64], rows: usize, cols: usize) -> Result<f64> {
    check(values)?;
    let largest = values[0];
    if largest == 0.0 {
        return Ok(0.0);
    }
    let threshold = spectral_threshold(values, rows, cols);
    let (mut signal, mut noise) = (0.0, 0.0);
    for value in values {
        if *value > threshold { signal += value } else { noise += value }
    }
    Ok(signal / noise.max(LEAST_NOISE * largest) / largest)
}

/// The singular value above which Spectrum counts as signal, of a `[rows, cols]` matrix with these singular values,
/// descending: see [`snr`].
pub fn spectral_threshold(values: &[f64], rows: usize, cols: usize) -> f64 {
    let sigma = (quantile(values, 0.75) - quantile(values, 0.25)) / IQR_OF_NORMAL;
    let beta = rows.min(cols) as f64 / rows.max(cols) as f64;
    sigma * (1.0 + beta.sqrt())
}

/// The quantile at `part` (0 to 1) of values in descending order, with linear interpolation between neighbours, which is
/// the default of NumPy and PyTorch. 0 for no values.
pub fn quantile(descending: &[f64], part: f64) -> f64 {
    let Some(last) = descending.len().checked_sub(1) else { return 0.0 };
    let place = part.clamp(0.0, 1.0) * last as f64;
    let below = place.floor();
    let ascending = |i: usize| descending[last - i.min(last)];
    let (low, high) = (ascending(below as usize), ascending(below as usize + 1));
    low + (high - low) * (place - below)
}

/// The number with six significant digits. Scores are kept so, because the last digits of singular values depend on the
/// order in which a processor adds, and a plan and its hash must not.
pub fn round_score(score: f64) -> f64 {
    format!("{score:.5e}").parse().unwrap_or(score)
}

fn check(values: &[f64]) -> Result<()> {
    if values.is_empty() {
        return Err(Error::model("there are no singular values to score"));
    }
    match values.iter().find(|value| !value.is_finite() || **value < 0.0) {
        Some(value) => Err(Error::model(format!("a singular value is {value}, which no score can be made of"))),
        None => Ok(()),
    }
}
