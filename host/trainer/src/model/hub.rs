//! Models on the Hugging Face hub: `org/name`, `org/name@revision`, `org/name/file.gguf`.
//!
//! In: an id. Out: files in the user's own cache, which Python's tools share. What the cache holds whole is used without
//! asking the hub. Of a repository only what is needed is fetched; the weights come last, so that a snapshot with
//! weights has the rest too. A download that was cut off goes on where it stopped, and what arrived is checked against
//! the size and hash that the hub gave.

use std::path::{Path, PathBuf};
use std::time::Duration;

use hf_hub::api::Progress;
use hf_hub::api::sync::{Api, ApiBuilder, ApiError, ApiRepo};
use hf_hub::{Cache, Repo, RepoType};

use super::reference::Source;
use super::safetensors::{INDEX, SINGLE, read_index};
use crate::hash::sha256_of_file;
use crate::report::{Event, Observer};
use crate::{Error, ErrorKind, Result};

/// Fetched where a repository has them.
const SMALL: [&str; 6] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
];
/// Attempts at one file, each going on where the last one stopped.
const ATTEMPTS: u32 = 4;

/// What to fetch.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct HubId {
    /// `org/name`.
    pub repo: String,
    /// Branch, tag or commit.
    pub revision: String,
    /// One GGUF file of the repository.
    pub file: Option<String>,
}

impl HubId {
    /// Reads an id, or gives `None` for what can't be one.
    pub fn parse(reference: &str) -> Option<Self> {
        let (path, revision) = match reference.split_once('@') {
            Some((path, revision)) => (path, revision),
            None => (reference, "main"),
        };
        let (org, rest) = path.split_once('/')?;
        let (name, file) = match rest.split_once('/') {
            Some((name, file)) => (name, Some(file)),
            None => (rest, None),
        };
        let segment = |text: &str| {
            text.len() <= 96
                && text.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
                && text.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
                && !text.contains("--")
                && !text.contains("..")
        };
        let sound = segment(org)
            && segment(name)
            && !name.ends_with(".gguf")
            && file.is_none_or(|file| file.ends_with(".gguf") && file.split('/').all(segment))
            && !revision.is_empty()
            && revision.split('/').all(segment);
        sound.then(|| Self { repo: format!("{org}/{name}"), revision: revision.into(), file: file.map(String::from) })
    }
}

/// The user's settings, from the environment variables that Python's `huggingface_hub` reads.
pub(super) struct Settings {
    endpoint: Option<String>,
    cache: PathBuf,
    token: Option<String>,
    offline: bool,
}

impl Settings {
    /// Reads the settings through `variable`, which is `std::env::var` but in tests.
    ///
    /// # Errors
    /// There's no home directory and nothing else says where the cache is.
    pub fn read(variable: impl Fn(&str) -> Option<String>) -> Result<Self> {
        let variable = |name: &str| variable(name).filter(|value| !value.trim().is_empty());
        let home = || {
            let home = variable("HOME").map(PathBuf::from).or_else(std::env::home_dir);
            home.ok_or_else(|| Error::model("there is no home directory for the model cache").help("set HF_HOME"))
        };
        let root = match (variable("HF_HOME"), variable("XDG_CACHE_HOME")) {
            (Some(root), _) => PathBuf::from(root),
            (None, Some(cache)) => Path::new(&cache).join("huggingface"),
            (None, None) => home()?.join(".cache/huggingface"),
        };
        let cache = variable("HF_HUB_CACHE").map_or_else(|| root.join("hub"), PathBuf::from);
        let token_file = variable("HF_TOKEN_PATH").map_or_else(|| root.join("token"), PathBuf::from);
        let token = variable("HF_TOKEN").or_else(|| std::fs::read_to_string(token_file).ok());
        let truth = |name: &str| {
            variable(name).is_some_and(|value| matches!(value.to_lowercase().as_str(), "1" | "true" | "yes" | "on"))
        };
        Ok(Self {
            endpoint: variable("HF_ENDPOINT").map(|endpoint| endpoint.trim_end_matches('/').to_string()),
            cache,
            token: token.map(|token| token.trim().to_string()).filter(|token| !token.is_empty()),
            offline: truth("HF_HUB_OFFLINE"),
        })
    }
}

