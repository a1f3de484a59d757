//! Where each setting was written, so that an error can name file and line.

use std::collections::BTreeMap;

use toml::de::{DeTable, DeValue};

use crate::Error;

/// From a setting's dotted path (`train.steps`) to where it was written (`quickstart.toml:12`, `--set train.steps=3`).
///
/// Two `Places` are always equal: where a setting was written is no part of a configuration's value.
#[derive(Clone, Debug, Default)]
pub struct Places(BTreeMap<String, String>);

impl PartialEq for Places {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Places {
    /// Adds every key of a parsed document, as `shown:line`.
    pub(super) fn add_document(&mut self, table: &DeTable<'_>, text: &str, shown: &str) {
        self.add_table(table, "", &|offset| format!("{shown}:{}", line_of(text, offset)));
    }

    fn add_table(&mut self, table: &DeTable<'_>, prefix: &str, place: &dyn Fn(usize) -> String) {
        for (key, value) in table.iter() {
            let path =
                if prefix.is_empty() { key.get_ref().to_string() } else { format!("{prefix}.{}", key.get_ref()) };
            self.0.insert(path.clone(), place(key.span().start));
            match value.get_ref() {
                DeValue::Table(inner) => self.add_table(inner, &path, place),
                // Of a list of tables, `[[method]]`, each has its number in its path: `method.0`.
                DeValue::Array(items) => {
                    for (i, item) in items.iter().enumerate() {
                        if let DeValue::Table(inner) = item.get_ref() {
                            let path = format!("{path}.{i}");
                            self.0.insert(path.clone(), place(item.span().start));
                            self.add_table(inner, &path, place);
                        }
                    }
                }
                _ => {}
            }
        }
    }

    /// The places of what lies in the table `prefix`, by their paths from there.
    pub(super) fn below(&self, prefix: &str) -> Self {
        let inside = |path: &String| path.strip_prefix(prefix)?.strip_prefix('.').map(str::to_string);
        Self(self.0.iter().filter_map(|(path, place)| Some((inside(path)?, place.clone()))).collect())
    }

    /// Puts the places of `upper` over these.
    pub(super) fn overlay(&mut self, upper: Self) {
        self.0.extend(upper.0);
    }

    /// Says that `path`, and all above it that were not written yet, come from `place`.
    pub(super) fn add(&mut self, path: &str, place: &str) {
        for (dot, _) in path.match_indices('.') {
            self.0.entry(path[..dot].to_string()).or_insert_with(|| place.to_string());
        }
        self.0.insert(path.to_string(), place.to_string());
    }

    /// Forgets a setting.
    pub(super) fn remove(&mut self, path: &str) {
        self.0.remove(path);
    }

    /// Whether the setting was written, rather than left to its default.
    pub fn has(&self, path: &str) -> bool {
        self.0.contains_key(path)
    }

    /// Where the setting was written, or the nearest table above it that was.
    pub fn of(&self, path: &str) -> Option<&str> {
        let mut path = path;
        loop {
            if let Some(place) = self.0.get(path) {
                return Some(place);
            }
            path = &path[..path.rfind('.')?];
        }
    }

    /// Puts the place in front of an error whose message begins with a setting's name in backquotes.
    pub fn locate(&self, error: Error) -> Error {
        let place = error
            .message()
            .strip_prefix('`')
            .and_then(|rest| rest.split_once('`'))
            .and_then(|(path, _)| self.of(path))
            .map(str::to_string);
        match place {
            Some(place) => error.at(place),
            None => error,
        }
    }
}

/// The line, from 1, in which the byte at `offset` stands.
pub(super) fn line_of(text: &str, offset: usize) -> usize {
    1 + text.bytes().take(offset).filter(|byte| *byte == b'\n').count()
}
