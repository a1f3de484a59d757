//! From files to token sequences: rows are read, told apart by format, put into words, encoded, and masked so that the
//! loss counts only what the model is to say.
//!
//! In: [`DataConfig`](crate::config::DataConfig), files, the model's tokenizer and chat template. Out: [`Dataset`], the
//! examples and a report on every row that was left out; [`Sampler`], which says what each
//! optimiser step trains on.

mod collate;
mod read;
mod report;
mod rng;
mod sampler;
mod split;
mod splits;
mod types;

pub use collate::collate;
pub use report::{Finding, FindingReport, Place, RowReport};
pub use sampler::{Dealing, Sampler, SamplerOptions, SamplerState, StepBatches};
pub use split::split;
pub use splits::{Splits, load_splits};
pub use types::{Dataset, Example, RowOrigin};
