//! `device` and `vram`: what computes, and how much of a GPU's memory may be taken.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::bytes;

/// What computes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Device {
    /// The first GPU if the machine has one that can carry out the plan, else the processor. A run records which it was.
    #[default]
    Auto,
    /// The machine's processor.
    Cpu,
    /// The GPU of this number: `cuda:0`; `cuda` is the first.
    Cuda(usize),
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(ordinal) => write!(f, "cuda:{ordinal}"),
        }
    }
}

impl FromStr for Device {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(0)),
            other => {
                other.strip_prefix("cuda:").and_then(|number| number.parse().ok()).map(Self::Cuda).ok_or_else(|| {
                    format!("\"{other}\" is not \"auto\", \"cpu\", \"cuda\" or \"cuda:\" and a GPU's number")
                })
            }
        }
    }
}

impl TryFrom<String> for Device {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Device> for String {
    fn from(device: Device) -> Self {
        device.to_string()
    }
}

/// An amount of memory, written as `"24GiB"`, `"500MiB"` or `"24GB"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Bytes(pub u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (unit, size) = [("GiB", 1 << 30), ("MiB", 1 << 20)]
            .into_iter()
            .find(|(_, size)| self.0 >= *size && self.0.is_multiple_of(*size))
            .unwrap_or(("B", 1));
        write!(f, "{}{unit}", self.0 / size)
    }
}

impl FromStr for Bytes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        bytes::parse(text).map(Self).map_err(|error| format!("{} such as \"24GiB\" or \"800MiB\"", error.message()))
    }
}

impl TryFrom<String> for Bytes {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Bytes> for String {
    fn from(bytes: Bytes) -> Self {
        bytes.to_string()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn devices_and_amounts_read_back_what_they_write() {
        for (text, device) in [("auto", Device::Auto), ("cpu", Device::Cpu), ("cuda:3", Device::Cuda(3))] {
            assert_eq!(text.parse(), Ok(device));
            assert_eq!(device.to_string(), text);
        }
        assert_eq!("cuda".parse(), Ok(Device::Cuda(0)));
        for wrong in ["gpu", "cuda:", "cuda:x", "cuda:-1", "CPU", ""] {
            assert!(wrong.parse::<Device>().is_err(), "{wrong}");
        }
        for (text, bytes) in
            [("24GiB", 24_u64 << 30), ("1.5GiB", 3 << 29), ("800MiB", 800 << 20), ("2GB", 2_000_000_000)]
        {
            let read: Bytes = text.parse().unwrap();
            assert_eq!(read.0, bytes);
            assert_eq!(read.to_string().parse(), Ok(read));
        }
        for wrong in ["24", "GiB", "-1GiB", "0GiB", "24 apples", "nanGiB", "infGiB"] {
            assert!(wrong.parse::<Bytes>().is_err(), "{wrong}");
        }
    }
}
