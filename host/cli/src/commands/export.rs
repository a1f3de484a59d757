//! `liftplan export RUN|DELTA`: its model for other programs.

use std::fmt::Write;
use std::path::PathBuf;

use anyhow::Result;
use liftplan::export::{Exported, Options, export};
use liftplan::report::text::memory;
use serde::Serialize;

use crate::args::Export;
use crate::output::Output;
use crate::progress::Progress;

#[derive(Serialize)]
struct Written {
    dir: PathBuf,
    files: Vec<File>,
    notes: Vec<String>,
}

#[derive(Serialize)]
struct File {
    name: String,
    bytes: u64,
}

/// Writes the export and lists its files.
pub fn run(args: &Export, output: &Output) -> Result<()> {
    let options = Options {
        force: args.force,
        dtype: args.dtype,
        base: args.base,
        model: args.model.clone(),
        ..Options::default()
    };
    let mut progress = Progress::new();
    let exported = export(&args.run, args.step, args.format, &args.out, &options, &mut progress)?;
    drop(progress);
    let text = text(&exported);
    let files = exported.files.into_iter().map(|(name, bytes)| File { name, bytes }).collect();
    Ok(output.result(&Written { dir: exported.dir, files, notes: exported.notes }, text)?)
}

fn text(exported: &Exported) -> String {
    let mut text = format!("{}\n", exported.dir.display());
    let width = exported.files.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    // Writing to a string can't fail.
    for (name, bytes) in &exported.files {
        let _ = writeln!(text, "  {name:width$}  {}", memory(*bytes));
    }
    for note in &exported.notes {
        let _ = writeln!(text, "note: {note}");
    }
    text
}
