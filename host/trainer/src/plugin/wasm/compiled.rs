//! Compiled code, kept by the host: a component's bytes in, machine code out.
//!
//! Directory: `compiled` in the user's cache. One file for each component and compiler, named by the SHA-256 of the
//! component's bytes and by what the compiler is set to: a magic, the SHA-256 of the code, and the code. Only this module
//! writes there; an author's compiled code is never taken. A file that is damaged counts as absent.

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use wasmtime::component::Component;
use wasmtime::{Config, Engine};

use crate::hash;
use crate::{Error, Result};

const MAGIC: &[u8; 8] = b"LPCWASM1";
/// Bytes of a component's stack.
pub(super) const STACK_BYTES: usize = 512 << 10;

/// The compiler and runtime, set so that a component computes the same everywhere.
///
/// # Errors
/// This machine has no code generator.
pub(super) fn engine() -> Result<&'static Engine> {
    static ENGINE: OnceLock<std::result::Result<Engine, String>> = OnceLock::new();
    let engine = ENGINE.get_or_init(|| {
        let mut config = Config::new();
        config
            .consume_fuel(true)
            .epoch_interruption(true)
            .max_wasm_stack(STACK_BYTES)
            // A NaN's bits are the only thing that processors may differ in.
            .cranelift_nan_canonicalization(true)
            .wasm_relaxed_simd(false)
            .wasm_memory64(false)
            // Guests are small: reserving little lets many live at once, and growing may move them.
            .memory_reservation(64 << 20)
            .memory_reservation_for_growth(1 << 20)
            .wasm_backtrace_max_frames(None);
        Engine::new(&config).map_err(|error| error.root_cause().to_string())
    });
    engine.as_ref().map_err(|error| Error::plan(format!("plugins cannot run on this machine: {error}")))
}

/// The component of these bytes, whose SHA-256 is `sha256`, from the cache in `cache` or compiled and put there.
///
/// # Errors
/// It is not a valid component.
pub(super) fn component(engine: &Engine, bytes: &[u8], sha256: &str, cache: Option<&Path>) -> Result<Component> {
    let file = cache.map(|cache| {
        let mut hasher = DefaultHasher::new();
        engine.precompile_compatibility_hash().hash(&mut hasher);
        cache.join("compiled").join(format!("{sha256}-{:016x}.cwasm", hasher.finish()))
    });
    if let Some(component) = file.as_deref().and_then(|file| read(engine, file)) {
        return Ok(component);
    }
    let component = Component::new(engine, bytes).map_err(|error| {
        let error = crate::plugin::escaped(&error.root_cause().to_string(), 300);
        Error::plan(format!("it is not a valid component: {error}")).help("fetch or build it again")
    })?;
    if let (Some(file), Ok(code)) = (file, component.serialize()) {
        // Without a cache it is compiled again next time.
        let _ = write(&file, &code);
    }
    Ok(component)
}

fn read(engine: &Engine, file: &Path) -> Option<Component> {
    let bytes = fs::read(file).ok()?;
    let content = bytes.strip_prefix(MAGIC)?;
    let (written, code) = content.split_at_checked(hash::BYTES)?;
    if hash::digest(code) != written {
        return None;
    }
    // SAFETY: deserialising trusts the bytes to be this engine's own output. Only `write` puts files of this name there,
    // in a directory that only this user can write; the hash shows damage, and the name holds the compiler's settings,
    // which wasmtime checks again. Who can write the user's cache can run code as the user anyway.
    unsafe { Component::deserialize(engine, code) }.ok()
}

fn write(file: &Path, code: &[u8]) -> std::io::Result<()> {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let directory = file.parent().unwrap_or(Path::new("."));
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(directory)?;
    let unique = COUNTER.fetch_add(1, Ordering::Relaxed);
    let temporary: PathBuf = directory.join(format!(".tmp-{}-{unique}", std::process::id()));
    let bytes = [MAGIC.as_slice(), &hash::digest(code), code].concat();
    let written = fs::write(&temporary, bytes).and_then(|()| fs::rename(&temporary, file));
    if written.is_err() {
        // The error that matters is the first one.
        let _ = fs::remove_file(&temporary);
    }
    written
}
