//! `metrics.jsonl`: one JSON object a line, a step, an evaluation or a pick each, written as they happen.
//!
//! In: records. Out: a file that reads as one uninterrupted run, also after a run was stopped and resumed.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::Value;

use super::{EvalRecord, PickRecord, StepRecord};
use crate::files::{output_error, write_atomically};
use crate::{Error, Result};

/// A line of `metrics.jsonl`.
#[derive(Clone, Debug, PartialEq)]
pub enum Record {
    /// A training step.
    Step(StepRecord),
    /// An evaluation.
    Eval(EvalRecord),
    /// A revision of the plan, before the step that it names.
    Pick(PickRecord),
}

/// Appends records to `metrics.jsonl`; each line is handed to the system at once.
pub struct MetricsLog {
    path: PathBuf,
    file: File,
    bytes: u64,
}

impl MetricsLog {
    /// Starts a new file, replacing an old one.
    ///
    /// # Errors
    /// When the file can't be created.
    pub fn create(path: &Path) -> Result<Self> {
        let file = File::create(path).map_err(|e| output_error("create", path, &e))?;
        Ok(Self { path: path.to_path_buf(), file, bytes: 0 })
    }

    /// Goes on with the file of a run that resumes after `step`: later records are removed, and so is a last line
    /// that a crash cut short. A missing file is started anew.
    ///
    /// # Errors
    /// When the file can't be read or written, or a line before the last isn't a record.
    pub fn resume(path: &Path, step: u64) -> Result<Self> {
        let lines = read_lines(path)?;
        let mut kept = String::new();
        for (line, value) in &lines {
            if step_of(value).is_some_and(|s| s <= step) {
                kept.push_str(line);
                kept.push('\n');
            }
        }
        write_atomically(path, kept.as_bytes())?;
        let file = OpenOptions::new().append(true).open(path).map_err(|e| output_error("open", path, &e))?;
        Ok(Self { path: path.to_path_buf(), file, bytes: kept.len() as u64 })
    }

    /// Appends a step.
    ///
    /// # Errors
    /// When the line can't be written; what was written of it is removed again.
    pub fn step(&mut self, record: &StepRecord) -> Result<()> {
        self.append(record)
    }

    /// Appends an evaluation.
    ///
    /// # Errors
    /// When the line can't be written; what was written of it is removed again.
    pub fn eval(&mut self, record: &EvalRecord) -> Result<()> {
        self.append(record)
    }

    /// Appends a pick.
    ///
    /// # Errors
    /// When the line can't be written; what was written of it is removed again.
    pub fn pick(&mut self, record: &PickRecord) -> Result<()> {
        self.append(record)
    }

    /// Brings everything to the disk; called when a checkpoint is written, so that both agree after a power cut.
    ///
    /// # Errors
    /// When the system can't.
    pub fn sync(&mut self) -> Result<()> {
        self.file.sync_data().map_err(|e| output_error("sync", &self.path, &e))
    }

    fn append<T: Serialize>(&mut self, record: &T) -> Result<()> {
        let mut line = serde_json::to_string(record)
            .map_err(|e| Error::internal(format!("a record for {} is not JSON: {e}", self.path.display())))?;
        line.push('\n');
        if let Err(error) = self.file.write_all(line.as_bytes()) {
            // A full disk may have taken half a line.
            let _ = self.file.set_len(self.bytes);
            return Err(output_error("write to", &self.path, &error));
        }
        self.bytes += line.len() as u64;
        Ok(())
    }
}

/// Reads all records of a `metrics.jsonl`, leaving out a last line that a crash cut short. A missing file has none.
///
/// # Errors
/// When the file can't be read, or a line before the last isn't a record; the error names the line.
pub fn read(path: &Path) -> Result<Vec<Record>> {
    read_lines(path)?
        .into_iter()
        .enumerate()
        .map(|(i, (_, value))| {
            let record = if value.get("eval_loss").is_some() {
                serde_json::from_value(value).map(Record::Eval)
            } else if value.get("pick").is_some() {
                serde_json::from_value(value).map(Record::Pick)
            } else {
                serde_json::from_value(value).map(Record::Step)
            };
            record.map_err(|e| Error::output(format!("{}:{}: not a record: {e}", path.display(), i + 1)))
        })
        .collect()
}

