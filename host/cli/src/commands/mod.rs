//! One file a command.

use std::path::{Path, PathBuf};

use anyhow::Result;
use liftplan::Error;
use liftplan::config::{Config, Device};
use liftplan::train::{Reopened, open_model, reopen};

use crate::args::{Args, Command, Configured};
use crate::output::Output;
use crate::progress::Progress;

mod compare;
mod data;
mod doctor;
mod eval;
mod export;
mod generate;
mod inspect;
mod plan;
mod plugin;
mod plugin_author;
mod scan;
mod train;

/// Does what the arguments say.
pub fn run(args: Args, output: &Output) -> Result<()> {
    match args.command {
        Command::Inspect(args) => inspect::run(&args, output),
        Command::Scan(args) => scan::run(&args, output),
        Command::Plan(args) => plan::run(&args, output),
        Command::Train(args) => train::run(&args, output),
        Command::Data(args) => data::run(&args, output),
        Command::Eval(args) => eval::run(&args, output),
        Command::Compare(args) => compare::run(&args, output),
        Command::CompareJob(args) => compare::job(&args),
        Command::Export(args) => export::run(&args, output),
        Command::Generate(args) => generate::run(&args, output),
        Command::Plugin(args) => plugin::run(&args, output),
        Command::Doctor => doctor::run(output),
        #[cfg(unix)]
        Command::NativePlugin => liftplan::plugin::native::serve(),
    }
}

/// The configuration with what goes over it.
fn configuration(args: &Configured) -> Result<Config> {
    Ok(Config::load(&args.config, &args.set)?)
}

/// The directory from which paths on the command line are seen.
fn here() -> Result<PathBuf> {
    let lost =
        |error| Error::config(format!("the current directory cannot be found: {error}")).help("cd to another one");
    Ok(std::env::current_dir().map_err(lost)?)
}

/// The result of a run, or an untouched model: whichever `target` names.
fn open(target: &str, step: Option<u64>, device: Option<Device>, progress: &mut Progress) -> Result<Reopened> {
    let path = Path::new(target);
    if path.join("config.toml").exists() {
        return Ok(reopen(path, step, device, progress)?);
    }
    if let Some(step) = step {
        return Err(Error::config(format!(
            "--step {step} has no effect: {target} is not a run, and only runs have checkpoints"
        ))
        .help("name a run's directory, or leave --step out")
        .into());
    }
    Ok(open_model(target, &here()?, device, progress)?)
}

/// The path as seen from the current directory, if it lies below it.
fn shorter(path: &Path) -> PathBuf {
    let below = here().ok().and_then(|here| path.strip_prefix(here).ok().map(Path::to_path_buf));
    below.filter(|below| !below.as_os_str().is_empty()).unwrap_or_else(|| path.to_path_buf())
}

/// How the user calls this program, for commands to type next.
fn program() -> String {
    if std::env::var_os("CARGO").is_some() {
        return "cargo run --release --".to_string();
    }
    std::env::args().next().unwrap_or_else(|| "liftplan".to_string())
}
