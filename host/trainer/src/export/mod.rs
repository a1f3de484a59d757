//! What a run trained, in the formats that others read.
//!
//! In: a run directory (its configuration, plan and a checkpoint) or a delta, and the base model. Out: a directory with a
//! PEFT adapter, a merged Hugging Face model, a GGUF file, or a delta. Tensors are merged and written one after the other, so that
//! memory stays at a few tensors; the directory appears whole or not at all.

mod delta;
mod gguf;
mod hf;
mod merge;
mod packed;
mod peft;
mod target;

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::checkpoint::{Source, TensorFile};
use crate::model::BaseModel;
use crate::plan::Plan;
use crate::report::{Event, Observer};
use crate::{Error, Result};

pub use delta::Delta;
pub use merge::Merger;

/// What to make of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// An adapter beside the base model, as the Python package PEFT writes it.
    Peft,
    /// A whole model, adapters merged, as a Hugging Face directory.
    Hf,
    /// A whole model, adapters merged, as llama.cpp reads it.
    Gguf,
    /// Only what was trained, with the base model's hash; an export of it with the base model makes any other format.
    Delta,
}

impl Format {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Peft, Self::Hf, Self::Gguf, Self::Delta];

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Peft => "peft",
            Self::Hf => "hf",
            Self::Gguf => "gguf",
            Self::Delta => "delta",
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Format {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        choose(text, "export format", Self::ALL.map(|f| (f.name(), f)))
    }
}

/// Which weights of the base model go into a whole model, where a run kept them in another form than the model's files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BaseWeights {
    /// Those of the model's files.
    Original,
    /// What the run computed with: quantised and back (`hf` and `gguf`).
    Dequantised,
    /// As the run kept them, in nf4 or int8, as bitsandbytes saves them (`hf`).
    Packed,
}

impl BaseWeights {
    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Original => "original",
            Self::Dequantised => "dequantised",
            Self::Packed => "packed",
        }
    }
}

impl FromStr for BaseWeights {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        choose(text, "base", [Self::Original, Self::Dequantised, Self::Packed].map(|b| (b.name(), b)))
    }
}

/// The element type of an exported model's weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dtype {
    /// 32-bit floats (`hf` only).
    F32,
    /// Half floats.
    F16,
    /// bfloat16 (`hf` only).
    Bf16,
    /// 8-bit blocks of 32 with one scale each (`gguf` only).
    Q8_0,
}

impl Dtype {
    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::Q8_0 => "q8_0",
        }
    }
}

impl FromStr for Dtype {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        choose(text, "type", [Self::F32, Self::F16, Self::Bf16, Self::Q8_0].map(|d| (d.name(), d)))
    }
}

fn choose<T, const N: usize>(text: &str, what: &str, choices: [(&'static str, T); N]) -> Result<T> {
    let names: Vec<&str> = choices.iter().map(|(name, _)| *name).collect();
    let wanted = text.to_lowercase();
    let error = Error::config(format!("unknown {what} `{text}`")).help(format!("choose one of {}", names.join(", ")));
    choices.into_iter().find(|(name, _)| *name == wanted).map(|(_, choice)| choice).ok_or(error)
}

/// How to export.
#[derive(Clone, Debug)]
pub struct Options {
    /// Replace an earlier export in the target directory.
    pub force: bool,
    /// The weights' type. For `hf`, `None` keeps each tensor's own (f32 where it was quantised); for `gguf`, `None` is
    /// F16; `peft` has none.
    pub dtype: Option<Dtype>,
    /// Which weights of the base model; `None` is its own.
    pub base: Option<BaseWeights>,
    /// For a delta: the base model, if it is not where the delta says.
    pub model: Option<String>,
    /// `hf` starts a new file when one would grow over so many bytes; as Hugging Face does it, 5 GB.
    pub shard_bytes: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self { force: false, dtype: None, base: None, model: None, shard_bytes: 5_000_000_000 }
    }
}

/// What was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exported {
    /// The directory.
    pub dir: PathBuf,
    /// Its files and their sizes in bytes, by name.
    pub files: Vec<(String, u64)>,
    /// What the user should know: what the format can't carry.
    pub notes: Vec<String>,
}

