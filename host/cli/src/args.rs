//! The command line, as typed.

use std::path::PathBuf;

use clap::{Args as ClapArgs, Parser, Subcommand};

const EXIT_CODES: &str = "\
Exit codes:
  0    done
  1    a defect of Liftplan itself
  2    the command line or the configuration
  3    the base model: missing, damaged, unsupported
  4    the data
  5    a policy or its plan
  6    the training run, such as a loss that is not finite
  7    output: a full disk, a directory in use, a damaged checkpoint
  130  stopped with Ctrl-C (a checkpoint is saved first; a second Ctrl-C quits at once)";

/// Fine-tunes language models by a plan: which weights train, in which form, and when.
///
/// The result of a command goes to standard output, everything else to standard error.
#[derive(Debug, Parser)]
#[command(name = "liftplan", version, after_help = EXIT_CODES, max_term_width = 100)]
pub struct Args {
    /// Print the result as JSON.
    #[arg(long, global = true)]
    pub json: bool,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show a model's tensors, their sizes, and what each built-in method would train in it.
    Inspect(Inspect),
    /// Rank a model's weights by statistics of their singular values, as Spectrum does.
    Scan(Scan),
    /// Show the plan that a configuration makes and the memory it takes, without training.
    Plan(Plan),
    /// Train by a configuration, and write a run: its plan, its measurements, its checkpoints.
    Train(Train),
    /// Show training examples as the model will see them, with what the loss counts set off.
    Data(Data),
    /// Judge a run's model, or an untouched one, on data.
    Eval(Eval),
    /// Train several methods on the same work, and report which is better, smaller, faster.
    Compare(Compare),
    /// A part of `compare`, in a process of its own.
    #[command(hide = true)]
    CompareJob(CompareJob),
    /// Write a run's model for other programs.
    Export(Export),
    /// Write text with a run's model, or with an untouched one.
    Generate(Generate),
    /// Install policies that others wrote, or write one.
    #[command(subcommand)]
    Plugin(crate::plugin_args::Plugin),
    /// Show what this machine can do.
    Doctor,
    /// Serves a native plugin; the host starts it, and it is of no use to a person.
    #[cfg(unix)]
    #[command(name = liftplan::plugin::native::COMMAND, hide = true)]
    NativePlugin,
}

/// A device by its name.
fn device(text: &str) -> Result<liftplan::config::Device, String> {
    text.parse()
}

/// A configuration and what goes over it.
#[derive(Debug, ClapArgs)]
pub struct Configured {
    /// The configuration, a TOML file.
    pub config: PathBuf,
    /// Set one value over the configuration, as in --set train.steps=20. Can be given several times.
    #[arg(long = "set", value_name = "PATH=VALUE")]
    pub set: Vec<String>,
}

/// `inspect`.
#[derive(Debug, ClapArgs)]
pub struct Inspect {
    /// A Hugging Face directory, a .gguf file, or a hub id such as org/name.
    pub model: String,
}

/// `scan`.
#[derive(Debug, ClapArgs)]
pub struct Scan {
    /// A Hugging Face directory, a .gguf file, or a hub id such as org/name.
    pub model: String,
    /// `table`: each role, best first; `heat`: blocks × roles in the terminal; `svg`: the same as a picture; `yaml`:
    /// Spectrum's list of what to unfreeze; `json`: Spectrum's scores.
    #[arg(long, default_value = "table")]
    pub format: liftplan::stats::Format,
    /// What to rank by: snr, spectral_norm, nuclear_norm, stable_rank or effective_rank.
    #[arg(long, default_value = "snr")]
    pub statistic: liftplan::stats::Statistic,
    /// How many of each role count as its top, in percent, rounded down.
    #[arg(long, value_name = "P", default_value_t = 25.0)]
    pub percent: f64,
    /// What computes: auto (a GPU if there is one and the work is worth it), cpu, or cuda:0 and so on.
    #[arg(long, value_name = "DEVICE", default_value = "auto", value_parser = device)]
    pub device: liftplan::config::Device,
    /// Write the result to this file instead of standard output.
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
}

/// The kinds of device that memory is planned for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    /// The processor.
    #[default]
    Cpu,
    /// An NVIDIA GPU.
    Cuda,
}

/// `plan`.
#[derive(Debug, ClapArgs)]
pub struct Plan {
    /// The configuration, a TOML file.
    #[arg(required_unless_present = "shape")]
    pub config: Option<PathBuf>,
    /// Set one value over the configuration, as in --set train.steps=20. Can be given several times.
    #[arg(long = "set", value_name = "PATH=VALUE", conflicts_with = "shape")]
    pub set: Vec<String>,
    /// Also write the plan, as a run's plan.json has it, to this file.
    #[arg(long, value_name = "FILE", conflicts_with = "shape")]
    pub out: Option<PathBuf>,
    /// Instead of a plan: the memory that each method would take for a model that need not be here, such as qwen3-8b, or
    /// that of a config.json.
    #[arg(long, value_name = "NAME|FILE", conflicts_with = "config")]
    pub shape: Option<String>,
    /// With --shape: the machine's memory, as in 24GiB, to see what fits.
    #[arg(long, value_name = "SIZE", requires = "shape")]
    pub memory: Option<String>,
    /// With --shape: what is to compute, cpu or cuda; then --memory is the GPU's, which need not be here.
    #[arg(long, value_name = "DEVICE", requires = "shape", value_enum, default_value_t)]
    pub device: Kind,
    /// With --shape: with train.recompute; a GPU does so by itself where memory is short.
    #[arg(long, requires = "shape")]
    pub recompute: bool,
    /// With --shape: with the optimiser's states in 8 bits (adamw8bit).
    #[arg(long = "8bit-states", requires = "shape")]
    pub eight_bit_states: bool,
    /// With --shape and --device cuda: with storage.offload_embedding, where a method leaves the embedding frozen.
    #[arg(long, requires = "shape")]
    pub offload_embedding: bool,
    /// With --shape and --device cuda: with train.update_in_backward.
    #[arg(long, requires = "shape")]
    pub update_in_backward: bool,
}

