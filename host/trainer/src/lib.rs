//! Liftplan, the library: configuration → inventory → statistics → policy → plan → training → checkpoint → export → report.
//!
//! The modules stand in the order in which data flows through them, and none reaches back. [`plan::Plan`] is the
//! only thing that passes from a policy to training.

pub mod config;
pub mod device;
pub mod data;
pub mod model;
pub mod stats;
pub mod plan;
pub mod policy;
pub mod plugin;
pub mod train;
pub mod checkpoint;
pub mod export;
pub mod eval;
pub mod report;
pub mod compare;

mod error;
mod files;
mod hash;
pub use error::{Error, ErrorKind, Result};
pub use hash::sha256;