/// What is exported: what was trained, beside the model it was trained from.
#[derive(Clone, Copy)]
pub struct Made<'a> {
    /// The run's name.
    pub name: &'a str,
    /// The base model.
    pub base: &'a BaseModel,
    /// What happened to each tensor.
    pub plan: &'a Plan,
    /// The tensors that were trained.
    pub trained: &'a TensorFile,
    /// Steps that were trained.
    pub step: u64,
}

impl<'a> From<&'a Source> for Made<'a> {
    fn from(source: &'a Source) -> Self {
        let Source { name, base, plan, checkpoint, .. } = source;
        Self { name, base, plan, trained: &checkpoint.trainable, step: checkpoint.state.step }
    }
}

/// Exports the run in the directory `run`, from the checkpoint of the given step or the newest, to the directory `out`;
/// or the delta in that directory.
///
/// # Errors
/// What [`Source::open`] or the delta refuses; a target that isn't empty; a plan that the format can't express; a full disk.
/// Nothing is left behind then.
pub fn export(
    run: &Path,
    checkpoint: Option<u64>,
    format: Format,
    out: &Path,
    options: &Options,
    observer: &mut dyn Observer,
) -> Result<Exported> {
    target::check(out, options.force)?;
    if Delta::is_in(run) {
        if let Some(step) = checkpoint {
            return Err(Error::config(format!("--step {step} has no effect: {} is a delta", run.display())));
        }
        let delta = Delta::open(run, options.model.as_deref(), Path::new(""), observer)?;
        return export_made(&delta.made(), format, out, options, observer);
    }
    if let Some(model) = &options.model {
        return Err(Error::config(format!("--model {model} has no effect: {} is not a delta", run.display()))
            .help("a run knows its model; leave --model out"));
    }
    let source = Source::open(run, checkpoint, observer)?;
    export_made(&Made::from(&source), format, out, options, observer)
}

fn export_made(
    made: &Made<'_>,
    format: Format,
    out: &Path,
    options: &Options,
    observer: &mut dyn Observer,
) -> Result<Exported> {
    match (format, options.dtype) {
        (Format::Peft, Some(dtype)) => return Err(no_dtype(format, dtype, "an adapter is always written as f32")),
        (Format::Delta, Some(dtype)) => return Err(no_dtype(format, dtype, "a delta is as it was trained")),
        (Format::Hf, Some(Dtype::Q8_0)) => return Err(no_dtype(format, Dtype::Q8_0, "choose f32, f16 or bf16")),
        (Format::Gguf, Some(dtype @ (Dtype::F32 | Dtype::Bf16))) => {
            return Err(no_dtype(format, dtype, "choose f16 or q8_0"));
        }
        _ => {}
    }
    if let Some(base) = options.base {
        check_base(made, format, base)?;
    }
    target::check(out, options.force)?;
    observer.on(&Event::Phase(&format!("exporting {format} to {}", out.display())));
    let target = target::Target::new(out)?;
    let notes = match format {
        Format::Peft => peft::write(made, &target)?,
        Format::Hf => hf::write(made, &target, options, observer)?,
        Format::Gguf => gguf::write(made, &target, options, observer)?,
        Format::Delta => delta::write(made, &target)?,
    };
    target.publish(notes)
}

/// Refuses a choice of the base's weights that the format doesn't have or that changes nothing.
fn check_base(made: &Made<'_>, format: Format, base: BaseWeights) -> Result<()> {
    let none = |help: &str| {
        Error::config(format!("--base {} has no effect on the format {format}", base.name())).help(help.to_string())
    };
    match (format, base) {
        (Format::Peft | Format::Delta, _) => Err(none("it holds none of the base model's weights")),
        (Format::Gguf, BaseWeights::Packed) => Err(none("choose --format hf, or --base dequantised")),
        (_, BaseWeights::Dequantised | BaseWeights::Packed)
            if made.plan.entries.iter().all(|entry| entry.storage.can_train()) =>
        {
            Err(Error::config(format!("--base {} has no effect: the run kept no weight in nf4 or int8", base.name()))
                .help("leave it out"))
        }
        _ => Ok(()),
    }
}

fn no_dtype(format: Format, dtype: Dtype, help: &str) -> Error {
    Error::config(format!("the format {format} can't be written as {}", dtype.name())).help(help)
}

#[cfg(test)]
pub(crate) mod fixtures;
#[cfg(test)]
mod tests;
