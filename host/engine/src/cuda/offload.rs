//! What is kept of blocks (their inputs; what attention gave), waiting on the host while the card works on other blocks.
//!
//! Two buffers on the card take turns. Forward: once a block's part is written, the second stream copies it out, and
//! the main stream waits for that copy before it writes the buffer's next part. Backward: the part of a block is
//! fetched two blocks ahead. An input and what attention gave are 200 MB a block of the 8B shape with 8,192 tokens: 4 ms at
//! the 50 GB/s each way of an H100's bus, behind 5.5 ms of forward pass.

use cudarc::driver::sys;

use super::context::{Context, check};
use super::event::Event;
use super::locked::Locked;
use super::memory::View;
use crate::error::{EngineError, Result};

/// Buffers on the card that take turns.
pub(crate) const RING: usize = 2;

/// Page-locked memory of the host, and the events that order the copies.
#[derive(Debug, Default)]
pub(crate) struct Offload {
    host: Option<Locked>,
    written: Vec<Event>,
    copied: Vec<Event>,
    done: Vec<Event>,
    fetched: Vec<Event>,
}

impl Offload {
    /// Memory of the host for `count` parts of `bytes` bytes.
    ///
    /// # Errors
    /// When the host has not that much memory to lock.
    pub fn prepare(&mut self, context: &Context, count: usize, bytes: usize) -> Result<()> {
        let needed = count * bytes;
        if needed == 0 {
            return Ok(());
        }
        if self.host.as_ref().is_none_or(|host| host.bytes() < needed) {
            context.synchronize()?;
            self.host = None;
            self.host = Some(Locked::new(context, needed)?);
        }
        for events in [&mut self.written, &mut self.copied, &mut self.done, &mut self.fetched] {
            while events.len() < count {
                events.push(Event::new()?);
            }
        }
        Ok(())
    }

    fn place(&self, i: usize, x: View<u8>) -> Result<(*mut std::ffi::c_void, usize)> {
        let bytes = x.len();
        match &self.host {
            Some(host) => Ok((host.place(i * bytes, bytes)?, bytes)),
            None => {
                Err(EngineError::Device { doing: "keep what a block made".into(), reason: "no memory was made".into() })
            }
        }
    }

    /// Before the main stream writes the `i`-th part: its buffer's last one must have left.
    pub fn before_write(&self, context: &Context, i: usize) -> Result<()> {
        if context.is_dry() || i < RING {
            return Ok(());
        }
        self.copied[i - RING].wait(context.stream())
    }

    /// Copies the `i`-th part out, once it is written.
    pub fn after_write(&self, context: &Context, i: usize, x: View<u8>) -> Result<()> {
        if context.is_dry() {
            return Ok(());
        }
        let (host, bytes) = self.place(i, x)?;
        self.written[i].record(context.stream())?;
        self.written[i].wait(context.copy_stream())?;
        // SAFETY: both sides have `bytes` bytes; the events order the copy behind the writing and before the next.
        let queued = unsafe { sys::cuMemcpyDtoHAsync_v2(host, x.ptr(), bytes, context.copy_stream()) }.result();
        check("copy what a block made to the host", queued)?;
        self.copied[i].record(context.copy_stream())
    }

    /// After the backward pass of block `i`: fetches the part of block `i - RING` into its buffer.
    pub fn after_backward(&self, context: &Context, i: usize, x: View<u8>) -> Result<()> {
        if context.is_dry() || i < RING {
            return Ok(());
        }
        let (host, bytes) = self.place(i - RING, x)?;
        self.done[i].record(context.stream())?;
        self.done[i].wait(context.copy_stream())?;
        // SAFETY: as in `after_write`.
        let queued = unsafe { sys::cuMemcpyHtoDAsync_v2(x.ptr(), host, bytes, context.copy_stream()) }.result();
        check("copy what a block made to the card", queued)?;
        self.fetched[i - RING].record(context.copy_stream())
    }

    /// Before the backward pass of block `i` of `count`: its part must be there.
    pub fn before_backward(&self, context: &Context, i: usize, count: usize) -> Result<()> {
        if context.is_dry() || i + RING >= count {
            return Ok(());
        }
        self.fetched[i].wait(context.stream())
    }
}
