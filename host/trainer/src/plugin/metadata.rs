//! What a plugin's file says about itself, read without running any of it.
//!
//! It is one JSON object: in a WebAssembly component the content of the custom section `liftplan:plugin`, at the top or in
//! a core module inside; in a native library the content of the section `.liftplan` (Mach-O: `__DATA,__liftplan`).
//!
//! ```json
//! {
//!   "name": "top-norm", "version": "1.0.0", "author": "A. Weaver", "license": "MIT", "api": "0.1",
//!   "about": "Trains the weights with the largest norm.",
//!   "settings": { "type": "object", "properties": { "percent": { "type": "number", "default": 25 } } },
//!   "capabilities": ["statistics"]
//! }
//! ```

use object::{BinaryFormat, Object, ObjectSection};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::text::{escaped, is_unsafe};
use super::{custom_section, settings};
use crate::config::suggest;
use crate::policy::{PolicyInfo, SettingInfo};
use crate::{Error, Result};

/// The custom section of a WebAssembly component.
pub const WASM_SECTION: &str = "liftplan:plugin";
/// The section of an ELF or PE library.
pub const NATIVE_SECTION: &str = ".liftplan";
/// The section of a Mach-O library, in the segment `__DATA`.
pub const MACHO_SECTION: &str = "__liftplan";
/// The versions of the plugin API that this host speaks, newest last.
pub const API_VERSIONS: [&str; 1] = ["0.1"];
/// Most bytes of metadata.
pub const MAX_BYTES: usize = 64 << 10;

/// What kind of file a plugin is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A WebAssembly component, which runs fenced in.
    Wasm,
    /// A dynamic library, which is trusted code.
    Native,
}

/// Something that a plugin needs from the host beyond the model's inventory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Capability {
    /// Statistics of the weights.
    Statistics,
    /// Statistics that need data: gradients, activations, losses.
    Calibration,
    /// To be asked again while training.
    Revise,
}

impl Capability {
    /// What it means, for a person who is asked.
    pub fn in_words(self) -> &'static str {
        match self {
            Capability::Statistics => "statistics of the model's weights",
            Capability::Calibration => "measurements on the training data: gradients, activations, losses",
            Capability::Revise => "to revise the plan while training",
        }
    }
}

/// What a plugin says about itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Metadata {
    /// By which configurations call it: lower-case letters, digits and hyphens.
    pub name: String,
    /// `major.minor.patch`, as semver has it.
    pub version: String,
    /// Who made it.
    pub author: String,
    /// Its licence, as an SPDX expression.
    pub license: String,
    /// One sentence.
    #[serde(default)]
    pub about: String,
    /// The version of the plugin API that it was built for, `0.1`.
    pub api: String,
    /// The JSON Schema of its settings.
    #[serde(default = "no_settings")]
    pub settings: Value,
    /// What it needs.
    #[serde(default)]
    pub capabilities: Vec<Capability>,
}

fn no_settings() -> Value {
    serde_json::json!({ "type": "object", "properties": {} })
}

impl Metadata {
    /// Reads the metadata of a plugin's file, whose kind is told by its first bytes.
    ///
    /// # Errors
    /// It is no plugin, is damaged, or says something that can't be. Messages say what; the caller puts the file in front.
    pub fn read(bytes: &[u8]) -> Result<(Kind, Self)> {
        if custom_section::is_wasm(bytes) {
            let sections = custom_section::find(bytes, WASM_SECTION)?;
            return Ok((Kind::Wasm, Self::of_sections(&sections, WASM_SECTION)?));
        }
        let file = object::File::parse(bytes).map_err(|error| match object::FileKind::parse(bytes) {
            Ok(_) => {
                Error::plan(format!("it is a damaged or unknown library: {error}")).help("fetch or build it again")
            }
            Err(_) => Error::plan("it is neither a WebAssembly component nor a dynamic library")
                .help("a plugin is one file, NAME.wasm, or a native library such as NAME.so"),
        })?;
        let name = if file.format() == BinaryFormat::MachO { MACHO_SECTION } else { NATIVE_SECTION };
        let mut sections = Vec::new();
        for section in file.sections().filter(|section| section.name() == Ok(name)) {
            let content =
                section.data().map_err(|error| Error::plan(format!("its section {name} cannot be read: {error}")))?;
            // A compiler may end a C string, and a linker an aligned section, with zeros.
            let end = content.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
            sections.push(&content[..end]);
        }
        Ok((Kind::Native, Self::of_sections(&sections, name)?))
    }

