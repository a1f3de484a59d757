//! `plugin build`: from a project to files that can be installed, in its directory `dist`.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::Serialize;

use super::new::Language;
use crate::files::write_atomically;
use crate::plugin::custom_section;
use crate::plugin::metadata::{Metadata, WASM_SECTION};
use crate::{Error, ErrorKind, Result};

const TARGET: &str = "wasm32-unknown-unknown";
const DIST: &str = "dist";

/// What a plugin is built for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Target {
    /// A WebAssembly component.
    Wasm,
    /// A native library for this machine.
    Native,
}

impl Target {
    /// For messages.
    pub(super) fn in_words(self) -> &'static str {
        match self {
            Self::Wasm => "a component",
            Self::Native => "a library",
        }
    }
}

/// A file that was built.
#[derive(Clone, Debug, Serialize)]
pub struct Built {
    /// What for.
    pub target: Target,
    /// Where it is.
    pub file: PathBuf,
}

/// Builds the project in `directory` for `targets`, or for all that its language can.
///
/// # Errors
/// A tool is missing, the source doesn't compile, or the result is no plugin.
pub fn build(directory: &Path, targets: &[Target]) -> Result<Vec<Built>> {
    let language = language(directory)?;
    let able: &[Target] = match language {
        Language::Rust => &[Target::Wasm, Target::Native],
        Language::C => &[Target::Native],
        Language::Js | Language::Python => &[Target::Wasm],
    };
    if let Some(target) = targets.iter().find(|target| !able.contains(target)) {
        return Err(Error::config(format!("a plugin in this language cannot be built as {}", target.in_words())));
    }
    let dist = directory.join(DIST);
    fs::create_dir_all(&dist).map_err(|e| Error::io(ErrorKind::Output, "create the directory", &dist, &e))?;
    let mut built = Vec::new();
    for target in if targets.is_empty() { able } else { targets } {
        let bytes = match (language, target) {
            (Language::Rust, target) => rust(directory, *target)?,
            (Language::C, _) => c(directory)?,
            (Language::Js, _) => js(directory)?,
            (Language::Python, _) => python(directory)?,
        };
        let (_, metadata) = Metadata::read(&bytes)?;
        let ending = match target {
            Target::Wasm => "wasm",
            Target::Native => std::env::consts::DLL_EXTENSION,
        };
        let file = dist.join(format!("{}.{ending}", metadata.name));
        write_atomically(&file, &bytes)?;
        built.push(Built { target: *target, file });
    }
    Ok(built)
}

/// What is built in the project, components first.
pub(super) fn outputs(directory: &Path) -> Result<Vec<Built>> {
    let dist = directory.join(DIST);
    let mut built = Vec::new();
    let Ok(entries) = fs::read_dir(&dist) else { return Ok(built) };
    for entry in entries {
        let file = entry.map_err(|e| Error::io(ErrorKind::Plan, "read the directory", &dist, &e))?.path();
        match file.extension().and_then(OsStr::to_str) {
            Some("wasm") => built.push(Built { target: Target::Wasm, file }),
            Some(ending) if ending == std::env::consts::DLL_EXTENSION => {
                built.push(Built { target: Target::Native, file });
            }
            _ => {}
        }
    }
    built.sort_by(|a, b| (a.target == Target::Native, &a.file).cmp(&(b.target == Target::Native, &b.file)));
    Ok(built)
}

/// The file itself, or what is built in the project.
///
/// # Errors
/// Nothing is built there.
pub fn files(path: &Path) -> Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.to_path_buf()]);
    }
    let files: Vec<PathBuf> = outputs(path)?.into_iter().map(|built| built.file).collect();
    if files.is_empty() {
        return Err(
            Error::plan(format!("nothing is built in {}", path.display())).help("run `liftplan plugin build` first")
        );
    }
    Ok(files)
}

fn language(directory: &Path) -> Result<Language> {
    for (file, language) in [
        ("Cargo.toml", Language::Rust),
        ("plugin.c", Language::C),
        ("plugin.js", Language::Js),
        ("plugin.py", Language::Python),
    ] {
        if directory.join(file).is_file() {
            return Ok(language);
        }
    }
    Err(Error::config(format!("{} is no plugin's project", directory.display()))
        .help("it has none of Cargo.toml, plugin.c, plugin.js and plugin.py; `liftplan plugin new NAME` makes one"))
}

fn rust(directory: &Path, target: Target) -> Result<Vec<u8>> {
    let cargo = "install Rust from https://rustup.rs";
    let mut command = tool("cargo", directory);
    command.args(["build", "--release", "--message-format=json-render-diagnostics"]);
    if target == Target::Wasm {
        if let Some(rustc) = rustc_for_wasm(directory)? {
            command.env("RUSTC", rustc);
        }
        command.args(["--target", TARGET]);
    }
    let output = run(&mut command, "cargo", cargo)?;
    // Cargo says where it put what it made, one JSON object a line.
    let ending = if target == Target::Wasm { "wasm" } else { std::env::consts::DLL_EXTENSION };
    let mut found = None;
    for line in output.lines() {
        let Ok(message) = serde_json::from_str::<serde_json::Value>(line) else { continue };
        let files = message.get("filenames").and_then(serde_json::Value::as_array);
        for file in files.into_iter().flatten().filter_map(serde_json::Value::as_str).map(PathBuf::from) {
            if file.extension() == Some(OsStr::new(ending))
                && message["target"]["crate_types"].to_string().contains("cdylib")
            {
                found = Some(file);
            }
        }
    }
    let file = found.ok_or_else(|| {
        Error::plan("cargo built no library").help("Cargo.toml needs [lib] crate-type = [\"cdylib\", \"lib\"]")
    })?;
    fs::read(&file).map_err(|error| Error::io(ErrorKind::Plan, "read what was built", &file, &error))
}

