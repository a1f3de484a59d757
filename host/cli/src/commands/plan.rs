//! `liftplan plan CONFIG`: the plan that a configuration makes, without training.

use std::path::Path;

use anyhow::Result;
use liftplan::stats::ModelStatistics;
use liftplan::{model, plan, policy};

use super::configuration;
use crate::args::Plan;
use crate::output::Output;
use crate::progress::Progress;

/// Makes the plan and shows it: counted for people, whole as JSON.
pub fn run(args: &Plan, output: &Output) -> Result<()> {
    let config = configuration(&args.configured)?;
    policy::check(&config)?;
    let mut progress = Progress::new();
    let model = model::open(&config.model, Path::new(""), &mut progress)?;
    let plan = policy::plan(&config, &model.inventory, &ModelStatistics::new(&model, &mut progress))?;
    drop(progress);
    if let Some(path) = &args.out {
        plan::file::write(&plan, path)?;
    }
    let text =
        if output.is_json() { plan::file::to_text(&plan)? } else { format!("{}\n", plan.summary(&model.inventory)) };
    Ok(output.text(text)?)
}
