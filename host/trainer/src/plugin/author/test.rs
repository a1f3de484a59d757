//! The tests of a plugin's project: each case of `cases.json` is a plan of the made-up model, compared with `golden/NAME.json`,
//! and the component's with the library's.

use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::build::{Built, Target, outputs};
use super::check::plan;
use crate::files::write_atomically;
use crate::plan::Plan;
use crate::plan::canonical;
use crate::plugin::{Limits, Loaded, policy};
use crate::{Error, ErrorKind, Result};

/// One case.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    /// What it is about; also the name of its golden file.
    name: String,
    /// As in `[policy]`.
    #[serde(default)]
    settings: Value,
    /// The run's seed.
    #[serde(default)]
    seed: u64,
    /// A part of the error's text, if there must be one.
    error: Option<String>,
}

/// What the tests found.
#[derive(Debug, Serialize)]
pub struct Tested {
    /// The cases' names.
    pub cases: Vec<String>,
    /// The files that were tested.
    pub files: Vec<String>,
    /// Golden plans that were written.
    pub written: Vec<String>,
}

/// Runs the cases of the project in `directory` with what was built there. With `accept`, golden plans are written;
/// without, they are compared with.
///
/// # Errors
/// A plan differs, or one of the cases has no golden plan, or nothing was built.
pub fn test(directory: &Path, limits: &Limits, accept: bool) -> Result<Tested> {
    let cases = read_cases(directory)?;
    let built: Vec<Built> = outputs(directory)?;
    if built.is_empty() {
        return Err(Error::plan(format!("nothing is built in {}", directory.display()))
            .help("run `liftplan plugin build` first"));
    }
    let mut tested = Tested { cases: Vec::new(), files: Vec::new(), written: Vec::new() };
    let mut plugins = Vec::new();
    for built in &built {
        let loaded = Loaded { allow_native: true, ..Loaded::from_file(&built.file)? };
        tested.files.push(built.file.display().to_string());
        plugins.push((built, policy(loaded, limits)?));
    }
    for case in cases {
        let mut first: Option<(Target, std::result::Result<Plan, String>)> = None;
        for (built, plugin) in &plugins {
            let made = plan(plugin.as_ref(), &case.settings, case.seed).map(|(plan, _)| plan);
            let made = made.map_err(|error| error.to_string());
            match &first {
                None => first = Some((built.target, made)),
                Some((target, other)) if *other != made => {
                    return Err(Error::plan(format!(
                        "case {}: as {} it gives {}, and as {} {}",
                        case.name,
                        target.in_words(),
                        in_words(other),
                        built.target.in_words(),
                        in_words(&made)
                    ))
                    .help("a plan may depend on nothing but the model, the settings and the seed"));
                }
                Some(_) => {}
            }
        }
        if let Some((_, made)) = first {
            compare(directory, &case, made, accept, &mut tested)?;
        }
        tested.cases.push(case.name);
    }
    Ok(tested)
}

fn in_words(made: &std::result::Result<Plan, String>) -> String {
    match made {
        Ok(plan) => format!("the plan {}", &plan.hash()[..12]),
        Err(error) => format!("the error \"{error}\""),
    }
}

fn compare(
    directory: &Path,
    case: &Case,
    made: std::result::Result<Plan, String>,
    accept: bool,
    tested: &mut Tested,
) -> Result<()> {
    let plan = match (made, &case.error) {
        (Ok(plan), None) => plan,
        (Err(error), Some(expected)) if error.contains(expected.as_str()) => return Ok(()),
        (Err(error), _) => return Err(Error::plan(format!("case {}: {error}", case.name))),
        (Ok(plan), Some(expected)) => {
            return Err(Error::plan(format!(
                "case {}: {} tensors train, and the error \"{expected}\" was expected",
                case.name,
                plan.trained().count()
            )));
        }
    };
    let folder = directory.join("golden");
    let file = folder.join(format!("{}.json", case.name));
    let text = canonical::to_string(&plan);
    if accept {
        fs::create_dir_all(&folder).map_err(|e| Error::io(ErrorKind::Output, "create the directory", &folder, &e))?;
        write_atomically(&file, text.as_bytes())?;
        tested.written.push(file.display().to_string());
        return Ok(());
    }
    let accepted = match fs::read(&file) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(Error::plan(format!("case {}: there is no accepted plan, {}", case.name, file.display()))
                .help("look at what it plans, then accept it with `liftplan plugin test --accept`"));
        }
        Err(error) => return Err(Error::io(ErrorKind::Plan, "read", &file, &error)),
    };
    let accepted: Plan = serde_json::from_slice(&accepted)
        .map_err(|error| Error::plan(format!("{} is no plan: {error}", file.display())))?;
    if accepted == plan {
        return Ok(());
    }
    let differing: Vec<String> = plan
        .entries
        .iter()
        .filter(|entry| accepted.get(&entry.tensor) != Some(entry))
        .take(3)
        .map(|entry| format!("`{}` is now {}", entry.tensor, entry.treatment.in_words()))
        .collect();
    let what = if differing.is_empty() { "its origin, picks or scores".into() } else { differing.join(", ") };
    Err(Error::plan(format!("case {}: the plan differs from {}: {what}", case.name, file.display()))
        .help("if the change is meant, accept it with `liftplan plugin test --accept`"))
}

fn read_cases(directory: &Path) -> Result<Vec<Case>> {
    let path = directory.join("cases.json");
    let bytes = fs::read(&path).map_err(|error| {
        Error::io(ErrorKind::Plan, "read the plugin's cases", &path, &error)
            .help("it is a list such as [{ \"name\": \"default\", \"settings\": {}, \"seed\": 0 }]")
    })?;
    let cases: Vec<Case> =
        serde_json::from_slice(&bytes).map_err(|error| Error::plan(format!("{}: {error}", path.display())))?;
    for case in &cases {
        if !crate::plugin::metadata::is_name(&case.name) {
            return Err(Error::plan(format!(
                "{}: \"{}\" is no name for a case",
                path.display(),
                crate::plugin::escaped(&case.name, 80)
            ))
            .help("use lower-case letters, digits and hyphens"));
        }
    }
    Ok(cases)
}
