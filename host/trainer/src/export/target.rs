//! The directory that an export writes to: checked before, made beside its place, and renamed when it is whole.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use super::Exported;
use crate::files::{Staging, output_error, write_atomically};
use crate::{Error, Result};

/// What an export's files are called; only a directory of such files is ever replaced.
const ENDINGS: [&str; 8] = ["safetensors", "json", "gguf", "jinja", "txt", "model", "md", "tiktoken"];

/// Refuses a target that holds something: always what isn't an earlier export, and an earlier export without `force`.
pub(super) fn check(out: &Path, force: bool) -> Result<()> {
    let entries = match fs::read_dir(out) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) if out.is_file() => {
            return Err(Error::output(format!("{} is a file, and a directory is needed: {error}", out.display()))
                .help("choose another name with --out"));
        }
        Err(error) => return Err(output_error("read the directory", out, &error)),
    };
    let mut paths: Vec<PathBuf> = Vec::new();
    for entry in entries {
        paths.push(entry.map_err(|e| output_error("read the directory", out, &e))?.path());
    }
    paths.sort();
    if paths.is_empty() {
        return Ok(());
    }
    if !force {
        return Err(Error::output(format!("the directory {} is not empty", out.display()))
            .help("choose another with --out, or replace an earlier export with --force"));
    }
    let foreign = paths.iter().find(|path| {
        let known = path.extension().and_then(|e| e.to_str()).is_some_and(|e| ENDINGS.contains(&e));
        !(known && path.is_file())
    });
    match foreign {
        None => Ok(()),
        Some(foreign) => {
            let message = format!("the directory {} holds more than an export: {}", out.display(), foreign.display());
            Err(Error::output(message).help("choose another with --out: --force only replaces an earlier export"))
        }
    }
}

/// An export in the making.
pub(super) struct Target {
    staging: Staging,
    out: PathBuf,
}

impl Target {
    /// Makes the temporary directory.
    pub fn new(out: &Path) -> Result<Self> {
        // `.` and `..` have no name that a directory beside them could be derived from.
        let out = match out.file_name() {
            Some(_) => out.to_path_buf(),
            None => fs::canonicalize(out).map_err(|e| output_error("find", out, &e))?,
        };
        Ok(Self { staging: Staging::beside(&out)?, out })
    }

    /// Where to write the file called `name`.
    pub fn path(&self, name: &str) -> PathBuf {
        self.staging.path().join(name)
    }

    /// Writes a small file.
    pub fn write(&self, name: &str, text: &str) -> Result<()> {
        write_atomically(&self.path(name), text.as_bytes())
    }

    /// Writes a JSON file, indented.
    pub fn write_json(&self, name: &str, value: &serde_json::Value) -> Result<()> {
        let mut text =
            serde_json::to_string_pretty(value).map_err(|e| Error::internal(format!("{name} is not JSON: {e}")))?;
        text.push('\n');
        self.write(name, &text)
    }

    /// Copies a file of the directory `from`, if it is there; answers whether it was.
    pub fn copy(&self, from: &Path, name: &str) -> Result<bool> {
        let (from, to) = (from.join(name), self.path(name));
        if !from.is_file() {
            return Ok(false);
        }
        fs::copy(&from, &to).and_then(|_| File::open(&to)?.sync_all()).map_err(|e| output_error("write", &to, &e))?;
        Ok(true)
    }

    /// Renames the directory to its place.
    pub fn publish(self, notes: Vec<String>) -> Result<Exported> {
        let dir = self.staging.path();
        let mut files = Vec::new();
        for entry in fs::read_dir(dir).map_err(|e| output_error("read the directory", dir, &e))? {
            let entry = entry.map_err(|e| output_error("read the directory", dir, &e))?;
            let bytes = entry.metadata().map_err(|e| output_error("read", &entry.path(), &e))?.len();
            files.push((entry.file_name().to_string_lossy().into_owned(), bytes));
        }
        files.sort();
        self.staging.publish()?;
        Ok(Exported { dir: self.out, files, notes })
    }
}
