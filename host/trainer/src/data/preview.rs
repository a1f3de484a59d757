//! Examples for a person to look at: their text, with what the loss counts set off.
//!
//! In: a [`Dataset`] and the tokenizer. Out: [`Preview`], which is JSON for machines and [`Preview::render`]s for people.

use std::fmt::Write as _;

use serde::Serialize;

use super::report::RowReport;
use super::types::{Dataset, RowOrigin};
use crate::Result;
use crate::config::DataFormat;
use crate::model::TextTokenizer;

/// What colour sets off: green and bold, then back.
const ON: &str = "\u{1b}[1;32m";
const OFF: &str = "\u{1b}[0m";

/// The first examples of a data set, and the account of its rows.
#[derive(Clone, Debug, Serialize)]
pub struct Preview {
    /// What the rows are.
    pub format: DataFormat,
    /// The first examples.
    pub examples: Vec<PreviewExample>,
    /// How many examples there are.
    pub total_examples: usize,
    /// Their tokens.
    pub total_tokens: u64,
    /// Those of them that the loss counts.
    pub total_targets: u64,
    /// Tokens of the longest example.
    pub longest: usize,
    /// The labels; empty unless the rows are label rows.
    pub labels: Vec<String>,
    /// What became of the rows.
    pub rows: RowReport,
}

/// One example.
#[derive(Clone, Debug, Serialize)]
pub struct PreviewExample {
    /// The row it came from.
    pub source: RowOrigin,
    /// Its tokens.
    pub tokens: usize,
    /// Those of them that the loss counts.
    pub targets: usize,
    /// Its text, in runs of tokens that count or do not.
    pub segments: Vec<Segment>,
}

/// A run of tokens that all count, or none of them.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Segment {
    /// Whether the loss counts them.
    pub is_target: bool,
    /// Their text, special tokens included.
    pub text: String,
}

/// The first `show` examples.
///
/// # Errors
/// The tokenizer cannot decode.
pub fn preview(data: &Dataset, tokenizer: &TextTokenizer, show: usize) -> Result<Preview> {
    preview_by(data, |ids| tokenizer.decode(ids, false), show)
}

fn preview_by(data: &Dataset, decode: impl Fn(&[u32]) -> Result<String>, show: usize) -> Result<Preview> {
    let mut examples = Vec::new();
    for example in data.examples.iter().take(show) {
        let mut segments = Vec::new();
        let mut start = 0;
        for run in example.is_target.chunk_by(|a, b| a == b) {
            let end = start + run.len();
            let text = decode(example.ids.get(start..end).unwrap_or_default())?;
            segments.push(Segment { is_target: run[0], text });
            start = end;
        }
        let (tokens, targets) = (example.ids.len(), example.target_count());
        examples.push(PreviewExample { source: example.source.clone(), tokens, targets, segments });
    }
    Ok(Preview {
        format: data.format,
        examples,
        total_examples: data.examples.len(),
        total_tokens: data.token_count(),
        total_targets: data.target_count(),
        longest: data.examples.iter().map(|example| example.ids.len()).max().unwrap_or(0),
        labels: data.labels.clone(),
        rows: data.rows.clone(),
    })
}

impl Preview {
    /// For a terminal: what the loss counts is in colour, or, without colour, between `⟦` and `⟧`. Control characters
    /// other than line breaks and tabs are shown as `\u{…}`, so that data cannot steer the terminal.
    pub fn render(&self, colour: bool) -> String {
        let (on, off) = if colour { (ON, OFF) } else { ("⟦", "⟧") };
        let mut out = String::new();
        for (index, example) in self.examples.iter().enumerate() {
            let PreviewExample { source, tokens, targets, segments } = example;
            let _ = writeln!(out, "── example {} · {source} · {tokens} tokens, {targets} counted", index + 1);
            for segment in segments {
                let text = harmless(&segment.text);
                match segment.is_target {
                    true => out.extend([on, &text, off]),
                    false => out.push_str(&text),
                }
            }
            out.push_str("\n\n");
        }
        let legend = if colour { format!("{ON}in colour{OFF}") } else { "⟦set off⟧".to_string() };
        let _ = writeln!(out, "The loss counts what is {legend}.");
        let (examples, tokens, targets) = (self.total_examples, self.total_tokens, self.total_targets);
        let share = if tokens == 0 { 0.0 } else { 100.0 * targets as f64 / tokens as f64 };
        let name = self.format.name();
        let longest = self.longest;
        let _ = writeln!(
            out,
            "{examples} examples ({name}), {tokens} tokens, {targets} counted ({share:.0} %), the longest {longest}"
        );
        if !self.labels.is_empty() {
            let labels = self.labels.iter().take(20).map(|label| harmless(label)).collect::<Vec<_>>().join(", ");
            let _ = writeln!(out, "{} labels: {labels}", self.labels.len());
        }
        out.push_str(&harmless(&self.rows.render()));
        out
    }
}

fn harmless(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' | '\t' => out.push(c),
            c if c.is_control() => out.extend(c.escape_unicode()),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::data::types::Example;

    fn data() -> Dataset {
        let source = RowOrigin { file: "a.jsonl".into(), line: 7, is_row: false };
        let example = Example {
            ids: "Hi\u{1b}ok".bytes().map(u32::from).collect(),
            is_target: vec![false, false, false, true, true],
            source,
            prompt_tokens: 3,
            reference: None,
            label: None,
        };
        let rows = RowReport { read: 1, used: 1, ..Default::default() };
        Dataset { examples: vec![example], format: DataFormat::Text, labels: vec![], label_ids: vec![], rows }
    }

    fn shown() -> Preview {
        preview_by(&data(), |ids| Ok(ids.iter().map(|&id| id as u8 as char).collect()), 3).unwrap()
    }

    #[test]
    fn what_counts_is_set_off_with_and_without_colour() {
        let plain = shown().render(false);
        let first = "── example 1 · a.jsonl:7 · 5 tokens, 2 counted\nHi\\u{1b}⟦ok⟧\n";
        assert!(plain.starts_with(first), "{plain}");
        assert!(plain.contains("1 examples (text), 5 tokens, 2 counted (40 %), the longest 5\n1 rows read"), "{plain}");
        assert!(!plain.contains('\u{1b}'));
        assert!(shown().render(true).contains("Hi\\u{1b}\u{1b}[1;32mok\u{1b}[0m"));
    }

    #[test]
    fn machines_get_runs_and_counts() {
        let json = serde_json::to_value(shown()).unwrap();
        assert_eq!(json["examples"][0]["source"], "a.jsonl:7");
        assert_eq!(json["examples"][0]["segments"][1], serde_json::json!({"is_target": true, "text": "ok"}));
        assert_eq!(json["total_targets"], 2);
    }
}
