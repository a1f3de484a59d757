//! The end of a run, told to a person: what was trained, how the evaluation moved, where the result lies, and what to
//! type next.

use std::fmt::Write;
use std::path::Path;

use super::summary::{Ending, Summary};

/// The text that `train` ends with. `run` is the run's directory and `next` the command to type next.
pub fn end_of_run(summary: &Summary, run: &Path, next: &str) -> String {
    let mut out = String::new();
    // Writing to a string can't fail.
    let _ = write_end_of_run(&mut out, summary, run, next);
    out
}

fn write_end_of_run(out: &mut String, summary: &Summary, run: &Path, next: &str) -> std::fmt::Result {
    let trained = &summary.trained;
    let percent = 100.0 * trained.trainable_parameters as f64 / (trained.total_parameters as f64).max(1.0);
    let what = match (trained.trained_tensors, trained.adapted_tensors) {
        (0, adapted) => format!("adapters on {}", tensors(adapted)),
        (whole, 0) => format!("{} in full", tensors(whole)),
        (whole, adapted) => format!("{} in full, adapters on {adapted}", tensors(whole)),
    };
    let verb = match &summary.ended {
        Ending::Completed => "Trained".to_string(),
        Ending::EarlyStopped { best_step } => format!("Stopped early (step {best_step} was the best). Trained"),
        Ending::Interrupted => "Interrupted. Trained so far".to_string(),
        Ending::Failed { error } => format!("Failed: {error}\nTrained so far"),
    };
    writeln!(
        out,
        "{verb}: {} of {} parameters of {} ({percent:.2} %) by the policy `{}`, {what}.",
        grouped(trained.trainable_parameters),
        grouped(trained.total_parameters),
        summary.model,
        summary.policy,
    )?;
    write!(
        out,
        "{} of {} steps, {} tokens in {} ({} tokens/s)",
        grouped(summary.steps),
        grouped(summary.planned_steps),
        grouped(summary.tokens),
        duration(summary.seconds.train),
        grouped(summary.tokens_per_s.round() as u64),
    )?;
    if let Some(bytes) = summary.peak_memory.measured_bytes {
        write!(out, ", peak memory {}", memory(bytes))?;
        if let Some(predicted) = summary.peak_memory.predicted_bytes {
            write!(out, " (predicted {})", memory(predicted))?;
        }
    }
    writeln!(out, ".")?;
    write_evaluation(out, summary)?;
    writeln!(out, "\nThe run lies in {}.\nNext: {next}", run.display())
}

/// A table of scores, before and after. Scores that only one side has get a dash on the other.
fn write_evaluation(out: &mut String, summary: &Summary) -> std::fmt::Result {
    let (before, after) = (summary.eval_before.as_ref(), summary.eval_after.as_ref());
    if before.is_none() && after.is_none() {
        return Ok(());
    }
    let mut names: Vec<&str> = Vec::new();
    for name in [before, after].into_iter().flatten().flat_map(|e| e.scores.keys()) {
        if !names.contains(&name.as_str()) {
            names.push(name);
        }
    }
    let width = names.iter().map(|n| n.len()).max().unwrap_or(0).max("held-out data".len());
    writeln!(out, "\n{:width$}  {:>10}    {:>10}", "held-out data", "before", "after")?;
    let mut row = |name: &str, before: Option<f64>, after: Option<f64>| {
        let text = |v: Option<f64>| v.map_or("–".to_string(), |v| format!("{v:.4}"));
        writeln!(out, "{name:width$}  {:>10}  → {:>10}", text(before), text(after))
    };
    row("loss", before.map(|e| e.eval_loss), after.map(|e| e.eval_loss))?;
    for name in names {
        let score = |e: Option<&super::EvalRecord>| e.and_then(|e| e.scores.get(name).copied());
        row(name, score(before), score(after))?;
    }
    Ok(())
}

fn tensors(n: usize) -> String {
    if n == 1 { "1 tensor".to_string() } else { format!("{n} tensors") }
}

