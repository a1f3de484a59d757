//! The machine and the time, for a report.

use serde::{Deserialize, Serialize};

use crate::report::process;

/// What computed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// Operating system and processor family.
    pub platform: String,
    /// The processor's name, where the system tells.
    pub cpu: Option<String>,
    /// Threads that a process may use.
    pub threads: usize,
    /// Memory in all, in bytes.
    pub memory_bytes: Option<u64>,
}

impl Machine {
    /// This one.
    pub fn here() -> Self {
        let (cpu, memory_bytes) = process::machine();
        Self {
            platform: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
            cpu,
            threads: std::thread::available_parallelism().map_or(1, |threads| threads.get()),
            memory_bytes,
        }
    }
}

/// The time, RFC 3339, UTC, to the second.
pub fn now() -> String {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    chrono::DateTime::from_timestamp(since as i64, 0)
        .map(|time| time.to_rfc3339_opts(chrono::SecondsFormat::Secs, true))
        .unwrap_or_default()
}