    fn of_sections(sections: &[&[u8]], name: &str) -> Result<Self> {
        match sections {
            [one] => Self::parse(one),
            [] => Err(Error::plan(format!("it is no Liftplan plugin: it has no section {name}"))
                .help("a plugin has its name, version and licence inside; `liftplan plugin new` makes one that does")),
            _ => Err(Error::plan(format!("it has {} sections {name}, and a plugin has one", sections.len()))),
        }
    }

    /// Reads and checks the metadata's JSON.
    ///
    /// # Errors
    /// As [`Metadata::read`].
    pub fn parse(json: &[u8]) -> Result<Self> {
        if json.len() > MAX_BYTES {
            return Err(wrong(format!("it is {} bytes long, and at most {MAX_BYTES} are read", json.len())));
        }
        let value: Value = serde_json::from_slice(json)
            .map_err(|error| wrong(format!("it is no JSON: {}", escaped(&error.to_string(), 200))))?;
        // First of all, because what else may stand there depends on it.
        check_api(&value)?;
        let metadata: Self = serde_json::from_value(value).map_err(|error| wrong(escaped(&error.to_string(), 300)))?;
        metadata.check()?;
        Ok(metadata)
    }

    /// The same as built-in policies say it.
    pub fn policy_info(&self) -> PolicyInfo {
        let properties = self.settings.get("properties").and_then(Value::as_object).into_iter().flatten();
        let setting = |(name, schema): (&String, &Value)| {
            let mut about =
                schema.get("description").and_then(Value::as_str).map_or(String::new(), |a| escaped(a, 400));
            if let Some(default) = schema.get("default") {
                about = format!("{about}; default {}", escaped(&default.to_string(), 100));
            }
            SettingInfo { name: escaped(name, 80), about }
        };
        PolicyInfo {
            name: self.name.clone(),
            version: self.version.clone(),
            about: self.about.clone(),
            settings: properties.map(setting).collect(),
        }
    }

    /// `name 1.0.0`, as messages call it.
    pub fn shown(&self) -> String {
        format!("{} {}", self.name, self.version)
    }

    /// All of it, for a person.
    pub fn text(&self, kind: Kind, sha256: &str) -> String {
        let kind = match kind {
            Kind::Wasm => "WebAssembly component",
            Kind::Native => "native library",
        };
        let mut text = format!(
            "{}\n  {}\n\n  author    {}\n  licence   {}\n  kind      {kind}, plugin API {}\n  sha256    {sha256}\n",
            self.shown(),
            self.about,
            self.author,
            self.license,
            self.api
        );
        for capability in &self.capabilities {
            text.push_str(&format!("  asks for  {}\n", capability.in_words()));
        }
        text.push_str("\nsettings\n");
        let properties = self.settings.get("properties").and_then(Value::as_object);
        for (name, property) in properties.into_iter().flatten() {
            let about = property.get("description").and_then(Value::as_str).unwrap_or_default();
            let default = property.get("default").map(|default| format!("; default {default}")).unwrap_or_default();
            text.push_str(&format!("  {:16} {}{}\n", escaped(name, 80), escaped(about, 400), escaped(&default, 200)));
        }
        text
    }

