//! Memory that lives as long as the model: large tensors have a buffer each, small ones share.

use super::context::Context;
use super::memory::{Buffer, Element, View};
use crate::error::Result;

/// Everything a model owns on the card.
#[derive(Debug)]
pub struct Slab {
    context: Context,
    buffers: Vec<Buffer>,
    shared: Option<(Buffer, usize)>,
    bytes: usize,
    /// Whether small tensors have a buffer each, too.
    apart: bool,
}

/// Tensors below this share buffers of four times as much; the driver hands out no less than 2 MiB.
const SMALL: usize = 2 << 20;

impl Slab {
    /// Nothing yet.
    pub fn new(context: &Context) -> Self {
        Self { context: context.clone(), buffers: Vec::new(), shared: None, bytes: 0, apart: false }
    }

    /// Nothing yet, and no more later than what is asked for: for a few tensors that go together.
    pub fn apart(context: &Context) -> Self {
        Self { apart: true, ..Self::new(context) }
    }

    /// Bytes handed out.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Bytes of the buffers, what is left of them included.
    pub fn held_bytes(&self) -> usize {
        let shared = self.shared.as_ref().map(|(buffer, _)| buffer.bytes());
        self.buffers.iter().map(Buffer::bytes).chain(shared).sum()
    }

    /// A matrix with unspecified contents.
    ///
    /// # Errors
    /// When there is no memory.
    pub fn take<T: Element>(&mut self, rows: usize, cols: usize, room: usize) -> Result<View<T>> {
        let bytes = (rows * (cols + room) * size_of::<T>()).next_multiple_of(256);
        self.bytes += bytes;
        let whole = |view: View<T>| View::at(view.ptr(), rows, cols, cols + room);
        if bytes >= SMALL || self.apart {
            let buffer = Buffer::new(&self.context, bytes)?;
            let view = whole(buffer.part(0, rows, cols + room));
            self.buffers.push(buffer);
            return Ok(view);
        }
        if self.shared.as_ref().is_none_or(|(buffer, used)| used + bytes > buffer.bytes()) {
            let fresh = Buffer::new(&self.context, 4 * SMALL)?;
            if let Some((full, _)) = self.shared.replace((fresh, 0)) {
                self.buffers.push(full);
            }
        }
        match &mut self.shared {
            Some((buffer, used)) => {
                let view = whole(buffer.part(*used, rows, cols + room));
                *used += bytes;
                Ok(view)
            }
            None => unreachable!("made above"),
        }
    }

    /// Takes over what another has handed out.
    pub fn join(&mut self, other: Self) {
        self.bytes += other.bytes;
        self.buffers.extend(other.buffers.into_iter().chain(other.shared.map(|(buffer, _)| buffer)));
    }

    /// Frees a matrix with its room, once the work that was queued is done. One that shares a buffer stays as long as that.
    pub fn give_back<T: Element>(&mut self, view: View<T>) {
        let bytes = (view.rows() * view.stride() * size_of::<T>()).next_multiple_of(256);
        // Buffers that are shared have another size than any matrix in them.
        let is_its = |buffer: &Buffer| buffer.bytes() == bytes && buffer.view::<u8>(1, 1).ptr() == view.ptr();
        if let Some(place) = self.buffers.iter().position(is_its) {
            self.bytes -= bytes;
            self.buffers.swap_remove(place);
        }
    }

    /// A matrix of zeros.
    ///
    /// # Errors
    /// When there is no memory.
    pub fn zeros<T: Element>(&mut self, rows: usize, cols: usize, room: usize) -> Result<View<T>> {
        let view = self.take::<T>(rows, cols, room)?;
        self.context.fill_bytes(View::<T>::at(view.ptr(), rows, cols + room, cols + room), 0)?;
        Ok(view)
    }
}
