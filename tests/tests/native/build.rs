//! Builds native plugins with the machine's own compilers, in a folder that disappears.

use std::path::{Path, PathBuf};
use std::process::Command;

use liftplan::plugin::Loaded;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}:\n{}", String::from_utf8_lossy(&output.stderr));
}

/// Compiles a file of C with plain `cc` and these definitions into `out`.
pub fn c(source: &str, definitions: &[&str], out: &Path) {
    let mut cc = Command::new("cc");
    cc.args(["-std=c11", "-Wall", "-Wextra", "-Wno-infinite-recursion", "-O1", "-shared", "-fPIC", "-I"]);
    cc.arg(root().join("plugin-api/c"));
    cc.args(definitions.iter().map(|definition| format!("-D{definition}")));
    run(cc.arg("-o").arg(out).arg(root().join(source)));
}

/// The bytes of the hostile plugin with these definitions.
pub fn hostile(definitions: &[&str]) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("hostile.so");
    c("tests/tests/native/hostile.c", definitions, &out);
    std::fs::read(out).unwrap()
}

/// The bytes of the plugin that panics.
pub fn panicking() -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("panic.so");
    let mut rustc = Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
    rustc.args(["--edition", "2024", "--crate-type", "cdylib", "-C", "opt-level=1", "-C", "debuginfo=0", "-o"]);
    run(rustc.arg(&out).arg(root().join("tests/tests/native/panic.rs")));
    std::fs::read(out).unwrap()
}

/// The plugins `lora` and `full` of `plugins/` as native libraries: the same source as the components.
pub fn published() -> &'static Path {
    static BUILT: std::sync::OnceLock<PathBuf> = std::sync::OnceLock::new();
    BUILT.get_or_init(|| {
        let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("native-plugins");
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo.args(["build", "--quiet", "--release", "-p", "liftplan-lora", "-p", "liftplan-full", "--target-dir"]);
        cargo.arg(&target).current_dir(root().join("plugins")).env_remove("CARGO_TARGET_DIR");
        run(&mut cargo);
        target.join("release")
    })
}

/// The plugin in these bytes, allowed to run.
pub fn allowed(bytes: Vec<u8>) -> liftplan::Result<Loaded> {
    Ok(Loaded { allow_native: true, ..Loaded::from_bytes(bytes)? })
}
