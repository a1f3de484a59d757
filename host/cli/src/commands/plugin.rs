//! `liftplan plugin …`: policies that others wrote.

use std::fmt::Write as _;
use std::io::{self, BufRead, IsTerminal, Write as _};
use std::path::PathBuf;

use anyhow::Result;
use liftplan::Error;
use liftplan::plugin::store::{self, Consent, Files, Key, Lock, Pinned, Source, Wanted};
use liftplan::plugin::{Kind, Loaded, Metadata};
use serde::Serialize;

use super::{here, plugin_author};
use crate::output::Output;
use crate::plugin_args::{Info, Install, Plugin, Project, Remove};

/// Does what the arguments say.
pub fn run(args: &Plugin, output: &Output) -> Result<()> {
    match args {
        Plugin::Install(args) => match &args.source {
            Some(source) => install(args, source, output),
            None => restore(args, output),
        },
        Plugin::List(args) => list(args, output),
        Plugin::Info(args) => info(args, output),
        Plugin::Remove(args) => remove(args, output),
        Plugin::New(args) => plugin_author::new(args, output),
        Plugin::Build(args) => plugin_author::build(args, output),
        Plugin::Check(args) => plugin_author::check(args, output),
        Plugin::Test(args) => plugin_author::test(args, output),
    }
}

/// The directory of liftplan.lock.
fn directory(project: &Project) -> Result<PathBuf> {
    let here = here()?;
    Ok(project.project.as_ref().map_or_else(|| here.clone(), |project| here.join(project)))
}

fn install(args: &Install, source: &str, output: &Output) -> Result<()> {
    let here = here()?;
    let project = directory(&args.project)?;
    let wanted = Wanted {
        source: Source::parse(source)?.seen_from(&here),
        key: args.public_key.as_deref().map(|key| Key::read(key, &here)).transpose()?,
        signature: match &args.signature {
            Some(place) => Some(Source::parse(place)?.seen_from(&here)),
            None => None,
        },
    };
    let offer = store::fetch(&wanted, &project)?;
    let consent = Consent { replace: args.replace, allow_native: args.allow_native.clone() };
    offer.check(&consent)?;
    if !args.yes {
        eprint!("{}", offer.text());
        ask("Install it?")?;
    }
    let pinned = store::install(&offer, &project, &Files::of_user()?, &consent)?;
    let text = format!("{} is installed; use it with [policy] name = \"{}\"", pinned.shown(), pinned.name);
    Ok(output.result(&pinned, text)?)
}

/// Asks a person; nobody to ask is a no.
fn ask(question: &str) -> Result<()> {
    if !io::stdin().is_terminal() {
        return Err(Error::config("nothing was installed: there is nobody to ask")
            .help("look at what it is, then add --yes")
            .into());
    }
    eprint!("{question} [y/N] ");
    io::stderr().flush().ok();
    let mut answer = String::new();
    let read = io::stdin().lock().read_line(&mut answer);
    match (read, answer.trim()) {
        (Ok(_), "y" | "Y" | "yes") => Ok(()),
        _ => Err(Error::interrupted("nothing was installed").into()),
    }
}

fn restore(args: &Install, output: &Output) -> Result<()> {
    let project = directory(&args.project)?;
    let fetched = store::restore(&project, &Files::of_user()?, args.allow_native.as_deref())?;
    let text = match fetched.as_slice() {
        [] => "nothing is missing".to_string(),
        some => some.iter().map(|pinned| format!("fetched {}\n", pinned.shown())).collect(),
    };
    Ok(output.result(&fetched, text)?)
}

#[derive(Serialize)]
struct Listed {
    #[serde(flatten)]
    pinned: Pinned,
    /// Whether its file is on this machine.
    present: bool,
}

fn list(args: &Project, output: &Output) -> Result<()> {
    let files = Files::of_user()?;
    let lock = Lock::read(&directory(args)?)?;
    let plugins: Vec<Listed> =
        lock.plugins.into_iter().map(|pinned| Listed { present: files.has(&pinned.sha256), pinned }).collect();
    let mut text = String::new();
    for Listed { pinned, present } in &plugins {
        // Writing to a string can't fail.
        let _ = writeln!(
            text,
            "{:24} {:6} {}  {}{}",
            pinned.shown(),
            format!("{:?}", pinned.kind).to_lowercase(),
            &pinned.sha256[..12],
            pinned.source,
            if *present { "" } else { "  (missing: run `liftplan plugin install`)" },
        );
    }
    if plugins.is_empty() {
        text.push_str("no plugin is installed here");
    }
    Ok(output.result(&plugins, text)?)
}

#[derive(Serialize)]
struct Described {
    #[serde(flatten)]
    metadata: Metadata,
    kind: Kind,
    sha256: String,
}

fn info(args: &Info, output: &Output) -> Result<()> {
    let here = here()?;
    let path = here.join(&args.plugin);
    let is_file = args.plugin.contains(['/', '.']) || path.is_file();
    let loaded = match is_file {
        true => Loaded::from_file(&path)?,
        false => store::load(&directory(&args.project)?, &Files::of_user()?, &args.plugin)?,
    };
    let Loaded { metadata, kind, sha256, .. } = loaded;
    let text = metadata.text(kind, &sha256);
    Ok(output.result(&Described { metadata, kind, sha256 }, text)?)
}

fn remove(args: &Remove, output: &Output) -> Result<()> {
    let pinned = store::remove(&directory(&args.project)?, &Files::of_user()?, &args.name, args.purge)?;
    Ok(output.result(&pinned, format!("{} is no longer installed", pinned.shown()))?)
}
