//! Plugins: policies that live outside the host, each one file.
//!
//! In: a plugin's file, by path, address or name, and the settings that a configuration gives it. Out: a
//! [`Policy`](crate::policy::Policy) that reaches training the same way as a built-in one. [`metadata`] reads what a file
//! says about itself without running any of it, and [`settings`] checks settings against it.

use std::path::Path;

use crate::Result;
use crate::policy::Policy;

pub mod author;
pub mod call;
pub mod limits;
pub mod metadata;
#[cfg(unix)]
pub mod native;
pub mod settings;
pub mod store;
pub mod wasm;
mod custom_section;
mod text;

pub use call::{Call, Fault, Refusal};
pub use limits::{Exceeded, Limits};
pub use metadata::{Kind, Metadata};
pub use store::Loaded;
pub use text::escaped;

/// The policy in the plugin's file at `path`. A native library must have been installed in `project`, the directory of
/// `liftplan.lock`: only there it was allowed.
///
/// # Errors
/// It can't be read, is no plugin, or is native code that nobody allowed.
pub fn open(path: &Path, project: Option<&Path>, limits: &Limits) -> Result<Box<dyn Policy>> {
    let bytes = wasm::read_file(path, limits)?;
    let mut loaded = Loaded::from_bytes(bytes).map_err(|error| error.at(path.display()))?;
    if let (Kind::Native, Some(project)) = (loaded.kind, project) {
        // The lock alone is not enough: it may have come with somebody else's project. What this user installed is kept.
        let lock = store::Lock::read(project)?;
        let pinned = lock.plugins.iter().find(|pinned| pinned.sha256 == loaded.sha256);
        let kept = store::Files::of_user()?.has(&loaded.sha256);
        loaded.allow_native = kept && pinned.is_some_and(|pinned| pinned.allow_native);
    }
    policy(loaded, limits).map_err(|error| error.at(path.display()))
}

/// The policy in the plugin that `liftplan.lock` in `project` calls `name`; `None` if it calls none so.
///
/// # Errors
/// Its file is missing or was changed, or can't be loaded.
pub fn open_installed(name: &str, project: &Path, limits: &Limits) -> Result<Option<Box<dyn Policy>>> {
    if !store::Lock::read(project)?.plugins.iter().any(|pinned| pinned.name == name) {
        return Ok(None);
    }
    let loaded = store::load(project, &store::Files::of_user()?, name)?;
    policy(loaded, limits).map(Some)
}

/// The policy in a plugin whose bytes were read and hashed. Nothing else of its file is looked at again.
///
/// # Errors
/// It can't be loaded, or is native code that nobody allowed.
pub fn policy(loaded: Loaded, limits: &Limits) -> Result<Box<dyn Policy>> {
    match loaded.kind {
        Kind::Wasm => Ok(Box::new(wasm::WasmPlugin::load(&loaded.bytes, limits)?)),
        #[cfg(unix)]
        Kind::Native => Ok(Box::new(native::NativePlugin::new(loaded, limits)?)),
        #[cfg(not(unix))]
        Kind::Native => Err(crate::Error::plan(format!("plugin {} is a native library", loaded.metadata.shown()))
            .help("on this system only WebAssembly components run")),
    }
}