fn step_of(value: &Value) -> Option<u64> {
    value.get("step").and_then(Value::as_u64)
}

/// The file's whole lines with their JSON.
fn read_lines(path: &Path) -> Result<Vec<(String, Value)>> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(output_error("read", path, &error)),
    };
    let mut lines = Vec::new();
    let mut pieces = text.split_inclusive('\n').enumerate().peekable();
    while let Some((index, piece)) = pieces.next() {
        let is_last = pieces.peek().is_none();
        let line = piece.trim_end_matches('\n');
        match serde_json::from_str::<Value>(line) {
            Ok(value) if step_of(&value).is_some() => lines.push((line.to_string(), value)),
            _ if is_last => {}
            _ => {
                return Err(Error::output(format!("{}:{}: not a record of a step", path.display(), index + 1))
                    .help("repair or remove the line, or move the file away to start a new one"));
            }
        }
    }
    Ok(lines)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    pub(crate) fn step(step: u64) -> StepRecord {
        StepRecord {
            step,
            loss: 2.0 / step as f64,
            lr: 1e-4,
            grad_norm: 0.5,
            tokens: 512,
            tokens_per_s: 100.0,
            mem_bytes: 1 << 20,
        }
    }

    fn eval(step: u64) -> EvalRecord {
        EvalRecord { step, split: "validation".into(), eval_loss: 1.5, scores: [("accuracy".to_string(), 0.25)].into() }
    }

    #[test]
    fn a_resumed_file_reads_like_an_uninterrupted_one() {
        let dir = tempfile::tempdir().unwrap();
        let (whole, broken) = (dir.path().join("whole.jsonl"), dir.path().join("broken.jsonl"));
        let mut log = MetricsLog::create(&whole).unwrap();
        log.eval(&eval(0)).unwrap();
        (1..=6).for_each(|s| log.step(&step(s)).unwrap());

        let mut log = MetricsLog::create(&broken).unwrap();
        log.eval(&eval(0)).unwrap();
        (1..=5).for_each(|s| log.step(&step(s)).unwrap());
        drop(log);
        // The process died in the middle of a line, and the last checkpoint is from step 3.
        let mut text = std::fs::read_to_string(&broken).unwrap();
        text.push_str(r#"{"step":6,"los"#);
        std::fs::write(&broken, text).unwrap();
        let mut log = MetricsLog::resume(&broken, 3).unwrap();
        (4..=6).for_each(|s| log.step(&step(s)).unwrap());
        log.sync().unwrap();

        assert_eq!(std::fs::read(&whole).unwrap(), std::fs::read(&broken).unwrap());
        let records = read(&broken).unwrap();
        assert_eq!(records.len(), 7);
        assert_eq!(records[0], Record::Eval(eval(0)));
        assert_eq!(records[6], Record::Step(step(6)));
    }

    #[test]
    fn a_damaged_line_in_the_middle_is_an_error_that_names_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        std::fs::write(&path, "{\"step\":1}\nnonsense\n{\"step\":3}\n").unwrap();
        let error = MetricsLog::resume(&path, 3).err().unwrap();
        assert!(error.message().ends_with("metrics.jsonl:2: not a record of a step"), "{error}");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_full_disk_is_an_error_that_names_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        std::os::unix::fs::symlink("/dev/full", &path).unwrap();
        let error = MetricsLog::create(&path).unwrap().step(&step(1)).unwrap_err();
        assert_eq!(error.exit_code(), 7);
        assert!(error.message().contains("metrics.jsonl: No space left on device"), "{error}");
        assert!(error.help_text().unwrap().contains("free some space"));
    }
}
