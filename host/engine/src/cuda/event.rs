//! Points in the work of the card's streams: in what order streams go on, and how long what lies between took.

use cudarc::driver::{result, sys};

use super::context::check;
use crate::error::Result;

/// A point in a stream's work.
#[derive(Debug)]
pub(crate) struct Event(sys::CUevent);

// SAFETY: an event is a handle that any thread may use while its context is current.
unsafe impl Send for Event {}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: created by `Event::new`, destroyed once.
        let _ = unsafe { result::event::destroy(self.0) };
    }
}

impl Event {
    /// One that orders streams.
    pub(super) fn new() -> Result<Self> {
        Self::with(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING)
    }

    /// One that also notes the time.
    pub(super) fn timed() -> Result<Self> {
        Self::with(sys::CUevent_flags::CU_EVENT_DEFAULT)
    }

    fn with(flags: sys::CUevent_flags) -> Result<Self> {
        Ok(Self(check("make an event", result::event::create(flags))?))
    }

    /// Notes the point that a stream's queued work has come to.
    pub(super) fn record(&self, stream: sys::CUstream) -> Result<()> {
        // SAFETY: event and stream are valid.
        check("record an event", unsafe { result::event::record(self.0, stream) })
    }

    /// Waits until a point that was noted is reached; returns at once if none was.
    pub(super) fn synchronize(&self) -> Result<()> {
        // SAFETY: the event is valid.
        check("wait for an event", unsafe { result::event::synchronize(self.0) })
    }

    /// Has a stream wait for the point.
    pub(super) fn wait(&self, stream: sys::CUstream) -> Result<()> {
        let flags = sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
        // SAFETY: event and stream are valid.
        check("wait for an event", unsafe { result::stream::wait_event(stream, self.0, flags) })
    }

    /// Milliseconds from this point to a later one; both note the time, were recorded and are reached.
    pub(super) fn milliseconds_to(&self, later: &Self) -> Result<f64> {
        // SAFETY: the events are valid; if one is not reached that is an error.
        check("read an event", unsafe { result::event::elapsed(self.0, later.0) }).map(f64::from)
    }
}
