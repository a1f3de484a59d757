//! The summary: what the numbers support, what they leave open, and what to know before drawing conclusions.

use super::super::score::Better;
use super::super::stats::{Finding, Interval, Paired};
use super::{Report, Row, Statement, StatementKind, Status, costs};
use crate::config::suggest::list;

/// The sentences, most important first.
pub fn summary(report: &Report) -> Vec<Statement> {
    let mut said = Vec::new();
    best(report, &mut said);
    against_baseline(report, &mut said);
    controls(report, &mut said);
    costs::memory_and_speed(report, &mut said);
    costs::choosing(report, &mut said);
    costs::forgetting(report, &mut said);
    cautions(report, &mut said);
    said
}

pub(super) fn say(said: &mut Vec<Statement>, kind: StatementKind, text: String) {
    said.push(Statement { kind, text });
}

/// A score in as many digits as it deserves.
pub fn number(value: f64) -> String {
    match value.abs() {
        large if large >= 100.0 => format!("{value:.1}"),
        medium if medium >= 10.0 => format!("{value:.2}"),
        _ => format!("{value:.4}"),
    }
}

/// A score's name as people write it.
pub fn title(score: &str) -> &str {
    match score {
        "macro_f1" => "macro-F1",
        "ece" => "calibration error",
        "rouge_1" => "ROUGE-1",
        "rouge_2" => "ROUGE-2",
        "rouge_l" => "ROUGE-L",
        other => other,
    }
}

/// A difference, with its sign.
pub fn signed(value: f64) -> String {
    let text = number(value.abs());
    match value {
        // What rounds to nothing has no sign.
        _ if text.chars().all(|c| matches!(c, '0' | '.')) => format!("±{text}"),
        value if value < 0.0 => format!("−{text}"),
        _ => format!("+{text}"),
    }
}

fn range(interval: Interval) -> String {
    format!("{} to {}", signed(interval.low), signed(interval.high))
}

fn ranked(report: &Report) -> Vec<&Row> {
    let mut rows: Vec<&Row> = report.methods.iter().filter(|row| row.score.is_some()).collect();
    let key = |row: &Row| row.score.map_or(f64::NAN, |score| score.mean);
    rows.sort_by(|a, b| match report.setup.better {
        Better::Higher => key(b).total_cmp(&key(a)),
        Better::Lower => key(a).total_cmp(&key(b)),
    });
    rows
}

fn seeds(report: &Report) -> String {
    match report.setup.seeds.len() {
        1 => "one seed".to_string(),
        n => format!("{n} seeds"),
    }
}

fn best(report: &Report, said: &mut Vec<Statement>) {
    let name = &report.setup.score;
    let (named, ranked) = (title(name), ranked(report));
    let Some(first) = ranked.first() else {
        return say(said, StatementKind::Caution, "No method has a score.".into());
    };
    let score = first.score.map_or(f64::NAN, |score| score.mean);
    let base =
        report.base.scores.get(name).map_or(String::new(), |b| format!("; the untouched model has {}", number(*b)));
    let equal: Vec<&str> = ranked
        .iter()
        .filter(|row| row.score.is_some_and(|other| other.mean == score))
        .map(|row| row.name.as_str())
        .collect();
    let has = if equal.len() == 1 { "has" } else { "share" };
    // Who has the same mean need not have the same interval.
    let interval = first.score.and_then(|score| score.interval).filter(|_| equal.len() == 1);
    let spread =
        interval.map_or(String::new(), |i| format!(" (95 % interval {} to {})", number(i.low), number(i.high)));
    // The best of several means is the best by chance as well as by merit.
    // A counterpart was set against its method, and the others against the baseline.
    let (against, other) = match &first.control_of {
        Some(method) => {
            (report.methods.iter().find(|row| row.name == *method).and_then(|row| row.vs_control.as_ref()), method)
        }
        None => (first.vs_baseline.as_ref(), &report.setup.baseline),
    };
    let apart = match against.map(|paired| paired.finding) {
        Some(Finding::Undecided) if equal.len() == 1 => format!("; it is not told apart from {other}"),
        _ => String::new(),
    };
    // One run a method ranks runs, not methods.
    let kind = if report.setup.seeds.len() == 1 { StatementKind::Open } else { StatementKind::Supported };
    let text = format!(
        "{} {has} the best mean {named} on the test data: {}{spread} over {}{base}{apart}.",
        list(&equal),
        number(score),
        seeds(report)
    );
    say(said, kind, text);
    let behind = |row: &&&Row| {
        row.vs_base
            .as_ref()
            .is_some_and(|paired| matches!(paired.finding, Finding::Worse | Finding::Undecided | Finding::Identical))
    };
    let idle: Vec<&str> = ranked.iter().filter(behind).map(|row| row.name.as_str()).collect();
    if !idle.is_empty() {
        say(said, StatementKind::Open, format!("Not shown to be better than the untouched model: {}.", list(&idle)));
    }
}

