//! What a model reference means: a directory, a file, or an id on the hub.

use std::path::{Path, PathBuf};

use super::hub::{self, HubId};
use crate::report::Observer;
use crate::{Error, ErrorKind, Result};

/// Where a model's files are.
#[derive(Debug, PartialEq)]
pub(super) enum Source {
    /// A Hugging Face directory.
    Directory(PathBuf),
    /// A GGUF file.
    Gguf(PathBuf),
}

/// Finds the files of `reference`, a path that may be relative to `relative_to`, or else an id on the hub.
///
/// # Errors
/// There is no such path and it can't be an id, or [`hub::fetch`] fails.
pub(super) fn resolve(reference: &str, relative_to: &Path, observer: &mut dyn Observer) -> Result<Source> {
    if reference.trim().is_empty() {
        return Err(Error::model("the model reference is empty").help(EXPECTED));
    }
    let path = match (reference.strip_prefix("~/"), std::env::home_dir()) {
        (Some(rest), Some(home)) => home.join(rest),
        _ => relative_to.join(reference),
    };
    if path.is_dir() {
        return directory(path);
    }
    if path.exists() {
        return file(path);
    }
    // Where the first part is a directory here, a misspelt path is likelier than an organisation of the same name.
    let first_is_here = reference.split('/').next().is_some_and(|first| relative_to.join(first).is_dir());
    match HubId::parse(reference).filter(|_| !first_is_here) {
        Some(id) => hub::fetch(&id, &hub::Settings::read(|name| std::env::var(name).ok())?, observer),
        None => Err(not_found(reference, &path)),
    }
}

/// Nothing there: the nearest name in the directory where it would be.
fn not_found(reference: &str, path: &Path) -> Error {
    let error = Error::model(format!("model `{reference}` not found: there is no {}", path.display()));
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let entries = path.parent().and_then(|parent| std::fs::read_dir(parent).ok());
    let mut names: Vec<String> =
        entries.into_iter().flatten().flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    let scored = names.into_iter().map(|known| (strsim::jaro_winkler(&known, &name), known));
    match scored.filter(|(score, _)| *score > 0.85).max_by(|a, b| a.0.total_cmp(&b.0)) {
        Some((_, nearest)) => error.help(format!("did you mean `{}`?", path.with_file_name(nearest).display())),
        None => error.help(EXPECTED),
    }
}

const EXPECTED: &str = "expected a Hugging Face directory, a GGUF file, or a hub id such as `org/name`";

/// A directory with `config.json`, or with nothing but one GGUF file.
fn directory(path: PathBuf) -> Result<Source> {
    if path.join("config.json").exists() {
        return Ok(Source::Directory(path));
    }
    let entries = std::fs::read_dir(&path).map_err(|e| Error::io(ErrorKind::Model, "list", &path, &e))?;
    let mut ggufs: Vec<PathBuf> =
        entries.flatten().map(|entry| entry.path()).filter(|path| is_gguf_name(path)).collect();
    ggufs.sort();
    match ggufs.as_slice() {
        [] => Err(Error::model(format!("{} has neither config.json nor a GGUF file", path.display())).help(EXPECTED)),
        [only] => Ok(Source::Gguf(only.clone())),
        several => {
            let names: Vec<String> =
                several.iter().filter_map(|p| Some(p.file_name()?.to_string_lossy().into_owned())).collect();
            Err(Error::model(format!("{} has several GGUF files: {}", path.display(), names.join(", ")))
                .help("name one of them"))
        }
    }
}

/// A GGUF file, by its name or its first bytes.
fn file(path: PathBuf) -> Result<Source> {
    let mut magic = [0u8; 4];
    let read = std::fs::File::open(&path).and_then(|mut file| std::io::Read::read(&mut file, &mut magic));
    let read = read.map_err(|e| Error::io(ErrorKind::Model, "read", &path, &e))?;
    if is_gguf_name(&path) || (read == 4 && &magic == b"GGUF") {
        return Ok(Source::Gguf(path));
    }
    let error = Error::model(format!("{} is not a model", path.display()));
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    Err(match path.parent().filter(|_| name.ends_with(".safetensors") || name.ends_with(".json")) {
        Some(parent) => error.help(format!("name its directory, {}", parent.display())),
        None => error.help(EXPECTED),
    })
}

fn is_gguf_name(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"))
}
