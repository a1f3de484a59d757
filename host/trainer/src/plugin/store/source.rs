//! Where a plugin's file can come from.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use super::MAX_FILE_BYTES;
use crate::plugin::escaped;
use crate::{Error, ErrorKind, Result};

/// Where a plugin's file comes from.
#[derive(Clone, Debug, PartialEq)]
pub enum Source {
    /// A file on this machine.
    File(PathBuf),
    /// An address: `https://…`, or `http://` on this machine.
    Url(String),
    /// A place in an OCI registry: `registry/repository:tag` or `…@sha256:…`.
    Oci(String),
}

impl Source {
    /// Reads what a user typed.
    ///
    /// # Errors
    /// It has a scheme that isn't known, or one that isn't safe.
    pub fn parse(text: &str) -> Result<Self> {
        let Some((scheme, rest)) = text.split_once("://") else {
            return match text {
                "" => Err(Error::config("the plugin's source is empty")),
                text => Ok(Self::File(PathBuf::from(text))),
            };
        };
        let host = rest.split(['/', '?', '#']).next().unwrap_or_default();
        let shown = escaped(text, 200);
        if host.contains('@') {
            return Err(Error::config(format!("{shown} has a user's name in it"))
                .help("the lock keeps the address; leave secrets out of it"));
        }
        match scheme {
            "oci" => Ok(Self::Oci(rest.to_string())),
            "https" => Ok(Self::Url(text.to_string())),
            "http" if is_this_machine(host) => Ok(Self::Url(text.to_string())),
            "http" => Err(Error::config(format!("{shown} is not encrypted: anybody on the way could change the file"))
                .help("use https://")),
            _ => Err(Error::config(format!("plugins cannot be fetched from {shown}"))
                .help("name a file, https://… or oci://…")),
        }
    }

    /// The same, with a path made absolute from `here`.
    pub fn seen_from(self, here: &Path) -> Self {
        match self {
            Self::File(path) => Self::File(here.join(path)),
            other => other,
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Url(url) => f.write_str(url),
            Self::Oci(place) => write!(f, "oci://{place}"),
        }
    }
}

/// Whether `host`, perhaps with a port, is this machine.
pub(super) fn is_this_machine(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(v6) => v6.split(']').next().unwrap_or_default(),
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    };
    name == "localhost" || name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// The content of a file that a user named.
pub(super) fn read_file(path: &Path) -> Result<Vec<u8>> {
    let failed = |error: std::io::Error| {
        let shown = Error::io(ErrorKind::Plan, "read the plugin", path, &error);
        match error.kind() {
            std::io::ErrorKind::NotFound => shown.help("name a plugin's file, https://… or oci://…"),
            _ => shown,
        }
    };
    let mut bytes = Vec::new();
    // A pipe or a device has no size to look at before.
    File::open(path).map_err(failed)?.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(too_large(&path.display().to_string()));
    }
    Ok(bytes)
}

pub(super) fn too_large(shown: &str) -> Error {
    Error::plan(format!("{shown} is larger than {} MiB, the most that a plugin may have", MAX_FILE_BYTES >> 20))
}
