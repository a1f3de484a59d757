//! How good a model is: loss and perplexity, accuracy and macro-F1 for label data, ROUGE for summaries.

pub mod generate;
pub mod judge;
pub mod likelihood;
pub mod metrics;
pub mod rouge;
pub mod run;

pub use judge::{Judgement, Request, judge, judge_with_bases};
pub use run::{Job, Judged, Outcome};