/// `train`.
#[derive(Debug, ClapArgs)]
pub struct Train {
    /// What to train.
    #[command(flatten)]
    pub configured: Configured,
    /// The run's directory, instead of the configuration's `out`.
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Go on from the newest checkpoint in the run's directory.
    #[arg(long)]
    pub resume: bool,
}

/// `generate`.
#[derive(Debug, ClapArgs)]
pub struct Generate {
    /// A run's directory, or a model as `inspect` takes it.
    #[arg(value_name = "RUN|MODEL")]
    pub target: String,
    /// What to ask. It is worded as the run's training data were: as the user's turn of a conversation, for example.
    #[arg(long, value_name = "TEXT")]
    pub prompt: String,
    /// Take the prompt as plain text to go on with, without chat template or wording.
    #[arg(long)]
    pub plain: bool,
    /// Most tokens to write.
    #[arg(long, alias = "max-new-tokens", value_name = "N", default_value_t = 128)]
    pub max_tokens: usize,
    /// 0 always takes the likeliest token; higher is more random.
    #[arg(long, value_name = "T", default_value_t = 0.0)]
    pub temperature: f64,
    /// Choose among the likeliest tokens that together have this probability.
    #[arg(long, value_name = "P")]
    pub top_p: Option<f64>,
    /// Choose among so many likeliest tokens.
    #[arg(long, value_name = "K")]
    pub top_k: Option<usize>,
    /// Seed of the choice.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
    /// The checkpoint of a run to use, by its step, instead of the newest.
    #[arg(long, value_name = "STEP")]
    pub step: Option<u64>,
    /// What is to compute: auto, cpu or cuda:N. A run is asked on the device it was trained on, if it is there.
    #[arg(long, value_name = "DEVICE", value_parser = device)]
    pub device: Option<liftplan::config::Device>,
}

/// `data`.
#[derive(Debug, ClapArgs)]
pub struct Data {
    /// Whose data to show.
    #[command(flatten)]
    pub configured: Configured,
    /// How many examples to show.
    #[arg(long, value_name = "N", default_value_t = 3)]
    pub show: usize,
    /// Of which data.
    #[arg(long, value_enum, default_value_t = Split::Train)]
    pub split: Split,
}

/// The data sets of a configuration.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub enum Split {
    /// What is trained on.
    Train,
    /// What is evaluated on while training.
    Validation,
    /// What is evaluated on before and after.
    Test,
}

/// `eval`.
#[derive(Debug, ClapArgs)]
pub struct Eval {
    /// A run's directory, or a model as `inspect` takes it.
    #[arg(value_name = "RUN|MODEL")]
    pub target: String,
    /// Files to judge on, instead of the run's own test data. Can be given several times.
    #[arg(long, value_name = "FILE")]
    pub data: Vec<PathBuf>,
    /// Set one eval.… or data.… value over the run's configuration, as in --set eval.task=classification.
    #[arg(long = "set", value_name = "PATH=VALUE")]
    pub set: Vec<String>,
    /// The checkpoint of a run to use, by its step, instead of the newest.
    #[arg(long, value_name = "STEP")]
    pub step: Option<u64>,
    /// What is to compute: auto, cpu or cuda:N. A run is asked on the device it was trained on, if it is there.
    #[arg(long, value_name = "DEVICE", value_parser = device)]
    pub device: Option<liftplan::config::Device>,
}

/// `compare`.
#[derive(Debug, ClapArgs)]
#[command(mut_arg("set", |arg| arg.help("Set one value over the configuration, as in --set budget.steps=20. Can be given several times")))]
pub struct Compare {
    /// What to compare.
    #[command(flatten)]
    pub configured: Configured,
    /// The comparison's directory, instead of the configuration's `out`. What it holds already is not done again.
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Run again what failed before.
    #[arg(long)]
    pub retry: bool,
}

/// `compare-job`.
#[derive(Debug, ClapArgs)]
pub struct CompareJob {
    /// The job, a JSON file.
    pub job: PathBuf,
}

/// `export`.
#[derive(Debug, ClapArgs)]
pub struct Export {
    /// A run's directory, or a delta's.
    #[arg(value_name = "RUN|DELTA")]
    pub run: PathBuf,
    /// `peft`: the adapter alone, for the Python package PEFT; `hf`: the whole model as a Hugging Face directory;
    /// `gguf`: the whole model for llama.cpp; `delta`: only what was trained, from which and the base model this command makes
    /// any of the others.
    #[arg(long)]
    pub format: liftplan::export::Format,
    /// The directory to make.
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// The weights' type: f32, f16 or bf16 for hf (default: as the base model has them), f16 (default) or q8_0 for gguf.
    #[arg(long, value_name = "TYPE")]
    pub dtype: Option<liftplan::export::Dtype>,
    /// The base model's weights, where the run kept them in nf4 or int8: `original` (default), `dequantised` as the run saw
    /// them, or, for hf, `packed` as bitsandbytes saves them.
    #[arg(long, value_name = "WHICH")]
    pub base: Option<liftplan::export::BaseWeights>,
    /// For a delta: the base model, if it is not where the delta says.
    #[arg(long, value_name = "MODEL")]
    pub model: Option<String>,
    /// The checkpoint to export, by its step, instead of the newest.
    #[arg(long, value_name = "STEP")]
    pub step: Option<u64>,
    /// Replace an earlier export in the directory.
    #[arg(long)]
    pub force: bool,
}
