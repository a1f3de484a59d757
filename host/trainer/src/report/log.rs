//! The files that grow while a run works: `metrics.jsonl` and TensorBoard's events, fed by the same events.
//!
//! An observer can't return an error, and a disk that is full must not pass unseen; so the first error is kept, and
//! the training loop asks for it with [`RunLog::check`] after each step.

use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use super::tensorboard::EventFile;
use super::{Event, MetricsLog, Observer};
use crate::files::output_error;
use crate::{Error, Result};

/// Writes the records of a run to `RUN/metrics.jsonl` and `RUN/tensorboard/`.
pub struct RunLog {
    metrics: MetricsLog,
    tensorboard: EventFile,
    error: Option<Error>,
}

impl RunLog {
    /// Starts the files of a new run in the directory `run`, replacing old ones.
    ///
    /// # Errors
    /// When they can't be written.
    pub fn create(run: &Path) -> Result<Self> {
        let dir = event_dir(run)?;
        for old in event_files(&dir)? {
            std::fs::remove_file(&old).map_err(|e| output_error("remove", &old, &e))?;
        }
        let tensorboard = EventFile::create(&event_path(&dir), now_s())?;
        Ok(Self { metrics: MetricsLog::create(&run.join("metrics.jsonl"))?, tensorboard, error: None })
    }

    /// Goes on with the files of a run that resumes after `step`; what was recorded of later steps is removed.
    ///
    /// # Errors
    /// When they can't be read or written, or are damaged.
    pub fn resume(run: &Path, step: u64) -> Result<Self> {
        let dir = event_dir(run)?;
        let tensorboard = match event_files(&dir)?.pop() {
            Some(path) => EventFile::resume(&path, step)?,
            None => EventFile::create(&event_path(&dir), now_s())?,
        };
        Ok(Self { metrics: MetricsLog::resume(&run.join("metrics.jsonl"), step)?, tensorboard, error: None })
    }

    /// The first error since the last call.
    ///
    /// # Errors
    /// That error.
    pub fn check(&mut self) -> Result<()> {
        self.error.take().map_or(Ok(()), Err)
    }

    fn write(&mut self, event: &Event<'_>) -> Result<()> {
        match event {
            Event::Step { record, .. } => {
                self.metrics.step(record)?;
                let scalars = [
                    ("train/loss", record.loss),
                    ("train/lr", record.lr),
                    ("train/grad_norm", record.grad_norm),
                    ("speed/tokens_per_s", record.tokens_per_s),
                    ("memory/resident_bytes", record.mem_bytes as f64),
                ];
                self.tensorboard.scalars(record.step, now_s(), &scalars)
            }
            Event::Eval(record) => {
                self.metrics.eval(record)?;
                let tags: Vec<(String, f64)> = std::iter::once((format!("{}/loss", record.split), record.eval_loss))
                    .chain(record.scores.iter().map(|(name, score)| (format!("{}/{name}", record.split), *score)))
                    .collect();
                let scalars: Vec<(&str, f64)> = tags.iter().map(|(tag, value)| (tag.as_str(), *value)).collect();
                self.tensorboard.scalars(record.step, now_s(), &scalars)
            }
            Event::Pick(record) => self.metrics.pick(record),
            Event::Checkpoint(_) => self.metrics.sync(),
            Event::Phase(_) | Event::Progress { .. } | Event::Cell(_) | Event::Note(_) | Event::Warning(_) => Ok(()),
        }
    }
}

impl Observer for RunLog {
    fn on(&mut self, event: &Event<'_>) {
        if self.error.is_none() {
            self.error = self.write(event).err();
        }
    }
}

fn now_s() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |t| t.as_secs_f64())
}

fn event_dir(run: &Path) -> Result<PathBuf> {
    let dir = run.join("tensorboard");
    std::fs::create_dir_all(&dir).map_err(|e| output_error("create the directory", &dir, &e))?;
    Ok(dir)
}

/// TensorBoard takes any file with `tfevents` in its name, and reads a directory's files in the order of their names.
fn event_path(dir: &Path) -> PathBuf {
    dir.join(format!("events.out.tfevents.{:010}.liftplan", now_s() as u64))
}

fn event_files(dir: &Path) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(dir).map_err(|e| output_error("read the directory", dir, &e))?;
    let mut files: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.file_name().and_then(|n| n.to_str()).is_some_and(|n| n.starts_with("events.out.tfevents.")))
        .collect();
    files.sort();
    Ok(files)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::report::{EvalRecord, Record, StepRecord, metrics};

    fn step(log: &mut RunLog, step: u64) {
        let record =
            StepRecord { step, loss: 1.0, lr: 0.1, grad_norm: 1.0, tokens: 8, tokens_per_s: 4.0, mem_bytes: 1 };
        log.on(&Event::Step { record: &record, total: 9 });
    }

    #[test]
    fn a_resumed_run_goes_on_in_the_same_files() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = RunLog::create(dir.path()).unwrap();
        let eval = EvalRecord {
            step: 0,
            split: "test".into(),
            eval_loss: 2.0,
            scores: [("accuracy".to_string(), 0.5)].into(),
        };
        log.on(&Event::Eval(&eval));
        (1..=3).for_each(|s| step(&mut log, s));
        drop(log);
        let mut log = RunLog::resume(dir.path(), 2).unwrap();
        step(&mut log, 3);
        log.on(&Event::Checkpoint(dir.path()));
        log.check().unwrap();
        let records = metrics::read(&dir.path().join("metrics.jsonl")).unwrap();
        assert_eq!(records.len(), 4);
        assert_eq!(records[0], Record::Eval(eval));
        assert_eq!(event_files(&dir.path().join("tensorboard")).unwrap().len(), 1);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn an_error_waits_until_it_is_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/dev/full", dir.path().join("metrics.jsonl")).unwrap();
        let mut log = RunLog::create(dir.path()).unwrap();
        step(&mut log, 1);
        step(&mut log, 2);
        assert!(log.check().unwrap_err().message().contains("No space left"));
        log.check().unwrap();
    }
}
