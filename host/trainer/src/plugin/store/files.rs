//! Plugins' files, each kept under its own hash. What is read back is checked against that hash.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use super::MAX_FILE_BYTES;
use crate::files::{output_error, write_atomically};
use crate::{Error, ErrorKind, Result};

/// The directory of plugins' files.
#[derive(Clone, Debug)]
pub struct Files {
    directory: PathBuf,
}

impl Files {
    /// The user's directory.
    ///
    /// # Errors
    /// There is no home directory, and nothing else says where.
    pub fn of_user() -> Result<Self> {
        let variable = |name: &str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let directory =
            match (variable("LIFTPLAN_PLUGINS"), variable("XDG_DATA_HOME").filter(|path| path.is_absolute())) {
                (Some(chosen), _) => chosen,
                (None, Some(data)) => data.join("liftplan/plugins"),
                (None, None) => variable("HOME")
                    .ok_or_else(|| {
                        Error::output("there is no home directory to keep plugins in").help("set LIFTPLAN_PLUGINS")
                    })?
                    .join(".local/share/liftplan/plugins"),
            };
        Ok(Self::in_directory(&directory))
    }

    /// A directory of one's own.
    pub fn in_directory(directory: &Path) -> Self {
        Self { directory: directory.to_path_buf() }
    }

    /// Whether there is a file of this hash. It may be damaged; [`Files::get`] tells.
    pub fn has(&self, sha256: &str) -> bool {
        self.path(sha256).is_file()
    }

    /// The file with this hash.
    ///
    /// # Errors
    /// It is missing, unreadable, or has another hash by now.
    pub fn get(&self, sha256: &str) -> Result<Vec<u8>> {
        let path = self.path(sha256);
        let again = "fetch it again with `liftplan plugin install`, in the directory of liftplan.lock";
        let bytes = fs::read(&path).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => {
                Error::plan(format!("its file is not on this machine: {} is missing", path.display())).help(again)
            }
            _ => Error::io(ErrorKind::Plan, "read", &path, &error),
        })?;
        let found = crate::sha256(&bytes);
        if found != sha256 {
            return Err(Error::plan(format!("{} was changed: its sha256 is {found}", path.display())).help(again));
        }
        Ok(bytes)
    }

    /// Keeps the file, and gives its hash. It appears whole or not at all.
    ///
    /// # Errors
    /// It can't be written.
    pub fn put(&self, bytes: &[u8]) -> Result<String> {
        let sha256 = crate::sha256(bytes);
        if self.get(&sha256).is_err() {
            fs::create_dir_all(&self.directory)
                .map_err(|e| output_error("create the directory", &self.directory, &e))?;
            write_atomically(&self.path(&sha256), bytes)?;
        }
        debug_assert!(bytes.len() as u64 <= MAX_FILE_BYTES);
        Ok(sha256)
    }

    /// Removes the file, if it is there.
    ///
    /// # Errors
    /// It can't be removed.
    pub fn remove(&self, sha256: &str) -> Result<()> {
        let path = self.path(sha256);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(output_error("remove", &path, &error)),
            _ => Ok(()),
        }
    }

    /// Where the file of this hash lies.
    pub fn path(&self, sha256: &str) -> PathBuf {
        self.directory.join(sha256)
    }
}
