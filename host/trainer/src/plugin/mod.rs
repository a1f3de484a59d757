//! Plugins: policies that live outside the host, each one file.
//!
//! In: a plugin's file, by path, address or name, and the settings that a configuration gives it. Out: a
//! [`Policy`](crate::policy::Policy) that reaches training the same way as a built-in one. [`metadata`] reads what a file
//! says about itself without running any of it, and [`settings`] checks settings against it.

use std::path::Path;

use crate::policy::Policy;
use crate::{Error, Result};

pub mod call;
pub mod limits;
pub mod metadata;
pub mod settings;
pub mod wasm;
mod custom_section;
mod text;

pub use call::{Call, Fault, Refusal};
pub use limits::{Exceeded, Limits};
pub use metadata::{Kind, Metadata};
pub use text::escaped;

/// The policy in the plugin's file at `path`.
///
/// # Errors
/// It can't be read, or is no plugin that can be loaded so.
pub fn open(path: &Path, limits: &Limits) -> Result<Box<dyn Policy>> {
    let bytes = wasm::read_file(path, limits)?;
    let (kind, metadata) = Metadata::read(&bytes).map_err(|error| error.at(path.display()))?;
    match kind {
        Kind::Wasm => Ok(Box::new(wasm::WasmPlugin::load(&bytes, limits).map_err(|error| error.at(path.display()))?)),
        Kind::Native => {
            Err(Error::plan(format!("{}: plugin {} is a native library", path.display(), metadata.shown()))
                .help("this version runs WebAssembly components"))
        }
    }
}
