//! Runs the binary `liftplan`, as a user would, in a folder of its own.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::SystemTime;

/// What a command left behind.
#[derive(Debug)]
pub struct Ran {
    /// Its exit code; `None` if a signal ended it.
    pub code: Option<i32>,
    /// What it wrote to standard output.
    pub stdout: String,
    /// What it wrote to standard error.
    pub stderr: String,
}

/// The binary, which lies beside this test's own in `target/<profile>/`.
///
/// `cargo test` of the whole workspace builds it, because its crate has an integration test. When only this crate is
/// tested it may be missing, or older than its source, and is built now.
pub fn binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        let test = std::env::current_exe().expect("a test has a path");
        let profile = test.ancestors().nth(2).expect("tests lie in target/<profile>/deps");
        let binary = profile.join(format!("liftplan{}", std::env::consts::EXE_SUFFIX));
        let built = fs::metadata(&binary).and_then(|about| about.modified()).ok();
        if built.is_none() || built < newest(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../host")) {
            let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
            let mut build = Command::new(cargo);
            // The whole workspace, since one crate alone would have its dependencies built anew with other features.
            build.args(["build", "--workspace", "--bins"]).current_dir(env!("CARGO_MANIFEST_DIR"));
            if profile.ends_with("release") {
                build.arg("--release");
            }
            // What cargo told this test of its package would make build scripts that look at it run anew, and with them all
            // that stands on theirs.
            for (name, _) in std::env::vars_os() {
                if ["CARGO_PKG_", "CARGO_MANIFEST_"].iter().any(|told| name.to_string_lossy().starts_with(told)) {
                    build.env_remove(name);
                }
            }
            assert!(build.status().expect("cargo runs").success(), "liftplan doesn't build");
        }
        binary
    })
}

/// When the last of the Rust files below `folder` was changed.
fn newest(folder: &Path) -> Option<SystemTime> {
    let entries = fs::read_dir(folder).expect("the folder can be read").flatten();
    entries
        .filter_map(|entry| {
            let about = entry.metadata().ok()?;
            match about.is_dir() {
                true => newest(&entry.path()),
                false if entry.path().extension().is_some_and(|kind| kind == "rs") => about.modified().ok(),
                false => None,
            }
        })
        .max()
}

/// The command `liftplan arguments…`, to be run in `folder`, away from the user's own caches and the network.
pub fn command(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(binary());
    command
        .args(arguments)
        .current_dir(folder)
        .stdin(Stdio::null())
        .env("HF_HOME", folder.join(".no-cache"))
        // Empty: singular values are not kept.
        .env("LIFTPLAN_CACHE", "")
        .env("LIFTPLAN_PLUGINS", folder.join(".no-plugins"))
        // A port that nothing listens on.
        .env("HF_ENDPOINT", "http://127.0.0.1:9")
        .env_remove("HF_TOKEN")
        .env_remove("HF_HUB_OFFLINE")
        .env("NO_COLOR", "1");
    command
}

/// Runs `liftplan arguments…` in `folder`.
pub fn liftplan(folder: &Path, arguments: &[&str]) -> Ran {
    let output = command(folder, arguments).output().expect("liftplan starts");
    Ran {
        code: output.status.code(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// Every file below `folder` by its path from there, with its length; folders have a length of 0.
pub fn listing(folder: &Path) -> BTreeMap<String, u64> {
    fn walk(folder: &Path, prefix: &str, found: &mut BTreeMap<String, u64>) {
        for entry in fs::read_dir(folder).expect("the folder can be read").flatten() {
            let path = format!("{prefix}{}", entry.file_name().to_string_lossy());
            let about = entry.metadata().expect("the entry can be read");
            if about.is_dir() {
                found.insert(path.clone() + "/", 0);
                walk(&entry.path(), &format!("{path}/"), found);
            } else {
                found.insert(path, about.len());
            }
        }
    }
    let mut found = BTreeMap::new();
    walk(folder, "", &mut found);
    found
}
