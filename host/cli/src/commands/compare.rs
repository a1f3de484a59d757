//! `liftplan compare CONFIG`: several methods on the same work, side by side.

use anyhow::Result;
use liftplan::Error;
use liftplan::compare::report::table;
use liftplan::compare::{self, Comparison, Options};

use super::shorter;
use crate::args::{Compare, CompareJob};
use crate::interrupt;
use crate::output::Output;
use crate::progress::Progress;

/// Runs what is left of the comparison, and shows its report.
pub fn run(args: &Compare, output: &Output) -> Result<()> {
    let comparison = Comparison::load(&args.configured.config, &args.configured.set)?;
    let executable = std::env::current_exe()
        .map_err(|error| Error::internal(format!("this program cannot find itself: {error}")))?;
    let options = Options { out: args.out.clone(), executable, retry: args.retry, stop: interrupt::stop_flag()? };
    let mut progress = Progress::new();
    let report = compare::run(&comparison, &options, &mut progress)?;
    drop(progress);
    let page = shorter(&options.out.unwrap_or(comparison.out)).join("report.html");
    Ok(output.result(&report, format!("{}\nThe report is {}.", table(&report), page.display()))?)
}

/// Does a part of a comparison.
pub fn job(args: &CompareJob) -> Result<()> {
    // The comparison stops its parts by Ctrl-C; what they write appears whole or not at all.
    Ok(compare::job::run(&args.job, &mut Progress::new())?)
}
