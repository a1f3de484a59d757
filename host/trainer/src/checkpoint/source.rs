//! The result of a run, opened: what it trained, the model it was trained from, and the plan between them.

use std::path::Path;

use super::{Checkpoint, Store};
use crate::config::Config;
use crate::model::{self, BaseModel};
use crate::plan::{self, Plan};
use crate::report::{Ending, Hashes, Observer, Summary};
use crate::{Error, Result};

/// Everything that exports, evaluation and generation read of a run.
pub struct Source {
    /// The run's name: its directory's.
    pub name: String,
    /// The configuration.
    pub config: Config,
    /// The base model.
    pub base: BaseModel,
    /// What happened to each tensor.
    pub plan: Plan,
    /// What was trained.
    pub checkpoint: Checkpoint,
}

impl Source {
    /// Opens the run in the directory `run` at a checkpoint's step, or at its result: the newest checkpoint, or the best
    /// one where training stopped early.
    ///
    /// # Errors
    /// When it isn't a run's directory, has no such checkpoint, or the base model isn't the one that it was made from.
    pub fn open(run: &Path, step: Option<u64>, observer: &mut dyn Observer) -> Result<Self> {
        let config_path = run.join("config.toml");
        if !config_path.is_file() {
            return Err(Error::output(format!("{} is not a run: it has no config.toml", run.display()))
                .help("give the directory that `liftplan train` made"));
        }
        let config = Config::load(&config_path, &[])?;
        let base = model::open(&config.model, run, observer)?;
        let plan = plan::file::read(&run.join("plan.json"))?;
        plan.check_against(&base.inventory)?;
        let checkpoint = Store::of(run).read(step.or_else(|| best_step(run)))?;
        let made = checkpoint.state.hashes.clone();
        checkpoint.check(&Hashes { model: base.hash.clone(), plan: plan.hash(), ..made })?;
        // In a run whose plan was revised, what trained at any time is part of the result.
        let plan = crate::train::picks::result_plan(plan, &checkpoint.state.policy)?;
        let absolute = std::path::absolute(run).unwrap_or_else(|_| run.to_path_buf());
        let name = absolute.file_name().map_or("run".into(), |n| n.to_string_lossy().into_owned());
        Ok(Self { name, config, base, plan, checkpoint })
    }
}

/// The step whose weights are the result of a run that stopped early. Without a summary the run is still under way.
fn best_step(run: &Path) -> Option<u64> {
    match Summary::read(run).ok()?.ended {
        Ending::EarlyStopped { best_step } => Some(best_step),
        _ => None,
    }
}
