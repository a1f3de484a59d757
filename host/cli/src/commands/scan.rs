//! `liftplan scan MODEL`: its weights ranked by statistics of their singular values.

use anyhow::Result;
use liftplan::model;
use liftplan::stats::{ModelStatistics, scan, write_scan};

use super::here;
use crate::args::Scan;
use crate::output::Output;
use crate::progress::Progress;

/// Scans the model and shows or writes the ranking.
pub fn run(args: &Scan, output: &Output) -> Result<()> {
    let mut progress = Progress::new();
    let model = model::open(&args.model, &here()?, &mut progress)?;
    let statistics = ModelStatistics::new(&model, &mut progress).on(args.device);
    let found = scan(&model.inventory, &statistics, args.statistic, args.percent)?;
    drop(progress);
    let text = found.text(args.format);
    match &args.out {
        Some(file) if output.is_json() => Ok(write_scan(file, &found.json()?)?),
        Some(file) => Ok(write_scan(file, &text)?),
        None => Ok(output.result(&found, text)?),
    }
}