/// Why a difference whose interval over seeds leaves out zero is left open nevertheless.
fn doubt(paired: &Paired) -> &'static str {
    let clear = |interval: Option<Interval>| interval.is_some_and(|interval| !interval.contains(0.0));
    match (paired.finding, paired.example_interval) {
        (Finding::Undecided, _) if !clear(paired.interval) => "",
        (Finding::Undecided, examples) if examples.is_some() && !clear(examples) => {
            " over seeds, but other test examples could undo it"
        }
        (Finding::Undecided, _) => " over seeds, but one of so many comparisons can be that far off by chance",
        _ => "",
    }
}

/// Whether two methods' runs are alike in everything that was judged, and not only in the score.
fn judged_alike(a: &Row, b: &Row) -> bool {
    let judged = |row: &Row| row.seeds.iter().map(|s| (s.seed, s.scores.clone(), s.general_loss)).collect::<Vec<_>>();
    judged(a) == judged(b)
}

/// One sentence for each kind of finding, all methods of that kind in it.
fn against_baseline(report: &Report, said: &mut Vec<Statement>) {
    let baseline = &report.setup.baseline;
    let with = |finding: Finding| -> Vec<(&Row, &Paired)> {
        let pairs = report.methods.iter().filter_map(|row| Some((row, row.vs_baseline.as_ref()?)));
        pairs.filter(|(_, paired)| paired.finding == finding).collect()
    };
    let each = |found: &[(&Row, &Paired)]| -> String {
        let texts: Vec<String> = found
            .iter()
            .map(|(row, paired)| {
                let range = paired.interval.map_or(String::new(), |interval| format!("; {}", range(interval)));
                format!("{} ({}{range}{})", row.name, signed(paired.difference), doubt(paired))
            })
            .collect();
        list(&texts)
    };
    for (finding, words) in [(Finding::Better, "Better"), (Finding::Worse, "Worse")] {
        let found = with(finding);
        if !found.is_empty() {
            let text =
                format!("{words} than {baseline}, by more than seeds and test examples explain: {}.", each(&found));
            say(said, StatementKind::Supported, text);
        }
    }
    let with_baseline = report.methods.iter().find(|row| row.name == *baseline);
    let (same, coarse): (Vec<_>, Vec<_>) = with(Finding::Identical)
        .into_iter()
        .map(|(row, _)| row)
        .partition(|row| with_baseline.is_some_and(|baseline| judged_alike(row, baseline)));
    let names = |rows: &[&Row]| list(&rows.iter().map(|row| row.name.as_str()).collect::<Vec<_>>());
    if !same.is_empty() {
        let text = format!("No difference from {baseline} in any run: {}.", names(&same));
        say(said, StatementKind::Supported, text);
    }
    if !coarse.is_empty() {
        let text = format!(
            "The same {} as {baseline} in every run, of models that are not the same: {}. More test examples, or another score, may \
             tell them apart.",
            title(&report.setup.score),
            names(&coarse)
        );
        say(said, StatementKind::Open, text);
    }
    let undecided = with(Finding::Undecided);
    if !undecided.is_empty() {
        let text = format!(
            "Not told apart from {baseline} with {} and {} test examples: {}. A difference inside these ranges can be there.",
            seeds(report),
            report.setup.test_examples,
            each(&undecided)
        );
        say(said, StatementKind::Open, text);
    }
    let one = with(Finding::OneSeed);
    if !one.is_empty() {
        let text = format!(
            "With one seed, nothing can be said about {} against {baseline}: how much a method varies from seed to seed is unknown.",
            each(&one)
        );
        say(said, StatementKind::Open, text);
    }
}

