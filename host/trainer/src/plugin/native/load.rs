//! Loads a library from memory into this process, and finds what a plugin exports. Only the plugin's own process does this.

use std::fs::File;
use std::io::{self, Write};
use std::path::PathBuf;

use libloading::os::unix::{Library as Loaded, RTLD_LOCAL, RTLD_NOW};

use super::abi::{ABI_VERSION, ENTRY, Host, Policy, Text};

/// A function of the plugin.
pub(super) type Function = unsafe extern "C" fn(host: *const Host, settings: Text) -> i32;

/// A plugin's library, loaded for the rest of the process.
pub(super) struct Library {
    policy: Policy,
}

impl Library {
    /// Loads the library of these bytes, after `limit` was called, and asks it for its functions.
    pub fn load(bytes: &[u8], limit: impl FnOnce()) -> Result<Self, String> {
        let (file, path) = private_file(bytes).map_err(|error| format!("no place for its library: {error}"))?;
        limit();
        // SAFETY: runs the library's initialisers, which can do anything. That is why the user had to allow this very
        // library, and why this process is not the host.
        let library = unsafe { Loaded::open(Some(&path), RTLD_NOW | RTLD_LOCAL) };
        #[cfg(not(target_os = "linux"))]
        let _ = std::fs::remove_file(&path);
        drop(file);
        let library = library.map_err(|error| {
            let shown = path.display().to_string();
            format!("the system cannot load it: {}", source(&error).replace(&shown, "the library"))
        })?;
        // SAFETY: the type is what the ABI says of this name; the library was made by someone who says that it follows it.
        let entry = unsafe { library.get::<unsafe extern "C" fn() -> *const Policy>(ENTRY.as_bytes()) };
        let entry = *entry.map_err(|_| format!("it has no function {ENTRY}"))?;
        // It stays loaded: its threads and handlers may outlive the call.
        std::mem::forget(library);
        // SAFETY: as above.
        let table = unsafe { entry() };
        if table.is_null() {
            return Err(format!("{ENTRY} gave a null pointer"));
        }
        // SAFETY: a table begins with its size and version, whatever its version; it may be shorter than `Policy`, so
        // only these are read before they are known.
        let (size, abi) = unsafe { ((&raw const (*table).size).read(), (&raw const (*table).abi).read()) };
        if abi != ABI_VERSION {
            let help = if abi > ABI_VERSION { "newer" } else { "older" };
            return Err(format!("its table has ABI version {abi}, which is {help} than this host's {ABI_VERSION}"));
        }
        if size < size_of::<Policy>() {
            return Err(format!("its table has {size} bytes, where version {abi} has {}", size_of::<Policy>()));
        }
        // SAFETY: it is not null and has at least the size of `Policy`, by its own word.
        Ok(Self { policy: unsafe { table.read() } })
    }

    /// The function behind a call of the plugin API.
    pub fn function(&self, call: &str) -> Result<Function, String> {
        let function = match call {
            "make-plan" => self.policy.make_plan,
            "revise" => self.policy.revise,
            _ => None,
        };
        function.ok_or_else(|| format!("its table has a null pointer for {call}"))
    }
}

/// The last reason in a chain of errors.
fn source(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(deeper) => source(deeper),
        None => error.to_string(),
    }
}

/// A file that holds exactly these bytes and that nobody else can change: in memory on Linux, with a seal.
#[cfg(target_os = "linux")]
fn private_file(bytes: &[u8]) -> io::Result<(File, PathBuf)> {
    use std::os::fd::{AsRawFd, FromRawFd};
    // SAFETY: the name is a constant that ends with a zero; the descriptor that comes back is checked.
    let fd = unsafe { libc::memfd_create(c"liftplan-plugin".as_ptr(), libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just made and has no other owner.
    let mut file = unsafe { File::from_raw_fd(fd) };
    file.write_all(bytes)?;
    let seals = libc::F_SEAL_WRITE | libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;
    // SAFETY: sets seals on a descriptor that lives; takes numbers only.
    if unsafe { libc::fcntl(fd, libc::F_ADD_SEALS, seals) } < 0 {
        return Err(io::Error::last_os_error());
    }
    let path = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
    Ok((file, path))
}

/// A file that holds exactly these bytes, in a new directory that only this user can enter.
#[cfg(not(target_os = "linux"))]
fn private_file(bytes: &[u8]) -> io::Result<(File, PathBuf)> {
    use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
    let directory = std::env::temp_dir().join(format!("liftplan-plugin-{}", std::process::id()));
    std::fs::DirBuilder::new().mode(0o700).create(&directory)?;
    let path = directory.join("plugin.dylib");
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
    file.write_all(bytes)?;
    Ok((file, path))
}
