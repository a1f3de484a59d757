//! What a child process of a comparison does besides training: plan alone, to measure what choosing layers costs, or
//! judge a result. In: a JSON file that says what. Out: a JSON file with what came of it.
//!
//! Each job has a process to itself, so that the memory it reports is its own. Only a job that says `test` ever opens the
//! test data, and the comparison starts those after every choice has been made.

use std::collections::BTreeMap;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::config::{Forgetting, Latency};
use super::score::Score;
use crate::config::{Config, DataConfig, DataFormat, EvalConfig, Task};
use crate::data::{self, Dataset};
use crate::eval::{self, Judged};
use crate::export;
use crate::files::{output_error, write_atomically};
use crate::model::{self, BaseModel};
use crate::plan::{self, Treatment};
use crate::report::{Event, Observer, process, text};
use crate::train::{self, Model, Reopened, open_model, reopen};
use crate::{Error, Result, policy};

/// A job of a child process.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "job")]
pub enum Job {
    /// Makes the plan of a configuration and measures what that takes.
    Plan {
        /// The run's configuration.
        config: PathBuf,
        /// Where the plan goes.
        plan: PathBuf,
        /// Where the [`PlanCost`] goes.
        result: PathBuf,
    },
    /// Judges a result, or the untouched model.
    Judge(Box<JudgeJob>),
}

/// What to judge, on what, and what else to measure of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JudgeJob {
    /// The run's configuration, its test data included.
    pub config: PathBuf,
    /// The run; none: the untouched model.
    pub run: Option<PathBuf>,
    /// On which data.
    pub split: Split,
    /// Where each example's outcome goes, as JSONL.
    pub outputs: PathBuf,
    /// Where the [`Judgement`] goes.
    pub result: PathBuf,
    /// The command that makes the score from the outputs, with the score's name.
    pub command: Option<(String, Vec<String>)>,
    /// The directory in which it runs.
    pub directory: PathBuf,
    /// The general text to measure forgetting on.
    pub forgetting: Option<Forgetting>,
    /// What to time.
    pub latency: Option<Latency>,
}

/// The data to judge on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Split {
    /// By which learning rates are chosen.
    Validation,
    /// By which methods are compared.
    Test,
}

/// What making a plan took.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlanCost {
    /// Seconds from the opened model to the plan, statistics included, without any cache.
    pub seconds: f64,
    /// Memory in RAM that came on top of the opened model at the most, weights that were read included, in bytes.
    pub memory_bytes: Option<u64>,
    /// The plan's hash.
    pub plan_hash: String,
}

impl PlanCost {
    /// Time, and memory where it was measured.
    pub fn in_words(&self) -> String {
        let held = self.memory_bytes.map_or(String::new(), |bytes| format!(", {}", text::memory(bytes)));
        format!("{}{held}", text::duration(self.seconds))
    }
}

/// What came of judging.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Judgement {
    /// On which data.
    pub split: Split,
    /// How many examples.
    pub examples: usize,
    /// Loss and the task's scores, and the user's own, by name.
    pub scores: BTreeMap<String, f64>,
    /// Seconds of judging.
    pub seconds: f64,
    /// Mean loss on the general text, in nats a token.
    pub general_loss: Option<f64>,
    /// How fast the result writes, in each form it can be deployed in.
    pub latency: Vec<Timing>,
    /// What is deployed.
    pub deployed: Option<Deployed>,
}

/// How fast a model answers, medians.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Timing {
    /// `adapter` beside the weights, `merged` into them, or `weights` that trained themselves.
    pub form: String,
    /// Seconds to read the prompt and have the first token.
    pub first_token_s: f64,
    /// Seconds for each token after it.
    pub next_token_s: f64,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
}

/// What is put into use.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Deployed {
    /// `adapter`, which needs the base model beside it, or `model`, which doesn't.
    pub what: String,
    /// Its size, in bytes.
    pub bytes: u64,
    /// The size of the parts that differ from the base model, in bytes.
    pub changed_bytes: u64,
}

/// One line of the outputs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OutputLine {
    /// Which example, from 0.
    pub index: usize,
    /// Its file and line.
    pub source: String,
    /// What the model was given; empty for plain text.
    pub prompt: String,
    /// The right answer, if there is one.
    pub reference: Option<String>,
    /// The model's answer, if the task asks for one.
    pub answer: Option<String>,
    /// The losses of the target tokens, summed, in nats.
    pub loss: f64,
    /// How many they are.
    pub targets: usize,
    /// The example's own scores by name.
    pub scores: BTreeMap<String, f64>,
}