fn controls(report: &Report, said: &mut Vec<Statement>) {
    for row in &report.methods {
        let Some(paired) = &row.vs_control else { continue };
        let difference = signed(paired.difference);
        let (kind, text) = match paired.finding {
            Finding::Better => (
                StatementKind::Supported,
                format!("The layers that {} chooses are better than as many drawn at random ({difference}).", row.name),
            ),
            Finding::Worse => (
                StatementKind::Supported,
                format!("The layers that {} chooses are worse than as many drawn at random ({difference}).", row.name),
            ),
            // A score that is the same on every example can hide two different models.
            Finding::Identical => (
                StatementKind::Open,
                format!(
                    "{} has the same {} as with as many layers drawn at random, in every run.",
                    row.name,
                    title(&report.setup.score)
                ),
            ),
            Finding::Undecided | Finding::OneSeed => (
                StatementKind::Open,
                format!(
                    "Nothing shows that the layers {} chooses are better than as many drawn at random ({difference}{}{}).",
                    row.name,
                    paired.interval.map_or(String::new(), |interval| format!("; {}", range(interval))),
                    doubt(paired)
                ),
            ),
        };
        say(said, kind, text);
    }
}

/// A reason without its full stop.
fn bare(reason: &str) -> &str {
    reason.trim_end().trim_end_matches('.')
}

fn cautions(report: &Report, said: &mut Vec<Statement>) {
    if let Some(reason) = &report.base.failure {
        say(said, StatementKind::Caution, format!("The untouched model could not be judged: {}.", bare(reason)));
    }
    for row in report.methods.iter().filter(|row| row.status != Status::Ok) {
        let reason = bare(row.reason.as_deref().unwrap_or("for reasons unknown"));
        let text = match row.status {
            Status::OutOfMemory => format!("{} ran out of memory: {reason}.", row.name),
            _ => format!("{} failed: {reason}. `--retry` runs it again.", row.name),
        };
        say(said, StatementKind::Caution, text);
    }
    for row in report.methods.iter().filter(|row| row.status == Status::Ok) {
        for tried in &row.tried {
            let Some(reason) = &tried.failed else { continue };
            let text = format!(
                "{} could not be chosen with learning rate {:e}, of which a run failed ({reason}): its search was shorter than \
                 the others'. `--retry` runs it again.",
                row.name, tried.lr
            );
            say(said, StatementKind::Caution, text);
        }
    }
    let (mut low, mut high) = (Vec::new(), Vec::new());
    for row in report.methods.iter().filter(|row| row.tried.len() > 1) {
        let Some(lr) = row.lr else { continue };
        // Of equals the smaller one is chosen, and is not the best.
        let best = row.tried.iter().find(|tried| tried.lr == lr).and_then(|tried| tried.validation);
        if row.tried.iter().filter(|tried| tried.validation == best).count() > 1 {
            continue;
        }
        if row.tried.iter().all(|tried| tried.lr >= lr) {
            low.push(row.name.as_str());
        } else if row.tried.iter().all(|tried| tried.lr <= lr) {
            high.push(row.name.as_str());
        }
    }
    for (names, end, beyond) in [(low, "lowest", "lower"), (high, "highest", "higher")] {
        if !names.is_empty() {
            let text = format!(
                "The {end} learning rate that was tried came out best for {}: a {beyond} one may be better still.",
                list(&names)
            );
            say(said, StatementKind::Caution, text);
        }
    }
    if (2..5).contains(&report.setup.seeds.len()) {
        let text = format!(
            "{} seeds show large differences only; what is not told apart here may be with more.",
            report.setup.seeds.len()
        );
        say(said, StatementKind::Caution, text);
    }
    let flat: Vec<&str> = report
        .methods
        .iter()
        .filter(|row| row.seeds.len() > 1)
        .filter(|row| row.score.and_then(|score| score.interval).is_some_and(|i| i.low == i.high))
        .map(|row| row.name.as_str())
        .collect();
    if !flat.is_empty() {
        let text = format!(
            "Every run of {} has the same {}: intervals of no width, which say nothing of how much it varies.",
            list(&flat),
            title(&report.setup.score)
        );
        say(said, StatementKind::Caution, text);
    }
    if report.setup.jobs > 1 {
        let text = format!("{} runs shared the machine: speeds are lower bounds, times upper ones.", report.setup.jobs);
        say(said, StatementKind::Caution, text);
    }
    say(
        said,
        StatementKind::Caution,
        "One model and one data set: on others, the order of the methods can be another.".into(),
    );
}
