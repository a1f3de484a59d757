//! A plugin that was fetched and not yet installed: what a user is shown and agrees to, and the installing itself.

use std::fmt::Write;
use std::path::Path;

use serde::Serialize;

use super::files::Files;
use super::lock::{LOCK_FILE, Lock, Pinned};
use super::signature::Key;
use super::source::{self, Source};
use super::{download, oci};
use crate::plugin::metadata::{Kind, Metadata};
use crate::report::text::memory;
use crate::{Error, Result, sha256};

/// What to fetch, and by which key to check it.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// Where it is, paths absolute.
    pub source: Source,
    /// The key that must have signed it. Without one, the lock's for a plugin of this name holds.
    pub key: Option<Key>,
    /// Where the signature is; by default beside the file, under its name and `.minisig`, or in the same manifest.
    pub signature: Option<Source>,
}

/// A plugin's file, fetched into memory and read but not run.
#[derive(Clone, Debug, Serialize)]
pub struct Offer {
    /// What it says about itself.
    #[serde(flatten)]
    pub metadata: Metadata,
    /// What it is.
    pub kind: Kind,
    /// Its hash.
    pub sha256: String,
    /// Its size.
    pub size_bytes: u64,
    /// Where it came from: as given, or more exactly, with a registry's digest.
    pub source: String,
    /// The key that signed it, if that was checked.
    pub public_key: Option<String>,
    /// The comment that was signed with it.
    pub signed_comment: Option<String>,
    /// The line of the lock that it would replace.
    pub replaces: Option<Pinned>,
    #[serde(skip)]
    bytes: Vec<u8>,
}

/// What the user agreed to.
#[derive(Clone, Debug, Default)]
pub struct Consent {
    /// Other bytes under a version that is installed already.
    pub replace: bool,
    /// Native code with this hash.
    pub allow_native: Option<String>,
}

/// Fetches the plugin and its signature into memory, reads what it says about itself, and checks the signature if a key
/// is known. Nothing is written and nothing of the plugin runs. Paths are seen from `project`, the lock's directory.
///
/// # Errors
/// It can't be fetched, is no plugin, or is not signed by the key.
pub fn fetch(wanted: &Wanted, project: &Path) -> Result<Offer> {
    let shown = wanted.source.to_string();
    let found = get(&wanted.source)?;
    let (kind, metadata) = Metadata::read(&found.bytes).map_err(|error| error.at(&shown))?;
    let replaces = Lock::read(project)?.plugins.into_iter().find(|pinned| pinned.name == metadata.name);
    let key = match (&wanted.key, replaces.as_ref().and_then(|pinned| pinned.public_key.as_ref())) {
        (Some(key), _) => Some(key.clone()),
        (None, Some(text)) => Some(Key::parse(text)?),
        (None, None) => None,
    };
    if let (None, Some(signature)) = (&key, &wanted.signature) {
        return Err(Error::config(format!("the signature {signature} has no effect: no public key is known"))
            .help("give the author's key with --public-key"));
    }
    let comment = match &key {
        None => None,
        Some(key) => {
            let signature = match (&wanted.signature, found.signature) {
                (Some(place), _) => get(place)?.bytes,
                (None, Some(signature)) => signature,
                (None, None) => signature_beside(&wanted.source)?,
            };
            Some(key.verify(&found.bytes, &signature).map_err(|error| error.at(&shown))?)
        }
    };
    Ok(Offer {
        kind,
        sha256: sha256(&found.bytes),
        size_bytes: found.bytes.len() as u64,
        source: match found.source {
            Source::File(path) => path.strip_prefix(project).unwrap_or(&path).display().to_string(),
            other => other.to_string(),
        },
        public_key: key.map(|key| key.text),
        signed_comment: comment,
        replaces,
        metadata,
        bytes: found.bytes,
    })
}

/// Installs what was fetched: keeps the file and writes the project's lock. If it is stopped in between, nothing points to
/// the file.
///
/// # Errors
/// The user did not agree to what it needs, or something can't be written.
pub fn install(offer: &Offer, project: &Path, files: &Files, consent: &Consent) -> Result<Pinned> {
    offer.check(consent)?;
    let mut lock = Lock::read(project)?;
    let pinned = Pinned {
        name: offer.metadata.name.clone(),
        version: offer.metadata.version.clone(),
        kind: offer.kind,
        sha256: files.put(&offer.bytes)?,
        source: offer.source.clone(),
        public_key: offer.public_key.clone(),
        allow_native: offer.kind == Kind::Native,
    };
    lock.insert(pinned.clone());
    lock.write()?;
    Ok(pinned)
}

/// Fetches what `pinned` names, from where the lock says, if its file is missing or damaged. Gives whether it did.
///
/// # Errors
/// It can't be fetched, or is another file by now.
pub(super) fn restore(pinned: &Pinned, project: &Path, files: &Files) -> Result<bool> {
    if files.get(&pinned.sha256).is_ok() {
        return Ok(false);
    }
    let found = get(&Source::parse(&pinned.source)?.seen_from(project)).map_err(|error| error.at(pinned.shown()))?;
    let hash = sha256(&found.bytes);
    if hash != pinned.sha256 {
        return Err(Error::plan(format!(
            "{}: {} holds another file by now: its sha256 is {hash}, where {LOCK_FILE} has {}",
            pinned.shown(),
            pinned.source,
            pinned.sha256
        ))
        .help("if the change is meant, install it by its source"));
    }
    files.put(&found.bytes)?;
    Ok(true)
}