/// Finds the model in the cache, or fetches what is missing.
///
/// # Errors
/// The hub can't be reached or refuses, the repository doesn't exist or holds no usable weights, or the disk is full.
pub(super) fn fetch(id: &HubId, settings: &Settings, observer: &mut dyn Observer) -> Result<Source> {
    let cache = Cache::new(settings.cache.clone());
    let named = Repo::with_revision(id.repo.clone(), RepoType::Model, id.revision.clone());
    if let Some(found) = cached(id, &cache) {
        return Ok(found);
    }
    if settings.offline {
        return Err(Error::model(format!("`{}` is not in the cache, {}", id.repo, settings.cache.display()))
            .help("HF_HUB_OFFLINE forbids fetching it; unset it, or name a directory or a GGUF file"));
    }
    let mut builder = ApiBuilder::from_cache(cache.clone())
        .with_progress(false)
        .with_token(settings.token.clone())
        .with_user_agent("liftplan", env!("CARGO_PKG_VERSION"));
    if let Some(endpoint) = &settings.endpoint {
        builder = builder.with_endpoint(endpoint.clone());
    }
    let explain = |error: ApiError| explain(&error, id, settings);
    let api = builder.build().map_err(explain)?;
    observer.on(&Event::Phase(&format!("looking up {}", id.repo)));
    let info = retry(|| api.repo(named.clone()).info()).map_err(explain)?;
    if !is_plain_path(&info.sha) || info.sha.contains('/') {
        return Err(Error::model(format!(
            "the hub's answer about `{}` makes no sense: commit `{}`",
            id.repo, info.sha
        )));
    }
    let names: Vec<&str> = info.siblings.iter().map(|sibling| sibling.rfilename.as_str()).collect();
    // From here on by commit, so that all files are of the same version.
    let commit = Repo::with_revision(id.repo.clone(), RepoType::Model, info.sha.clone());
    let snapshot = cache.repo(commit.clone()).pointer_path(&info.sha);
    let repo = api.repo(commit.clone());
    let mut get = |name: &str| download(&api, &repo, &cache.repo(commit.clone()), &snapshot, name, observer, &explain);

    let found = match wanted(id, &names)? {
        Wanted::Gguf(name) => Source::Gguf(get(&name)?),
        Wanted::Checkpoint => {
            for name in SMALL.iter().filter(|name| names.contains(name)) {
                get(name)?;
            }
            if names.contains(&SINGLE) {
                get(SINGLE)?;
            } else {
                let mut shards: Vec<String> = read_index(&get(INDEX)?)?.into_values().collect();
                shards.sort();
                shards.dedup();
                for shard in shards {
                    get(&shard)?;
                }
            }
            Source::Directory(snapshot.clone())
        }
    };
    let kept = cache.repo(named).create_ref(&info.sha);
    kept.map_err(|e| Error::io(ErrorKind::Model, "write to the cache", &settings.cache, &e))?;
    Ok(found)
}

/// What the cache holds whole.
fn cached(id: &HubId, cache: &Cache) -> Option<Source> {
    let repo = cache.repo(Repo::with_revision(id.repo.clone(), RepoType::Model, id.revision.clone()));
    if let Some(file) = &id.file {
        return repo.get(file).map(Source::Gguf);
    }
    if let Some(config) = repo.get("config.json") {
        let directory = config.parent()?.to_path_buf();
        let has = |name: &str| directory.join(name).is_file();
        let whole = has(SINGLE)
            || (has(INDEX)
                && read_index(&directory.join(INDEX)).is_ok_and(|index| index.values().all(|shard| has(shard))));
        return (whole && has("tokenizer.json")).then_some(Source::Directory(directory));
    }
    None
}

