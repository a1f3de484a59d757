//! Where a comparison takes place: its configuration, its directory, its model, and how a cell is run there.

use std::collections::BTreeMap;
use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use liftplan_engine::cuda;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::Options;
use super::child::{Child, End};
use super::config::Comparison;
use super::job::{Job, JudgeJob, Judgement, PlanCost, Split};
use super::queue::stopped;
use super::store::{Cell, Ended, Failure, Inputs, Store};
use crate::config::{Bytes, Config, Device};
use crate::files::{output_error, write_atomically};
use crate::model::BaseModel;
use crate::plan::canonical;
use crate::{Error, Result, policy};

/// The subcommand of the program that does a [`Job`].
pub const JOB_COMMAND: &str = "compare-job";

/// A comparison's place.
pub struct Site<'a> {
    pub comparison: &'a Comparison,
    pub options: &'a Options,
    pub store: Store,
    pub base: BaseModel,
    executable_hash: String,
    model_text_hash: String,
    /// Milliseconds that the cells took which were asked for so far, whenever they ran.
    cell_ms: AtomicU64,
}

impl<'a> Site<'a> {
    pub fn new(comparison: &'a Comparison, options: &'a Options, store: Store, base: BaseModel) -> Result<Self> {
        let on_gpu = comparison.methods.iter().any(|method| uses_gpu(&method.config));
        if comparison.budget.memory_bytes.is_some() && comparison.jobs > 1 && on_gpu {
            return Err(Error::config(format!("`jobs` is {}, and `budget.memory` is one card's", comparison.jobs))
                .help("set jobs to 1: runs that share a card take from each other what each of them may have"));
        }
        let executable_hash = store.file_hash(&options.executable)?;
        let model_text_hash = hash_of_text(&base)?;
        Ok(Self { comparison, options, store, base, executable_hash, model_text_hash, cell_ms: AtomicU64::new(0) })
    }

    /// The sha256 of the program.
    pub fn executable_hash(&self) -> &str {
        &self.executable_hash
    }

    /// Seconds that the cells took which were asked for so far, one after another, also those that an earlier process ran.
    pub fn cell_seconds(&self) -> f64 {
        self.cell_ms.load(Ordering::Relaxed) as f64 / 1e3
    }

    /// What a cell with this configuration is made from.
    fn inputs(&self, kind: &str, config: &Config, settings: Value) -> Result<Inputs> {
        let placeless = Config { out: PathBuf::new(), ..config.clone() };
        let mut files = BTreeMap::new();
        let data = &config.data;
        for (name, paths) in [("train", &data.train), ("validation", &data.validation), ("test", &data.test)] {
            for (i, path) in paths.iter().enumerate() {
                files.insert(format!("{name}.{i}"), self.store.file_hash(path)?);
            }
        }
        let template = Path::new(&data.chat_template);
        if template.is_file() {
            files.insert("chat_template".into(), self.store.file_hash(template)?);
        }
        files.extend(self.policy_files(config)?);
        Ok(Inputs {
            kind: kind.to_string(),
            config: placeless.to_toml()?,
            settings,
            model: self.base.hash.clone(),
            model_text: self.model_text_hash.clone(),
            files,
            executable: self.executable_hash.clone(),
            of: None,
        })
    }

    /// A plugin, and what a policy reads: whatever in its settings is a file, by its content.
    ///
    /// # Errors
    /// When one can't be read.
    pub fn policy_files(&self, config: &Config) -> Result<BTreeMap<String, String>> {
        let mut files = BTreeMap::new();
        self.files_in("policy", &serde_json::to_value(&config.policy).unwrap_or_default(), &mut files)?;
        // A plugin that is called by its name, and not by its file.
        if config.policy.plugin.is_none() && policy::find(&config.policy.name).is_err() {
            let hash = policy::open(config)?.plugin_sha256().map(str::to_string);
            files.extend(hash.map(|hash| ("policy.plugin".to_string(), hash)));
        }
        Ok(files)
    }

