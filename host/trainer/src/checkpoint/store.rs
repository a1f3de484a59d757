//! The checkpoints of a run: `RUN/checkpoints/step-N/`, written whole or not at all, found, verified and pruned.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use super::tensors::{self, TensorFile, TensorSource};
use super::{FileDigest, OPTIMIZER, RunLock, STATE, State, TRAINABLE, VERSION};
use crate::files::{REPLACED, Staging, TEMPORARY, output_error, write_atomically};
use crate::hash::sha256;
use crate::report::Hashes;
use crate::{Error, Result};

/// The directory `RUN/checkpoints`.
#[derive(Clone, Debug)]
pub struct Store {
    dir: PathBuf,
}

/// A checkpoint that was read and verified.
#[derive(Debug)]
pub struct Checkpoint {
    /// Its directory.
    pub path: PathBuf,
    /// What it holds beside tensors.
    pub state: State,
    /// The trainable tensors.
    pub trainable: TensorFile,
    /// The optimiser's tensors.
    pub optimizer: TensorFile,
}

impl Store {
    /// The checkpoints of the run in `run`; nothing is read or made yet.
    pub fn of(run: &Path) -> Self {
        Self { dir: run.join("checkpoints") }
    }

    /// Clears what a process that died left: half-written checkpoints go, and one that was being replaced comes back.
    /// The lock proves that no other process is writing.
    ///
    /// # Errors
    /// When the directory can't be read or changed.
    pub fn recover(&self, _lock: &RunLock) -> Result<()> {
        for name in self.names()? {
            let path = self.dir.join(&name);
            let back = name.strip_prefix(REPLACED).map(|n| self.dir.join(n)).filter(|target| !target.exists());
            if let Some(target) = back {
                fs::rename(&path, &target).map_err(|e| output_error("restore", &target, &e))?;
            } else if name.starts_with(TEMPORARY) || name.starts_with(REPLACED) {
                fs::remove_dir_all(&path).map_err(|e| output_error("remove", &path, &e))?;
            }
        }
        Ok(())
    }

    /// The steps that have a checkpoint, ascending.
    ///
    /// # Errors
    /// When the directory can't be read; a missing one has none.
    pub fn steps(&self) -> Result<Vec<u64>> {
        let mut steps: Vec<u64> = self.names()?.iter().filter_map(|n| n.strip_prefix("step-")?.parse().ok()).collect();
        steps.sort_unstable();
        Ok(steps)
    }

    /// The newest checkpoint's step.
    ///
    /// # Errors
    /// When the directory can't be read.
    pub fn latest(&self) -> Result<Option<u64>> {
        Ok(self.steps()?.pop())
    }

    /// Where the checkpoint after `step` steps lies.
    pub fn path_of(&self, step: u64) -> PathBuf {
        self.dir.join(format!("step-{step}"))
    }

