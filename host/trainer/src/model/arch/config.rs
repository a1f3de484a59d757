//! Typed, checked access to a `config.json`: each error names the file, the key, what is there and what was expected.

use serde_json::{Map, Value};

use crate::{Error, Result};

/// A model's configuration with the place it came from.
pub struct Config<'a> {
    origin: String,
    keys: &'a Map<String, Value>,
}

impl<'a> Config<'a> {
    /// Wraps a configuration; `origin` is put in front of each message.
    ///
    /// # Errors
    /// The configuration isn't a JSON object.
    pub fn new(origin: impl Into<String>, config: &'a Value) -> Result<Self> {
        let origin = origin.into();
        match config.as_object() {
            Some(keys) => Ok(Self { origin, keys }),
            None => Err(Error::model(format!("{origin}: expected a JSON object"))),
        }
    }

    /// An error about this configuration.
    pub fn error(&self, message: impl Into<String>) -> Error {
        Error::model(message).at(&self.origin)
    }

    fn get(&self, key: &str) -> Option<&'a Value> {
        self.keys.get(key).filter(|value| !value.is_null())
    }

    fn wrong(&self, key: &str, found: &Value, expected: &str) -> Error {
        let mut found = found.to_string();
        if found.chars().count() > 60 {
            found = found.chars().take(60).chain("…".chars()).collect();
        }
        self.error(format!("`{key}` is {found}; expected {expected}"))
    }

    /// Whether the key is there and null, which some families distinguish from its absence.
    pub fn is_null(&self, key: &str) -> bool {
        self.keys.get(key).is_some_and(Value::is_null)
    }

    /// A whole number that must be there.
    pub fn usize(&self, key: &str) -> Result<usize> {
        self.opt_usize(key)?.ok_or_else(|| self.error(format!("`{key}` is missing; expected a whole number")))
    }

    /// A whole number, or `None` where the key is absent or null.
    pub fn opt_usize(&self, key: &str) -> Result<Option<usize>> {
        self.get(key)
            .map(|value| {
                let number = value.as_u64().and_then(|number| usize::try_from(number).ok());
                number.ok_or_else(|| self.wrong(key, value, "a whole number"))
            })
            .transpose()
    }

    /// A number, or `None` where the key is absent or null.
    pub fn opt_f64(&self, key: &str) -> Result<Option<f64>> {
        self.get(key).map(|value| value.as_f64().ok_or_else(|| self.wrong(key, value, "a number"))).transpose()
    }

    /// A truth value, or `None` where the key is absent or null.
    pub fn opt_bool(&self, key: &str) -> Result<Option<bool>> {
        self.get(key).map(|value| value.as_bool().ok_or_else(|| self.wrong(key, value, "true or false"))).transpose()
    }

    /// A string, or `None` where the key is absent or null.
    pub fn opt_str(&self, key: &str) -> Result<Option<&'a str>> {
        self.get(key).map(|value| value.as_str().ok_or_else(|| self.wrong(key, value, "a string"))).transpose()
    }

    /// An object, or `None` where the key is absent or null.
    pub fn opt_object(&self, key: &str) -> Result<Option<&'a Map<String, Value>>> {
        self.get(key).map(|value| value.as_object().ok_or_else(|| self.wrong(key, value, "an object"))).transpose()
    }

    /// A list of strings, or `None` where the key is absent or null.
    pub fn opt_strings(&self, key: &str) -> Result<Option<Vec<String>>> {
        self.get(key)
            .map(|value| {
                let strings =
                    value.as_array().and_then(|list| list.iter().map(|v| v.as_str().map(String::from)).collect());
                strings.ok_or_else(|| self.wrong(key, value, "a list of strings"))
            })
            .transpose()
    }

    /// The first string of a list, if there is one.
    pub fn first_of(&self, key: &str) -> Option<String> {
        self.get(key)?.as_array()?.first()?.as_str().map(String::from)
    }

    /// Refuses a value outside `least..=most`.
    pub fn check(&self, key: &str, value: usize, least: usize, most: usize) -> Result<()> {
        match (least..=most).contains(&value) {
            true => Ok(()),
            false => Err(self.error(format!("`{key}` is {value}; expected a number from {least} to {most}"))),
        }
    }
}
