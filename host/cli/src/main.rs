//! The binary `liftplan`.
//!
//! Arguments in; the command's result on standard output, everything else (progress, warnings, errors) on standard
//! error, and an exit code that says what kind of thing went wrong. What each command does lies in the library
//! `liftplan`; here is one file a command, which calls it and shows what came back.

use std::process::ExitCode;

use clap::Parser;

mod args;
mod commands;
mod interrupt;
mod output;
mod plugin_args;
mod progress;

fn main() -> ExitCode {
    liftplan::report::process::give_back_large_buffers();
    let args = args::Args::parse();
    let output = output::Output::new(args.json);
    match commands::run(args, &output) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => output::fail(&error),
    }
}
