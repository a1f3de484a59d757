//! The report as a table for the terminal, and as Markdown.

use std::fmt::Write;

use super::super::agreement::LayerMap;
use super::super::job::Timing;
use super::super::stats::Finding;
use super::words::{number, signed, title};
use super::{Report, Row, StatementKind, Status};
use crate::report::text::{duration, grouped, memory};

/// What a column shows of a row.
struct Column {
    title: String,
    of: fn(&Report, &Row) -> String,
    of_base: fn(&Report) -> String,
}

fn score(_: &Report, row: &Row) -> String {
    match (row.status, row.score) {
        (Status::Ok, Some(score)) => {
            // An interval that ends where the scale does is wider on the other side.
            let half = score.interval.map(|interval| (interval.high - score.mean).max(score.mean - interval.low));
            format!("{}{}", number(score.mean), half.map_or(String::new(), |half| format!(" ± {}", number(half))))
        }
        (Status::OutOfMemory, _) => "out of memory".into(),
        _ => "failed".into(),
    }
}

fn against(row: &Row) -> String {
    let Some(paired) = &row.vs_baseline else { return dash() };
    let word = match paired.finding {
        Finding::Better => " better",
        Finding::Worse => " worse",
        Finding::Identical => " same",
        Finding::Undecided | Finding::OneSeed => " ?",
    };
    format!("{}{word}", signed(paired.difference))
}

fn dash() -> String {
    "–".to_string()
}

fn or_dash<T>(value: Option<T>, show: impl Fn(T) -> String) -> String {
    value.map_or_else(dash, show)
}

fn columns(report: &Report) -> Vec<Column> {
    let mut columns = vec![
        Column {
            title: title(&report.setup.score).to_string(),
            of: score,
            of_base: |report| or_dash(report.base.scores.get(&report.setup.score).copied(), number),
        },
        Column { title: "vs baseline".into(), of: |_, row| against(row), of_base: |_| dash() },
        Column { title: "lr".into(), of: |_, row| or_dash(row.lr, |lr| format!("{lr:e}")), of_base: |_| dash() },
        Column { title: "memory".into(), of: |_, row| or_dash(row.memory.measured_bytes, memory), of_base: |_| dash() },
        Column {
            title: "tokens/s".into(),
            of: |_, row| or_dash(row.tokens_per_s, |speed| grouped(speed.round() as u64)),
            of_base: |_| dash(),
        },
        Column { title: "training".into(), of: |_, row| or_dash(row.train_s, duration), of_base: |_| dash() },
        Column {
            title: "choosing".into(),
            of: |_, row| or_dash(row.selection.as_ref(), |selection| selection.cost.in_words()),
            of_base: |_| dash(),
        },
        Column {
            title: "trained".into(),
            of: |_, row| or_dash(row.trainable_parameters, grouped),
            of_base: |_| "0".into(),
        },
        Column {
            title: "deployed".into(),
            of: |_, row| or_dash(row.deployed.as_ref(), |what| memory(what.bytes)),
            of_base: |_| dash(),
        },
    ];
    if report.methods.iter().any(|row| row.forgetting.is_some()) {
        columns.push(Column {
            title: "forgetting".into(),
            of: |_, row| or_dash(row.forgetting, |rise| signed(rise.mean)),
            of_base: |_| dash(),
        });
    }
    columns
}

/// Titles and cells, the untouched model first.
fn cells(report: &Report) -> (Vec<String>, Vec<Vec<String>>) {
    let columns = columns(report);
    let titles =
        std::iter::once("method".to_string()).chain(columns.iter().map(|column| column.title.clone())).collect();
    let base =
        std::iter::once("untouched model".to_string()).chain(columns.iter().map(|column| (column.of_base)(report)));
    let mut rows = vec![base.collect()];
    for row in &report.methods {
        let name =
            if row.name == report.setup.baseline { format!("{} (baseline)", row.name) } else { row.name.clone() };
        rows.push(std::iter::once(name).chain(columns.iter().map(|column| (column.of)(report, row))).collect());
    }
    (titles, rows)
}

/// The table and the summary for a terminal.
pub fn table(report: &Report) -> String {
    let (titles, rows) = cells(report);
    let width = |column: usize| {
        let all = rows.iter().chain([&titles]).filter_map(|row| row.get(column));
        all.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..titles.len()).map(width).collect();
    let mut out = String::new();
    for row in std::iter::once(&titles).chain(&rows) {
        let mut line = String::new();
        for (i, (cell, width)) in row.iter().zip(&widths).enumerate() {
            // Writing to a string can't fail.
            let _ = match i {
                0 => write!(line, "{cell:width$}"),
                _ => write!(line, "  {cell:>width$}"),
            };
        }
        let _ = writeln!(out, "{}", line.trim_end());
    }
    for (kind, mark) in [(StatementKind::Supported, '•'), (StatementKind::Open, '?'), (StatementKind::Caution, '!')] {
        for statement in report.summary.iter().filter(|statement| statement.kind == kind) {
            let _ = write!(out, "\n{mark} {}", statement.text);
        }
    }
    out.push('\n');
    out
}

/// Text that means nothing to Markdown.
fn plain(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' | '\r' => out.push(' '),
            '<' => out.push_str("&lt;"),
            '&' => out.push_str("&amp;"),
            '\\' | '`' | '*' | '_' | '[' | ']' | '|' | '#' | '~' | '>' => out.extend(['\\', c]),
            _ => out.push(c),
        }
    }
    out
}

