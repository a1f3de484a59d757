//! TensorBoard's event file: scalars by step, as `tensorboard --logdir RUN` shows them.
//!
//! An event file is a sequence of TFRecords (length, its checksum, data, its checksum), each holding one `Event`
//! message of `tensorflow/core/util/event.proto`. A dozen fields of two small messages are all that scalars need, so
//! they are encoded here; a test holds the bytes against a file that TensorBoard's own writer made.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::files::{output_error, write_atomically};
use crate::{Error, Result};

/// Appends scalars to one event file.
pub struct EventFile {
    path: PathBuf,
    file: File,
    bytes: u64,
}

impl EventFile {
    /// Starts an event file at `path`, whose name should contain `tfevents`, with the header event.
    /// `wall_time_s` is in seconds since 1970.
    ///
    /// # Errors
    /// When the file can't be written.
    pub fn create(path: &Path, wall_time_s: f64) -> Result<Self> {
        let file = File::create(path).map_err(|e| output_error("create", path, &e))?;
        let mut events = Self { path: path.to_path_buf(), file, bytes: 0 };
        let mut header = Vec::new();
        put_double(&mut header, 1, wall_time_s);
        put_bytes(&mut header, 3, b"brain.Event:2");
        events.append(&header)?;
        Ok(events)
    }

    /// Goes on with the file of a run that resumes after `step`: later events are removed, and so is a last record
    /// that a crash cut short. The kept events stay as they are.
    ///
    /// # Errors
    /// When the file can't be read or written, or a record before the last is damaged.
    pub fn resume(path: &Path, step: u64) -> Result<Self> {
        let old = std::fs::read(path).map_err(|e| output_error("read", path, &e))?;
        let mut kept = Vec::with_capacity(old.len());
        for event in records(&old, path)? {
            if step_of(event) <= step {
                put_record(&mut kept, event);
            }
        }
        write_atomically(path, &kept)?;
        let file = OpenOptions::new().append(true).open(path).map_err(|e| output_error("open", path, &e))?;
        Ok(Self { path: path.to_path_buf(), file, bytes: kept.len() as u64 })
    }

    /// Appends one event with some scalars.
    ///
    /// # Errors
    /// When it can't be written; what was written of it is removed again.
    pub fn scalars(&mut self, step: u64, wall_time_s: f64, scalars: &[(&str, f64)]) -> Result<()> {
        let mut summary = Vec::new();
        for (tag, value) in scalars {
            let mut message = Vec::new();
            put_bytes(&mut message, 1, tag.as_bytes());
            message.push(2 << 3 | FIXED32);
            message.extend((*value as f32).to_le_bytes());
            put_bytes(&mut summary, 1, &message);
        }
        let mut event = Vec::new();
        put_double(&mut event, 1, wall_time_s);
        if step > 0 {
            event.push(2 << 3 | VARINT);
            put_varint(&mut event, step);
        }
        put_bytes(&mut event, 5, &summary);
        self.append(&event)
    }

    fn append(&mut self, event: &[u8]) -> Result<()> {
        let mut record = Vec::with_capacity(event.len() + 16);
        put_record(&mut record, event);
        if let Err(error) = self.file.write_all(&record) {
            // A full disk may have taken half a record.
            let _ = self.file.set_len(self.bytes);
            return Err(output_error("write to", &self.path, &error));
        }
        self.bytes += record.len() as u64;
        Ok(())
    }
}

// Protocol buffers' wire types.
const VARINT: u8 = 0;
const FIXED64: u8 = 1;
const LENGTH_DELIMITED: u8 = 2;
const FIXED32: u8 = 5;

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn put_bytes(out: &mut Vec<u8>, field: u8, bytes: &[u8]) {
    out.push(field << 3 | LENGTH_DELIMITED);
    put_varint(out, bytes.len() as u64);
    out.extend(bytes);
}

fn put_double(out: &mut Vec<u8>, field: u8, value: f64) {
    out.push(field << 3 | FIXED64);
    out.extend(value.to_le_bytes());
}

fn put_record(out: &mut Vec<u8>, data: &[u8]) {
    let length = (data.len() as u64).to_le_bytes();
    out.extend(length);
    out.extend(masked_crc(&length).to_le_bytes());
    out.extend(data);
    out.extend(masked_crc(data).to_le_bytes());
}

