//! The summary's sentences about what methods cost: memory, time, choosing layers, forgetting. Of each the extremes, and whether
//! more than chance sets them apart.

use super::super::agreement::LayerMap;
use super::super::job::PlanCost;
use super::super::stats::apart;
use super::words::{say, signed};
use super::{Report, Row, SeedRow, Statement, StatementKind};
use crate::config::suggest::list;
use crate::report::text::{duration, grouped, memory};

/// The most memory that is not worth telling from so much: 1 % more on a card, where it is counted; 5 % of a process, whose
/// size differs by that from run to run.
fn alike(report: &Report, bytes: u64) -> u64 {
    let devices = &report.setup.devices;
    let counted = !devices.is_empty() && devices.iter().all(|device| device != "cpu");
    bytes + bytes / if counted { 100 } else { 20 }
}

/// What the runs have, one number a seed; nothing if one of them hasn't.
fn by_seed(row: &Row, value: impl Fn(&SeedRow) -> Option<f64>) -> Vec<f64> {
    row.seeds.iter().map(value).collect::<Option<Vec<f64>>>().unwrap_or_default()
}

/// The kind of a sentence about the extremes of `count` methods, and what to add to it, by whether they stand apart.
fn supported(most: &[f64], least: &[f64], count: usize) -> (StatementKind, &'static str) {
    match most.len().min(least.len()) {
        _ if apart(most, least, count) => (StatementKind::Supported, ""),
        // Nobody wrote down how each run fared.
        0 => (StatementKind::Open, ""),
        1 => (StatementKind::Open, ", in one run each"),
        _ => (StatementKind::Open, ", by no more than runs of one method can differ"),
    }
}

/// Who takes the least and the most memory, and who trains fastest and slowest.
pub(super) fn memory_and_speed(report: &Report, said: &mut Vec<Statement>) {
    let measured: Vec<(&Row, u64)> =
        report.methods.iter().filter_map(|row| Some((row, row.memory.measured_bytes?))).collect();
    let least = measured.iter().map(|(_, bytes)| *bytes).min();
    let most = measured.iter().max_by_key(|(_, bytes)| *bytes);
    if let (Some(small), Some((most, large))) = (least, most)
        && alike(report, small) < *large
    {
        let near = alike(report, small);
        let names: Vec<&str> =
            measured.iter().filter(|(_, bytes)| *bytes <= near).map(|(row, _)| row.name.as_str()).collect();
        let needs = if names.len() == 1 { "needs" } else { "need" };
        let text = format!(
            "{} {needs} the least memory, {}; {} the most, {}.",
            list(&names),
            memory(small),
            most.name,
            memory(*large)
        );
        say(said, StatementKind::Supported, text);
    }
    let whole = |speed: f64| grouped(speed.round() as u64);
    let timed: Vec<(&Row, f64)> = report.methods.iter().filter_map(|row| Some((row, row.tokens_per_s?))).collect();
    let fast = timed.iter().max_by(|a, b| a.1.total_cmp(&b.1));
    let slow = timed.iter().min_by(|a, b| a.1.total_cmp(&b.1));
    if let (Some((fast, most)), Some((slow, least))) = (fast, slow)
        && *most > 1.05 * *least
    {
        // What else the machine had to do while one of them trained is unknown then.
        let speeds = |row: &Row| by_seed(row, |seed| seed.tokens_per_s.map(f64::ln));
        let (kind, shared) = match report.setup.jobs {
            0 | 1 => {
                let (kind, doubt) = supported(&speeds(fast), &speeds(slow), timed.len());
                (kind, doubt.to_string())
            }
            jobs => (StatementKind::Open, format!(", while {jobs} runs shared the machine")),
        };
        let text = format!(
            "{} trained fastest, {} tokens a second; {} slowest, {}{shared}.",
            fast.name,
            whole(*most),
            slow.name,
            whole(*least)
        );
        say(said, kind, text);
    }
}

/// What choosing the layers costs, of the methods that choose.
pub(super) fn choosing(report: &Report, said: &mut Vec<Statement>) {
    // Methods that share their planning are told of together.
    let mut shared: Vec<(&PlanCost, Vec<&str>)> = Vec::new();
    let choose = report.methods.iter().filter(|row| row.layers.as_ref().is_some_and(LayerMap::chooses));
    for (row, selection) in choose.filter_map(|row| Some((row, row.selection.as_ref()?))) {
        let with = |names: &Vec<&str>| names.iter().any(|name| selection.shared_with.iter().any(|with| with == name));
        match shared.iter_mut().find(|(_, names)| with(names)) {
            Some((_, names)) => names.push(&row.name),
            None => shared.push((&selection.cost, vec![&row.name])),
        }
    }
    let told = |(cost, names): &(&PlanCost, Vec<&str>)| {
        let held = cost.memory_bytes.map_or(String::new(), |bytes| format!(" and {}", memory(bytes)));
        let takes = format!("{}{held}", duration(cost.seconds));
        match names[..] {
            [name] => format!("{name} takes {takes}"),
            _ => format!("{} take {takes} each (the same work, measured once)", list(names)),
        }
    };
    let costs: Vec<String> = shared.iter().map(told).collect();
    if !costs.is_empty() {
        let text = format!("To choose the layers, once, {}, beside the opened model.", list(&costs));
        say(said, StatementKind::Supported, text);
    }
}

/// Who forgets least and most.
pub(super) fn forgetting(report: &Report, said: &mut Vec<Statement>) {
    let rises: Vec<(&Row, f64)> = report.methods.iter().filter_map(|row| Some((row, row.forgetting?.mean))).collect();
    let least = rises.iter().min_by(|a, b| a.1.total_cmp(&b.1));
    let most = rises.iter().max_by(|a, b| a.1.total_cmp(&b.1));
    if let (Some((least, low)), Some((most, high))) = (least, most)
        && low < high
    {
        let losses = |row: &Row| by_seed(row, |seed| seed.general_loss);
        let (kind, doubt) = supported(&losses(most), &losses(least), rises.len());
        let text = format!(
            "On general text, the loss rises least with {} ({} nats a token) and most with {} ({}){doubt}.",
            least.name,
            signed(*low),
            most.name,
            signed(*high)
        );
        say(said, kind, text);
    }
}
