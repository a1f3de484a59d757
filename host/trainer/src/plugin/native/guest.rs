//! The process of a native plugin: this program again, under a hidden command. It loads the library that comes through its
//! standard input, calls it, and passes its questions on to the host.
//!
//! Nothing here is trusted by the host, since the plugin can do in this process what it likes: what is checked here gives
//! better messages, and the host checks every answer and every call to the plan itself.

use std::fs::File;
use std::io::{self, BufReader};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use super::load::Library;
use super::table::Context;
use super::wire::{LOADED, Message, START, UNFIT};

/// Most bytes of a message from the host.
const MOST_BYTES: usize = 1 << 30;

/// Serves one call of a native plugin and ends the process. This is what the hidden command does; it is of no use to a
/// person.
pub fn serve() -> ! {
    let code = match run() {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("{error}");
            1
        }
    };
    // SAFETY: ends the process at once. What the library left to be run at the end (destructors, `atexit`) is not run,
    // because the host has what it wanted and the library has had its say.
    unsafe { libc::_exit(code) }
}

fn run() -> io::Result<()> {
    let (input, mut output) = private_streams()?;
    let mut input = BufReader::new(input);
    let Some(start) = Message::read(&mut input, MOST_BYTES)? else { return Ok(()) };
    let (START, [limit_mib, seconds], [library, call, settings]) = (start.tag, &start.numbers[..], &start.texts[..])
    else {
        return Err(io::Error::other("this command is the host's own; it does not begin as the host does"));
    };
    let library = match Library::load(library, || limit(*limit_mib, *seconds)) {
        Ok(library) => library,
        Err(why) => return Message::new(UNFIT).text(why).write(&mut output),
    };
    let function = match library.function(String::from_utf8_lossy(call).as_ref()) {
        Ok(function) => function,
        Err(why) => return Message::new(UNFIT).text(why).write(&mut output),
    };
    Message::new(LOADED).write(&mut output)?;
    let (mut output, done) = Context::new(input, output, settings).call(function, settings);
    done.write(&mut output)
}

/// The two pipes to the host, out of the library's way: what it reads from standard input is empty, and what it prints
/// goes to standard error.
fn private_streams() -> io::Result<(File, File)> {
    let duplicate = |fd: i32| -> io::Result<File> {
        // SAFETY: duplicates a descriptor that this process has, to a number that nothing else uses.
        let copy = unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 10) };
        if copy < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor was just made and has no other owner.
        Ok(File::from(unsafe { OwnedFd::from_raw_fd(copy) }))
    };
    let streams = (duplicate(0)?, duplicate(1)?);
    let nothing = File::open("/dev/null")?;
    // SAFETY: replaces descriptors 0 and 1, which this process has and whose former streams nothing uses any more.
    let replaced = unsafe { libc::dup2(nothing.as_raw_fd(), 0) >= 0 && libc::dup2(2, 1) >= 0 };
    if replaced { Ok(streams) } else { Err(io::Error::last_os_error()) }
}

/// Caps what this process may use: memory, processor time, no files written, no core dump; and ends it with the host.
fn limit(memory_mib: u64, seconds: u64) {
    let cap = |resource, most: u64| {
        let limit = libc::rlimit { rlim_cur: most as libc::rlim_t, rlim_max: most as libc::rlim_t };
        // SAFETY: sets a limit of this process from a struct that lives through the call. If it fails, the host's
        // deadline is still there.
        unsafe { libc::setrlimit(resource, &limit) };
    };
    #[cfg(target_os = "linux")]
    // SAFETY: asks for a signal when the parent ends; takes numbers only.
    unsafe {
        libc::prctl(
            libc::PR_SET_PDEATHSIG,
            libc::SIGKILL as libc::c_ulong,
            0 as libc::c_ulong,
            0 as libc::c_ulong,
            0 as libc::c_ulong,
        );
    }
    // This program tells of its own overflowing stack; a plugin's crash is told by the host.
    for signal in [libc::SIGSEGV, libc::SIGBUS] {
        // SAFETY: sets back what happens at a signal; takes numbers only.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    // This program's own data are in it.
    cap(libc::RLIMIT_DATA, (memory_mib + 256) << 20);
    cap(libc::RLIMIT_CPU, seconds.saturating_add(2));
    cap(libc::RLIMIT_CORE, 0);
    cap(libc::RLIMIT_FSIZE, 0);
}
