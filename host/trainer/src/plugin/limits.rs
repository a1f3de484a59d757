//! What a plugin may use of the host in one call, and the count of what it has used.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// `[plugins]`: the most that a plugin may use, in one call where nothing else is said.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Size of the plugin's file, in MiB. Default 32.
    pub file_mib: u64,
    /// Memory of the plugin, in MiB. Default 64.
    pub memory_mib: u64,
    /// Work: roughly the number of WebAssembly instructions. The same on every machine. Default 5·10⁹.
    pub fuel: u64,
    /// Time in the plugin, in seconds, not counting what the host computes for it. A backstop behind `fuel`. Default 60.
    pub seconds: f64,
    /// Calls to the host. Default 2 000 000.
    pub host_calls: u64,
    /// Text and numbers passed to the plugin and from it, in MiB. Default 256.
    pub passed_mib: u64,
    /// Messages to the user, in KiB. Default 64.
    pub log_kib: u64,
    /// Statistics that are computed for it, as so many times the model's elements. Default 100.
    pub statistics: u64,
    /// What it keeps between picks, in KiB. Default 1024.
    pub state_kib: u64,
    /// Batches of data that it may measure on. Default 16.
    pub calibration_batches: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            file_mib: 32,
            memory_mib: 64,
            fuel: 5_000_000_000,
            seconds: 60.0,
            host_calls: 2_000_000,
            passed_mib: 256,
            log_kib: 64,
            statistics: 100,
            state_kib: 1024,
            calibration_batches: 16,
        }
    }
}

impl Limits {
    /// Whether all are as they are by default.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// A limit that was exceeded; it ends the call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exceeded {
    /// What the plugin did: `called the host more than 1000 times`.
    pub what: String,
    /// The setting that says how much is allowed: `plugins.host_calls`.
    pub setting: &'static str,
}

impl fmt::Display for Exceeded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (`{}`)", self.what, self.setting)
    }
}

impl std::error::Error for Exceeded {}

/// Counts what one call uses.
#[derive(Debug)]
pub struct Meter {
    limits: Limits,
    /// Calls to the host so far.
    pub host_calls: u64,
    /// Bytes passed in either direction so far.
    pub passed_bytes: u64,
    log_bytes: u64,
    /// Elements of weights read for statistics so far.
    statistics: u64,
    model_elements: u64,
    /// Time that the host took for statistics.
    pub host_time: Duration,
}

impl Meter {
    /// A meter for a call about a model of so many elements.
    pub fn new(limits: &Limits, model_elements: u64) -> Self {
        Self {
            limits: limits.clone(),
            host_calls: 0,
            passed_bytes: 0,
            log_bytes: 0,
            statistics: 0,
            model_elements,
            host_time: Duration::ZERO,
        }
    }

    /// The limits.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Counts a call to the host that passes so many bytes.
    pub fn call(&mut self, bytes: usize) -> Result<(), Exceeded> {
        self.host_calls += 1;
        if self.host_calls > self.limits.host_calls {
            return Err(Exceeded {
                what: format!("it called the host more than {} times", self.limits.host_calls),
                setting: "plugins.host_calls",
            });
        }
        self.pass(bytes)
    }

    /// Counts bytes passed.
    pub fn pass(&mut self, bytes: usize) -> Result<(), Exceeded> {
        self.passed_bytes = self.passed_bytes.saturating_add(bytes as u64);
        if self.passed_bytes > self.limits.passed_mib << 20 {
            return Err(Exceeded {
                what: format!("it passed more than {} MiB of text and numbers", self.limits.passed_mib),
                setting: "plugins.passed_mib",
            });
        }
        Ok(())
    }

    /// Counts a message to the user.
    pub fn log(&mut self, bytes: usize) -> Result<(), Exceeded> {
        self.log_bytes = self.log_bytes.saturating_add(bytes as u64);
        if self.log_bytes > self.limits.log_kib << 10 {
            return Err(Exceeded {
                what: format!("it wrote more than {} KiB of messages", self.limits.log_kib),
                setting: "plugins.log_kib",
            });
        }
        Ok(())
    }

    /// Counts a statistic of a weight with so many elements, before it is computed.
    pub fn statistic(&mut self, elements: u64) -> Result<(), Exceeded> {
        self.statistics = self.statistics.saturating_add(elements);
        if self.statistics > self.limits.statistics.saturating_mul(self.model_elements) {
            return Err(Exceeded {
                what: format!(
                    "it asked for statistics of more than {} times the model's weights",
                    self.limits.statistics
                ),
                setting: "plugins.statistics",
            });
        }
        Ok(())
    }
}
