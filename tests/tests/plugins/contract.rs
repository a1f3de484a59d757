//! The plugin API's released versions stay as they are, and a change that would break plugins is noticed.

use std::fs;
use std::path::{Path, PathBuf};

use liftplan::sha256;
use wit_parser::{Resolve, WorldId};

fn wit() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../plugin-api/wit")
}

/// The released versions' folders, oldest first.
fn released() -> Vec<PathBuf> {
    let mut folders: Vec<PathBuf> =
        fs::read_dir(wit()).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_dir()).collect();
    folders.sort();
    folders
}

#[test]
fn released_versions_have_their_digests() {
    let mut digests = String::new();
    for folder in released() {
        let mut files: Vec<PathBuf> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.sort();
        for file in files {
            let name = file.strip_prefix(wit()).unwrap().display().to_string();
            digests.push_str(&format!("{}  {name}\n", sha256(fs::read(&file).unwrap())));
        }
    }
    let locked = fs::read_to_string(wit().join("digests.txt")).unwrap();
    assert_eq!(digests, locked, "a released version never changes: make a new folder");
}

/// Whether a host that offers `new` runs every plugin built for `old`.
fn serves(old: &str, new: &str) -> Result<(), String> {
    let mut resolve = Resolve::default();
    let mut world = |text: &str, file: &str| -> Result<WorldId, String> {
        let package = resolve.push_str(file, text).map_err(|error| format!("{error:#}"))?;
        resolve.select_world(&[package], Some("plugin")).map_err(|error| format!("{error:#}"))
    };
    let old = world(old, "old.wit")?;
    // The same package can't be there twice under one version.
    let new = world(&new.replace("liftplan:policy@0.1.0", "liftplan:policy@0.1.999"), "new.wit")?;
    wit_component::semver_check(resolve, old, new).map_err(|error| format!("{error:#}"))
}

fn newest() -> String {
    fs::read_to_string(released().pop().unwrap().join("policy.wit")).unwrap()
}

#[test]
fn every_released_version_is_served_by_the_newest() {
    for folder in released() {
        let old = fs::read_to_string(folder.join("policy.wit")).unwrap();
        serves(&old, &newest()).unwrap();
    }
}

#[test]
fn a_breaking_change_would_be_noticed_and_a_new_function_is_none() {
    let now = newest();
    let changed = |from: &str, to: &str| {
        assert!(now.contains(from), "the API has no `{from}`");
        serves(&now, &now.replacen(from, to, 1))
    };
    changed("    id: func() -> tensor-id;\n", "    id: func() -> tensor-id;\n    rank-of: func() -> u32;\n").unwrap();
    changed("interface log {\n", "interface log {\n  trace: func(message: string);\n").unwrap();
    for (from, to) in [
        // A function taken away, a type changed, a record that grows, an export added.
        ("    architecture: func() -> string;\n", ""),
        ("    blocks: func() -> u32;\n", "    blocks: func() -> u64;\n"),
        ("    help: string,\n", "    help: string,\n    url: string,\n"),
        ("  describe: func() -> string;\n", "  describe: func() -> string;\n  finish: func();\n"),
    ] {
        assert!(changed(from, to).is_err(), "replacing `{from}` by `{to}` went unnoticed");
    }
    assert_eq!(exports(&now), ["describe", "make-plan", "revise"], "exports are frozen");
}

/// The functions that a plugin exports.
fn exports(text: &str) -> Vec<String> {
    let mut resolve = Resolve::default();
    let package = resolve.push_str("policy.wit", text).unwrap();
    let interface = resolve.packages[package].interfaces["policy"];
    resolve.interfaces[interface].functions.keys().cloned().collect()
}
