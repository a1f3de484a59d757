//! `liftplan inspect MODEL`: its tensors, their sizes, and what each built-in method would train in it.

use std::fmt::Write;

use anyhow::Result;
use liftplan::config::Weights;
use liftplan::model::{self, Summary as ModelSummary};
use liftplan::plan::Summary as PlanSummary;
use liftplan::policy;
use liftplan::report::text::{grouped, memory};
use serde::Serialize;

use super::here;
use crate::args::Inspect;
use crate::output::Output;
use crate::progress::Progress;

#[derive(Serialize)]
struct Inspection {
    model: ModelSummary,
    /// With default settings, weights kept in f32.
    methods: Vec<PlanSummary>,
}

/// Opens the model and shows it.
pub fn run(args: &Inspect, output: &Output) -> Result<()> {
    let mut progress = Progress::new();
    let model = model::open(&args.model, &here()?, &mut progress)?;
    drop(progress);
    // Opening a model reads no weights, and policies that rank by them have `scan`.
    let methods = policy::built_in()
        .iter()
        .filter(|policy| !policy.reads_weights() && policy.describe().name != policy::CONTROL)
        .map(|policy| {
            Ok(policy::plan_by_default(policy.as_ref(), &model.inventory, Weights::F32)?.summary(&model.inventory))
        })
        .collect::<Result<Vec<_>>>()?;
    let inspection = Inspection { model: model.summary(), methods };
    Ok(output.result(&inspection, text(&inspection))?)
}

fn text(inspection: &Inspection) -> String {
    let model = &inspection.model;
    let mut text = String::new();
    let shapes: Vec<String> = model.roles.iter().map(|role| format!("{:?}", role.shape)).collect();
    let name_width = model.roles.iter().map(|role| role.role.len()).chain([4]).max().unwrap_or(4);
    let shape_width = shapes.iter().map(String::len).chain([5]).max().unwrap_or(5);
    // Writing to a string can't fail.
    let _ = writeln!(
        text,
        "{}: {}, {} blocks, {} head\n\n{:name_width$}  kind       count  {:shape_width$}  {:>14}  {:>9}  type",
        model.origin,
        model.architecture,
        model.blocks,
        if model.tied { "tied" } else { "untied" },
        "role",
        "shape",
        "parameters",
        "size",
    );
    for (role, shape) in model.roles.iter().zip(&shapes) {
        let _ = writeln!(
            text,
            "{:name_width$}  {:9}  {:>5}  {shape:shape_width$}  {:>14}  {:>9}  {}",
            role.role,
            format!("{:?}", role.kind).to_lowercase(),
            role.count,
            grouped(role.parameters),
            memory(role.bytes),
            role.dtypes.join(", "),
        );
    }
    let _ = writeln!(text, "\n{} parameters, {} on disk", grouped(model.parameters), memory(model.bytes));
    let _ = writeln!(text, "\nmethod  {:>14}         weights, gradients and moments in f32", "trainable");
    for method in &inspection.methods {
        let _ = writeln!(
            text,
            "{:6}  {:>14}  {:>5.2} %  {}",
            method.policy,
            grouped(method.trainable_parameters),
            method.trainable_percent,
            memory(method.memory.total()),
        );
    }
    text
}
