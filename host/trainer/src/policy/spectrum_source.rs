//! What the policy `spectrum` can take instead of statistics: a list of what to unfreeze, or scores, from a file or
//! written into the configuration. Resolving reads the file, so that a plan and its hash hold what was in it.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::Path;

use serde::de::{MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use super::ModelView;
use crate::config::suggest;
use crate::model::inventory::Kind;
use crate::stats::spectrum_files::{ALWAYS_WRITTEN, read_scores, read_unfrozen};
use crate::{Error, ErrorKind, Result};

/// Regular expressions for the beginnings of parameters' names.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub(super) enum Unfrozen {
    File(String),
    List(Vec<String>),
}

/// Scores by layer or tensor.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub(super) enum Scores {
    File(String),
    Table(BTreeMap<String, f64>),
}

fn read_file(setting: &str, file: &str) -> Result<String> {
    fs::read_to_string(file).map_err(|error| {
        let error = Error::io(ErrorKind::Config, "read", Path::new(file), &error);
        Error::config(format!("`{setting}`: {}", error.message()))
            .help("name a file; a path is relative to the configuration")
    })
}

/// `setting`: FILE: what is wrong in it.
fn in_file(setting: &str, file: &str, error: Error) -> Error {
    let wrong = Error::config(format!("`{setting}`: {file}: {}", error.message()));
    match error.help_text() {
        Some(help) => wrong.help(help),
        None => wrong,
    }
}

fn expression(setting: &str, text: &str) -> Result<regex::Regex> {
    // `re.match`, with which Spectrum's users apply the list, matches at the beginning only.
    regex::Regex::new(&format!("^(?:{text})"))
        .map_err(|_| Error::config(format!("`{setting}`: `{text}` is not a regular expression")))
}

impl Unfrozen {
    /// Reads the file, if it is one, and checks every entry.
    pub(super) fn read(&mut self, setting: &str) -> Result<()> {
        if let Unfrozen::File(file) = self {
            let list = read_unfrozen(&read_file(setting, file)?).map_err(|error| in_file(setting, file, error))?;
            *self = Unfrozen::List(list);
        }
        let entries = self.entries();
        if entries.is_empty() {
            return Err(Error::config(format!("`{setting}` is an empty list")));
        }
        entries.iter().try_for_each(|entry| expression(setting, entry).map(|_| ()))
    }

    fn entries(&self) -> &[String] {
        match self {
            Unfrozen::File(_) => &[],
            Unfrozen::List(list) => list,
        }
    }

    /// The tensors that the entries match, one flag a tensor. Each must match some, but for the two that Spectrum's
    /// script always writes: they say nothing about what its user wanted.
    pub(super) fn choose(&self, setting: &str, view: &ModelView<'_>) -> Result<Vec<bool>> {
        let mut chosen = vec![false; view.tensors().len()];
        for entry in self.entries().iter().filter(|entry| !ALWAYS_WRITTEN.contains(&entry.as_str())) {
            let expression = expression(setting, entry)?;
            let mut found = false;
            for (flag, info) in chosen.iter_mut().zip(view.tensors()) {
                if expression.is_match(&info.name) {
                    (*flag, found) = (true, true);
                }
            }
            if !found {
                let error = Error::plan(format!("`{setting}`: `{entry}` matches no tensor of the model"));
                let names = view.tensors().iter().map(|info| info.name.trim_end_matches(".weight"));
                return Err(match suggest::nearest(entry, names) {
                    Some(near) => error.help(format!("is the list for this model? The nearest name is `{near}`")),
                    None => error.help("is the list for this model?"),
                });
            }
        }
        if !chosen.contains(&true) && !view.tensors().iter().any(|info| info.kind == Kind::Linear) {
            return Err(Error::plan(format!("`{setting}` leaves nothing to train")));
        }
        Ok(chosen)
    }
}

impl Scores {
    /// Reads the file, if it is one, and checks every score.
    pub(super) fn read(&mut self, setting: &str) -> Result<()> {
        if let Scores::File(file) = self {
            let table = read_scores(&read_file(setting, file)?).map_err(|error| in_file(setting, file, error))?;
            *self = Scores::Table(table);
        }
        let Scores::Table(table) = self else { return Ok(()) };
        match table.iter().find(|(_, score)| !score.is_finite()) {
            Some((layer, score)) => Err(Error::config(format!("`{setting}`: the score of `{layer}` is {score}"))),
            None => Ok(()),
        }
    }

    /// The score of a tensor, by its own or its layer's name.
    pub(super) fn of(&self, setting: &str, tensor: &str) -> Result<f64> {
        let table = match self {
            Scores::Table(table) => table,
            Scores::File(_) => return Err(Error::internal("the scores were never read")),
        };
        let layer = tensor.strip_suffix(".weight").unwrap_or(tensor);
        table.get(tensor).or_else(|| table.get(layer)).copied().ok_or_else(|| {
            Error::plan(format!("`{setting}` has no score for `{layer}`"))
                .help("are the scores for this model? Exclude what has none with policy.exclude")
        })
    }
}

impl<'de> Deserialize<'de> for Unfrozen {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Unfrozen;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a file or a list of names")
            }
            fn visit_str<E>(self, text: &str) -> std::result::Result<Unfrozen, E> {
                Ok(Unfrozen::File(text.to_string()))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> std::result::Result<Unfrozen, A::Error> {
                let mut list = Vec::new();
                while let Some(text) = items.next_element()? {
                    list.push(text);
                }
                Ok(Unfrozen::List(list))
            }
        }
        deserializer.deserialize_any(Reader)
    }
}

impl<'de> Deserialize<'de> for Scores {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Scores;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a file or a table of scores")
            }
            fn visit_str<E>(self, text: &str) -> std::result::Result<Scores, E> {
                Ok(Scores::File(text.to_string()))
            }
            fn visit_map<A: MapAccess<'de>>(self, mut items: A) -> std::result::Result<Scores, A::Error> {
                let mut table = BTreeMap::new();
                while let Some((layer, score)) = items.next_entry()? {
                    table.insert(layer, score);
                }
                Ok(Scores::Table(table))
            }
        }
        deserializer.deserialize_any(Reader)
    }
}
