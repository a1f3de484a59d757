//! Ctrl-C: the first asks the work to stop where it can be continued, the second quits at once.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use liftplan::{Error, Result};

/// The exit code of a process that the user stopped.
const INTERRUPTED: i32 = 130;

/// A flag that becomes true at Ctrl-C, or when the system asks the process to end.
pub fn stop_flag() -> Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    let flag = stop.clone();
    ctrlc::set_handler(move || {
        if flag.swap(true, Ordering::SeqCst) {
            std::process::exit(INTERRUPTED);
        }
        writeln!(std::io::stderr(), "\nstopping after this step; press Ctrl-C again to quit at once").ok();
    })
    .map_err(|error| Error::internal(format!("Ctrl-C cannot be handled: {error}")))?;
    Ok(stop)
}