/// Does the job that the file says.
///
/// # Errors
/// Of the parts that fail.
pub fn run(job: &Path, observer: &mut dyn Observer) -> Result<()> {
    let text = std::fs::read_to_string(job).map_err(|error| output_error("read", job, &error))?;
    let parsed = serde_json::from_str(&text)
        .map_err(|error| Error::config(format!("{} is no job of a comparison: {error}", job.display())))?;
    match parsed {
        Job::Plan { config, plan, result } => write(&result, &plan_alone(&config, &plan, observer)?),
        Job::Judge(job) => write(&job.result, &judge(&job, observer)?),
    }
}

fn write(path: &Path, value: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(value)
        .map_err(|error| Error::internal(format!("{} is not JSON: {error}", path.display())))?;
    write_atomically(path, text.as_bytes())
}

fn plan_alone(config: &Path, plan_file: &Path, observer: &mut dyn Observer) -> Result<PlanCost> {
    let config = Config::load(config, &[])?;
    policy::check(&config)?;
    let base = model::open(&config.model, Path::new(""), observer)?;
    let before = process::resident_bytes();
    let started = Instant::now();
    let plan = train::plan(&config, &base, observer)?;
    let seconds = started.elapsed().as_secs_f64();
    let memory_bytes = process::peak_bytes().zip(before).map(|(peak, before)| peak.saturating_sub(before));
    plan::file::write(&plan, plan_file)?;
    Ok(PlanCost { seconds, memory_bytes, plan_hash: plan.hash() })
}

fn judge(job: &JudgeJob, observer: &mut dyn Observer) -> Result<Judgement> {
    let config = Config::load(&job.config, &[])?;
    let model = match &job.run {
        Some(run) => reopen(run, None, None, observer)?,
        None => open_model(&config.model, Path::new(""), Some(config.device), observer)?,
    };
    let splits = data::load_splits(&config.data, config.seed, &model.base, observer)?;
    let data = match job.split {
        Split::Validation => splits.validation,
        Split::Test => splits.test,
    };
    let data = data.ok_or_else(|| Error::internal("there is no data to judge on"))?;
    let started = Instant::now();
    let outcome = evaluate(&model, &data, &config.eval, config.train.micro_batch_tokens, observer)?;
    let seconds = started.elapsed().as_secs_f64();
    write_outputs(&job.outputs, &model.base, &data, &outcome.examples)?;
    let mut scores = outcome.scores;
    scores.insert("loss".to_string(), outcome.loss);
    if let Some((name, command)) = &job.command {
        scores.insert(name.clone(), Score::by_command(command, &job.outputs, &job.directory)?);
    }
    // A number that is none has no place in JSON, and is no score.
    scores.retain(|_, score| score.is_finite());
    let general_loss = match &job.forgetting {
        Some(forgetting) => Some(general_loss(&model, forgetting, &config, observer)?),
        None => None,
    };
    let prompt = |latency: Latency| -> Vec<u32> {
        let ids = data.examples.iter().flat_map(|example| &example.ids).copied();
        ids.take(latency.prompt_tokens + latency.new_tokens).collect()
    };
    let (latency, deployed) = match (&job.run, job.latency) {
        (Some(run), latency) => deployment(run, model, latency.map(|latency| (latency, prompt(latency))), observer)?,
        (None, Some(latency)) => (vec![time(model.model(), "weights", latency, &prompt(latency))?], None),
        (None, None) => (Vec::new(), None),
    };
    Ok(Judgement {
        split: job.split,
        examples: outcome.examples.len(),
        scores,
        seconds,
        general_loss,
        latency,
        deployed,
    })
}

fn evaluate(
    model: &Reopened,
    data: &Dataset,
    config: &EvalConfig,
    micro_batch_tokens: usize,
    observer: &mut dyn Observer,
) -> Result<eval::Outcome> {
    let job = eval::Job { decoder: model.model(), tokenizer: &model.base.tokenizer, data, config, micro_batch_tokens };
    job.run(observer)
}

fn write_outputs(path: &Path, base: &BaseModel, data: &Dataset, judged: &[Judged]) -> Result<()> {
    let failed = |error: std::io::Error| output_error("write", path, &error);
    let mut file = BufWriter::new(std::fs::File::create(path).map_err(failed)?);
    for (index, (example, judged)) in data.examples.iter().zip(judged).enumerate() {
        let prompt = match example.prompt_tokens {
            0 => String::new(),
            _ => base.tokenizer.decode(example.prompt_ids(), true)?,
        };
        let line = OutputLine {
            index,
            source: example.source.to_string(),
            prompt,
            reference: example.reference.clone(),
            answer: judged.answer.clone(),
            loss: judged.loss,
            targets: judged.targets,
            scores: judged.scores.clone(),
        };
        let text = serde_json::to_string(&line).map_err(|error| Error::internal(format!("an output: {error}")))?;
        writeln!(file, "{text}").map_err(failed)?;
    }
    file.flush().map_err(failed)
}

