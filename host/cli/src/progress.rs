//! Long work, shown on standard error: bars on a terminal, plain lines elsewhere.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use liftplan::report::text::{duration, grouped, memory};
use liftplan::report::{CellProgress, EvalRecord, Event, Observer, StepRecord};

/// Time between two plain lines about the same work.
const PLAIN_EVERY: Duration = Duration::from_secs(5);

/// Shows events to a person.
pub struct Progress {
    terminal: bool,
    phase: String,
    bar: Option<Bar>,
    /// When the last plain line about this phase's progress was written.
    last_line: Option<Instant>,
    /// When the first step of this process ended, and which it was: time left is measured from there, so that a
    /// resumed run does not count steps of an earlier one.
    first_step: Option<(Instant, u64)>,
}

struct Bar {
    bar: ProgressBar,
    kind: Kind,
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Spinner,
    Bytes,
    Count,
    Steps,
    Cells,
}

impl Progress {
    /// Shows nothing until something happens.
    pub fn new() -> Self {
        let terminal = std::io::stderr().is_terminal();
        Self { terminal, phase: String::new(), bar: None, last_line: None, first_step: None }
    }

    /// Writes a line that stays.
    fn line(&self, text: &str) {
        match &self.bar {
            Some(shown) if self.terminal => shown.bar.suspend(|| write_line(text)),
            _ => write_line(text),
        }
    }

    fn phase(&mut self, name: &str) {
        self.clear();
        self.phase = name.to_string();
        self.last_line = None;
        if self.terminal {
            self.bar(Kind::Spinner, 0);
        } else {
            self.line(name);
        }
    }

    fn progress(&mut self, unit: &str, done: u64, total: u64) {
        let kind = if unit == "bytes" { Kind::Bytes } else { Kind::Count };
        if self.terminal {
            let phase = self.phase.clone();
            let bar = self.bar(kind, total);
            bar.set_message(if kind == Kind::Bytes { phase } else { format!("{phase} ({unit})") });
            bar.set_position(done);
        } else if self.due() && done < total {
            let (done, total) = match kind {
                Kind::Bytes => (memory(done), memory(total)),
                _ => (grouped(done), format!("{} {unit}", grouped(total))),
            };
            self.line(&format!("{}: {done} of {total}", self.phase));
        }
    }

    fn step(&mut self, record: &StepRecord, total: u64) {
        let left = self.time_left(record.step, total);
        let figures = format!(
            "loss {:.4}, {} tokens/s, {}{}",
            record.loss,
            grouped(record.tokens_per_s.round() as u64),
            memory(record.mem_bytes),
            left.map(|seconds| format!(", {} left", duration(seconds))).unwrap_or_default()
        );
        if self.terminal {
            let bar = self.bar(Kind::Steps, total);
            bar.set_message(figures);
            bar.set_position(record.step);
        } else if self.due() || record.step == 1 || record.step == total {
            self.last_line = Some(Instant::now());
            self.line(&format!("step {} of {}: {figures}", grouped(record.step), grouped(total)));
        }
    }

    fn eval(&self, record: &EvalRecord) {
        let scores: String = record.scores.iter().map(|(name, score)| format!(", {name} {score:.4}")).collect();
        self.line(&format!("step {}: {} loss {:.4}{scores}", grouped(record.step), record.split, record.eval_loss));
    }

    fn cell(&mut self, progress: &CellProgress<'_>) {
        let left = progress.left_s.map(|seconds| format!(", {} left", duration(seconds))).unwrap_or_default();
        let best = progress.best.map(|best| format!("; best so far {best}")).unwrap_or_default();
        let (done, total) = (grouped(progress.done), grouped(progress.total));
        if let Some(ended) = progress.ended {
            self.line(&format!("{done} of {total}: {}: {ended}{left}{best}", progress.doing));
        }
        if self.terminal {
            let bar = self.bar(Kind::Cells, progress.total);
            bar.set_message(format!("{}{left}{best}", progress.doing));
            bar.set_position(progress.done);
            bar.enable_steady_tick(Duration::from_millis(500));
        }
    }

    /// Seconds left at the speed of this process's steps so far; nothing is known after the first one.
    fn time_left(&mut self, step: u64, total: u64) -> Option<f64> {
        let (since, first) = *self.first_step.get_or_insert((Instant::now(), step));
        let done = step.checked_sub(first).filter(|done| *done > 0)?;
        (total > step).then(|| since.elapsed().as_secs_f64() / done as f64 * (total - step) as f64)
    }

    /// Whether enough time has passed for another plain line.
    fn due(&mut self) -> bool {
        let due = self.last_line.is_none_or(|last| last.elapsed() >= PLAIN_EVERY);
        if due {
            self.last_line = Some(Instant::now());
        }
        due
    }

    /// The bar of this kind, which replaces one of another kind.
    fn bar(&mut self, kind: Kind, total: u64) -> &ProgressBar {
        if let Some(shown) = self.bar.as_ref().filter(|shown| shown.kind == kind) {
            shown.bar.set_length(total);
        } else {
            self.clear();
            let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
            bar.set_style(style(kind));
            bar.set_message(self.phase.clone());
            if kind == Kind::Spinner {
                bar.enable_steady_tick(Duration::from_millis(120));
            }
            self.bar = Some(Bar { bar, kind });
        }
        &self.bar.get_or_insert_with(|| Bar { bar: ProgressBar::hidden(), kind }).bar
    }

    fn clear(&mut self) {
        if let Some(shown) = self.bar.take() {
            shown.bar.finish_and_clear();
        }
    }
}

impl Observer for Progress {
    fn on(&mut self, event: &Event<'_>) {
        match event {
            Event::Phase(name) => self.phase(name),
            Event::Progress { unit, done, total } => self.progress(unit, *done, *total),
            Event::Step { record, total } => self.step(record, *total),
            Event::Eval(record) => self.eval(record),
            Event::Pick(record) => self.line(&format!(
                "pick {} before step {}: {} parameters train",
                record.pick,
                record.step,
                liftplan::report::text::grouped(record.trainable_parameters)
            )),
            Event::Note(text) => self.line(text),
            Event::Checkpoint(path) => self.line(&format!("checkpoint {}", path.display())),
            Event::Cell(progress) => self.cell(progress),
            Event::Warning(text) => self.line(&format!("warning: {text}")),
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.clear();
    }
}

fn style(kind: Kind) -> ProgressStyle {
    let (template, fallback) = match kind {
        Kind::Spinner => ("{spinner} {msg}", ProgressStyle::default_spinner()),
        Kind::Bytes => (
            "{msg} [{bar:24}] {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta}",
            ProgressStyle::default_bar(),
        ),
        Kind::Count => ("{msg} [{bar:24}] {human_pos}/{human_len} {eta}", ProgressStyle::default_bar()),
        Kind::Cells => ("[{bar:24}] {human_pos}/{human_len} {elapsed}: {msg}", ProgressStyle::default_bar()),
        Kind::Steps => ("[{bar:24}] step {human_pos}/{human_len}: {msg}", ProgressStyle::default_bar()),
    };
    // The templates are fixed; should one not parse, the library's own looks do as well.
    fallback.clone().template(template).unwrap_or(fallback).progress_chars("█▌ ")
}

/// A line on standard error. If that is closed, nobody wants it.
fn write_line(text: &str) {
    writeln!(std::io::stderr(), "{text}").ok();
}
