//! `[data]`: what to train on.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::Places;
use crate::Result;

/// `[data]`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataConfig {
    /// Training file.
    pub train: Option<PathBuf>,
    /// Validation file.
    pub validation: Option<PathBuf>,
    /// Share of the training rows held out for validation.
    pub validation_split: Option<f64>,
}

impl DataConfig {
    /// Makes paths absolute, seen from the configuration file's `directory`, and refuses what contradicts itself.
    pub fn resolve(&mut self, directory: &Path, _places: &Places) -> Result<()> {
        for path in [&mut self.train, &mut self.validation].into_iter().flatten() {
            *path = directory.join(&*path);
        }
        Ok(())
    }

    /// Whether there is anything to evaluate on while training.
    pub fn has_validation(&self) -> bool {
        self.validation.is_some() || self.validation_split.is_some()
    }
}
