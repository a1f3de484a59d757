//! `liftplan eval RUN|MODEL`: its loss on data, and the task's scores.

use std::fmt::Write;

use anyhow::Result;
use liftplan::eval::{Request, judge_with_bases};
use liftplan::report::EvalRecord;

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
        device: args.device,
    };
    let mut progress = Progress::new();
    let judgement = judge_with_bases(&request, &mut progress)?;
    drop(progress);
    let record = &judgement.record;
    let text = match &judgement.original_base {
        None => rows(record).fold(String::new(), |text, (name, score)| text + &format!("{name:12}  {score:.4}\n")),
        Some(original) => {
            let mut text = format!("{:12}  {:>9}  {:>9}  {:>10}\n", "", judgement.kept_as, "original", "difference");
            for ((name, score), (_, with_original)) in rows(record).zip(rows(original)) {
                // Writing to a string can't fail.
                let _ = writeln!(text, "{name:12}  {score:9.4}  {with_original:9.4}  {:+10.4}", with_original - score);
            }
            text
        }
    };
    Ok(output.result(&judgement, text)?)
}

fn rows(record: &EvalRecord) -> impl Iterator<Item = (&str, f64)> {
    std::iter::once(("loss", record.eval_loss)).chain(record.scores.iter().map(|(name, score)| (name.as_str(), *score)))
}
