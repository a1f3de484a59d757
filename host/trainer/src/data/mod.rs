//! From files to token sequences: rows are read, told apart by format, put into words, encoded, and masked so that the
//! loss counts only what the model is to say.
//!
//! In: [`DataConfig`](crate::config::DataConfig), files, the model's tokenizer and chat template. Out: [`Splits`] of
//! [`Dataset`]s, the examples and a report on every row that was left out; [`Sampler`], which says what each optimiser
//! step trains on; [`collate`], which lays examples into a batch; [`Preview`], which shows them to a person.
//!
//! ```text
//! read → format (wording) → template → mask → encode → load → splits → sampler → collate
//! ```

mod ask;
mod collate;
mod encode;
mod format;
mod load;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod load_tests;
mod mask;
mod preview;
mod read;
mod report;
mod rng;
mod sampler;
mod split;
mod splits;
mod template;
mod types;
mod wording;

pub use ask::prompt_ids;
pub use collate::collate;
pub use preview::{Preview, PreviewExample, Segment, preview};
pub use report::{Finding, FindingReport, Place, RowReport};
pub use sampler::{Dealing, Sampler, SamplerOptions, SamplerState, StepBatches};
pub use split::split;
pub use splits::{Splits, load_files, load_splits};
pub use template::{ChatTemplate, Rendered, TemplateContext};
pub use types::{Dataset, Example, RowOrigin};
