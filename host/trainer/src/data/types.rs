//! What data becomes: an [`Example`] is one token sequence with its loss mask, a [`Dataset`] is many with the account
//! of the rows they came from.

use std::fmt;
use std::sync::Arc;

use serde::Serialize;

use super::report::RowReport;
use crate::config::DataFormat;

/// Where a row came from.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RowOrigin {
    /// The file, as named in the configuration.
    pub file: Arc<str>,
    /// Line of the file where the row begins, or number of the row (Parquet, JSON arrays), from 1.
    pub line: u64,
    /// Whether `line` counts rows rather than lines.
    pub is_row: bool,
}

impl fmt::Display for RowOrigin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (file, line) = (&self.file, self.line);
        if self.is_row { write!(f, "{file}, row {line}") } else { write!(f, "{file}:{line}") }
    }
}

impl Serialize for RowOrigin {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// One token sequence to train on or to evaluate with.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Example {
    /// Token ids, at least one, at most `max_length`.
    pub ids: Vec<u32>,
    /// Same length as `ids`: whether the loss counts token `i` when it is predicted from tokens `0..i`. The first is
    /// never counted, as nothing precedes it.
    pub is_target: Vec<bool>,
    /// The row it came from.
    pub source: RowOrigin,
    /// `ids[..prompt_tokens]` is what the model is given when it is asked for the (last) answer; 0 for plain text.
    pub prompt_tokens: usize,
    /// The (last) answer in words, for evaluation by generation; none for plain text.
    pub reference: Option<String>,
    /// Index into [`Dataset::labels`]; label rows only.
    pub label: Option<usize>,
}

impl Example {
    /// How many tokens the loss counts.
    pub fn target_count(&self) -> usize {
        self.is_target.iter().filter(|&&target| target).count()
    }

    /// The tokens that the model is given when it is asked for the (last) answer.
    pub fn prompt_ids(&self) -> &[u32] {
        self.ids.get(..self.prompt_tokens).unwrap_or(&self.ids)
    }
}

/// Examples, and the account of the rows they came from.
#[derive(Clone, Debug, Serialize)]
pub struct Dataset {
    /// The examples, in the order of the files and their rows.
    pub examples: Vec<Example>,
    /// What the rows are; never [`DataFormat::Auto`].
    pub format: DataFormat,
    /// The labels that [`Example::label`] counts in; empty unless the rows are label rows.
    pub labels: Vec<String>,
    /// For each label, the tokens with which the model answers it, the ending token included.
    pub label_ids: Vec<Vec<u32>>,
    /// What became of the rows.
    pub rows: RowReport,
}

impl Dataset {
    /// All tokens.
    pub fn token_count(&self) -> u64 {
        self.examples.iter().map(|e| e.ids.len() as u64).sum()
    }

    /// All tokens that the loss counts.
    pub fn target_count(&self) -> u64 {
        self.examples.iter().map(|e| e.target_count() as u64).sum()
    }
}
