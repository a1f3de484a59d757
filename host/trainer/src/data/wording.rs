//! A prompt's wording, `{text}\nLabel:`, in which `{column}` stands for a row's value.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::read::kind_of;
use super::report::Finding;
use crate::{Error, Result};

/// A wording, taken apart.
#[derive(Clone, Debug, PartialEq)]
pub struct Wording {
    parts: Vec<Part>,
}

#[derive(Clone, Debug, PartialEq)]
enum Part {
    Words(String),
    Column(String),
}

impl Wording {
    /// Takes a wording apart; `{{` and `}}` are braces.
    ///
    /// # Errors
    /// A brace that nothing closes or opens, or a wording without any column.
    pub fn parse(wording: &str) -> Result<Self> {
        let invalid = |what: &str| {
            Error::config(format!("`data.prompt` {what}"))
                .help("write {column} for a row's value, and {{ and }} for braces, as in \"{text}\\nLabel:\"")
        };
        let mut parts = Vec::new();
        let mut words = String::new();
        let mut chars = wording.chars().peekable();
        while let Some(c) = chars.next() {
            match c {
                '{' | '}' if chars.peek() == Some(&c) => {
                    chars.next();
                    words.push(c);
                }
                '{' => {
                    let mut column = String::new();
                    loop {
                        match chars.next() {
                            Some('}') => break,
                            Some('{') | None => return Err(invalid("has a { that no } closes")),
                            Some(c) => column.push(c),
                        }
                    }
                    if column.is_empty() {
                        return Err(invalid("has {} without a column's name"));
                    }
                    parts.push(Part::Words(std::mem::take(&mut words)));
                    parts.push(Part::Column(column));
                }
                '}' => return Err(invalid("has a } that no { opens")),
                c => words.push(c),
            }
        }
        parts.push(Part::Words(words));
        if !parts.iter().any(|part| matches!(part, Part::Column(_))) {
            return Err(invalid("names no column, so that all prompts would be the same"));
        }
        Ok(Self { parts })
    }

    /// Checks that the columns exist.
    ///
    /// # Errors
    /// One does not.
    pub fn check(&self, file: &str, columns: &BTreeSet<String>) -> Result<()> {
        for part in &self.parts {
            if let Part::Column(column) = part
                && !columns.contains(column)
            {
                let found: Vec<_> = columns.iter().map(|c| format!("`{c}`")).collect();
                return Err(Error::config(format!(
                    "`data.prompt` names the column `{column}`, but {file} has {}",
                    found.join(", ")
                )));
            }
        }
        Ok(())
    }

    /// The prompt of a row. Absent values are empty.
    ///
    /// # Errors
    /// A value that is no text, as a finding.
    pub fn fill(&self, row: &Map<String, Value>) -> Result<String, (Finding, String)> {
        let mut prompt = String::new();
        for part in &self.parts {
            match part {
                Part::Words(words) => prompt.push_str(words),
                Part::Column(column) => match row.get(column) {
                    None | Some(Value::Null) => {}
                    Some(Value::String(text)) => prompt.push_str(text),
                    Some(value @ (Value::Number(_) | Value::Bool(_))) => prompt.push_str(&value.to_string()),
                    Some(other) => {
                        return Err((Finding::Undecodable, format!("`{column}` is {}, not a text", kind_of(other))));
                    }
                },
            }
        }
        Ok(prompt)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use serde_json::json;

    fn fill(wording: &str) -> String {
        let Value::Object(row) = json!({"text": "T {x}", "n": 3, "none": null}) else { unreachable!() };
        Wording::parse(wording).unwrap().fill(&row).unwrap()
    }

    #[test]
    fn columns_and_braces() {
        assert_eq!(fill("{text}\nLabel:"), "T {x}\nLabel:");
        assert_eq!(fill("{{{n}}} {text}{none}"), "{3} T {x}");
    }

    #[test]
    fn wordings_that_cannot_be_meant_are_errors() {
        for wording in ["{text", "text}", "{}", "{a{b}}", "no column"] {
            assert!(Wording::parse(wording).unwrap_err().message().starts_with("`data.prompt` "), "{wording}");
        }
        let columns = BTreeSet::from(["text".to_string()]);
        let error = Wording::parse("{txt}").unwrap().check("a.csv", &columns).unwrap_err();
        assert_eq!(error.message(), "`data.prompt` names the column `txt`, but a.csv has `text`");
    }
}