/// `1234567` as `1,234,567`.
pub fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// Bytes with a binary unit, three digits: `812 MiB`, `1.27 GiB`.
pub fn memory(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let (mut value, mut unit) = (bytes as f64, 0);
    while value >= 1000.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    let decimals = if unit == 0 || value >= 100.0 { 0 } else { 2 - usize::from(value >= 10.0) };
    format!("{value:.decimals$} {}", UNITS[unit])
}

/// Seconds for a person: `120 ms`, `8.4 s`, `3 min 20 s`, `2 h 05 min`.
pub fn duration(seconds: f64) -> String {
    let whole = seconds.round() as u64;
    match whole {
        _ if seconds < 0.000_05 => "0 s".to_string(),
        _ if seconds < 0.009_95 => format!("{:.1} ms", 1000.0 * seconds),
        _ if seconds < 0.999_5 => format!("{:.0} ms", 1000.0 * seconds),
        _ if seconds < 59.95 => format!("{seconds:.1} s"),
        0..3600 => format!("{} min {:02} s", whole / 60, whole % 60),
        _ => format!("{} h {:02} min", whole / 3600, whole / 60 % 60),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::report::{EvalRecord, Hashes, PeakMemory, PhaseSeconds, Trained};

    fn summary() -> Summary {
        let eval = |step, eval_loss, accuracy| {
            Some(EvalRecord {
                step,
                split: "test".into(),
                eval_loss,
                scores: [("accuracy".to_string(), accuracy)].into(),
            })
        };
        Summary {
            version: 1,
            model: "examples/model".to_string(),
            device: "cpu".to_string(),
            policy: "lora".to_string(),
            ended: Ending::Completed,
            trained: Trained {
                trainable_parameters: 12_345,
                total_parameters: 1_234_567,
                trained_tensors: 0,
                adapted_tensors: 14,
            },
            picks: 0,
            plugin_s: 0.0,
            steps: 300,
            planned_steps: 300,
            tokens: 98_304,
            tokens_per_s: 4021.4,
            final_loss: Some(0.4),
            best_loss: None,
            best_eval_loss: None,
            eval_before: eval(0, 2.1034, 0.25),
            eval_after: eval(300, 0.4312, 0.96),
            peak_memory: PeakMemory {
                predicted_bytes: Some(800 << 20),
                measured_bytes: Some(812 << 20),
                predicted: None,
            },
            seconds: PhaseSeconds { train: 24.44, ..Default::default() },
            first_step_s: Some(0.5),
            versions: super::super::summary::versions(),
            hashes: Hashes::default(),
        }
    }

    #[test]
    fn the_end_of_a_run_says_what_how_where_and_what_next() {
        let text = end_of_run(&summary(), Path::new("runs/quickstart"), "liftplan generate runs/quickstart");
        let expected = "\
Trained: 12,345 of 1,234,567 parameters of examples/model (1.00 %) by the policy `lora`, adapters on 14 tensors.
300 of 300 steps, 98,304 tokens in 24.4 s (4,021 tokens/s), peak memory 812 MiB (predicted 800 MiB).

held-out data      before         after
loss               2.1034  →     0.4312
accuracy           0.2500  →     0.9600

The run lies in runs/quickstart.
Next: liftplan generate runs/quickstart
";
        assert_eq!(text, expected);
    }

    #[test]
    fn a_summary_comes_back_as_it_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let summary = Summary { ended: Ending::EarlyStopped { best_step: 200 }, ..summary() };
        summary.write(dir.path()).unwrap();
        assert_eq!(Summary::read(dir.path()).unwrap(), summary);
    }

    #[test]
    fn numbers_are_readable() {
        assert_eq!([0, 999, 1000, 1234567].map(grouped), ["0", "999", "1,000", "1,234,567"]);
        assert_eq!([512, 1 << 20, 999 << 20, 1300 << 20].map(memory), ["512 B", "1.00 MiB", "999 MiB", "1.27 GiB"]);
        assert_eq!([8.44, 59.97, 200.0, 7500.0].map(duration), ["8.4 s", "1 min 00 s", "3 min 20 s", "2 h 05 min"]);
        assert_eq!([0.0, 0.0042, 0.12].map(duration), ["0 s", "4.2 ms", "120 ms"]);
    }
}
