//! `liftplan.lock`: the plugins that the configurations beside it use, each pinned to one file by its hash.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::signature::Key;
use super::source::Source;
use crate::files::write_atomically;
use crate::plugin::metadata::{Kind, is_name, is_version};
use crate::{Error, ErrorKind, Result};

/// The lock's name.
pub const LOCK_FILE: &str = "liftplan.lock";
const VERSION: u32 = 1;
const HEADER: &str = "\
# The plugins that configurations in this directory use, each pinned to one file by its hash.
# `liftplan plugin install` writes this; keep it under version control.
";

/// The lock of a project.
#[derive(Clone, Debug)]
pub struct Lock {
    /// Where it lies.
    pub path: PathBuf,
    /// One for each plugin, sorted by name.
    pub plugins: Vec<Pinned>,
}

/// One plugin of a project.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pinned {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// What it is.
    pub kind: Kind,
    /// The sha256 of its file, in hexadecimal.
    pub sha256: String,
    /// Where the file came from, and can be fetched again: a path, `https://…` or `oci://…@sha256:…`.
    pub source: String,
    /// The minisign key that signed it, and must sign what replaces it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub public_key: Option<String>,
    /// Whether this very file may run although it is native code.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub allow_native: bool,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    version: u32,
    #[serde(default, rename = "plugin")]
    plugins: Vec<Pinned>,
}

impl Pinned {
    /// `name 1.0.0`.
    pub fn shown(&self) -> String {
        format!("{} {}", self.name, self.version)
    }

    fn check(&self) -> Result<()> {
        let wrong =
            |what: &str| Error::config(format!("the plugin \"{}\": {what}", super::super::escaped(&self.name, 80)));
        if !is_name(&self.name) {
            return Err(wrong("this is no name for a plugin"));
        }
        if !is_version(&self.version) {
            return Err(wrong("`version` is not major.minor.patch"));
        }
        if !is_sha256(&self.sha256) {
            return Err(wrong("`sha256` must be 64 hexadecimal digits in lower case"));
        }
        if let Some(key) = &self.public_key {
            Key::parse(key).map_err(|_| wrong("`public_key` is no minisign key"))?;
        }
        if self.allow_native && self.kind == Kind::Wasm {
            return Err(wrong("`allow_native` has no effect on a WebAssembly component"));
        }
        Source::parse(&self.source).map(|_| ()).map_err(|error| wrong(error.message()))
    }
}

/// Whether `text` is a sha256 as the lock has it.
pub(super) fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

impl Lock {
    /// The lock in the directory `project`; an empty one if there is no file.
    ///
    /// # Errors
    /// It can't be read, or what stands in it can't be.
    pub fn read(project: &Path) -> Result<Self> {
        let path = project.join(LOCK_FILE);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Ok(Self { path, plugins: Vec::new() });
            }
            Err(error) => return Err(Error::io(ErrorKind::Config, "read", &path, &error)),
        };
        let plugins = Self::parse(&text).map_err(|error| {
            let help = "correct it, or bring it back from version control";
            let error = error.at(path.display());
            if error.help_text().is_some() { error } else { error.help(help) }
        })?;
        Ok(Self { path, plugins })
    }

    fn parse(text: &str) -> Result<Vec<Pinned>> {
        // The version first, since what else may stand there depends on it.
        let table: toml::Table = toml::from_str(text).map_err(|error| Error::config(error.to_string().trim_end()))?;
        match table.get("version").and_then(toml::Value::as_integer) {
            Some(version) if version == i64::from(VERSION) => {}
            Some(version) if version > i64::from(VERSION) => {
                return Err(Error::config(format!(
                    "it has version {version}, and this Liftplan reads version {VERSION}"
                ))
                .help("update Liftplan"));
            }
            _ => return Err(Error::config(format!("it has no `version = {VERSION}`"))),
        }
        let written: Written = toml::from_str(text).map_err(|error| Error::config(error.to_string().trim_end()))?;
        for pinned in &written.plugins {
            pinned.check()?;
        }
        for pair in written.plugins.windows(2) {
            if pair[0].name >= pair[1].name {
                return Err(Error::config(format!("the plugin {} stands twice or out of order", pair[1].name)));
            }
        }
        Ok(written.plugins)
    }

    /// Puts `pinned` in, in the place of what had its name.
    pub(super) fn insert(&mut self, pinned: Pinned) {
        self.plugins.retain(|other| other.name != pinned.name);
        let place = self.plugins.partition_point(|other| other.name < pinned.name);
        self.plugins.insert(place, pinned);
    }

    /// Writes the file, all or nothing. A lock without plugins is written too: that there are none is also a fact.
    ///
    /// # Errors
    /// It can't be written.
    pub fn write(&self) -> Result<()> {
        let written = Written { version: VERSION, plugins: self.plugins.clone() };
        let text = toml::to_string(&written)
            .map_err(|error| Error::internal(format!("{} cannot be written: {error}", self.path.display())))?;
        write_atomically(&self.path, format!("{HEADER}{text}").as_bytes())
    }
}