    /// Adds the files that the setting at `path` names, or one inside it.
    fn files_in(&self, path: &str, setting: &Value, files: &mut BTreeMap<String, String>) -> Result<()> {
        match setting {
            Value::String(file) if Path::new(file).is_file() => {
                files.insert(path.to_string(), self.store.file_hash(Path::new(file))?);
            }
            Value::Array(items) => {
                for (i, item) in items.iter().enumerate() {
                    self.files_in(&format!("{path}.{i}"), item, files)?;
                }
            }
            Value::Object(settings) => {
                for (key, setting) in settings {
                    self.files_in(&format!("{path}.{key}"), setting, files)?;
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Runs a child in the cell's directory, unless it has ended before.
    fn run_cell(&self, cell: &Cell, prepare: impl FnOnce() -> Result<Child<'a>>) -> Result<Ended> {
        let ended = self.end_of(cell, prepare)?;
        if let Ended::Done { seconds } = &ended {
            self.cell_ms.fetch_add((seconds * 1e3) as u64, Ordering::Relaxed);
        }
        Ok(ended)
    }

    fn end_of(&self, cell: &Cell, prepare: impl FnOnce() -> Result<Child<'a>>) -> Result<Ended> {
        if let Some(ended) = self.store.ended(cell) {
            return Ok(ended);
        }
        std::fs::create_dir_all(&cell.dir).map_err(|error| output_error("create the directory", &cell.dir, &error))?;
        let ended = match prepare()?.run(&self.options.stop)? {
            End::Done(seconds) => Ended::Done { seconds },
            End::Failed(failure) => {
                // Files of the cell are named as they are called there.
                let reason =
                    failure.reason.replace(&format!("{}{}", cell.dir.display(), std::path::MAIN_SEPARATOR), "");
                Ended::Failed(Failure { reason, ..failure })
            }
            End::Stopped => return Err(stopped()),
        };
        // What it read may be another file's content by now, and the cell would be found again by the wrong hash.
        self.store.check_unchanged()?;
        self.store.end(cell, &ended)?;
        Ok(ended)
    }

    fn child(&self, cell: &Cell, arguments: Vec<String>) -> Child<'a> {
        Child {
            program: &self.options.executable,
            arguments,
            environment: Vec::new(),
            log: cell.dir.join("log.txt"),
            memory_limit: None,
        }
    }

    /// A child that does a job, and what it found.
    fn job<T: DeserializeOwned>(
        &self,
        cell: &Cell,
        job: &Job,
        result: &Path,
        cache: bool,
    ) -> Result<Result<T, Failure>> {
        let ended = self.run_cell(cell, || {
            let file = cell.dir.join("job.json");
            let text = serde_json::to_string_pretty(job).map_err(|error| Error::internal(format!("a job: {error}")))?;
            write_atomically(&file, text.as_bytes())?;
            let mut child = self.child(cell, vec![JOB_COMMAND.into(), file.display().to_string()]);
            if !cache {
                child.environment.push(("LIFTPLAN_CACHE", ""));
            }
            Ok(child)
        })?;
        match ended {
            Ended::Failed(failure) => Ok(Err(failure)),
            Ended::Done { .. } => read_json(result).map(Ok),
        }
    }

    /// The configuration as a run has it: without the test data, and with no more of a GPU's memory than the budget is.
    pub fn as_run(&self, config: &Config) -> Config {
        let mut config = without_test(config);
        if let Some(limit) = self.comparison.budget.memory_bytes.filter(|_| uses_gpu(&config)) {
            // A card of that size, as far as the run can tell; what it cannot have it refuses before it loads anything.
            config.vram = Some(Bytes(config.vram.map_or(limit, |vram| vram.0.min(limit))));
        }
        config
    }

    /// The place of the planning for a run with this configuration, whatever the method's name.
    ///
    /// # Errors
    /// When a file that it is made from can't be read.
    pub fn planning_cell(&self, config: &Config) -> Result<Cell> {
        let of_file = config.policy.plugin.as_ref().and_then(|file| file.file_stem());
        let policy = of_file.map_or_else(|| config.policy.name.clone(), |stem| stem.to_string_lossy().into_owned());
        Ok(self.store.cell(&format!("plan {policy}"), self.inputs("plan", config, Value::Null)?))
    }

    /// Makes a plan alone and measures what that takes, without any cache.
    ///
    /// # Errors
    /// When something fails that is not the planning, or the user stops it.
    pub fn plan(&self, cell: &Cell, config: &Config) -> Result<Result<PlanCost, Failure>> {
        let [file, plan, result] = ["config.toml", "plan.json", "cost.json"].map(|name| cell.dir.join(name));
        write_config(config, &cell.dir, &file)?;
        self.job(cell, &Job::Plan { config: file, plan, result: result.clone() }, &result, false)
    }

    /// Trains. The test data are not among what the process is told of. What was interrupted goes on from its
    /// checkpoint.
    pub fn train(&self, kind: &str, name: &str, config: &Config) -> Result<(Cell, Result<(), Failure>)> {
        let config = self.as_run(config);
        let limit = self.comparison.budget.memory_bytes;
        let on_gpu = uses_gpu(&config);
        let cell = self.store.cell(name, self.inputs(kind, &config, json!({ "memory": limit }))?);
        let run = cell.dir.join("run");
        let ended = self.run_cell(&cell, || {
            let file = cell.dir.join("config.toml");
            write_config(&config, &cell.dir, &file)?;
            let mut arguments =
                vec!["train".into(), file.display().to_string(), "--out".into(), run.display().to_string()];
            self.wait_for(&run)?;
            let goes_on = run.join("checkpoints").is_dir() && !run.join("summary.json").is_file();
            if goes_on || was_interrupted(&run) {
                arguments.push("--resume".into());
            } else if run.exists() {
                // What is left of a failed or killed run has nothing to go on from.
                std::fs::remove_dir_all(&run).map_err(|error| output_error("remove", &run, &error))?;
            }
            let mut child = self.child(&cell, arguments);
            child.memory_limit = limit.filter(|_| !on_gpu);
            Ok(child)
        })?;
        Ok((
            cell,
            match ended {
                Ended::Done { .. } => Ok(()),
                Ended::Failed(failure) => Err(failure),
            },
        ))
    }

    /// Waits until nobody holds the run's directory: a comparison that was killed leaves a process that still saves its
    /// checkpoint.
    fn wait_for(&self, run: &Path) -> Result<()> {
        let Ok(lock) = File::open(run.join(".lock")) else { return Ok(()) };
        while matches!(lock.try_lock(), Err(TryLockError::WouldBlock)) {
            if self.options.stop.load(Ordering::Relaxed) {
                return Err(stopped());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// Judges the run of a cell, or the untouched model.
    pub fn judge(
        &self,
        of: Option<&Cell>,
        name: &str,
        config: &Config,
        split: Split,
        thorough: bool,
    ) -> Result<(Cell, Result<Judgement, Failure>)> {
        let kind = if split == Split::Test { "test" } else { "validation" };
        let config = if split == Split::Test { config.clone() } else { without_test(config) };
        let comparison = self.comparison;
        let command = comparison.score.command.clone().map(|command| (comparison.score.name.clone(), command));
        let forgetting = comparison.forgetting.clone().filter(|_| split == Split::Test);
        let latency = comparison.latency.filter(|_| thorough);
        let settings = json!({ "command": command, "forgetting": forgetting, "latency": latency });
        let mut inputs = self.inputs(kind, &config, settings)?;
        if let Some(forgetting) = &forgetting {
            inputs.files.insert("forgetting".into(), self.store.file_hash(&forgetting.data)?);
        }
        for (i, word) in command.iter().flat_map(|(_, command)| command).enumerate() {
            let file = comparison.directory.join(word);
            if file.is_file() {
                inputs.files.insert(format!("command.{i}"), self.store.file_hash(&file)?);
            }
        }
        let cell = match of {
            Some(of) => self.store.cell_in(of, kind, inputs),
            None => self.store.cell(name, inputs),
        };
        let file = cell.dir.join("config.toml");
        write_config(&config, &cell.dir, &file)?;
        let result = cell.dir.join("result.json");
        let job = Job::Judge(Box::new(JudgeJob {
            config: file,
            run: of.map(|of| of.dir.join("run")),
            split,
            outputs: cell.dir.join("outputs.jsonl"),
            result: result.clone(),
            command,
            directory: comparison.directory.clone(),
            forgetting,
            latency,
        }));
        let judgement = self.job(&cell, &job, &result, true)?;
        Ok((cell, judgement))
    }
}

/// The hash of what the model is besides its weights.
fn hash_of_text(base: &BaseModel) -> Result<String> {
    let tokenizer = &base.tokenizer;
    let specials = format!("{:?}", (tokenizer.bos(), tokenizer.eos(), tokenizer.pad(), tokenizer.stop_ids()));
    Ok(canonical::hash(&(&base.config_json, tokenizer.to_json()?, specials, &base.chat_template)))
}

/// Whether runs with this configuration are for a GPU: it is asked for, or there is one.
fn uses_gpu(config: &Config) -> bool {
    match config.device {
        Device::Cpu => false,
        Device::Cuda(_) => true,
        Device::Auto => cuda::context::devices().is_ok_and(|count| count > 0),
    }
}

/// The configuration without the data that scores are measured on.
fn without_test(config: &Config) -> Config {
    let mut config = config.clone();
    config.data.test.clear();
    config
}

fn was_interrupted(run: &Path) -> bool {
    let summary = crate::report::Summary::read(run);
    summary.is_ok_and(|summary| summary.ended == crate::report::Ending::Interrupted)
}

/// Writes the configuration, unless it is there.
fn write_config(config: &Config, dir: &Path, file: &Path) -> Result<()> {
    if file.is_file() {
        return Ok(());
    }
    std::fs::create_dir_all(dir).map_err(|error| output_error("create the directory", dir, &error))?;
    let config = Config { out: dir.join("run"), ..config.clone() };
    write_atomically(file, config.to_toml()?.as_bytes())
}

/// Reads what a child has written.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let text = std::fs::read_to_string(path).map_err(|error| output_error("read", path, &error))?;
    serde_json::from_str(&text).map_err(|error| {
        Error::output(format!("{} is damaged: {error}", path.display()))
            .help("remove its directory; the same command makes it again")
    })
}
