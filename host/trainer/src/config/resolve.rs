//! From the configuration as written to the configuration as resolved: defaults, absolute paths, and the refusal of
//! what contradicts itself or would have no effect.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::source::Source;
use super::written::{self, Written, WrittenEval, WrittenOptimizer, WrittenSchedule, WrittenTrain};
use super::{
    Bf16Update, Config, DataConfig, Device, EvalBy, EvalConfig, OptimizerConfig, OptimizerName, PolicyConfig,
    ScheduleConfig, ScheduleName, Task, TrainConfig, Weights, presets, storage,
};
use crate::plugin::Limits;
use crate::plugin::store::LOCK_FILE;
use crate::{Error, Result};

/// Resolves what was written in the file at `file` (an absolute path).
pub(super) fn resolve(source: Source, file: &Path) -> Result<Config> {
    let directory = file.parent().unwrap_or(Path::new("/"));
    let Source { value, places } = source;
    let mut written: Written = written::read(value)?;

    let model = written.model.ok_or_else(|| {
        Error::config("`model` is missing")
            .help("name a Hugging Face directory, a .gguf file or a hub id: model = \"org/name\"")
    })?;
    let device = written.device.unwrap_or_default();
    if device == Device::Cpu && written.vram.is_some() {
        return Err(Error::config("`vram` has no effect on the processor")
            .help("leave vram out, or set device to \"cuda\" or \"auto\""));
    }
    if device == Device::Cpu && written.train.deterministic == Some(false) {
        return Err(Error::config(
            "`train.deterministic` = false has no effect: the processor's sums always have one order",
        )
        .help("leave it out, or set device to \"cuda\" or \"auto\""));
    }
    if device == Device::Cpu && written.storage.offload_embedding {
        return Err(Error::config(
            "`storage.offload_embedding` has no effect on the processor: all its memory is the host's",
        )
        .help("leave it out, or set device to \"cuda\" or \"auto\""));
    }
    if device == Device::Cpu && written.train.update_in_backward {
        return Err(Error::config(
            "`train.update_in_backward` = true has no effect on the processor: it saves a GPU's memory",
        )
        .help("leave it out, or set device to \"cuda\" or \"auto\""));
    }
    let seed = written.seed.unwrap_or(0);
    if i64::try_from(seed).is_err() {
        return Err(Error::config(format!("`seed` must be below 2^63, not {seed}")));
    }
    let mut data: DataConfig = written
        .data
        .ok_or_else(|| Error::config("`data` is missing").help("add a section [data] with train = \"file.jsonl\""))?;
    data.resolve(directory, &places)?;

    let mut policy = policy(written.policy, directory)?;
    presets::expand(&mut policy, &mut written.train, &mut written.storage)?;
    let train = train(written.train)?;
    if train.eval_every.is_some() && !data.has_validation() {
        return Err(Error::config("`train.eval_every` has no effect: there is no validation data")
            .help("set data.validation or data.validation_split, or leave eval_every out"));
    }
    Ok(Config {
        model: model_reference(&model, directory)?,
        out: match written.out {
            Some(out) => normal(&directory.join(out)),
            None => normal(&directory.join("runs").join(file.file_stem().unwrap_or_default())),
        },
        seed,
        device,
        vram: written.vram,
        data,
        policy,
        storage: storage::resolve(written.storage, train.weights)?,
        schedule: schedule(written.schedule, &train)?,
        train,
        optimizer: optimizer(written.optimizer)?,
        eval: eval(written.eval)?,
        plugins: plugins(written.plugins)?,
        places,
    })
}

/// A path below the configuration's directory becomes absolute; a hub id stays as it is.
pub(super) fn model_reference(model: &str, directory: &Path) -> Result<String> {
    if model.is_empty() {
        return Err(Error::config("`model` is empty"));
    }
    let path = directory.join(model);
    let parts: Vec<_> = model.split('/').collect();
    let hub_id = parts.len() == 2
        && parts.iter().all(|part| {
            !part.is_empty()
                && !part.starts_with('.')
                && part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
        })
        && !model.ends_with(".gguf");
    if hub_id && !path.exists() { Ok(model.to_string()) } else { Ok(normal(&path).display().to_string()) }
}

