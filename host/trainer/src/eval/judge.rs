//! `liftplan eval`: a finished run or an untouched model judged on files.

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::run::Job;
use crate::config::{Config, Device};
use crate::data::{self, Dataset};
use crate::report::{EvalRecord, Event, Observer};
use crate::train::{Reopened, open_model, reopen, reopen_over_original};
use crate::{Error, Result};

/// What to judge, and on what.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// A run's directory, or a model's reference, seen from `here`.
    pub target: String,
    /// The directory from which paths are seen.
    pub here: PathBuf,
    /// Data files. A run without any is judged on its test data, or else its validation data.
    pub files: Vec<PathBuf>,
    /// Overrides of `eval.…` and `data.…` settings: the run's, or the defaults for a model.
    pub overrides: Vec<String>,
    /// The checkpoint of a run, by its step; the newest if none.
    pub step: Option<u64>,
    /// What is to compute; for a run, else, what it was trained on, and for a model the GPU if there is one.
    pub device: Option<Device>,
}

/// How good a model is, and for a run over quantised weights how good what it trained is over the original ones.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Judgement {
    /// The model as the run computed with it.
    #[serde(flatten)]
    pub record: EvalRecord,
    /// How the run kept frozen weights, `nf4` for instance.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub kept_as: String,
    /// The same with the base model's original weights in their place.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub original_base: Option<EvalRecord>,
}

/// Opens the run or model, reads the data, and judges.
///
/// # Errors
/// Of the parts that fail; [`crate::ErrorKind::Config`] where a setting has no effect.
pub fn judge(request: &Request, observer: &mut dyn Observer) -> Result<EvalRecord> {
    Opened::open(request, observer)?.judge(observer)
}

/// As [`judge`]; a run over quantised weights is judged a second time over the original ones.
///
/// # Errors
/// As [`judge`].
pub fn judge_with_bases(request: &Request, observer: &mut dyn Observer) -> Result<Judgement> {
    let opened = Opened::open(request, observer)?;
    let record = opened.judge(observer)?;
    let Some(kept_as) = opened.model.kept_as.filter(|_| opened.is_run) else {
        return Ok(Judgement { record, kept_as: String::new(), original_base: None });
    };
    let Opened { config, data, split, is_run, model, run } = opened;
    // One of the two models at a time.
    drop(model);
    let model = reopen_over_original(&run, request.step, request.device, observer)?;
    let original = Opened { config, data, split, is_run, model, run }.judge(observer)?;
    Ok(Judgement { record, kept_as: kept_as.to_string(), original_base: Some(original) })
}

/// What a judgement is made of.
struct Opened {
    config: Config,
    model: Reopened,
    data: Dataset,
    split: String,
    is_run: bool,
    run: PathBuf,
}

impl Opened {
    fn open(request: &Request, observer: &mut dyn Observer) -> Result<Self> {
        for setting in &request.overrides {
            if !setting.starts_with("eval.") && !setting.starts_with("data.") {
                return Err(Error::config(format!("--set {setting}: only eval.… and data.… have an effect here")));
            }
        }
        let run = request.here.join(&request.target);
        let is_run = run.join("config.toml").is_file();
        let config = match is_run {
            true => Config::load(&run.join("config.toml"), &request.overrides)?,
            false => Config::for_evaluation(&request.target, &request.files, &request.here, &request.overrides)?,
        };
        let model = if is_run {
            reopen(&run, request.step, request.device, observer)?
        } else {
            no_step(request)?;
            open_model(&request.target, &request.here, request.device, observer)?
        };
        let (data, split) = read(request, &config, &model, is_run, observer)?;
        Ok(Self { config, model, data, split, is_run, run })
    }

    fn judge(&self, observer: &mut dyn Observer) -> Result<EvalRecord> {
        observer.on(&Event::Phase(&format!("evaluating on the {} data", self.split)));
        let job = Job {
            decoder: self.model.model(),
            tokenizer: &self.model.base.tokenizer,
            data: &self.data,
            config: &self.config.eval,
            micro_batch_tokens: self.config.train.micro_batch_tokens,
        };
        let outcome = job.run(observer)?;
        Ok(EvalRecord {
            step: self.model.step.unwrap_or(0),
            split: self.split.clone(),
            eval_loss: outcome.loss,
            scores: outcome.scores,
        })
    }
}

fn no_step(request: &Request) -> Result<()> {
    match request.step {
        None => Ok(()),
        Some(step) => Err(Error::config(format!(
            "--step {step} has no effect: {} is not a run, and only runs have checkpoints",
            request.target
        ))
        .help("name a run's directory, or leave --step out")),
    }
}

fn read(
    request: &Request,
    config: &Config,
    model: &Reopened,
    is_run: bool,
    observer: &mut dyn Observer,
) -> Result<(Dataset, String)> {
    let files: Vec<PathBuf> = request.files.iter().map(|file| request.here.join(file)).collect();
    if !is_run {
        return Ok((data::load_files(&config.data, &files, &[], &model.base, observer)?, "given".to_string()));
    }
    if files.is_empty() {
        let splits = data::load_splits(&config.data, config.seed, &model.base, observer)?;
        return match (splits.test, splits.validation) {
            (Some(test), _) => Ok((test, "test".to_string())),
            (None, Some(validation)) => Ok((validation, "validation".to_string())),
            (None, None) => Err(Error::config(format!("{} has neither test nor validation data", request.target))
                .help("name some with --data FILE")),
        };
    }
    // The labels to choose from are those of the training, whichever the given files hold.
    let labels = match config.data.labels.is_empty() && Path::new(&config.data.train[0]).exists() {
        true => data::load_splits(&config.data, config.seed, &model.base, observer)?.train.labels,
        false => Vec::new(),
    };
    Ok((data::load_files(&config.data, &files, &labels, &model.base, observer)?, "given".to_string()))
}
