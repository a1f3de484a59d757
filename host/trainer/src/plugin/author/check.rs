//! A plugin's file, looked at as a user's machine will: what it says, what it imports, and a plan for the made-up model.

use std::path::Path;

use serde::Serialize;
use serde_json::{Value, json};

use super::fake::FakeModel;
use crate::plan::{Origin, Plan, PlanBuilder, Storage};
use crate::plugin::{Kind, Limits, Loaded, Metadata, policy};
use crate::policy::{ModelView, Note, Policy};
use crate::report::text::memory;
use crate::{Error, Result};

/// What the look found.
#[derive(Debug, Serialize)]
pub struct Checked {
    /// What the file says about itself.
    #[serde(flatten)]
    pub metadata: Metadata,
    /// What it is.
    pub kind: Kind,
    /// Its hash.
    pub sha256: String,
    /// Its size.
    pub size_bytes: u64,
    /// Tensors that train or are adapted in the made-up model, with default settings.
    pub trained_tensors: usize,
    /// Seconds in the plugin, loading included for a native library.
    pub plugin_s: f64,
    /// What the plugin said.
    pub notes: Vec<String>,
}

/// Loads the plugin's file within `limits`, and makes a plan for the made-up model with `settings`. A native library runs:
/// its author is asking.
///
/// # Errors
/// Whatever a user would meet.
pub fn check(file: &Path, settings: &Value, limits: &Limits) -> Result<Checked> {
    let loaded = Loaded { allow_native: true, ..Loaded::from_file(file)? };
    let (metadata, kind) = (loaded.metadata.clone(), loaded.kind);
    let (sha256, size_bytes) = (loaded.sha256.clone(), loaded.bytes.len() as u64);
    let made = policy(loaded, limits).map_err(|error| error.at(file.display()))?;
    let (plan, notes) = plan(made.as_ref(), settings, 0)?;
    let notes = notes.into_iter().map(|note| note.text).collect();
    let trained_tensors = plan.trained().count();
    Ok(Checked { metadata, kind, sha256, size_bytes, trained_tensors, plugin_s: made.seconds(), notes })
}

/// The plan that a policy makes for the made-up model.
pub(super) fn plan(policy: &dyn Policy, settings: &Value, seed: u64) -> Result<(Plan, Vec<Note>)> {
    let model = FakeModel::new()?;
    let settings = policy.resolve(settings)?;
    let view = ModelView::new(&model.inventory, seed).with_statistics(&model);
    let mut builder = PlanBuilder::new(&model.inventory, Storage::F32);
    policy.make_plan(&settings, &view, &mut builder)?;
    let info = policy.describe();
    let plan = builder.build(Origin { policy: info.name, version: info.version, settings })?;
    Ok((plan, view.into_parts().1))
}

impl Checked {
    /// The result, for a person.
    pub fn text(&self) -> String {
        let mut text = format!(
            "{}: a {} of {}, plugin API {}\nplans the made-up model with its default settings: {} tensors train, {:.1} ms in the plugin\n",
            self.metadata.shown(),
            match self.kind {
                Kind::Wasm => "WebAssembly component",
                Kind::Native => "native library",
            },
            memory(self.size_bytes),
            self.metadata.api,
            self.trained_tensors,
            self.plugin_s * 1e3,
        );
        for note in &self.notes {
            text.push_str(&format!("it said: {note}\n"));
        }
        text
    }
}

/// The settings of a command line, `name=value`, where the value is JSON or else a text.
///
/// # Errors
/// One has no `=`.
pub fn settings(given: &[String]) -> Result<Value> {
    let mut settings = json!({});
    for text in given {
        let (name, value) = text.split_once('=').ok_or_else(|| {
            Error::config(format!("{text} is no setting")).help("write it as name=value, such as percent=25")
        })?;
        settings[name] = serde_json::from_str(value).unwrap_or_else(|_| Value::String(value.into()));
    }
    Ok(settings)
}
