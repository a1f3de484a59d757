//! The run's directory: refused when it holds something else, claimed once everything else is known to be good.

use std::path::{Path, PathBuf};

use super::prepare::Prepared;
use crate::checkpoint::{RunLock, Store};
use crate::config::{Config, Device};
use crate::files::write_atomically;
use crate::plan;
use crate::{Error, ErrorKind, Result};

/// The configuration of the run, as resolved.
pub(super) const CONFIG: &str = "config.toml";
/// The plan.
pub(super) const PLAN: &str = "plan.json";

/// A directory that was found fit for the run; nothing is written yet.
pub(super) struct Directory {
    path: PathBuf,
    resume: bool,
}

/// A directory that belongs to this process.
pub(super) struct Claimed {
    pub path: PathBuf,
    pub store: Store,
    pub resume: bool,
    _lock: RunLock,
}

impl Directory {
    /// Looks at the directory.
    ///
    /// # Errors
    /// When it holds a run and `resume` isn't asked for, holds none and it is, or holds something else.
    pub fn inspect(path: &Path, resume: bool) -> Result<Self> {
        let shown = path.display();
        let is_run = path.join(CONFIG).is_file();
        if resume && !is_run {
            return Err(Error::output(format!("there is no run to resume in {shown}"))
                .help("leave --resume out to start one, or name the run's directory with --out"));
        }
        if !resume && is_run {
            return Err(Error::output(format!("{shown} holds a run already"))
                .help("go on with it by --resume, or choose another directory with --out"));
        }
        if path.exists() && !is_run {
            let entries = std::fs::read_dir(path)
                .map_err(|error| Error::io(ErrorKind::Output, "use as the run's directory", path, &error))?;
            // A lock file alone is what a run leaves that failed before it began.
            let others = entries.flatten().filter(|entry| entry.file_name() != ".lock").count();
            if others > 0 {
                return Err(Error::output(format!("{shown} is not empty and holds no run"))
                    .help("choose another directory with --out"));
            }
        }
        Ok(Self { path: path.to_path_buf(), resume })
    }

    /// The device that the run in the directory goes on with, where `wanted` is asked for.
    ///
    /// # Errors
    /// When it is another than the one that the run began with, or its configuration can't be read.
    pub fn device(&self, wanted: Device) -> Result<Device> {
        let began_with = Config::load(&self.path.join(CONFIG), &[])?.device;
        if wanted == Device::Auto || began_with == Device::Auto || wanted == began_with {
            return Ok(began_with);
        }
        let shown = self.path.display();
        Err(Error::config(format!("`device` is \"{wanted}\", and the run in {shown} began on \"{began_with}\"")).help(
            format!(
                "a resumed run is the same as one that never stopped, and devices round differently: set device to \
             \"{began_with}\", leave it out, or start another run"
            ),
        ))
    }

    /// Locks the directory and writes configuration and plan into it.
    ///
    /// # Errors
    /// When another process uses it, or it can't be written.
    pub fn claim(self, config: &Config, prepared: &Prepared) -> Result<Claimed> {
        std::fs::create_dir_all(&self.path)
            .map_err(|error| Error::io(ErrorKind::Output, "make the run's directory", &self.path, &error))?;
        let lock = RunLock::acquire(&self.path)?;
        let store = Store::of(&self.path);
        store.recover(&lock)?;
        // A run that ended before its first checkpoint has nothing to go on from: it starts again.
        let resume = self.resume && store.latest()?.is_some();
        if !resume {
            plan::file::write(&prepared.plan, &self.path.join(PLAN))?;
            // Last, since its presence is what makes the directory a run.
            write_atomically(&self.path.join(CONFIG), config.to_toml()?.as_bytes())?;
        }
        Ok(Claimed { path: self.path, store, resume, _lock: lock })
    }
}
