//! Comparing methods: the same model, data, order and budget for each; a report in the end.
//!
//! ```text
//! file ─► Comparison ─► plans ─► grid: method × learning rate × seed ─► choice on validation data
//!                         │        each a child process: `liftplan train`, then judging       │
//!                         └─► random controls of selections                                   ▼
//!                                report.html, .json, .md ◄─ statistics ◄─ test data, only for what was chosen
//! ```
//!
//! Every step is a cell in the comparison's directory ([`store`]), found again by the hash of all it was made from, so
//! that a comparison that was stopped goes on where it was. [`grid`] runs them, [`report`] says what came out.

pub mod agreement;
pub mod budget;
pub mod child;
pub mod config;
pub mod grid;
pub mod job;
pub mod planning;
pub mod report;
pub mod score;
pub mod stats;
pub mod store;
mod meter;
mod queue;
mod site;
mod written;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

pub use config::{Comparison, Method};
pub use report::Report;

use crate::files::output_error;
use crate::report::{Event, Observer};
use crate::{Result, model};

/// How to run a comparison, beside its configuration.
#[derive(Clone, Debug)]
pub struct Options {
    /// The comparison's directory, instead of the configuration's.
    pub out: Option<PathBuf>,
    /// The program whose commands the cells are: this one.
    pub executable: PathBuf,
    /// Run cells again that failed before.
    pub retry: bool,
    /// Set by another thread to stop; cells that are under way save a checkpoint.
    pub stop: Arc<AtomicBool>,
}

/// Runs the comparison, or what is left of it, and writes its report.
///
/// # Errors
/// When the model or the data can't be read, the directory can't be used, or it was stopped. A cell that fails is no
/// error: it is a row of the report.
pub fn run(comparison: &Comparison, options: &Options, observer: &mut dyn Observer) -> Result<Report> {
    let root = options.out.as_deref().unwrap_or(&comparison.out);
    // Cells name each other's files, and each of their configurations lies elsewhere.
    let root = &std::path::absolute(root).map_err(|error| output_error("find the directory", root, &error))?;
    let first = comparison.methods.first().ok_or_else(|| crate::Error::config("there is no method to compare"))?;
    observer.on(&Event::Phase("opening the model"));
    let base = model::open(&first.config.model, Path::new(""), observer)?;
    let store = store::Store::open(root, options.retry)?;
    let site = site::Site::new(comparison, options, store, base)?;
    let results = grid::run(&site, observer)?;
    let report = report::gather(&site, &results)?;
    report::write(&report, site.store.root())?;
    Ok(report)
}
