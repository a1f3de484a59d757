//! `liftplan eval`: a finished run or an untouched model judged on files.

use std::path::{Path, PathBuf};

use super::run::Job;
use crate::config::Config;
use crate::data::{self, Dataset};
use crate::report::{EvalRecord, Event, Observer};
use crate::train::{Reopened, open_model, reopen};
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
}

/// Opens the run or model, reads the data, and judges.
///
/// # Errors
/// Of the parts that fail; [`crate::ErrorKind::Config`] where a setting has no effect.
pub fn judge(request: &Request, observer: &mut dyn Observer) -> Result<EvalRecord> {
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
        reopen(&run, request.step, observer)?
    } else {
        no_step(request)?;
        open_model(&request.target, &request.here, observer)?
    };
    let (data, split) = read(request, &config, &model, is_run, observer)?;
    observer.on(&Event::Phase(&format!("evaluating on the {split} data")));
    let job = Job {
        decoder: &model.decoder,
        tokenizer: &model.base.tokenizer,
        data: &data,
        config: &config.eval,
        micro_batch_tokens: config.train.micro_batch_tokens,
    };
    let outcome = job.run(observer)?;
    Ok(EvalRecord { step: model.step.unwrap_or(0), split, eval_loss: outcome.loss, scores: outcome.scores })
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
