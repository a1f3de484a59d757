//! The score that methods are compared by: one of the task's, or a number that a command of the user's prints.
//!
//! The command reads the model's outputs on standard input, one JSON object a line: `index`, `source`, `prompt`,
//! `reference`, `answer`, `loss` (nats, summed over `targets` tokens) and the example's own `scores`. The last line that
//! it prints on standard output is the number.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use serde::{Deserialize, Serialize};

use super::child::ends_with_this_process;
use crate::config::{EvalBy, EvalConfig, Task, suggest};
use crate::{Error, Result};

/// Which way is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Better {
    /// More is better.
    Higher,
    /// Less is better.
    Lower,
}

impl Better {
    /// Whether `a` is better than `b`.
    pub fn is(self, a: f64, b: f64) -> bool {
        match self {
            Better::Higher => a > b,
            Better::Lower => a < b,
        }
    }
}

/// The score.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Score {
    /// Its name: one of the task's, or the user's own for what the command prints.
    pub name: String,
    /// Which way is better.
    pub better: Better,
    /// The command that makes it, if it isn't one of the task's.
    pub command: Option<Vec<String>>,
}

/// `[score]`, as written.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct WrittenScore {
    name: Option<String>,
    better: Option<Better>,
    command: Option<Vec<String>>,
}

/// Scores of which less is better.
const LOWER: [&str; 3] = ["loss", "perplexity", "ece"];

/// The names of the task's scores, the usual one first.
fn names(task: Task, by: Option<EvalBy>) -> Vec<&'static str> {
    match (task, by) {
        (Task::Lm, _) => vec!["loss", "perplexity"],
        (Task::Classification, Some(EvalBy::Generation)) => vec!["accuracy", "macro_f1", "loss", "perplexity"],
        (Task::Classification, _) => vec!["accuracy", "macro_f1", "ece", "loss", "perplexity"],
        (Task::Summarization, _) => vec!["rouge_l", "rouge_1", "rouge_2", "loss", "perplexity"],
    }
}

/// Whether a score of this name is some task's, known by it: what is better, where its scale ends, and what each example has.
fn is_a_tasks(name: &str) -> bool {
    [Task::Lm, Task::Classification, Task::Summarization].into_iter().any(|task| names(task, None).contains(&name))
}

impl WrittenScore {
    pub(super) fn resolve(self, eval: &EvalConfig) -> Result<Score> {
        if let Some(command) = self.command {
            if command.first().is_none_or(String::is_empty) {
                return Err(Error::config("`score.command` is empty")
                    .help("name a program and its arguments: command = [\"python3\", \"score.py\"]"));
            }
            let name = self.name.unwrap_or_else(|| "score".to_string());
            super::config::check_label("score.name", &name)?;
            if is_a_tasks(&name) {
                return Err(Error::config(format!("`score.name`: \"{name}\" is a score of Liftplan's own"))
                    .help("give what score.command prints a name of its own"));
            }
            return Ok(Score { name, better: self.better.unwrap_or(Better::Higher), command: Some(command) });
        }
        let known = names(eval.task, eval.by);
        let name = match self.name {
            None => known.first().copied().unwrap_or("loss").to_string(),
            Some(name) if known.contains(&name.as_str()) => name,
            Some(name) => {
                let error = Error::config(format!("`score.name`: this task has no score \"{name}\""));
                return Err(match suggest::nearest(&name, known.iter().copied()) {
                    Some(near) => error.help(format!("did you mean \"{near}\"?")),
                    None => {
                        error.help(format!("it has {}; a score of your own needs score.command", suggest::list(&known)))
                    }
                });
            }
        };
        let better = if LOWER.contains(&name.as_str()) { Better::Lower } else { Better::Higher };
        if self.better.is_some_and(|written| written != better) {
            return Err(Error::config(format!(
                "`score.better`: of {name}, {} is better",
                match better {
                    Better::Higher => "more",
                    Better::Lower => "less",
                }
            ))
            .help("leave it out; it is for score.command"));
        }
        Ok(Score { name, better, command: None })
    }
}

impl Score {
    /// Runs the command in `directory` with the model's outputs, which the file `outputs` holds, and reads its number.
    ///
    /// # Errors
    /// When it can't be started, fails, or prints no number.
    pub fn by_command(command: &[String], outputs: &Path, directory: &Path) -> Result<f64> {
        let shown = command.join(" ");
        let failed = |what: String| {
            Error::config(format!("`score.command` ({shown}) {what}"))
                .help("it reads the model's outputs as JSONL on standard input, and its last line is a number")
        };
        let (program, arguments) = command.split_first().ok_or_else(|| failed("is empty".into()))?;
        let input =
            std::fs::File::open(outputs).map_err(|error| crate::files::output_error("open", outputs, &error))?;
        let mut child = Command::new(program);
        child.args(arguments).current_dir(directory).stdin(Stdio::from(input)).stderr(Stdio::piped());
        ends_with_this_process(&mut child);
        let output = child.output().map_err(|error| failed(format!("cannot be started: {error}")))?;
        // What it had to say goes where the cell's own messages go.
        std::io::stderr().write_all(&output.stderr).ok();
        let said = String::from_utf8_lossy(&output.stderr);
        if !output.status.success() {
            let last = said.lines().last().unwrap_or_default().trim().to_string();
            return Err(failed(format!(
                "failed ({}){}",
                output.status,
                if last.is_empty() { last } else { format!(": {last}") }
            )));
        }
        let text = String::from_utf8_lossy(&output.stdout);
        let last = text.lines().rev().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default();
        match last.parse::<f64>() {
            Ok(number) if number.is_finite() => Ok(number),
            _ => Err(failed(format!("printed \"{last}\", which is no number"))),
        }
    }
}
