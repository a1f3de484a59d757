//! A TOML file and `--set` overrides in, one tree of values with the place of each out.
//!
//! An override is `path=value`, the value as TOML would have it: `train.steps=20`, `policy.targets=["q_proj"]`,
//! `optimizer.lr=1e-3`. A value that isn't TOML is taken as a string, so that `model=org/name` needs no quotes. An override
//! of one of two settings that exclude each other (`train.steps`, `train.epochs`) takes the place of the other.

use serde_json::{Map, Number, Value};
use toml::de::DeTable;

use super::places::{Places, line_of};
use crate::{Error, Result};

/// What was written, and where.
pub(super) struct Source {
    /// The file's values with the overrides in their places.
    pub value: Map<String, Value>,
    /// Where each stands.
    pub places: Places,
}

/// Settings of which an override drops the other.
pub(super) const ALTERNATIVES: [(&str, &str); 3] = [
    ("train.steps", "train.epochs"),
    ("schedule.warmup_steps", "schedule.warmup_ratio"),
    ("data.validation", "data.validation_split"),
];

/// Parses `text`, which messages call `shown`, and puts `overrides` over it.
pub(super) fn read(text: &str, shown: &str, overrides: &[String]) -> Result<Source> {
    let syntax = |error: toml::de::Error| {
        let place = match error.span() {
            Some(span) => {
                let start = text[..span.start.min(text.len())].rfind('\n').map_or(0, |newline| newline + 1);
                format!("{shown}:{}:{}", line_of(text, span.start), span.start - start + 1)
            }
            None => shown.to_string(),
        };
        Error::config(format!("{place}: not valid TOML: {}", error.message().trim()))
            .help("strings need quotes, and each `key = value` stands on its own line; see https://toml.io")
    };
    let document = DeTable::parse(text).map_err(syntax)?;
    let table: toml::Table = toml::from_str(text).map_err(syntax)?;
    let mut places = Places::default();
    places.add_document(document.get_ref(), text, shown);
    let mut value = Map::new();
    for (key, item) in table {
        let item = to_json(item, &key).map_err(|error| places.locate(error))?;
        value.insert(key, item);
    }
    let mut source = Source { value, places };
    for text in overrides {
        source.set(text)?;
    }
    Ok(source)
}

impl Source {
    /// Puts one override in its place.
    fn set(&mut self, text: &str) -> Result<()> {
        let place = format!("--set {text}");
        let wrong = |what: &str| {
            Error::config(format!("{place}: {what}")).help("write it as path=value, for example --set train.steps=20")
        };
        let (path, raw) = text.split_once('=').ok_or_else(|| wrong("there is no `=` in it"))?;
        let (path, raw) = (path.trim(), raw.trim());
        if raw.is_empty() {
            return Err(wrong("there is no value after the `=`"));
        }
        let keys = key_path(path).ok_or_else(|| wrong("the part before the `=` is not a setting's name"))?;
        let written = toml::from_str::<toml::Table>(&format!("value = {raw}")).ok();
        let parsed = match written.and_then(|mut table| if table.len() == 1 { table.remove("value") } else { None }) {
            Some(value) => value,
            None if raw.starts_with(['[', '{']) && !raw.contains(['"', '\'']) => {
                return Err(Error::config(format!("{place}: the value is not valid TOML")).help(format!(
                    "a text that begins with `{}` needs quotes, and these the shell's: --set '{path}=\"{raw}\"'",
                    &raw[..1]
                )));
            }
            None if raw.starts_with(['"', '\'', '[', '{']) => return Err(wrong("the value is not valid TOML")),
            None => toml::Value::String(raw.to_string()),
        };
        let dotted = keys.join(".");
        for (a, b) in ALTERNATIVES {
            if dotted == a {
                self.remove(b);
            } else if dotted == b {
                self.remove(a);
            }
        }
        let parsed = to_json(parsed, &dotted).map_err(|error| error.at(&place))?;
        self.places.add(&dotted, &place);
        let mut at = &mut self.value;
        let (last, above) = keys.split_last().ok_or_else(|| wrong("the part before the `=` is empty"))?;
        for key in above {
            let next = at.entry(key.clone()).or_insert_with(|| Value::Object(Map::new()));
            at = next.as_object_mut().ok_or_else(|| wrong(&format!("`{key}` is a value, not a table of settings")))?;
        }
        match (at.get_mut(last), parsed) {
            (Some(Value::Object(old)), Value::Object(new)) => old.extend(new),
            (_, parsed) => {
                at.insert(last.clone(), parsed);
            }
        }
        Ok(())
    }

    fn remove(&mut self, path: &str) {
        if let Some((section, key)) = path.split_once('.') {
            if let Some(table) = self.value.get_mut(section).and_then(Value::as_object_mut) {
                table.remove(key);
            }
            self.places.remove(path);
        }
    }
}

/// The keys of a dotted TOML path, quotes undone.
fn key_path(path: &str) -> Option<Vec<String>> {
    let mut table: toml::Table = toml::from_str(&format!("{path} = 0")).ok()?;
    let mut keys = Vec::new();
    loop {
        if table.len() != 1 {
            return None;
        }
        let (key, value) = table.into_iter().next()?;
        keys.push(key);
        match value {
            toml::Value::Table(inner) => table = inner,
            toml::Value::Integer(0) => return Some(keys),
            _ => return None,
        }
    }
}

/// TOML as JSON, which is what settings are checked as. Dates and numbers that aren't finite have no place in either.
fn to_json(value: toml::Value, path: &str) -> Result<Value> {
    Ok(match value {
        toml::Value::String(text) => Value::String(text),
        toml::Value::Integer(number) => Value::Number(number.into()),
        toml::Value::Float(number) => Value::Number(
            Number::from_f64(number)
                .ok_or_else(|| Error::config(format!("`{path}` must be a finite number, not {number}")))?,
        ),
        toml::Value::Boolean(flag) => Value::Bool(flag),
        toml::Value::Datetime(date) => {
            return Err(Error::config(format!("`{path}` is a date ({date}), and no setting is one"))
                .help("put it in quotes if a string was meant"));
        }
        toml::Value::Array(items) => {
            Value::Array(items.into_iter().map(|item| to_json(item, path)).collect::<Result<_>>()?)
        }
        toml::Value::Table(table) => {
            let mut object = Map::new();
            for (key, item) in table {
                let item = to_json(item, &format!("{path}.{key}"))?;
                object.insert(key, item);
            }
            Value::Object(object)
        }
    })
}
