//! `liftplan plugin new|build|check|test`: for those who write policies.

use std::fmt::Write;
use std::process::Command;

use anyhow::Result;
use liftplan::plugin::Limits;
use liftplan::plugin::author::{self, Language, Target};

use super::{here, program, shorter};
use crate::output::Output;
use crate::plugin_args::{Build, BuildTarget, Check, New, Test};

/// Makes a project.
pub fn new(args: &New, output: &Output) -> Result<()> {
    let directory = here()?.join(&args.directory);
    let author = args.author.clone().or_else(git_user).unwrap_or_default();
    author::create(&directory, args.lang, &author)?;
    let program = program();
    let shown = shorter(&directory);
    let shown = shown.display();
    let tests = if args.lang == Language::Rust { "\n  cargo test                    its own tests" } else { "" };
    let text = format!(
        "{shown} is a plugin's project. Now:\n  cd {shown}{tests}\n  {program} plugin build          into dist\n  \
         {program} plugin check          as a user's machine will see it\n  \
         {program} plugin test --accept  keep its plans; without --accept, compare with them\n"
    );
    Ok(output.result(&serde_json::json!({ "directory": directory, "language": args.lang }), text)?)
}

/// Who git says the user is.
fn git_user() -> Option<String> {
    let output = Command::new("git").args(["config", "user.name"]).output().ok()?;
    let name = String::from_utf8(output.stdout).ok()?.trim().to_string();
    (!name.is_empty()).then_some(name)
}

/// Builds a project.
pub fn build(args: &Build, output: &Output) -> Result<()> {
    let target = args.target.map(|target| match target {
        BuildTarget::Wasm => Target::Wasm,
        BuildTarget::Native => Target::Native,
    });
    let built = author::build(&here()?.join(&args.directory), target.as_slice())?;
    let text: String = built.iter().map(|built| format!("{}\n", shorter(&built.file).display())).collect();
    Ok(output.result(&built, text)?)
}

/// Looks at a plugin's file, or at all that a project built.
pub fn check(args: &Check, output: &Output) -> Result<()> {
    let limits = Limits::default();
    let settings = author::settings(&args.set)?;
    let mut checked = Vec::new();
    for file in author::files(&here()?.join(&args.plugin))? {
        checked.push(author::check(&file, &settings, &limits)?);
    }
    let text: Vec<String> = checked.iter().map(author::Checked::text).collect();
    Ok(output.result(&checked, text.join("\n"))?)
}

/// Tests a project.
pub fn test(args: &Test, output: &Output) -> Result<()> {
    let tested = author::test(&here()?.join(&args.directory), &Limits::default(), args.accept)?;
    let mut text = format!("{} cases are as they should be", tested.cases.len());
    if tested.files.len() > 1 {
        text.push_str(", and the same as a component and as a library");
    }
    for file in &tested.written {
        // Writing to a string can't fail.
        let _ = write!(text, "\naccepted {}", shorter(file.as_ref()).display());
    }
    Ok(output.result(&tested, text)?)
}
