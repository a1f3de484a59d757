//! One process at a time in a run's directory: `RUN/.lock`, locked by the operating system, so that the lock of a
//! process that died is gone with it.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};

use crate::files::output_error;
use crate::{Error, Result};

/// Holds a run's directory until it is dropped.
#[derive(Debug)]
pub struct RunLock {
    path: PathBuf,
    // Closing the file releases the lock.
    _file: File,
}

impl RunLock {
    /// Takes the directory `run`, which is made if it isn't there.
    ///
    /// # Errors
    /// When another process holds it (the error names its id), or the lock file can't be made.
    pub fn acquire(run: &Path) -> Result<Self> {
        std::fs::create_dir_all(run).map_err(|e| output_error("create the directory", run, &e))?;
        let path = run.join(".lock");
        let mut file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(&path)
            .map_err(|e| output_error("open", &path, &e))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                // Who holds it may not have written its id yet.
                let _ = file.read_to_string(&mut holder);
                let holder = match holder.trim() {
                    "" => "another process".to_string(),
                    pid => format!("process {pid}"),
                };
                return Err(Error::output(format!("the run directory {} is in use by {holder}", run.display()))
                    .help("wait for it to end or stop it, or choose another directory with --out"));
            }
            Err(TryLockError::Error(error)) => return Err(output_error("lock", &path, &error)),
        }
        let write = |file: &mut File| {
            file.set_len(0)?;
            file.rewind()?;
            writeln!(file, "{}", std::process::id())
        };
        write(&mut file).map_err(|e| output_error("write", &path, &e))?;
        Ok(Self { path, _file: file })
    }

    /// The lock file.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_second_process_is_refused_by_the_firsts_id_and_let_in_after_it() {
        let dir = tempfile::tempdir().unwrap();
        let run = dir.path().join("run");
        let first = RunLock::acquire(&run).unwrap();
        let error = RunLock::acquire(&run).unwrap_err();
        let expected = format!("the run directory {} is in use by process {}", run.display(), std::process::id());
        assert_eq!(error.message(), expected);
        drop(first);
        RunLock::acquire(&run).unwrap();
    }
}