    fn check(&self) -> Result<()> {
        if !is_name(&self.name) {
            return Err(wrong(format!("the name \"{}\" is no name for a plugin", escaped(&self.name, 80)))
                .help("use 1 to 64 lower-case letters, digits and single hyphens, beginning with a letter"));
        }
        if !is_version(&self.version) {
            return Err(wrong(format!("the version \"{}\" is not major.minor.patch", escaped(&self.version, 80)))
                .help("write it as semver has it, such as 1.0.0 or 0.2.1-beta.3"));
        }
        for (key, text, limit, needed) in [
            ("author", &self.author, 200, true),
            ("license", &self.license, 200, true),
            ("about", &self.about, 400, false),
        ] {
            if needed && text.trim().is_empty() {
                return Err(wrong(format!("`{key}` is empty")));
            }
            if text.chars().count() > limit {
                return Err(wrong(format!("`{key}` has more than {limit} characters")));
            }
            if text.chars().any(is_unsafe) {
                return Err(wrong(format!("`{key}` has control characters or line breaks: {}", escaped(text, limit))));
            }
        }
        let mut seen = self.capabilities.clone();
        seen.sort();
        seen.dedup();
        if seen.len() < self.capabilities.len() {
            return Err(wrong("`capabilities` names one twice".into()));
        }
        settings::check_schema(&self.settings).map_err(|error| error.at("its metadata"))
    }
}

fn wrong(what: String) -> Error {
    Error::plan(format!("its metadata: {what}"))
}

fn check_api(value: &Value) -> Result<()> {
    let api = match value.get("api") {
        Some(Value::String(api)) => api,
        Some(_) => return Err(wrong("`api` must be a string such as \"0.1\"".into())),
        None => {
            return Err(wrong("`api` is missing".into()).help("say for which version it was built: \"api\": \"0.1\""));
        }
    };
    if API_VERSIONS.contains(&api.as_str()) {
        return Ok(());
    }
    let part = |text: &str| -> Option<(u32, u32)> {
        let (major, minor) = text.split_once('.')?;
        Some((major.parse().ok()?, minor.parse().ok()?))
    };
    let newest = API_VERSIONS.last().and_then(|newest| part(newest));
    let help = match part(api) {
        Some(wanted) if Some(wanted) > newest => "update Liftplan, or take an older version of the plugin",
        Some(_) => "ask its author for a newer version of the plugin",
        None => "the plugin's author must correct it",
    };
    let spoken = suggest::list(&API_VERSIONS);
    Err(Error::plan(format!(
        "it was built for version {} of the plugin API, and this Liftplan speaks {spoken}",
        escaped(api, 40)
    ))
    .help(help))
}

/// Whether `name` can be a plugin's.
pub fn is_name(name: &str) -> bool {
    name.len() <= 64
        && name.starts_with(|c: char| c.is_ascii_lowercase())
        && name
            .split('-')
            .all(|part| !part.is_empty() && part.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit()))
}

/// Whether `version` is one by semver 2.0: three numbers without leading zeros, then perhaps `-pre.1` and `+build`.
pub fn is_version(version: &str) -> bool {
    let word = |part: &str| !part.is_empty() && part.chars().all(|c| c.is_ascii_alphanumeric() || c == '-');
    let number = |part: &str| {
        !part.is_empty() && part.chars().all(|c| c.is_ascii_digit()) && (part == "0" || !part.starts_with('0'))
    };
    let (version, build) = match version.split_once('+') {
        Some((version, build)) => (version, Some(build)),
        None => (version, None),
    };
    let (numbers, pre) = match version.split_once('-') {
        Some((numbers, pre)) => (numbers, Some(pre)),
        None => (version, None),
    };
    version.len() <= 64
        && build.is_none_or(|build| build.len() <= 64 && build.split('.').all(word))
        && numbers.split('.').count() == 3
        && numbers.split('.').all(|part| number(part) && part.len() <= 9)
        && pre.is_none_or(|pre| {
            pre.split('.').all(|part| word(part) && (!part.chars().all(|c| c.is_ascii_digit()) || number(part)))
        })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
#[path = "metadata_tests.rs"]
mod tests;
