//! `plugin new`: a project that builds, with a rule, its tests, and everything it needs of Liftplan inside.

use std::fs;
use std::path::Path;

use crate::files::Staging;
use crate::plugin::metadata::is_name;
use crate::{Error, ErrorKind, Result};

/// What a plugin is written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Language {
    /// Rust: one source for a component and a library.
    Rust,
    /// C: a library.
    C,
    /// JavaScript: a component.
    Js,
    /// Python: a component.
    Python,
}

impl std::str::FromStr for Language {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match text {
            "rust" => Ok(Self::Rust),
            "c" => Ok(Self::C),
            "js" => Ok(Self::Js),
            "python" => Ok(Self::Python),
            _ => Err("it must be rust, c, js or python".into()),
        }
    }
}

macro_rules! sdk {
    ($($file:literal),*) => {
        [$((concat!("sdk/", $file), include_str!(concat!("../../../../../plugin-api/rust/", $file)))),*]
    };
}

/// The SDK's own sources, which a project carries along.
const SDK: [(&str, &str); 11] = sdk![
    "Cargo.toml",
    "src/abi.rs",
    "src/bindings.rs",
    "src/describe.rs",
    "src/lib.rs",
    "src/model.rs",
    "src/native.rs",
    "src/plan.rs",
    "src/policy.rs",
    "src/run.rs",
    "src/wasm.rs"
];
const RUST: [(&str, &str); 4] = [
    ("Cargo.toml", include_str!("templates/rust/Cargo.toml.txt")),
    ("src/lib.rs", include_str!("templates/rust/lib.rs.txt")),
    ("settings.json", include_str!("templates/rust/settings.json")),
    (".cargo/config.toml", include_str!("templates/rust/config.toml.txt")),
];
const C: [(&str, &str); 2] = [
    ("plugin.c", include_str!("templates/c/plugin.c.txt")),
    ("liftplan_plugin.h", include_str!("../../../../../plugin-api/c/liftplan_plugin.h")),
];
const WIT: (&str, &str) = ("wit/policy.wit", include_str!("../../../../../plugin-api/wit/policy-0.1.0/policy.wit"));
const METADATA: (&str, &str) = ("plugin.json", include_str!("templates/plugin.json.txt"));
const JS: [(&str, &str); 5] = [
    ("plugin.js", include_str!("templates/js/plugin.js")),
    ("package.json", include_str!("templates/js/package.json.txt")),
    ("build.mjs", include_str!("templates/js/build.mjs")),
    METADATA,
    WIT,
];
const PYTHON: [(&str, &str); 4] = [
    ("plugin.py", include_str!("templates/python/plugin.py")),
    ("requirements.txt", include_str!("templates/python/requirements.txt")),
    METADATA,
    WIT,
];
const ALL: [(&str, &str); 2] =
    [("cases.json", include_str!("templates/cases.json")), (".gitignore", include_str!("templates/gitignore.txt"))];

/// Makes the project `directory`, which must not be there, for a plugin called by its last part.
///
/// # Errors
/// The name can't be a plugin's, the directory is there, or it can't be written.
pub fn create(directory: &Path, language: Language, author: &str) -> Result<()> {
    let name = directory.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    if !is_name(name) {
        return Err(Error::config(format!("\"{}\" is no name for a plugin", crate::plugin::escaped(name, 80)))
            .help("use lower-case letters, digits and single hyphens, beginning with a letter"));
    }
    if directory.exists() {
        return Err(Error::output(format!("{} is there already", directory.display())).help("choose another name"));
    }
    let author: String =
        author.chars().filter(|c| !c.is_control() && !matches!(c, '"' | '\\' | '{' | '}')).take(100).collect();
    let author = if author.trim().is_empty() { "Unknown" } else { author.trim() };
    let staging = Staging::beside(directory)?;
    let files = match language {
        Language::Rust => RUST.iter().chain(&SDK).collect::<Vec<_>>(),
        Language::C => C.iter().collect(),
        Language::Js => JS.iter().collect(),
        Language::Python => PYTHON.iter().collect(),
    };
    for (file, text) in files.into_iter().chain(&ALL) {
        let path = staging.path().join(file);
        let written = match path.parent() {
            Some(parent) => fs::create_dir_all(parent),
            None => Ok(()),
        };
        let text = text.replace("{{name}}", name).replace("{{author}}", author);
        written
            .and_then(|()| fs::write(&path, text))
            .map_err(|error| Error::io(ErrorKind::Output, "write", &path, &error))?;
    }
    staging.publish()
}
