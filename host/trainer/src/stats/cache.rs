//! Singular values and other numbers on disk, by the content of the weight: the same weights in another file, format or model are found
//! again, and a scan that was stopped goes on where it was.
//!
//! Directory: `LIFTPLAN_CACHE`, or `liftplan` in `XDG_CACHE_HOME`, or `~/.cache/liftplan`. An empty `LIFTPLAN_CACHE` turns
//! it off. One file a matrix, `statistics/HASH.sv`: a magic, the values in little-endian f64, and the SHA-256 of both.
//! A file that is damaged in any way counts as absent and is written again.

use std::env;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::hash::{self, Hasher};

const MAGIC: &[u8; 8] = b"LPSINGV1";
/// Part of every key: changes when the computation does.
const VERSION: &[u8] = b"liftplan singular values 1\0";

/// The user's directory for everything that can be computed again, if there is a place for one.
pub fn root_of_user() -> Option<PathBuf> {
    let variable = |name: &str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    match env::var_os("LIFTPLAN_CACHE") {
        Some(chosen) if chosen.is_empty() => None,
        Some(chosen) => Some(PathBuf::from(chosen)),
        None => match variable("XDG_CACHE_HOME").filter(|path| path.is_absolute()) {
            Some(caches) => Some(caches.join("liftplan")),
            None => Some(variable("HOME")?.join(".cache/liftplan")),
        },
    }
}

/// The cache.
#[derive(Clone, Debug)]
pub struct Cache {
    directory: PathBuf,
}

impl Cache {
    /// The user's cache, if there is a place for one.
    pub fn of_user() -> Option<Self> {
        Some(Self::in_directory(&root_of_user()?))
    }

    /// A cache below `root`.
    pub fn in_directory(root: &Path) -> Self {
        Self { directory: root.join("statistics") }
    }

    /// What the singular values of this matrix are kept under: the SHA-256 of its shape and its numbers.
    pub(super) fn key(elements: &[f32], rows: usize, cols: usize) -> String {
        Self::key_of(VERSION, elements, rows, cols)
    }

    /// What another statistic of this weight is kept under; `what` names it and changes when its computation does.
    pub(super) fn key_of(what: &[u8], elements: &[f32], rows: usize, cols: usize) -> String {
        let mut hash = Hasher::default();
        hash.update(what);
        hash.update((rows as u64).to_le_bytes());
        hash.update((cols as u64).to_le_bytes());
        hash.update(bytemuck::cast_slice::<f32, u8>(elements));
        hash.finish()
    }

    /// The values kept under `key`, if they are there, whole, and `count`.
    pub(super) fn get(&self, key: &str, count: usize) -> Option<Vec<f64>> {
        let bytes = fs::read(self.path(key)).ok()?;
        let (content, written) = bytes.split_at_checked(bytes.len().checked_sub(hash::BYTES)?)?;
        if hash::digest(content) != written {
            return None;
        }
        let values = content.strip_prefix(MAGIC)?;
        let values: Vec<f64> = values.as_chunks::<8>().0.iter().map(|bytes| f64::from_le_bytes(*bytes)).collect();
        (values.len() == count).then_some(values)
    }

    /// Keeps the values. They appear whole or not at all.
    pub(super) fn put(&self, key: &str, values: &[f64]) -> io::Result<()> {
        static COUNTER: AtomicU64 = AtomicU64::new(0);
        let mut bytes = MAGIC.to_vec();
        bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        bytes.extend(hash::digest(&bytes));
        fs::create_dir_all(&self.directory)?;
        // Several processes may scan the same model: each writes a file of its own, and the last rename wins. There is
        // no fsync, since a file cut short is noticed by its hash.
        let unique = COUNTER.fetch_add(1, Ordering::Relaxed);
        let temporary = self.directory.join(format!(".tmp-{}-{unique}-{key}", std::process::id()));
        let written = fs::write(&temporary, &bytes).and_then(|()| fs::rename(&temporary, self.path(key)));
        if written.is_err() {
            // The error that matters is the first one.
            let _ = fs::remove_file(&temporary);
        }
        written
    }

    /// The file that `key` is kept in.
    pub(super) fn path(&self, key: &str) -> PathBuf {
        self.directory.join(format!("{key}.sv"))
    }
}