/// Whether a name from the hub stays inside the directory that it's put into.
fn is_plain_path(name: &str) -> bool {
    !name.contains('\\') && name.split('/').all(|part| !matches!(part, "" | "." | ".."))
}

/// Which of a repository's files to fetch.
#[derive(Debug, PartialEq)]
enum Wanted {
    Checkpoint,
    Gguf(String),
}

fn wanted(id: &HubId, names: &[&str]) -> Result<Wanted> {
    let ggufs: Vec<&str> =
        names.iter().copied().filter(|name| name.ends_with(".gguf") && is_plain_path(name)).collect();
    let list = || ggufs.iter().map(|name| format!("{}/{name}", id.repo)).collect::<Vec<_>>().join(", ");
    if let Some(file) = &id.file {
        return match ggufs.contains(&file.as_str()) {
            true => Ok(Wanted::Gguf(file.clone())),
            false if ggufs.is_empty() => Err(Error::model(format!("`{}` has no GGUF files", id.repo))),
            false => {
                Err(Error::model(format!("`{}` has no file `{file}`", id.repo)).help(format!("it has {}", list())))
            }
        };
    }
    if names.contains(&"config.json") && (names.contains(&SINGLE) || names.contains(&INDEX)) {
        return Ok(Wanted::Checkpoint);
    }
    match ggufs.as_slice() {
        [only] => Ok(Wanted::Gguf(only.to_string())),
        [] => Err(Error::model(format!("`{}` holds neither safetensors nor GGUF weights", id.repo))
            .help("choose a repository that does; pickled weights (pytorch_model.bin) are not supported")),
        _ => Err(Error::model(format!("`{}` has several GGUF files", id.repo)).help(format!("name one: {}", list()))),
    }
}

/// Brings one file of the commit into the snapshot, and gives its path.
fn download(
    api: &Api,
    repo: &ApiRepo,
    cache: &hf_hub::CacheRepo,
    snapshot: &Path,
    name: &str,
    observer: &mut dyn Observer,
    explain: &dyn Fn(ApiError) -> Error,
) -> Result<PathBuf> {
    let path = snapshot.join(name);
    if path.is_file() {
        return Ok(path);
    }
    observer.on(&Event::Phase(&format!("downloading {name}")));
    let expected = retry(|| api.metadata(&repo.url(name))).map_err(explain)?;
    if !is_plain_path(expected.etag()) || expected.etag().contains('/') {
        return Err(Error::model(format!("the hub's answer about {name} makes no sense: tag `{}`", expected.etag())));
    }
    let blob = cache.blob_path(expected.etag());
    let part = blob.with_extension("part");
    let size = expected.size() as u64;
    let attempt = |observer: &mut dyn Observer| -> Result<PathBuf, ApiError> {
        // A request from the very end on is refused by servers, so the last byte is asked for again.
        if std::fs::metadata(&part).is_ok_and(|part| part.len() >= size) {
            let file = std::fs::OpenOptions::new().write(true).open(&part)?;
            file.set_len(if file.metadata()?.len() > size { 0 } else { size.saturating_sub(1) })?;
        }
        repo.download_with_progress(name, Reporter { observer, done: 0, total: size, told: 0 })
    };
    let path = retry(|| attempt(observer)).map_err(explain)?;
    let failed = |e: std::io::Error| Error::io(ErrorKind::Model, "check the download", &path, &e);
    let found = std::fs::metadata(&path).map_err(failed)?.len();
    // Large files have their SHA-256 as their tag; others a hash of git's that isn't worth computing.
    let by_hash = expected.etag().len() == 64;
    let sound = found == size && (!by_hash || sha256_of_file(&path).map_err(failed)?.1 == expected.etag());
    if !sound {
        for damaged in [&path, &blob] {
            std::fs::remove_file(damaged).map_err(failed)?;
        }
        return Err(Error::model(format!(
            "{name} arrived damaged: {found} of {size} bytes, or another hash than the hub's"
        ))
        .help("it was removed; run the same command again"));
    }
    Ok(path)
}