/// The path without `.` and `..`, which are resolved by name: nothing is looked up on disk.
pub(super) fn normal(path: &Path) -> PathBuf {
    use std::path::Component;
    let mut clean = PathBuf::new();
    for part in path.components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir => {
                clean.pop();
            }
            part => clean.push(part),
        }
    }
    clean
}

/// Settings of policies that can name a file.
pub(super) const POLICY_FILES: [&str; 3] = ["scores", "unfrozen", "like"];

fn policy(written: Option<Map<String, Value>>, directory: &Path) -> Result<PolicyConfig> {
    let missing = || {
        Error::config("`policy.name` is missing").help("add a section [policy] with name = \"lora\" or name = \"full\"")
    };
    let mut settings = written.ok_or_else(missing)?;
    absolute_files(&mut settings, directory);
    // The parts of a mixed policy are policies themselves.
    for part in settings.get_mut("parts").and_then(Value::as_array_mut).into_iter().flatten() {
        part.as_object_mut().into_iter().for_each(|part| absolute_files(part, directory));
    }
    let string = |key: &str, value: Value| match value {
        Value::String(text) if !text.is_empty() => Ok(text),
        other => Err(Error::config(format!("`policy.{key}` must be a string, not {other}"))),
    };
    let name = settings.shift_remove("name").map(|name| string("name", name)).transpose()?;
    let plugin = settings.shift_remove("plugin").map(|file| string("plugin", file)).transpose()?;
    let project = settings.shift_remove("project").map(|directory| string("project", directory)).transpose()?;
    // A run's own configuration lies elsewhere, so that the place must be part of it.
    let project = match project {
        Some(project) => Some(normal(&directory.join(project))),
        None => Some(normal(directory)).filter(|directory| directory.join(LOCK_FILE).is_file()),
    };
    match (name, plugin) {
        (Some(name), None) => {
            let project = project.filter(|_| !crate::policy::is_built_in(&name));
            Ok(PolicyConfig { name, plugin: None, project, settings })
        }
        (None, Some(file)) => {
            let plugin = Some(normal(&directory.join(file)));
            Ok(PolicyConfig { name: String::new(), plugin, project, settings })
        }
        (Some(_), Some(_)) => Err(Error::config("`policy.name` and `policy.plugin` are both set")
            .help("keep one: the name of a built-in policy or an installed plugin, or a plugin's file")),
        (None, None) => Err(missing()),
    }
}

fn absolute_files(settings: &mut Map<String, Value>, directory: &Path) {
    for name in POLICY_FILES {
        if let Some(Value::String(file)) = settings.get_mut(name) {
            *file = normal(&directory.join(&*file)).display().to_string();
        }
    }
}

fn plugins(limits: Limits) -> Result<Limits> {
    if !(limits.seconds.is_finite() && limits.seconds > 0.0) {
        return Err(Error::config(format!("`plugins.seconds` must be above 0, not {}", limits.seconds)));
    }
    for (name, most, limit) in [
        ("plugins.file_mib", 1 << 10, limits.file_mib),
        ("plugins.memory_mib", 4 << 10, limits.memory_mib),
        ("plugins.passed_mib", 4 << 10, limits.passed_mib),
        ("plugins.log_kib", 1 << 20, limits.log_kib),
        ("plugins.state_kib", 1 << 20, limits.state_kib),
    ] {
        if limit > most {
            return Err(Error::config(format!("`{name}` must be at most {most}, not {limit}")));
        }
    }
    Ok(limits)
}