/// A file, where exactly it was, and the signature that came with it.
pub(super) struct Found {
    pub bytes: Vec<u8>,
    pub source: Source,
    pub signature: Option<Vec<u8>>,
}

fn get(source: &Source) -> Result<Found> {
    let bytes = match source {
        Source::File(path) => source::read_file(path)?,
        Source::Url(url) => download::get(url)?.ok_or_else(|| {
            Error::plan(format!("there is nothing at {source}: the server answered with status 404"))
                .help("check the address")
        })?,
        Source::Oci(place) => return oci::pull(place),
    };
    Ok(Found { bytes, source: source.clone(), signature: None })
}

fn signature_beside(source: &Source) -> Result<Vec<u8>> {
    let missing = |place: String| {
        Error::plan(format!("{source} is not signed: there is no {place}"))
            .help("name the signature with --signature, or leave --public-key out")
    };
    match source {
        Source::File(path) => {
            let mut name = path.clone().into_os_string();
            name.push(".minisig");
            let beside = Path::new(&name);
            if !beside.is_file() {
                return Err(missing(beside.display().to_string()));
            }
            source::read_file(beside)
        }
        Source::Url(url) => {
            let beside = match url.split_once('?') {
                Some((path, query)) => format!("{path}.minisig?{query}"),
                None => format!("{url}.minisig"),
            };
            download::get(&beside)?.ok_or_else(|| missing(beside))
        }
        Source::Oci(_) => Err(missing(format!("layer of type {} in its manifest", oci::SIGNATURE_TYPE))),
    }
}

impl Offer {
    /// Whether the user agreed to what the plugin needs.
    ///
    /// # Errors
    /// Not to all of it.
    pub fn check(&self, consent: &Consent) -> Result<()> {
        let shown = self.metadata.shown();
        match (self.kind, &consent.allow_native) {
            (Kind::Wasm, None) => {}
            (Kind::Wasm, Some(_)) => {
                return Err(Error::config(format!("--allow-native has no effect: {shown} is a WebAssembly component"))
                    .help("leave it out"));
            }
            (Kind::Native, Some(hash)) if hash.eq_ignore_ascii_case(&self.sha256) => {}
            (Kind::Native, Some(hash)) => {
                return Err(Error::plan(format!(
                    "--allow-native names {}, and the sha256 of {shown} is {}",
                    super::super::escaped(hash, 80),
                    self.sha256
                ))
                .help("this is not the file that you meant to allow"));
            }
            (Kind::Native, None) => {
                return Err(Error::plan(format!(
                    "{shown} is native code, which can do whatever you can; nothing fences it in"
                ))
                .help(format!("if you trust its author, add --allow-native {}", self.sha256)));
            }
        }
        if let Some(old) = &self.replaces {
            if old.version == self.metadata.version && old.sha256 != self.sha256 && !consent.replace {
                return Err(Error::plan(format!(
                    "{shown} is installed already, and this file is another one: its sha256 is {}, where {LOCK_FILE} has {}",
                    self.sha256, old.sha256
                ))
                .help("a published version does not change; if you built it anew yourself, add --replace"));
            }
            if let (Some(old), None) = (&old.public_key, &self.public_key) {
                return Err(Error::plan(format!(
                    "{shown}: the installed one was signed with {old}, this one is not signed"
                )));
            }
        }
        Ok(())
    }

    /// What it is and asks for, for a person to agree to.
    pub fn text(&self) -> String {
        let metadata = &self.metadata;
        let mut text = String::new();
        let mut line = |key: &str, value: &str| {
            // Writing to a string can't fail.
            let _ = writeln!(text, "  {key:10} {value}");
        };
        if !metadata.about.is_empty() {
            line("about", &metadata.about);
        }
        line("author", &metadata.author);
        line("licence", &metadata.license);
        line("file", &format!("{}, {}", in_words(self.kind), memory(self.size_bytes)));
        line("sha256", &self.sha256);
        line("from", &self.source);
        match (&self.public_key, &self.signed_comment) {
            (Some(key), comment) => {
                let comment = comment.as_deref().unwrap_or_default();
                line("signed by", &format!("{key} ({})", super::super::escaped(comment, 200)));
            }
            _ => line("signed by", "not checked"),
        }
        match metadata.capabilities.as_slice() {
            [] => line("asks for", "nothing beyond the model's list of tensors"),
            capabilities => {
                for (i, capability) in capabilities.iter().enumerate() {
                    line(if i == 0 { "asks for" } else { "" }, capability.in_words());
                }
            }
        }
        if self.kind == Kind::Native {
            line("WARNING", "native code can do whatever you can: read and send your files, for example");
        }
        match &self.replaces {
            Some(old) if old.sha256 == self.sha256 => line("replaces", "the same file"),
            Some(old) => line("replaces", &format!("{}, sha256 {}", old.shown(), old.sha256)),
            None => {}
        }
        format!("{}\n{text}", metadata.shown())
    }
}

/// What a plugin is, for a person.
pub(super) fn in_words(kind: Kind) -> &'static str {
    match kind {
        Kind::Wasm => "WebAssembly component, fenced in",
        Kind::Native => "native library",
    }
}