/// The records' data. A cut last record is left out; a damaged one before is an error.
fn records<'a>(file: &'a [u8], path: &Path) -> Result<Vec<&'a [u8]>> {
    let damaged = |offset: usize| {
        Error::output(format!("{}: the record at byte {offset} is damaged", path.display()))
            .help("move the file away; a new one is started")
    };
    let (mut out, mut offset) = (Vec::new(), 0);
    while let Some(header) = file.get(offset..offset + 12) {
        let (length, crc) = header.split_at(8);
        if masked_crc(length).to_le_bytes() != crc {
            return Err(damaged(offset));
        }
        let length = length.iter().rev().fold(0u64, |n, b| n << 8 | u64::from(*b)) as usize;
        let start = offset + 12;
        let Some(rest) = start.checked_add(length).and_then(|end| file.get(start..end.checked_add(4)?)) else { break };
        let (data, crc) = rest.split_at(length);
        if masked_crc(data).to_le_bytes() != crc {
            return Err(damaged(offset));
        }
        out.push(data);
        offset = start + length + 4;
    }
    Ok(out)
}

/// The step of an `Event` that [`EventFile`] wrote: the wall time, nine bytes, comes first, then the step unless it's 0.
fn step_of(event: &[u8]) -> u64 {
    match event.get(9..) {
        Some([tag, rest @ ..]) if *tag == (2 << 3 | VARINT) => {
            let mut step = 0;
            for (i, byte) in rest.iter().take(10).enumerate() {
                step |= u64::from(byte & 0x7f) << (7 * i);
                if byte & 0x80 == 0 {
                    break;
                }
            }
            step
        }
        _ => 0,
    }
}

/// CRC-32C (Castagnoli) with TFRecord's masking.
fn masked_crc(data: &[u8]) -> u32 {
    const TABLE: [u32; 256] = {
        let mut table = [0u32; 256];
        let mut i = 0;
        while i < 256 {
            let (mut crc, mut bit) = (i as u32, 0);
            while bit < 8 {
                crc = if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 };
                bit += 1;
            }
            table[i] = crc;
            i += 1;
        }
        table
    };
    let crc = !data.iter().fold(!0u32, |crc, byte| crc >> 8 ^ TABLE[((crc ^ u32::from(*byte)) & 0xff) as usize]);
    crc.rotate_right(15).wrapping_add(0xa282_ead8)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// Made by TensorBoard's own record writer, and read back by its own reader: `tests/golden/tensorboard/make.py`.
    const GOLDEN: &[u8] = include_bytes!("../../../../tests/golden/tensorboard/events.out.tfevents.golden");
    const GOLDEN_SCALARS: &str = include_str!("../../../../tests/golden/tensorboard/scalars.json");
    const T0: f64 = 1_700_000_000.25;

    fn write(events: &mut EventFile, steps: std::ops::RangeInclusive<u64>) {
        for step in steps {
            let (t, s) = (T0 + step as f64, step as f64);
            events.scalars(step * 100, t, &[("train/loss", 3.0 / s), ("train/lr", 1e-4 * s)]).unwrap();
        }
    }

    #[test]
    fn the_bytes_are_those_of_tensorboards_own_writer() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("events.out.tfevents.0");
        let mut events = EventFile::create(&path, T0).unwrap();
        events.scalars(0, T0, &[("eval/loss", 3.25)]).unwrap();
        write(&mut events, 1..=3);
        assert_eq!(std::fs::read(&path).unwrap(), GOLDEN);
        let read: serde_json::Value = serde_json::from_str(GOLDEN_SCALARS).unwrap();
        assert_eq!(read["eval/loss"], serde_json::json!([[0, 3.25]]));
        assert_eq!(read["train/loss"], serde_json::json!([[100, 3.0], [200, 1.5], [300, 1.0]]));
    }

    #[test]
    fn resuming_removes_later_events_and_a_cut_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("events.out.tfevents.0");
        let mut cut = GOLDEN.to_vec();
        cut.extend(&GOLDEN[..20]);
        std::fs::write(&path, &cut).unwrap();
        let mut events = EventFile::resume(&path, 100).unwrap();
        write(&mut events, 2..=3);
        assert_eq!(std::fs::read(&path).unwrap(), GOLDEN);
    }

    #[test]
    fn a_damaged_record_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("events.out.tfevents.0");
        for byte in [3, 20] {
            let mut damaged = GOLDEN.to_vec();
            damaged[byte] ^= 1;
            std::fs::write(&path, &damaged).unwrap();
            let error = EventFile::resume(&path, 100).err().unwrap();
            assert!(error.message().contains("the record at byte 0 is damaged"), "{error}");
        }
    }
}