fn train(written: WrittenTrain) -> Result<TrainConfig> {
    let (steps, epochs) = match (written.steps, written.epochs) {
        (Some(_), Some(_)) => {
            return Err(Error::config(
                "`train.steps` and `train.epochs` are both set, and each says how long to train",
            )
            .help("keep one of them"));
        }
        (Some(0), None) => return Err(Error::config("`train.steps` must be at least 1")),
        (Some(steps), None) => (Some(steps), None),
        (None, epochs) => (None, Some(positive("train.epochs", epochs.unwrap_or(1.0))?)),
    };
    let weights = written.weights.unwrap_or(Weights::F32);
    if let (Some(update), Weights::F32) = (written.bf16_update, weights) {
        let update = match update {
            Bf16Update::Stochastic => "stochastic",
            Bf16Update::Master => "master",
        };
        return Err(Error::config(format!(
            "`train.bf16_update` = \"{update}\" has no effect: the weights are kept in f32"
        ))
        .help("leave it out, or set train.weights = \"bf16\""));
    }
    if let (Some(stopping), None) = (written.early_stopping, written.eval_every) {
        return Err(Error::config(format!(
            "`train.early_stopping` has no effect: there are no evaluations for its patience of {} to count",
            stopping.patience
        ))
        .help("set train.eval_every to the number of steps between evaluations"));
    }
    if let Some(stopping) = written.early_stopping {
        at_least_one("train.early_stopping.patience", Some(stopping.patience))?;
        not_negative("train.early_stopping.min_delta", stopping.min_delta)?;
    }
    at_least_one("train.eval_every", written.eval_every)?;
    at_least_one("train.checkpoint_every", written.checkpoint_every)?;
    for (name, number) in [
        ("train.batch_size", written.batch_size),
        ("train.micro_batch_tokens", written.micro_batch_tokens),
        ("train.micro_batch_examples", written.micro_batch_examples),
        ("train.keep_checkpoints", written.keep_checkpoints),
    ] {
        at_least_one(name, number.map(|number| number as u64))?;
    }
    let batch_size = written.batch_size.unwrap_or(8);
    if let Some(examples) = written.micro_batch_examples.filter(|examples| *examples > batch_size) {
        return Err(Error::config(format!(
            "`train.micro_batch_examples` = {examples} has no effect: a step has {batch_size} examples in all"
        ))
        .help("leave it out, or raise train.batch_size, which counts the examples of one optimiser step"));
    }
    let max_grad_norm = not_negative("train.max_grad_norm", written.max_grad_norm.unwrap_or(1.0))?;
    if written.update_in_backward && max_grad_norm > 0.0 {
        return Err(Error::config(format!(
            "`train.update_in_backward` = true does not go with train.max_grad_norm = {max_grad_norm}: the norm of all gradients is \
             known when all of them are, and most weights have changed by then"
        ))
        .help("set train.max_grad_norm = 0, which never clips, or leave update_in_backward out"));
    }
    Ok(TrainConfig {
        steps,
        epochs,
        batch_size,
        micro_batch_tokens: written.micro_batch_tokens.unwrap_or(2048),
        micro_batch_examples: written.micro_batch_examples,
        max_grad_norm,
        weights,
        bf16_update: written.bf16_update,
        eval_every: written.eval_every,
        checkpoint_every: written.checkpoint_every,
        keep_checkpoints: written.keep_checkpoints.unwrap_or(2),
        early_stopping: written.early_stopping,
        recompute: written.recompute.unwrap_or(false),
        deterministic: written.deterministic,
        update_in_backward: written.update_in_backward,
    })
}

fn optimizer(written: WrittenOptimizer) -> Result<OptimizerConfig> {
    let betas = written.betas.unwrap_or([0.9, 0.999]);
    if let Some(beta) = betas.iter().find(|beta| !(0.0..1.0).contains(*beta)) {
        return Err(Error::config(format!("`optimizer.betas` must be in [0, 1), not {beta}")));
    }
    Ok(OptimizerConfig {
        name: written.name.unwrap_or(OptimizerName::Adamw),
        lr: positive("optimizer.lr", written.lr.unwrap_or(1e-4))?,
        betas,
        eps: positive("optimizer.eps", written.eps.unwrap_or(1e-8))?,
        weight_decay: not_negative("optimizer.weight_decay", written.weight_decay.unwrap_or(0.0))?,
    })
}