/// The compiler that has the standard library for components: the usual one, or the one that `wasm-std.sh` makes where
/// rustup can't fetch it. `None` is the usual one.
fn rustc_for_wasm(directory: &Path) -> Result<Option<PathBuf>> {
    if let Some(chosen) = std::env::var_os("RUSTC") {
        return Ok(Some(chosen.into()));
    }
    let mut rustc = tool("rustc", directory);
    let libraries = run(
        rustc.args(["--print", "target-libdir", "--target", TARGET]),
        "rustc",
        "install Rust from https://rustup.rs",
    )?;
    if Path::new(libraries.trim()).is_dir() {
        return Ok(None);
    }
    let made = match (std::env::var_os("WASM_SYSROOT"), std::env::home_dir()) {
        (Some(root), _) => Some(PathBuf::from(root)),
        (None, Some(home)) => Some(home.join(".cache/wasm-rust")),
        (None, None) => None,
    };
    match made.map(|root| root.join("bin/rustc")).filter(|rustc| rustc.is_file()) {
        Some(rustc) => Ok(Some(rustc)),
        None => Err(Error::plan(format!("Rust cannot compile for {TARGET} yet")).help(format!(
            "run `rustup target add {TARGET}`; where that cannot be, plugin-api/wasm-std.sh of Liftplan's repository \
             makes what is needed from Debian's packages. `liftplan plugin build --target native` needs neither"
        ))),
    }
}

fn c(directory: &Path) -> Result<Vec<u8>> {
    let out = directory.join(DIST).join(".plugin.tmp");
    let mut cc = tool("cc", directory);
    cc.args(["-std=c11", "-O2", "-Wall", "-Wextra", "-shared", "-fPIC", "-I.", "-o"]).arg(&out).arg("plugin.c");
    run(&mut cc, "cc", "install a C compiler, such as Debian's package gcc")?;
    taken(&out)
}

fn js(directory: &Path) -> Result<Vec<u8>> {
    let metadata = metadata(directory)?;
    let source = read(&directory.join("plugin.js"))?;
    let npm = "install Node.js 20 or later, with npm";
    if !directory.join("node_modules").is_dir() {
        run(tool("npm", directory).args(["install", "--no-fund", "--no-audit"]), "npm", npm)?;
    }
    let whole = directory.join(DIST).join(".plugin.js");
    let quoted = serde_json::Value::String(metadata.clone());
    write_atomically(&whole, format!("const METADATA = {quoted};\n{source}").as_bytes())?;
    let out = directory.join(DIST).join(".plugin.tmp");
    let made = run(tool("node", directory).arg("build.mjs").arg(&whole).arg(&out), "node", npm);
    let _ = fs::remove_file(&whole);
    made?;
    Ok(custom_section::append(taken(&out)?, WASM_SECTION, metadata.as_bytes()))
}

fn python(directory: &Path) -> Result<Vec<u8>> {
    let metadata = metadata(directory)?;
    let python = "install Python 3.10 or later, with venv and pip";
    let venv = directory.join(".venv");
    let tool_path = venv.join("bin/componentize-py");
    if !tool_path.is_file() {
        run(tool("python3", directory).args(["-m", "venv"]).arg(&venv), "python3", python)?;
        let mut pip = Command::new(venv.join("bin/pip"));
        run(pip.current_dir(directory).args(["install", "--quiet", "-r", "requirements.txt"]), "pip", python)?;
    }
    let module = directory.join(DIST).join("metadata.py");
    let quoted = serde_json::Value::String(metadata.clone());
    write_atomically(&module, format!("METADATA = {quoted}\n").as_bytes())?;
    let out = directory.join(DIST).join(".plugin.tmp");
    let mut componentize = Command::new(std::path::absolute(&tool_path).unwrap_or(tool_path));
    componentize.current_dir(directory).args(["-d", "wit", "-w", "plugin", "componentize", "plugin", "--stub-wasi"]);
    let made = run(componentize.args(["-p", ".", "-p", DIST, "-o"]).arg(&out), "componentize-py", python);
    let _ = fs::remove_file(&module);
    made?;
    Ok(custom_section::append(taken(&out)?, WASM_SECTION, metadata.as_bytes()))
}

/// The text of plugin.json, checked, on one line.
fn metadata(directory: &Path) -> Result<String> {
    let path = directory.join("plugin.json");
    let text = read(&path)?;
    Metadata::parse(text.as_bytes()).map_err(|error| error.at(path.display()))?;
    let value: serde_json::Value =
        serde_json::from_str(&text).map_err(|error| Error::plan(format!("{}: {error}", path.display())))?;
    Ok(value.to_string())
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).map_err(|error| Error::io(ErrorKind::Plan, "read", path, &error))
}

/// The content of a file that a tool left, which is then removed.
fn taken(path: &Path) -> Result<Vec<u8>> {
    let bytes = fs::read(path).map_err(|error| Error::io(ErrorKind::Plan, "read what was built", path, &error))?;
    let _ = fs::remove_file(path);
    Ok(bytes)
}

fn tool(name: &str, directory: &Path) -> Command {
    let mut command = Command::new(name);
    command.current_dir(directory);
    command
}

/// Runs a tool whose messages the user sees, and gives what it wrote to its standard output.
fn run(command: &mut Command, name: &str, install: &str) -> Result<String> {
    let output = command.stderr(std::process::Stdio::inherit()).output().map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => Error::plan(format!("{name} is not installed, or not in PATH")).help(install),
        _ => Error::plan(format!("{name} cannot be run: {error}")),
    })?;
    if !output.status.success() {
        return Err(Error::plan(format!("{name} failed: {}", output.status)).help("its own messages stand above"));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
