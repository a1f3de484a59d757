//! Settings in layers: a base configuration, what a comparison changes in it for every method, and what one method
//! changes. In: TOML files and tables. Out: one [`Config`], as if somebody had written all of it in one file.
//!
//! Paths are relative to the file that names them, so each layer makes its own absolute before it is laid over another.

use std::path::Path;

use serde_json::{Map, Value};

use super::Config;
use super::places::Places;
use super::resolve::{POLICY_FILES, model_reference, normal, resolve};
use super::source::{self, ALTERNATIVES, Source};
use crate::{Error, ErrorKind, Result};

/// Settings and the places where they were written.
#[derive(Clone, Default)]
pub(crate) struct Layer {
    /// The settings.
    pub value: Map<String, Value>,
    /// Where each was written.
    pub places: Places,
}

impl Layer {
    /// Reads the TOML file at `path`, with `overrides` (`a.b=c`) over it, as it stands: paths stay relative.
    pub fn load(path: &Path, overrides: &[String]) -> Result<(Self, String)> {
        let text = std::fs::read_to_string(path).map_err(|error| {
            let shown = Error::io(ErrorKind::Config, "read the configuration", path, &error);
            match error.kind() {
                std::io::ErrorKind::NotFound => shown.help("give the path of a TOML file; see examples/"),
                _ => shown,
            }
        })?;
        Ok((Self::parse(&text, &path.display().to_string(), overrides)?, text))
    }

    /// As [`Layer::load`], from a text that messages call `shown`.
    pub fn parse(text: &str, shown: &str, overrides: &[String]) -> Result<Self> {
        let Source { value, places } = source::read(text, shown, overrides)?;
        Ok(Self { value, places })
    }

    /// The table `value`, which stands at `path` in this layer, as a layer of its own.
    pub fn part(&self, value: Map<String, Value>, path: &str) -> Self {
        Self { value, places: self.places.below(path) }
    }

    /// Makes every path absolute that is relative to `directory`.
    pub fn absolute(mut self, directory: &Path) -> Result<Self> {
        if let Some(Value::String(model)) = self.value.get_mut("model") {
            *model = model_reference(model, directory)?;
        }
        let whole = |text: &mut String| *text = normal(&directory.join(&*text)).display().to_string();
        if let Some(Value::Object(data)) = self.value.get_mut("data") {
            for key in ["train", "validation", "test"] {
                match data.get_mut(key) {
                    Some(Value::String(file)) => whole(file),
                    Some(Value::Array(files)) => {
                        for file in files {
                            if let Value::String(file) = file {
                                whole(file);
                            }
                        }
                    }
                    _ => {}
                }
            }
            if let Some(Value::String(template)) = data.get_mut("chat_template")
                && !matches!(template.as_str(), "auto" | "none")
            {
                whole(template);
            }
        }
        if let Some(Value::Object(policy)) = self.value.get_mut("policy") {
            for key in POLICY_FILES.into_iter().chain(["plugin"]) {
                if let Some(Value::String(file)) = policy.get_mut(key) {
                    whole(file);
                }
            }
        }
        Ok(self)
    }

    /// This layer over `lower`: tables are joined, a policy with a name takes the place of the whole other policy, and
    /// of settings that exclude each other the upper one stays.
    pub fn over(self, mut lower: Self) -> Self {
        let sets = |path: &str| {
            let (section, key) = path.split_once('.').unwrap_or((path, ""));
            self.value.get(section).is_some_and(|table| table.get(key).is_some())
        };
        for (a, b) in ALTERNATIVES {
            for (set, dropped) in [(a, b), (b, a)] {
                if sets(set) && !sets(dropped) {
                    lower.remove(dropped);
                }
            }
        }
        if sets("policy.name") || sets("policy.plugin") {
            lower.value.shift_remove("policy");
        }
        join(&mut lower.value, self.value);
        lower.places.overlay(self.places);
        lower
    }

    fn remove(&mut self, path: &str) {
        if let Some((section, key)) = path.split_once('.')
            && let Some(Value::Object(table)) = self.value.get_mut(section)
        {
            table.shift_remove(key);
        }
        self.places.remove(path);
    }

    /// Puts one setting in its place, dropping those that exclude it.
    pub fn set(self, path: &str, value: Value) -> Self {
        let nested =
            path.rsplit('.').fold(value, |inner, key| Value::Object(Map::from_iter([(key.to_string(), inner)])));
        let value = match nested {
            Value::Object(value) => value,
            _ => Map::new(),
        };
        Self { value, places: Places::default() }.over(self)
    }

    /// The configuration that this says, as if it stood in the file at `file` (an absolute path). Errors name file and
    /// line of the layer that is wrong.
    pub fn resolve(self, file: &Path) -> Result<Config> {
        let places = self.places.clone();
        resolve(Source { value: self.value, places: self.places }, file).map_err(|error| places.locate(error))
    }
}

fn join(lower: &mut Map<String, Value>, upper: Map<String, Value>) {
    for (key, value) in upper {
        match (lower.get_mut(&key), value) {
            (Some(Value::Object(old)), Value::Object(new)) => join(old, new),
            (_, value) => {
                lower.insert(key, value);
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn layer(text: &str, shown: &str, directory: &str) -> Layer {
        Layer::parse(text, shown, &[]).unwrap().absolute(Path::new(directory)).unwrap()
    }

    const BASE: &str =
        "model = 'm.gguf'\n[data]\ntrain = 'a.jsonl'\n[policy]\nname = 'lora'\nrank = 4\n[train]\nepochs = 2.0";

    #[test]
    fn upper_layers_win_and_paths_belong_to_their_files() {
        let upper = "data = { test = ['t.jsonl'] }\n[train]\nsteps = 7\n[policy]\nname = 'full'";
        let config = layer(upper, "upper.toml", "/u").over(layer(BASE, "base.toml", "/b"));
        let config = config.resolve(Path::new("/u/upper.toml")).unwrap();
        assert_eq!(config.model, "/b/m.gguf");
        assert_eq!(config.data.train, [Path::new("/b/a.jsonl")]);
        assert_eq!(config.data.test, [Path::new("/u/t.jsonl")]);
        assert_eq!((config.train.steps, config.train.epochs), (Some(7), None));
        // A named policy brings its own settings, and keeps none of the other's.
        assert_eq!((config.policy.name.as_str(), config.policy.settings.len()), ("full", 0));
    }

    #[test]
    fn a_policy_without_a_name_only_changes_settings() {
        let config =
            layer("[policy]\nrank = 2", "u", "/u").over(layer(BASE, "b", "/b")).resolve(Path::new("/u/u")).unwrap();
        assert_eq!((config.policy.name.as_str(), &config.policy.settings["rank"]), ("lora", &Value::from(2)));
    }

    #[test]
    fn errors_name_the_file_of_the_layer_that_is_wrong() {
        let wrong = layer("\n[train]\nbatch_size = 0", "upper.toml", "/u").over(layer(BASE, "base.toml", "/b"));
        let error = wrong.resolve(Path::new("/u/upper.toml")).unwrap_err();
        assert_eq!(error.message(), "upper.toml:3: `train.batch_size` must be at least 1");
        let wrong = layer("", "upper.toml", "/u").over(layer(&BASE.replace("2.0", "-1"), "base.toml", "/b"));
        let error = wrong.resolve(Path::new("/u/upper.toml")).unwrap_err();
        assert!(error.message().starts_with("base.toml:8: `train.epochs` must be above 0"), "{error}");
    }
}
