//! Writing files and directories so that nobody ever sees half of one: everything is made under a temporary name
//! beside its target, brought to the disk, and renamed.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::{Error, ErrorKind, Result};

/// The prefix of temporary names; whatever carries it was left by a process that died and may be removed.
pub(crate) const TEMPORARY: &str = ".tmp-";
/// The prefix of a directory that is being replaced.
pub(crate) const REPLACED: &str = ".old-";

/// `prefix` before the last component of `path`, so that both lie in the same directory and a rename is atomic.
pub(crate) fn sibling(path: &Path, prefix: &str) -> PathBuf {
    let mut name = OsString::from(prefix);
    name.push(path.file_name().unwrap_or_default());
    path.with_file_name(name)
}

/// Wraps an I/O error of something that a run makes.
pub(crate) fn output_error(doing: &str, path: &Path, error: &std::io::Error) -> Error {
    Error::io(ErrorKind::Output, doing, path, error)
}

/// Brings a directory's entries (creations, renames) to the disk. Only Unix has this.
pub(crate) fn sync_dir(dir: &Path) -> Result<()> {
    if cfg!(unix) {
        let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
        File::open(dir).and_then(|d| d.sync_all()).map_err(|e| output_error("sync the directory", dir, &e))?;
    }
    Ok(())
}

/// Writes `bytes` to `path`, all or nothing.
pub(crate) fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    let temporary = sibling(path, TEMPORARY);
    let written = File::create(&temporary).and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync_all()
    });
    if let Err(error) = written.and_then(|()| fs::rename(&temporary, path)) {
        // The error that matters is the first one.
        let _ = fs::remove_file(&temporary);
        return Err(output_error("write", path, &error));
    }
    sync_dir(path.parent().unwrap_or(Path::new(".")))
}

/// A directory in the making: it lies beside its target under a temporary name, becomes the target when published,
/// and disappears when it is dropped before that.
pub(crate) struct Staging {
    path: PathBuf,
    target: PathBuf,
    published: bool,
}

impl Staging {
    /// Makes an empty temporary directory beside `target`, and the directories above it.
    pub(crate) fn beside(target: &Path) -> Result<Self> {
        if target.file_name().is_none() {
            return Err(Error::output(format!("cannot write to {}: it has no name of its own", target.display()))
                .help("name a directory that can be made new"));
        }
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent).map_err(|e| output_error("create the directory", parent, &e))?;
        }
        let path = sibling(target, TEMPORARY);
        if path.exists() {
            fs::remove_dir_all(&path).map_err(|e| output_error("remove the old temporary directory", &path, &e))?;
        }
        fs::create_dir(&path).map_err(|e| output_error("create the directory", &path, &e))?;
        Ok(Self { path, target: target.to_path_buf(), published: false })
    }

    /// Where to write.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Renames the directory to its target, replacing a directory that is there. The files must have been synced.
    pub(crate) fn publish(mut self) -> Result<()> {
        sync_dir(&self.path)?;
        let old = sibling(&self.target, REPLACED);
        let replaces = self.target.is_dir();
        if replaces {
            if old.exists() {
                fs::remove_dir_all(&old).map_err(|e| output_error("remove", &old, &e))?;
            }
            fs::rename(&self.target, &old).map_err(|e| output_error("replace", &self.target, &e))?;
        }
        if let Err(error) = fs::rename(&self.path, &self.target) {
            if replaces {
                let _ = fs::rename(&old, &self.target);
            }
            return Err(output_error("create", &self.target, &error));
        }
        self.published = true;
        sync_dir(self.target.parent().unwrap_or(Path::new(".")))?;
        if replaces {
            fs::remove_dir_all(&old).map_err(|e| output_error("remove", &old, &e))?;
        }
        Ok(())
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if !self.published {
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<String> =
            fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_staged_directory_appears_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("out");
        let staging = Staging::beside(&target).unwrap();
        fs::write(staging.path().join("a"), "1").unwrap();
        assert!(!target.exists());
        drop(staging);
        assert_eq!(names(dir.path()), [""; 0]);

        let staging = Staging::beside(&target).unwrap();
        fs::write(staging.path().join("a"), "1").unwrap();
        staging.publish().unwrap();
        assert_eq!(fs::read_to_string(target.join("a")).unwrap(), "1");

        let staging = Staging::beside(&target).unwrap();
        fs::write(staging.path().join("b"), "2").unwrap();
        staging.publish().unwrap();
        assert_eq!(names(dir.path()), ["out"]);
        assert_eq!(names(&target), ["b"]);
    }

    #[test]
    fn an_atomic_write_that_fails_leaves_the_old_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file.json");
        write_atomically(&path, b"old").unwrap();
        // A directory in the way of the temporary name makes the write fail before the rename.
        fs::create_dir(sibling(&path, TEMPORARY)).unwrap();
        let error = write_atomically(&path, b"new").unwrap_err();
        assert!(error.message().contains("file.json"), "{error}");
        assert_eq!(fs::read(&path).unwrap(), b"old");
    }
}
