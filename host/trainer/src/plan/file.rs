//! `plan.json`: a plan on disk, one line a tensor, with its hash, which reading verifies.

use std::path::Path;

use serde_json::Value;

use super::{Plan, canonical};
use crate::model::inventory::Inventory;
use crate::{Error, ErrorKind, Result};

/// The plan as the text of a `plan.json`: keys sorted, an entry a line, and `hash` beside the plan's own keys.
pub fn to_text(plan: &Plan) -> Result<String> {
    let mut value = serde_json::to_value(plan).map_err(|error| Error::internal(format!("plan: {error}")))?;
    if let Some(object) = value.as_object_mut() {
        object.insert("hash".into(), Value::String(plan.hash()));
        object.sort_keys();
    }
    let mut text = String::from("{\n");
    let fields = value.as_object().into_iter().flatten();
    for (i, (key, field)) in fields.enumerate() {
        if i > 0 {
            text.push_str(",\n");
        }
        text.push_str(&format!("\"{key}\": "));
        match (key.as_str(), field) {
            ("entries", Value::Array(entries)) => {
                for (i, entry) in entries.iter().enumerate() {
                    text.push_str(if i == 0 { "[\n  " } else { ",\n  " });
                    canonical::write(entry, &mut text);
                }
                text.push_str("\n]");
            }
            _ => canonical::write(field, &mut text),
        }
    }
    text.push_str("\n}\n");
    Ok(text)
}

/// Writes the plan to `path`, which never holds half of one.
pub fn write(plan: &Plan, path: &Path) -> Result<()> {
    crate::files::write_atomically(path, to_text(plan)?.as_bytes())
}

/// Reads the plan at `path` and verifies its version and hash.
pub fn read(path: &Path) -> Result<Plan> {
    let text = std::fs::read_to_string(path).map_err(|error| Error::io(ErrorKind::Output, "read", path, &error))?;
    parse(&text).map_err(|error| error.at(path.display()))
}

fn parse(text: &str) -> Result<Plan> {
    let again = "the file was damaged or edited; make the plan again with `liftplan plan`";
    let damaged = |error: serde_json::Error| Error::output(format!("not a plan: {error}")).help(again);
    let mut value: Value = serde_json::from_str(text).map_err(damaged)?;
    let hash = value.as_object_mut().and_then(|object| object.shift_remove("hash"));
    let version = value.get("version").and_then(Value::as_u64);
    if let Some(version) = version.filter(|version| *version != u64::from(Plan::VERSION)) {
        return Err(Error::output(format!(
            "a plan of version {version}, and this Liftplan reads version {}",
            Plan::VERSION
        )));
    }
    let plan: Plan = serde_json::from_value(value).map_err(damaged)?;
    let hash = hash.and_then(|hash| hash.as_str().map(str::to_string)).unwrap_or_default();
    if hash != plan.hash() {
        return Err(Error::output("the plan is not the one that was written: its hash has changed").help(again));
    }
    Ok(plan)
}

impl Plan {
    /// Checks that the plan was made for the tensors of `inventory`: the same names in the same order.
    pub fn check_against(&self, inventory: &Inventory) -> Result<()> {
        if self.entries.len() != inventory.tensors.len() {
            return Err(Error::plan(format!(
                "the plan speaks of {} tensors, and the model has {}",
                self.entries.len(),
                inventory.tensors.len()
            )));
        }
        match self.entries.iter().zip(&inventory.tensors).find(|(entry, info)| entry.tensor != info.name) {
            None => Ok(()),
            Some((entry, info)) => {
                Err(Error::plan(format!("the plan speaks of `{}` where the model has `{}`", entry.tensor, info.name)))
            }
        }
    }
}