fn schedule(written: WrittenSchedule, train: &TrainConfig) -> Result<ScheduleConfig> {
    let name = written.name.unwrap_or(ScheduleName::Cosine);
    if let (Some(steps), Some(ratio)) = (written.warmup_steps, written.warmup_ratio) {
        return Err(Error::config(format!(
            "`schedule.warmup_steps` = {steps} and `schedule.warmup_ratio` = {ratio} are both set"
        ))
        .help("keep one of them"));
    }
    if let (Some(warmup), Some(steps)) = (written.warmup_steps, train.steps)
        && warmup >= steps
    {
        return Err(Error::config(format!(
            "`schedule.warmup_steps` = {warmup} never ends: training has {steps} steps"
        ))
        .help(format!("set it below {steps}")));
    }
    if let Some(ratio) = written.warmup_ratio.filter(|ratio| !(0.0..1.0).contains(ratio)) {
        return Err(Error::config(format!("`schedule.warmup_ratio` must be in [0, 1), not {ratio}")));
    }
    if let Some(ratio) = written.min_lr_ratio {
        if name == ScheduleName::Constant {
            return Err(Error::config("`schedule.min_lr_ratio` has no effect: a constant rate never falls")
                .help("leave it out, or choose name = \"linear\", \"cosine\" or \"wsd\""));
        }
        if !(0.0..=1.0).contains(&ratio) {
            return Err(Error::config(format!("`schedule.min_lr_ratio` must be in [0, 1], not {ratio}")));
        }
    }
    if let Some(ratio) = written.decay_ratio {
        if name != ScheduleName::Wsd {
            return Err(Error::config(
                "`schedule.decay_ratio` has no effect: only the schedule \"wsd\" has a decay phase",
            )
            .help("leave it out, or choose name = \"wsd\""));
        }
        if !(ratio > 0.0 && ratio <= 1.0) {
            return Err(Error::config(format!("`schedule.decay_ratio` must be in (0, 1], not {ratio}")));
        }
    }
    if name == ScheduleName::Wsd {
        let both = written.warmup_ratio.unwrap_or(0.0) + written.decay_ratio.unwrap_or(0.1);
        if both > 1.0 {
            return Err(Error::config(format!(
                "`schedule.warmup_ratio` and `schedule.decay_ratio` together are {both}, more than all steps"
            )));
        }
    }
    Ok(ScheduleConfig {
        name,
        warmup_steps: written.warmup_steps,
        warmup_ratio: written.warmup_ratio,
        min_lr_ratio: (name != ScheduleName::Constant).then(|| written.min_lr_ratio.unwrap_or(0.0)),
        decay_ratio: (name == ScheduleName::Wsd).then(|| written.decay_ratio.unwrap_or(0.1)),
    })
}

fn eval(written: WrittenEval) -> Result<EvalConfig> {
    let task = written.task.unwrap_or(Task::Lm);
    let by = match (task, written.by) {
        (Task::Classification, by) => Some(by.unwrap_or(EvalBy::Likelihood)),
        (Task::Summarization, Some(EvalBy::Likelihood)) => {
            return Err(Error::config("`eval.by` cannot be \"likelihood\": summaries are always generated")
                .help("leave it out, or set eval.task = \"classification\""));
        }
        (Task::Summarization, by) => by,
        (Task::Lm, None) => None,
        (Task::Lm, Some(_)) => {
            return Err(Error::config("`eval.by` has no effect: the task \"lm\" measures the loss only")
                .help("set eval.task to \"classification\" or \"summarization\", or leave it out"));
        }
    };
    let generates = task == Task::Summarization || by == Some(EvalBy::Generation);
    if written.max_new_tokens.is_some() && !generates {
        return Err(Error::config("`eval.max_new_tokens` has no effect: nothing is generated")
            .help("leave it out, or set eval.task = \"summarization\" or eval.by = \"generation\""));
    }
    at_least_one("eval.max_new_tokens", written.max_new_tokens.map(|number| number as u64))?;
    at_least_one("eval.limit", written.limit.map(|number| number as u64))?;
    Ok(EvalConfig {
        task,
        by,
        max_new_tokens: generates.then(|| written.max_new_tokens.unwrap_or(64)),
        limit: written.limit,
        before_and_after: written.before_and_after.unwrap_or(true),
    })
}

fn at_least_one(name: &str, number: Option<u64>) -> Result<()> {
    match number {
        Some(0) => Err(Error::config(format!("`{name}` must be at least 1")).help("leave it out for its default")),
        _ => Ok(()),
    }
}

fn positive(name: &str, number: f64) -> Result<f64> {
    if number > 0.0 { Ok(number) } else { Err(Error::config(format!("`{name}` must be above 0, not {number}"))) }
}

fn not_negative(name: &str, number: f64) -> Result<f64> {
    if number >= 0.0 { Ok(number) } else { Err(Error::config(format!("`{name}` must not be negative, not {number}"))) }
}
