//! From a model's path and a few lines of configuration to a decoder and its stepper, as a run does it.

use std::path::Path;

use liftplan::config::Config;
use liftplan::model::{self, BaseModel};
use liftplan::plan::Plan;
use liftplan::report::Silent;
use liftplan::stats::ModelStatistics;
use liftplan::train::{Stepper, build};
use liftplan::{Result, policy};

/// Opens a model.
///
/// # Errors
/// As [`model::open`].
pub fn open(path: &Path) -> Result<BaseModel> {
    model::open(&path.display().to_string(), Path::new("."), &mut Silent)
}

/// A configuration for the model at `path`, with `tables` (TOML) for everything but the model and the data, which
/// stands in for data that these tests make themselves.
///
/// # Errors
/// As [`Config::parse`].
pub fn config(path: &Path, tables: &str) -> Result<Config> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("test.toml");
    let model = std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf());
    let text = format!(
        "model = {:?}\nout = \"unused\"\n[data]\ntrain = \"unused.jsonl\"\n{tables}",
        model.display().to_string()
    );
    Config::parse(&text, &here, "test.toml", &[])
}

/// Plans and builds.
///
/// # Errors
/// Those of the policy and of the reading of weights.
pub fn stepper(base: &BaseModel, config: &Config) -> Result<(Plan, Stepper)> {
    let plan = policy::plan(config, &base.inventory, &ModelStatistics::new(base, &mut Silent))?;
    let decoder = build(base, &plan, config.seed, &mut Silent)?;
    let stepper = Stepper::new(decoder, &plan, config);
    Ok((plan, stepper))
}
