//! Statistics of weights, computed by the host: what policies rank by. A policy never sees a weight.
//!
//! In: a [`BaseModel`](crate::model::BaseModel), tensor by tensor, and the user's cache. Out: singular values, and the
//! numbers made of them ([`Statistic`]), rankings of them, and what `liftplan scan` shows.
//!
//! ```text
//! weights → singular values (cached by content) → score → ranking → the top percent of each role
//!           on the processor, or on a GPU ([`card`])
//! ```

mod ahead;
mod cache;
mod calibration;
pub mod card;
mod elements;
mod golub_kahan;
mod ranking;
mod scan;
mod score;
mod singular;
mod source;
pub mod spectrum_files;

pub use cache::{Cache, root_of_user as cache_root};
pub use calibration::Calibration;
pub use elements::{ElementStatistics, quantiles};
pub use ranking::{kept, order};
pub use scan::{Format, Row, Scan, scan, write_scan};
pub use score::{Statistic, quantile, round_score, snr, spectral_threshold};
pub use singular::singular_values;
pub use source::{ModelStatistics, NoStatistics, Statistics};

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
