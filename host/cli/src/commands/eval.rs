//! `liftplan eval RUN|MODEL`: its loss on data, and the task's scores.

use std::fmt::Write;

use anyhow::Result;
use liftplan::eval::{Request, judge};

use super::here;
use crate::args::Eval;
use crate::output::Output;
use crate::progress::Progress;

/// Judges and shows the scores.
pub fn run(args: &Eval, output: &Output) -> Result<()> {
    let request = Request {
        target: args.target.clone(),
        here: here()?,
        files: args.data.clone(),
        overrides: args.set.clone(),
        step: args.step,
    };
    let mut progress = Progress::new();
    let record = judge(&request, &mut progress)?;
    drop(progress);
    let mut text = format!("{:12}  {:.4}\n", "loss", record.eval_loss);
    for (name, score) in &record.scores {
        // Writing to a string can't fail.
        let _ = writeln!(text, "{name:12}  {score:.4}");
    }
    Ok(output.result(&record, text)?)
}