    /// Writes the checkpoint of `state.step`, replacing one of the same step, and answers where it is. When anything
    /// fails, a full disk for instance, nothing of it stays and the other checkpoints are as they were.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn write(
        &self,
        mut state: State,
        trainable: &dyn TensorSource,
        optimizer: &dyn TensorSource,
    ) -> Result<PathBuf> {
        let path = self.path_of(state.step);
        let staging = Staging::beside(&path)?;
        state.version = VERSION;
        state.files.clear();
        for (name, source) in [(TRAINABLE, trainable), (OPTIMIZER, optimizer)] {
            let digest = tensors::write(&staging.path().join(name), &BTreeMap::new(), source)
                .map_err(|e| e.at(format!("the checkpoint {} was not written", path.display())))?;
            state.files.insert(name.to_string(), digest);
        }
        state.checksum = checksum(&state)?;
        let mut json = serde_json::to_vec_pretty(&state)
            .map_err(|e| Error::internal(format!("the state of {} is not JSON: {e}", path.display())))?;
        json.push(b'\n');
        write_atomically(&staging.path().join(STATE), &json)
            .map_err(|e| e.at(format!("the checkpoint {} was not written", path.display())))?;
        staging.publish()?;
        Ok(path)
    }

    /// Removes all but the `keep` newest checkpoints (at least one) and that of step `best`; answers the removed steps.
    ///
    /// # Errors
    /// When one can't be removed.
    pub fn prune(&self, keep: usize, best: Option<u64>) -> Result<Vec<u64>> {
        let steps = self.steps()?;
        let old = steps.len().saturating_sub(keep.max(1));
        let removed: Vec<u64> = steps.into_iter().take(old).filter(|s| Some(*s) != best).collect();
        for step in &removed {
            let path = self.path_of(*step);
            // Renamed first, so that a checkpoint never stands half removed under its own name.
            let going = crate::files::sibling(&path, TEMPORARY);
            fs::rename(&path, &going).map_err(|e| output_error("remove", &path, &e))?;
            fs::remove_dir_all(&going).map_err(|e| output_error("remove", &going, &e))?;
        }
        Ok(removed)
    }

    /// Reads the checkpoint of `step`, or the newest, and verifies every byte of it.
    ///
    /// # Errors
    /// When there is none, or it is damaged; the error names the file, and its help names the checkpoint before it.
    pub fn read(&self, step: Option<u64>) -> Result<Checkpoint> {
        let steps = self.steps()?;
        let Some(newest) = steps.last().copied() else {
            return Err(Error::output(format!("there is no checkpoint in {}", self.dir.display())).help(
                "train first: a checkpoint is written at the end, when interrupted, and every `checkpoint_every` steps",
            ));
        };
        let step = step.unwrap_or(newest);
        if !steps.contains(&step) {
            let there: Vec<String> = steps.iter().map(u64::to_string).collect();
            return Err(Error::output(format!("there is no checkpoint of step {step} in {}", self.dir.display()))
                .help(format!("there are checkpoints of the steps {}", there.join(", "))));
        }
        self.read_verified(step).map_err(|error| {
            let before = steps.iter().rev().find(|s| **s < step);
            error.help(match before {
                Some(before) => format!(
                    "move {} away to go on from the checkpoint before it, step-{before}",
                    self.path_of(step).display()
                ),
                None => "there is no earlier checkpoint: start the run anew".to_string(),
            })
        })
    }

    fn read_verified(&self, step: u64) -> Result<Checkpoint> {
        let path = self.path_of(step);
        let state = read_state(&path.join(STATE))?;
        if state.step != step {
            let message = format!("{}: damaged: it is the state of step {}", path.join(STATE).display(), state.step);
            return Err(Error::output(message));
        }
        for name in [TRAINABLE, OPTIMIZER] {
            let file = path.join(name);
            let expected = state.files.get(name).cloned().unwrap_or_default();
            // The size first: a cut file needn't be hashed to be found out.
            let bytes = fs::metadata(&file).map_err(|e| output_error("read", &file, &e))?.len();
            let found = if bytes == expected.bytes {
                tensors::digest(&file)?
            } else {
                FileDigest { bytes, sha256: String::new() }
            };
            if found != expected {
                return Err(Error::output(if bytes == expected.bytes {
                    format!("{}: damaged: its content is not what {STATE} says was written", file.display())
                } else {
                    format!("{}: damaged: it has {bytes} bytes, and {} were written", file.display(), expected.bytes)
                }));
            }
        }
        let (trainable, optimizer) =
            (TensorFile::open(&path.join(TRAINABLE))?, TensorFile::open(&path.join(OPTIMIZER))?);
        Ok(Checkpoint { path, state, trainable, optimizer })
    }

    fn names(&self) -> Result<Vec<String>> {
        let entries = match fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(output_error("read the directory", &self.dir, &error)),
        };
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|e| output_error("read the directory", &self.dir, &e))?;
            names.extend(entry.file_name().into_string().ok());
        }
        names.sort();
        Ok(names)
    }
}

impl Checkpoint {
    /// Checks that the run to go on with was made from the same configuration, plan, model and data.
    ///
    /// # Errors
    /// When one differs; the error names it.
    pub fn check(&self, expected: &Hashes) -> Result<()> {
        let made = &self.state.hashes;
        let pairs = [
            ("model", &made.model, &expected.model, "name the model that the run was started with"),
            ("data", &made.data, &expected.data, "restore the data files as they were"),
            (
                "configuration",
                &made.config,
                &expected.config,
                "resume with the configuration that the run was started with",
            ),
            ("plugin", plugin(made), plugin(expected), "resume with the plugin that the run was started with"),
            ("plan", &made.plan, &expected.plan, "resume with the version of Liftplan that the run was started with"),
        ];
        for (what, made, expected, help) in pairs {
            if made != expected {
                return Err(Error::output(format!(
                    "the checkpoint {} was made with another {what} (sha256 {} there, {} here)",
                    self.path.display(),
                    short(made),
                    short(expected)
                ))
                .help(format!("{help}, or start a new run with --out")));
            }
        }
        Ok(())
    }
}

/// The hash of the plugin's file, empty where the policy is built in.
fn plugin(hashes: &Hashes) -> &String {
    static NONE: String = String::new();
    hashes.plugin.as_ref().unwrap_or(&NONE)
}

/// Enough of a hash to tell it from another.
fn short(hash: &str) -> &str {
    match hash.get(..12) {
        Some(start) => start,
        None if hash.is_empty() => "none",
        None => hash,
    }
}

fn read_state(path: &Path) -> Result<State> {
    let text = fs::read_to_string(path).map_err(|e| output_error("read", path, &e))?;
    let damaged = |what: &dyn std::fmt::Display| Error::output(format!("{}: damaged: {what}", path.display()));
    let state: State = serde_json::from_str(&text).map_err(|e| damaged(&e))?;
    if state.version != VERSION {
        let message = format!("{}: format {}, and this Liftplan reads {VERSION}", path.display(), state.version);
        return Err(Error::output(message));
    }
    if checksum(&state)? != state.checksum {
        return Err(damaged(&"its content doesn't have its checksum"));
    }
    Ok(state)
}

/// sha256 of the state's JSON with an empty checksum. Numbers come back from JSON as they went in, so that a state that
/// was read has the same JSON as the one that was written.
fn checksum(state: &State) -> Result<String> {
    let state = State { checksum: String::new(), ..state.clone() };
    let json = serde_json::to_vec(&state).map_err(|e| Error::internal(format!("a state is not JSON: {e}")))?;
    Ok(sha256(&json))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
#[path = "store_tests.rs"]
mod tests;
