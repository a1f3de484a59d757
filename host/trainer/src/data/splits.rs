//! The data of a run: what it trains on, and what it is judged on.

use super::Dataset;
use crate::config::DataConfig;
use crate::model::BaseModel;
use crate::report::Observer;
use crate::{Error, Result};

/// The data sets of a run.
pub struct Splits {
    /// To train on.
    pub train: Dataset,
    /// To evaluate on while training: its own files, or rows held out of the training files.
    pub validation: Option<Dataset>,
    /// To evaluate on before and after training.
    pub test: Option<Dataset>,
}

/// Reads the files that `config` names. `seed` chooses the rows that are held out.
///
/// # Errors
/// When a file can't be read, or its rows can't be used.
pub fn load_splits(config: &DataConfig, seed: u64, base: &BaseModel, observer: &mut dyn Observer) -> Result<Splits> {
    let _ = (config, seed, base, observer);
    Err(Error::internal("reading data is not in yet"))
}
