//! The memory of a step's activations: one buffer, laid out from both ends, so that a steady step allocates nothing.
//!
//! What is kept for the backward pass is taken from the low end and given back in reverse; what lives only inside a block
//! is taken from the high end. A counting arena has no memory and tells how much a step needs: the same code that runs
//! the step, run dry, is the prediction.

use super::context::Context;
use super::memory::{Buffer, Element, View};
use crate::error::{EngineError, Result};

/// A stack with two ends.
#[derive(Debug)]
pub struct Arena {
    buffer: Option<Buffer>,
    base: u64,
    size: usize,
    low: usize,
    high: usize,
    peak: usize,
}

/// A place in an arena to go back to.
#[derive(Clone, Copy, Debug)]
pub struct Mark {
    low: usize,
    high: usize,
}

/// Bytes to a multiple of which everything begins.
pub(super) const ALIGNMENT: usize = 256;

impl Arena {
    /// An arena without memory that counts.
    pub fn counting() -> Self {
        Self { buffer: None, base: 0, size: usize::MAX / 2, low: 0, high: 0, peak: 0 }
    }

    /// An arena of `size` bytes.
    ///
    /// # Errors
    /// When the card has not that much.
    pub fn new(context: &Context, size: usize) -> Result<Self> {
        let buffer = Buffer::new(context, size)?;
        let base = buffer.view::<u8>(1, 0).ptr();
        let size = buffer.bytes();
        Ok(Self { buffer: Some(buffer), base, size, low: 0, high: 0, peak: 0 })
    }

    /// Its size in bytes; 0 when it only counts.
    pub fn size(&self) -> usize {
        self.buffer.as_ref().map_or(0, Buffer::bytes)
    }

    /// The most that was taken at once.
    pub fn peak(&self) -> usize {
        self.peak
    }

    /// Sets every byte that is not taken to `byte`, for tests that must not read what nobody wrote.
    ///
    /// # Errors
    /// When the device fails.
    pub fn poison(&self, context: &Context, byte: u8) -> Result<()> {
        match &self.buffer {
            Some(buffer) => context.fill_bytes(buffer.view::<u8>(1, buffer.bytes()), byte),
            None => Ok(()),
        }
    }

    fn take(&mut self, bytes: usize, high: bool) -> Result<u64> {
        let bytes = bytes.next_multiple_of(ALIGNMENT);
        if self.low + self.high + bytes > self.size {
            return Err(EngineError::Device {
                doing: "lay out a step".into(),
                reason: format!(
                    "the arena of {} bytes holds {} and {bytes} more are asked for: this is a defect",
                    self.size,
                    self.low + self.high
                ),
            });
        }
        let at = if high {
            self.high += bytes;
            self.size - self.high
        } else {
            self.low += bytes;
            self.low - bytes
        };
        self.peak = self.peak.max(self.low + self.high);
        Ok(self.base.wrapping_add(at as u64))
    }

    /// `rows × cols` whose rows lie `cols + room` apart, from the low end.
    ///
    /// # Errors
    /// When the arena is full.
    pub fn low<T: Element>(&mut self, rows: usize, cols: usize, room: usize) -> Result<View<T>> {
        let stride = cols + room;
        Ok(View::at(self.take(rows * stride * size_of::<T>(), false)?, rows, cols, stride))
    }

    /// The same from the high end.
    ///
    /// # Errors
    /// When the arena is full.
    pub fn high<T: Element>(&mut self, rows: usize, cols: usize, room: usize) -> Result<View<T>> {
        let stride = cols + room;
        Ok(View::at(self.take(rows * stride * size_of::<T>(), true)?, rows, cols, stride))
    }

    /// From the low end if it is kept, from the high end otherwise.
    ///
    /// # Errors
    /// When the arena is full.
    pub fn take_view<T: Element>(&mut self, kept: bool, rows: usize, cols: usize, room: usize) -> Result<View<T>> {
        if kept { self.low(rows, cols, room) } else { self.high(rows, cols, room) }
    }

    /// Where it stands.
    pub fn mark(&self) -> Mark {
        Mark { low: self.low, high: self.high }
    }

    /// Gives back what was taken from the high end since.
    pub fn release_high(&mut self, mark: Mark) {
        self.high = mark.high;
    }

    /// Gives back what was taken from the low end since.
    pub fn release_low(&mut self, mark: Mark) {
        self.low = mark.low;
    }

    /// Gives back everything.
    pub fn clear(&mut self) {
        (self.low, self.high, self.peak) = (0, 0, 0);
    }
}