/// The mean loss on general text: what the model still knows of what it was not trained on.
fn general_loss(
    model: &Reopened,
    forgetting: &Forgetting,
    config: &Config,
    observer: &mut dyn Observer,
) -> Result<f64> {
    observer.on(&Event::Phase("measuring the loss on general text"));
    let settings = DataConfig {
        train: vec![forgetting.data.clone()],
        format: DataFormat::Text,
        max_length: config.data.max_length,
        ..DataConfig::default()
    };
    let data = data::load_files(&settings, &settings.train, &[], &model.base, observer)
        .map_err(|error| error.at("`forgetting.data`"))?;
    let eval =
        EvalConfig { task: Task::Lm, by: None, max_new_tokens: None, limit: forgetting.limit, ..config.eval.clone() };
    Ok(evaluate(model, &data, &eval, config.train.micro_batch_tokens, observer)?.loss)
}

/// Times the result in every form in which it can be deployed, and weighs what is deployed.
fn deployment(
    run: &Path,
    model: Reopened,
    latency: Option<(Latency, Vec<u32>)>,
    observer: &mut dyn Observer,
) -> Result<(Vec<Timing>, Option<Deployed>)> {
    let plan = plan::file::read(&run.join("plan.json"))?;
    let tensors = &model.base.inventory.tensors;
    // As an export keeps each tensor's own type, with f32 for those that were quantised.
    let stored = |dtype: &str| if matches!(dtype, "f16" | "bf16") { 2 } else { 4 };
    let whole: u64 = tensors.iter().map(|info| info.len() as u64 * stored(&info.dtype)).sum();
    let (mut adapters, mut trained) = (0u64, 0u64);
    for (entry, info) in plan.entries.iter().zip(tensors) {
        match &entry.treatment {
            Treatment::Frozen => {}
            Treatment::Adapt(adapter) => adapters += 4 * adapter.parameters(&info.shape),
            Treatment::Train => trained += info.len() as u64 * stored(&info.dtype),
        }
    }
    let deployed = match trained {
        0 => Deployed { what: "adapter".into(), bytes: adapters, changed_bytes: adapters },
        _ => Deployed { what: "model".into(), bytes: whole, changed_bytes: trained + adapters },
    };
    let mut timings = Vec::new();
    if let Some((latency, prompt)) = latency {
        observer.on(&Event::Phase("timing the result"));
        let form = if adapters > 0 { "adapter" } else { "weights" };
        timings.push(time(model.model(), form, latency, &prompt)?);
        if adapters > 0 {
            // One model in memory at a time, on the same device.
            let device = model.config.as_ref().map(|config| config.device);
            drop(model);
            let merged = run.with_file_name("merged");
            let options = export::Options { force: true, ..export::Options::default() };
            let result = export::export(run, None, export::Format::Hf, &merged, &options, observer)
                .and_then(|_| open_model(&merged.display().to_string(), Path::new(""), device, observer))
                .and_then(|model| time(model.model(), "merged", latency, &prompt));
            // The merged model was made to be timed, and its size is known.
            let _ = std::fs::remove_dir_all(&merged);
            timings.push(result?);
        }
    }
    Ok((timings, Some(deployed)))
}

/// Medians over the repeats of the time to the first token after `tokens`' prompt, and of the time a token after that.
fn time(model: Model<'_>, form: &str, latency: Latency, tokens: &[u32]) -> Result<Timing> {
    let failed = |error: liftplan_engine::EngineError| Error::train(format!("timing: {error}"));
    let (prompt, rest) =
        tokens.split_at(latency.prompt_tokens.min(tokens.len().saturating_sub(1)).max(1).min(tokens.len()));
    let (mut first, mut next) = (Vec::new(), Vec::new());
    for _ in 0..latency.repeats {
        let mut cache = model.cache();
        let started = Instant::now();
        model.extend(&mut cache, prompt, true).map_err(failed)?;
        first.push(started.elapsed().as_secs_f64());
        for id in rest {
            let started = Instant::now();
            model.extend(&mut cache, &[*id], true).map_err(failed)?;
            next.push(started.elapsed().as_secs_f64());
        }
    }
    Ok(Timing {
        form: form.to_string(),
        first_token_s: super::stats::median(&first),
        next_token_s: super::stats::median(&next),
        prompt_tokens: prompt.len(),
    })
}
