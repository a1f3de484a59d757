//! The account of the rows: how many were read, used, cut, or left out, why, and where the first of each kind stand.
//!
//! In: one call a finding, in the order of the rows. Out: [`RowReport`], and an error where the configuration asks for
//! one.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::Serialize;

use super::types::RowOrigin;
use crate::config::{DataConfig, OnProblem, TooLong};
use crate::{Error, Result};

/// How many places are named for each kind of finding.
const PLACES_SHOWN: usize = 5;

/// What can be found about a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Finding {
    /// Left out: not valid UTF-8, JSON or CSV, or not of the format.
    Undecodable,
    /// Left out: no text, or nothing to learn.
    Empty,
    /// Left out: no label or answer, or a label that is not among the labels.
    Unlabelled,
    /// Left out: longer than `max_length`.
    TooLong,
    /// Left out: cut to `max_length`, which left no target token.
    CutToNothing,
    /// Used: cut to `max_length`.
    Cut,
    /// Used: its own text holds a special token's text, which was read as that token, as `transformers` does.
    SpecialTokenInText,
    /// Used: prompt and completion share a token, so that the prompt alone encodes differently.
    SharedToken,
}

impl Finding {
    /// Whether the row is left out.
    pub fn is_drop(self) -> bool {
        !matches!(self, Self::Cut | Self::SpecialTokenInText | Self::SharedToken)
    }

    /// In words, for a line that begins with a count of rows.
    pub fn describe(self) -> &'static str {
        match self {
            Self::Undecodable => "left out: not readable",
            Self::Empty => "left out: empty",
            Self::Unlabelled => "left out: no label or answer",
            Self::TooLong => "left out: longer than max_length",
            Self::CutToNothing => "left out: cut to max_length, which left nothing to learn",
            Self::Cut => "cut to max_length",
            Self::SpecialTokenInText => "with a special token's text in their own, read as that token",
            Self::SharedToken => "whose prompt and completion share a token",
        }
    }
}

/// One finding's rows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct FindingReport {
    /// How many rows.
    pub count: u64,
    /// The first of them.
    pub first: Vec<Place>,
}

/// A row, and what was found there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Place {
    /// The row.
    pub at: RowOrigin,
    /// What is wrong there.
    pub what: String,
}

/// What became of the rows of some files. Each row read is either used or left out for exactly one reason.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct RowReport {
    /// Rows read.
    pub read: u64,
    /// Rows that became examples.
    pub used: u64,
    /// What was found, by kind.
    pub findings: BTreeMap<Finding, FindingReport>,
    /// Remarks on the files as a whole, such as how the format was told.
    pub notes: Vec<String>,
}

impl RowReport {
    /// Counts a finding.
    pub fn add(&mut self, finding: Finding, at: &RowOrigin, what: impl Into<String>) {
        let entry = self.findings.entry(finding).or_default();
        entry.count += 1;
        if entry.first.len() < PLACES_SHOWN {
            entry.first.push(Place { at: at.clone(), what: what.into() });
        }
    }

    /// How many rows were left out.
    pub fn dropped(&self) -> u64 {
        self.findings.iter().filter(|(f, _)| f.is_drop()).map(|(_, r)| r.count).sum()
    }

    /// How many rows a finding has.
    pub fn count(&self, finding: Finding) -> u64 {
        self.findings.get(&finding).map_or(0, |r| r.count)
    }

    /// The error that the configuration asks for, if rows with such findings are not to be left out.
    pub fn check(&self, config: &DataConfig) -> Result<()> {
        let rules = [
            (Finding::Undecodable, config.undecodable == OnProblem::Error, "undecodable"),
            (Finding::Empty, config.empty == OnProblem::Error, "empty"),
            (Finding::Unlabelled, config.unlabelled == OnProblem::Error, "unlabelled"),
            (Finding::TooLong, config.too_long == TooLong::Error, "too_long"),
        ];
        for (finding, is_error, setting) in rules {
            let Some(report) = self.findings.get(&finding).filter(|_| is_error) else { continue };
            let Some(place) = report.first.first() else { continue };
            let mut message = format!("{}: {}", place.at, place.what);
            if report.count > 1 {
                let others: Vec<_> = report.first.iter().skip(1).map(|p| p.at.to_string()).collect();
                let more = if report.count as usize > report.first.len() { ", …" } else { "" };
                let _ = write!(message, " ({} rows like this, also {}{more})", report.count, others.join(", "));
            }
            let mut help = format!("mend the row, or leave such rows out with data.{setting} = \"drop\"");
            if finding == Finding::TooLong {
                help += ", cut them with data.too_long = \"truncate\", or raise data.max_length";
            }
            return Err(Error::data(message).help(help));
        }
        Ok(())
    }

    /// The account in words: one line a kind of finding, with its first places beneath.
    pub fn render(&self) -> String {
        let mut out = format!("{} rows read, {} used, {} left out\n", self.read, self.used, self.dropped());
        for note in &self.notes {
            let _ = writeln!(out, "  {note}");
        }
        for (finding, report) in &self.findings {
            let _ = writeln!(
                out,
                "  {} {} {}",
                report.count,
                if report.count == 1 { "row" } else { "rows" },
                finding.describe()
            );
            for place in &report.first {
                let _ = writeln!(out, "    {}: {}", place.at, place.what);
            }
            if report.count as usize > report.first.len() {
                let _ = writeln!(out, "    … and {} more", report.count as usize - report.first.len());
            }
        }
        out
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn at(line: u64) -> RowOrigin {
        RowOrigin { file: "a.jsonl".into(), line, is_row: false }
    }

    #[test]
    fn each_kind_is_counted_and_its_first_places_named() {
        let mut report = RowReport { read: 9, used: 2, ..Default::default() };
        for line in 1..=7 {
            report.add(Finding::Empty, &at(line), "no text");
        }
        report.add(Finding::Cut, &at(9), "30 tokens");
        assert_eq!((report.dropped(), report.count(Finding::Empty), report.count(Finding::TooLong)), (7, 7, 0));
        let text = report.render();
        assert!(
            text.starts_with("9 rows read, 2 used, 7 left out\n  7 rows left out: empty\n    a.jsonl:1: no text\n"),
            "{text}"
        );
        assert!(text.contains("    … and 2 more\n  1 row cut to max_length\n"), "{text}");
    }

    #[test]
    fn the_configuration_makes_errors_of_findings() {
        let mut report = RowReport::default();
        report.add(Finding::Empty, &at(3), "no text");
        report.add(Finding::Empty, &at(4), "no text");
        let mut config = DataConfig::default();
        assert!(report.check(&config).is_ok());
        config.empty = OnProblem::Error;
        let error = report.check(&config).unwrap_err();
        assert_eq!(error.message(), "a.jsonl:3: no text (2 rows like this, also a.jsonl:4)");
        assert!(error.help_text().unwrap().contains("data.empty = \"drop\""));
    }
}
