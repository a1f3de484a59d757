//! `liftplan train CONFIG`: trains, and tells what came of it and what to type next.

use anyhow::Result;
use liftplan::report::text::end_of_run;
use liftplan::{policy, train};

use super::{configuration, program, shorter};
use crate::args::Train;
use crate::interrupt;
use crate::output::Output;
use crate::progress::Progress;

/// Trains until the end, or until Ctrl-C.
pub fn run(args: &Train, output: &Output) -> Result<()> {
    let config = configuration(&args.configured)?;
    policy::check(&config)?;
    let options = train::RunOptions { out: args.out.clone(), resume: args.resume, stop: interrupt::stop_flag()? };
    let mut progress = Progress::new();
    let summary = train::run(&config, &options, &mut progress)?;
    drop(progress);
    let run = shorter(args.out.as_ref().unwrap_or(&config.out));
    let next = format!("{} generate {} --prompt \"…\"", program(), run.display());
    Ok(output.result(&summary, end_of_run(&summary, &run, &next))?)
}
