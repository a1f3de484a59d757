//! Installed plugins: where their files lie, which of them a project uses, and how they get there.
//!
//! In: a file, an address or a place in a registry ([`fetch`]), and the user's consent. Out: a file kept under its own
//! hash ([`Files`]), and a line in the project's `liftplan.lock` ([`Lock`]) that pins the hash and says where it came from.
//! [`load`] is the way back: the bytes whose hash it checked are the bytes that it hands on to be run.
//!
//! ```text
//! FILE | https://… | oci://… ─► fetch ─► Offer ─► shown, agreed to ─► install ─► Files, Lock ─► load ─► Loaded
//! ```
//!
//! `liftplan.lock` lies beside the configurations that use its plugins, and belongs into version control. The files lie in
//! `LIFTPLAN_PLUGINS`, or `liftplan/plugins` in `XDG_DATA_HOME`, or `~/.local/share/liftplan/plugins`; they can be fetched
//! again from what the lock says.

use std::path::Path;

use super::metadata::{Kind, Metadata, is_name};
use crate::config::suggest;
use crate::{Error, Result};

mod download;
mod files;
mod lock;
mod oci;
mod offer;
mod signature;
mod source;

pub use files::Files;
pub use lock::{LOCK_FILE, Lock, Pinned};
pub use offer::{Consent, Offer, Wanted, fetch, install};
pub use signature::Key;
pub use source::Source;

/// Most bytes of a plugin's file.
pub const MAX_FILE_BYTES: u64 = 64 << 20;

/// A plugin's file, read once: these bytes have this hash, and only they may be run.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// What it says about itself.
    pub metadata: Metadata,
    /// What it is.
    pub kind: Kind,
    /// The sha256 of `bytes`, in hexadecimal.
    pub sha256: String,
    /// The file.
    pub bytes: Vec<u8>,
    /// Whether the user agreed to run it although it is native code.
    pub allow_native: bool,
}

impl Loaded {
    /// The plugin in the file at `path`, which nothing pins and nobody allowed.
    ///
    /// # Errors
    /// It can't be read, is too large, or is no plugin.
    pub fn from_file(path: &Path) -> Result<Self> {
        Self::from_bytes(source::read_file(path)?).map_err(|error| error.at(path.display()))
    }

    /// The plugin in these bytes, which nothing pins and nobody allowed.
    ///
    /// # Errors
    /// They are no plugin.
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Self> {
        let (kind, metadata) = Metadata::read(&bytes)?;
        Ok(Self { metadata, kind, sha256: crate::sha256(&bytes), bytes, allow_native: false })
    }
}

/// The plugin that the lock in `project` calls `name`.
///
/// # Errors
/// It is not installed, its file is missing or was changed, or says something else than the lock.
pub fn load(project: &Path, files: &Files, name: &str) -> Result<Loaded> {
    let lock = Lock::read(project)?;
    let pinned = find(&lock, name)?;
    let bytes = files.get(&pinned.sha256).map_err(|error| error.at(pinned.shown()))?;
    let (kind, metadata) = Metadata::read(&bytes).map_err(|error| error.at(pinned.shown()))?;
    if (&metadata.name, &metadata.version, kind) != (&pinned.name, &pinned.version, pinned.kind) {
        return Err(Error::plan(format!(
            "{}: {} pins it, but the file with this hash says that it is {}",
            pinned.shown(),
            LOCK_FILE,
            metadata.shown()
        ))
        .help(format!("install it again with `liftplan plugin install {}`", pinned.source)));
    }
    Ok(Loaded { metadata, kind, sha256: pinned.sha256.clone(), bytes, allow_native: pinned.allow_native })
}

/// Fetches the file of each plugin of the project's lock that is missing on this machine, or damaged, and gives the
/// fetched ones. Each must have the hash that the lock has. A lock can be somebody else's: native code that is not on this
/// machine yet is fetched only if `allow_native` is its hash.
///
/// # Errors
/// One can't be fetched, is another file by now, or is not allowed. Those before it stay.
pub fn restore(project: &Path, files: &Files, allow_native: Option<&str>) -> Result<Vec<Pinned>> {
    let lock = Lock::read(project)?;
    let mut fetched = Vec::new();
    for pinned in lock.plugins {
        let allowed = allow_native.is_some_and(|allowed| allowed.eq_ignore_ascii_case(&pinned.sha256));
        if pinned.kind == Kind::Native && !allowed && !files.has(&pinned.sha256) {
            return Err(Error::plan(format!("{} is native code, which can do whatever you can", pinned.shown()))
                .help(format!("if you trust its author, add --allow-native {}", pinned.sha256)));
        }
        if offer::restore(&pinned, project, files)? {
            fetched.push(pinned);
        }
    }
    Ok(fetched)
}

/// The line of the lock for `name`.
///
/// # Errors
/// There is none.
pub fn find<'a>(lock: &'a Lock, name: &str) -> Result<&'a Pinned> {
    if let Some(pinned) = lock.plugins.iter().find(|pinned| pinned.name == name) {
        return Ok(pinned);
    }
    let shown = if is_name(name) { name.to_string() } else { super::escaped(name, 80) };
    let error = Error::config(format!("the plugin {shown} is not installed: {} has no such line", lock.path.display()));
    let names: Vec<&str> = lock.plugins.iter().map(|pinned| pinned.name.as_str()).collect();
    Err(match suggest::nearest(name, names.iter().copied()) {
        Some(near) => error.help(format!("did you mean {near}?")),
        None if names.is_empty() => error.help("install one with `liftplan plugin install FILE|URL|oci://…`"),
        None => error.help(format!("installed are {}", suggest::list(&names))),
    })
}

/// Takes `name` out of the project's lock. Its file stays, since other projects may use it, unless `with_file`.
///
/// # Errors
/// It is not installed, or the lock can't be written.
pub fn remove(project: &Path, files: &Files, name: &str, with_file: bool) -> Result<Pinned> {
    let mut lock = Lock::read(project)?;
    let pinned = find(&lock, name)?.clone();
    lock.plugins.retain(|pinned| pinned.name != name);
    lock.write()?;
    if with_file {
        files.remove(&pinned.sha256)?;
    }
    Ok(pinned)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
