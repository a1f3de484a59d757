//! The compiled plugins of `plugins/`, and a small model to let plugins loose on.

use std::path::{Path, PathBuf};

use liftplan::Result;
use liftplan::config::Config;
use liftplan::report::Silent;
use liftplan::train::{self, RunOptions};

/// The compiled plugin called `name`: the committed one, or the one in the directory `LIFTPLAN_TEST_PLUGINS`, which CI
/// builds anew.
pub fn compiled(name: &str) -> PathBuf {
    let committed = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/plugins");
    let directory = std::env::var_os("LIFTPLAN_TEST_PLUGINS").map_or(committed, PathBuf::from);
    directory.join(format!("{name}.wasm"))
}

/// A small model: three blocks, tied or not as its family is.
pub fn model(family: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/families").join(family).join("model")
}

/// A run of a few steps by the plugin at `plugin`, to see that this process still trains.
///
/// # Errors
/// As [`train::run`].
pub fn trains(plugin: &Path) -> Result<u64> {
    let io = |error: std::io::Error| liftplan::Error::internal(error.to_string());
    let dir = tempfile::tempdir().map_err(io)?;
    std::fs::write(dir.path().join("train.jsonl"), "{\"text\": \"the weaver lifts a thread\"}\n".repeat(4))
        .map_err(io)?;
    let text = format!(
        "model = {:?}\n[data]\ntrain = \"train.jsonl\"\nformat = \"text\"\n[policy]\nplugin = {plugin:?}\n\
         [train]\nsteps = 2\nbatch_size = 2\n",
        model("qwen3")
    );
    let config = Config::parse(&text, &dir.path().join("config.toml"), "config.toml", &[])?;
    Ok(train::run(&config, &RunOptions::default(), &mut Silent)?.steps)
}