/// Tries again after what may pass: a connection that broke, or a server in trouble.
fn retry<T>(mut attempt: impl FnMut() -> Result<T, ApiError>) -> Result<T, ApiError> {
    let mut tries = 1;
    loop {
        match attempt() {
            Err(error) if tries < ATTEMPTS && passes(&error) => {
                std::thread::sleep(Duration::from_millis(200 << tries));
                tries += 1;
            }
            done => return done,
        }
    }
}

/// Whether an error may be gone at the next attempt.
fn passes(error: &ApiError) -> bool {
    match error {
        ApiError::RequestError(error) => match status(error) {
            Some(status) => status == 429 || status >= 500,
            None => match &**error {
                ureq::Error::Io(error) => error.kind() != std::io::ErrorKind::ConnectionRefused,
                ureq::Error::HostNotFound | ureq::Error::ConnectionFailed | ureq::Error::BadUri(_) => false,
                _ => true,
            },
        },
        ApiError::IoError(error) => error.kind() != std::io::ErrorKind::StorageFull,
        _ => false,
    }
}

fn status(error: &ureq::Error) -> Option<u16> {
    match error {
        ureq::Error::StatusCode(status) => Some(*status),
        _ => None,
    }
}

fn explain(error: &ApiError, id: &HubId, settings: &Settings) -> Error {
    let place = settings.endpoint.as_deref().unwrap_or("the Hugging Face hub");
    let code = match error {
        ApiError::RequestError(error) => status(error),
        _ => None,
    };
    match (code, error) {
        (Some(code @ (401 | 403)), _) => {
            let error = Error::model(format!("{place} refuses `{}` (status {code})", id.repo));
            error.help(match settings.token {
                None => {
                    "the model does not exist, or is private or gated: accept its terms on its page, then log in with \
                     `hf auth login` or set HF_TOKEN"
                }
                Some(_) => "the model does not exist, or your token has no access to it: accept its terms on its page",
            })
        }
        (Some(404), _) => Error::model(format!("{place} has no model `{}` at revision `{}`", id.repo, id.revision))
            .help("check the spelling; there is no file or directory of this name either"),
        (Some(code), _) => Error::model(format!("{place} answered with status {code} for `{}`", id.repo))
            .help("try again later; a download goes on where it stopped"),
        (None, ApiError::LockAcquisition(path)) => {
            Error::model(format!("another process is fetching `{}` ({} is locked)", id.repo, path.display()))
                .help("wait until it is done")
        }
        (None, ApiError::IoError(error)) if error.kind() == std::io::ErrorKind::StorageFull => {
            Error::io(ErrorKind::Model, "write to", &settings.cache, error)
        }
        (None, ApiError::IoError(error)) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            Error::io(ErrorKind::Model, "write to", &settings.cache, error)
        }
        (None, error) => Error::model(format!("cannot fetch `{}` from {place}: {error}", id.repo)).help(
            "check the network; then run the same command again, and a download goes on where it stopped. \
             Without a network, name a directory or a GGUF file",
        ),
    }
}

/// Passes a download's progress on, at most once a quarter of a MiB.
struct Reporter<'a> {
    observer: &'a mut dyn Observer,
    done: u64,
    total: u64,
    told: u64,
}

impl Reporter<'_> {
    fn tell(&mut self) {
        self.told = self.done;
        self.observer.on(&Event::Progress { unit: "bytes", done: self.done, total: self.total });
    }
}

impl Progress for Reporter<'_> {
    fn init(&mut self, size: usize, _: &str) {
        (self.done, self.total, self.told) = (0, size as u64, 0);
    }

    fn update(&mut self, size: usize) {
        self.done += size as u64;
        if self.done - self.told >= 1 << 18 {
            self.tell();
        }
    }

    fn finish(&mut self) {
        self.tell();
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
#[path = "tests/hub.rs"]
mod tests;
