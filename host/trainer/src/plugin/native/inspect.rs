//! What can be known of a native library without loading it: its format, its machine, and what it exports.

use object::{Architecture, BinaryFormat, Object, ObjectKind};

use super::abi::ENTRY;
use crate::{Error, Result};

/// The format and architecture that this program was built for.
const FORMAT: BinaryFormat = if cfg!(target_os = "macos") { BinaryFormat::MachO } else { BinaryFormat::Elf };
const ARCHITECTURE: Architecture = if cfg!(target_arch = "x86_64") {
    Architecture::X86_64
} else if cfg!(target_arch = "aarch64") {
    Architecture::Aarch64
} else {
    Architecture::Unknown
};

/// Checks that the library can be loaded here and has the function that plugins have.
///
/// # Errors
/// The first thing that is wrong.
pub(super) fn check(bytes: &[u8]) -> Result<()> {
    let damaged =
        |error: object::Error| Error::plan(format!("it is a damaged library: {error}")).help("fetch or build it again");
    let file = object::File::parse(bytes).map_err(damaged)?;
    if file.format() != FORMAT || file.kind() != ObjectKind::Dynamic {
        let found = match file.kind() {
            ObjectKind::Dynamic => "dynamic library",
            ObjectKind::Executable => "program",
            _ => "object file",
        };
        return Err(Error::plan(format!(
            "it is a {found} of format {:?}, and here plugins are dynamic libraries of format {FORMAT:?}",
            file.format()
        ))
        .help("take the build for this system, or the WebAssembly component, which runs everywhere"));
    }
    if file.architecture() != ARCHITECTURE || !file.is_64() {
        return Err(Error::plan(format!(
            "it was built for {:?}, and this machine is {}",
            file.architecture(),
            std::env::consts::ARCH
        ))
        .help("take the build for this machine, or the WebAssembly component, which runs everywhere"));
    }
    // Mach-O puts an underscore before each name.
    let exports = file.exports().map_err(damaged)?;
    let named = |name: &[u8]| name == ENTRY.as_bytes() || name.strip_prefix(b"_") == Some(ENTRY.as_bytes());
    if !exports.iter().any(|export| named(export.name())) {
        return Err(Error::plan(format!("it does not export the function {ENTRY}"))
            .help("its author must define it as plugin-api/c/liftplan_plugin.h says, and not hide it"));
    }
    Ok(())
}