/// The report as Markdown.
pub fn markdown(report: &Report) -> String {
    let setup = &report.setup;
    let (titles, rows) = cells(report);
    let mut out = format!("# {}\n\n", plain(&report.title));
    // Writing to a string can't fail.
    let _ = writeln!(
        out,
        "{} on {} test examples, {}; {} and {} a method{}; {}.\n",
        plain(&setup.task),
        setup.test_examples,
        plain(&setup.budget),
        count(setup.seeds.len(), "seed"),
        count(setup.learning_rates, "learning rate"),
        if setup.learning_rates > 1 { ", chosen on validation data" } else { "" },
        plain(&machine(setup))
    );
    out.push_str(&rows_of(&titles, &rows));
    let failed = report.methods.iter().any(|row| row.status != Status::Ok);
    let _ = writeln!(
        out,
        "\n± is half of the 95 % interval over seeds, – what is not there{}.",
        if failed { "; why a method has no score stands below" } else { "" }
    );
    for (kind, title) in [
        (StatementKind::Supported, "What the numbers support"),
        (StatementKind::Open, "What they leave open"),
        (StatementKind::Caution, "Before you draw conclusions"),
    ] {
        let mut statements = report.summary.iter().filter(|statement| statement.kind == kind).peekable();
        if statements.peek().is_some() {
            let _ = writeln!(out, "\n## {title}\n");
            statements.for_each(|statement| out.push_str(&format!("* {}\n", plain(&statement.text))));
        }
    }
    out.push_str(&speeds(report));
    out.push_str(&agreement(report));
    let _ = writeln!(out, "\n## To repeat it\n");
    for (name, version) in &setup.versions {
        let _ = writeln!(out, "* {} {}", plain(name), plain(version));
    }
    let _ = writeln!(out, "* program {}\n* model {}, {}", setup.executable, plain(&setup.model), setup.model_hash);
    for (split, files) in &setup.data {
        for (file, hash) in files {
            let _ = writeln!(out, "* {split} {}, {hash}", plain(file));
        }
    }
    for row in &report.methods {
        // A run that failed before it had a plan has none.
        let plans: Vec<&str> = row.seeds.iter().filter_map(|seed| seed.plan_hash.get(..12)).collect();
        for (setting, hash) in &row.files {
            let _ = writeln!(out, "* {} of {}: {hash}", plain(setting), plain(&row.name));
        }
        if !plans.is_empty() {
            let _ = writeln!(out, "* plans of {}: {}", plain(&row.name), plans.join(", "));
        }
    }
    let fence = "`".repeat(longest_run(&setup.configuration, '`').max(2) + 1);
    let _ = writeln!(out, "\n{fence}toml\n{}\n{fence}", setup.configuration.trim_end());
    out
}

/// A table: titles, a line, rows.
fn rows_of(titles: &[String], rows: &[Vec<String>]) -> String {
    let line = |row: &[String]| format!("| {} |\n", row.iter().map(|cell| plain(cell)).collect::<Vec<_>>().join(" | "));
    let under = titles.iter().map(|_| "---".to_string()).collect::<Vec<_>>();
    [line(titles), line(&under)].into_iter().chain(rows.iter().map(|row| line(row))).collect()
}

/// How fast each result writes, in each form that it can be deployed in; nothing where nothing was timed.
fn speeds(report: &Report) -> String {
    let line = |name: &str, timing: &Timing| -> Vec<String> {
        let form = match timing.form.as_str() {
            "adapter" => "adapter beside the weights",
            "merged" => "adapter merged",
            _ => "weights",
        };
        vec![name.into(), form.into(), duration(timing.first_token_s), duration(timing.next_token_s)]
    };
    let base = report.base.latency.iter().map(|timing| line("untouched model", timing));
    let of_rows = report.methods.iter().flat_map(|row| row.latency.iter().map(|timing| line(&row.name, timing)));
    let rows: Vec<Vec<String>> = base.chain(of_rows).collect();
    if rows.is_empty() {
        return String::new();
    }
    let titles = ["method", "deployed as", "first token", "each after it"].map(String::from);
    format!("\n## Speed of the result\n\n{}", rows_of(&titles, &rows))
}

/// How far the methods' choices of layers agree; nothing where no method chooses.
fn agreement(report: &Report) -> String {
    let chooses = |name: &&String| {
        let row = report.methods.iter().find(|row| row.name == **name);
        row.and_then(|row| row.layers.as_ref()).is_some_and(LayerMap::chooses)
    };
    let agreement = &report.agreement;
    let named = || agreement.methods.iter().enumerate().filter(|(_, name)| chooses(name));
    if named().count() < 2 {
        return String::new();
    }
    let titles: Vec<String> = std::iter::once(String::new()).chain(named().map(|(_, name)| name.clone())).collect();
    let share = |i: usize, j: usize| {
        let value = agreement.overlap.get(i).and_then(|row| row.get(j)).copied();
        or_dash(value, |value| format!("{:.0} %", 100.0 * value))
    };
    let rows: Vec<Vec<String>> = named()
        .map(|(i, name)| std::iter::once(name.clone()).chain(named().map(|(j, _)| share(i, j))).collect())
        .collect();
    format!(
        "\n## Which layers: of what either of two choices trains, the share that both do\n\n{}",
        rows_of(&titles, &rows)
    )
}

fn count(n: usize, what: &str) -> String {
    if n == 1 { format!("one {what}") } else { format!("{n} {what}s") }
}

fn longest_run(text: &str, wanted: char) -> usize {
    text.split(|c| c != wanted).map(str::len).max().unwrap_or(0)
}

/// What computed: the GPUs if there were any, else the processor.
fn machine(setup: &super::Setup) -> String {
    let gpus: Vec<&str> = setup.devices.iter().map(String::as_str).filter(|device| *device != "cpu").collect();
    match gpus[..] {
        [] => setup.machine.cpu.clone().unwrap_or_else(|| setup.machine.platform.clone()),
        _ => gpus.join("; "),
    }
}
