//! Weights on their way to the card. In: bf16 numbers, written a piece at a time into page-locked memory of the host. Out: the same
//! in their place on the card, packed there if they are to be.
//!
//! Three buffers take turns, so that one is filled while another is copied: a checkpoint loads as fast as the slower of its disk and
//! the bus. Nothing waits for the card between tensors.

use half::bf16;

use super::builder::{Place, unfit};
use super::context::Context;
use super::decoder::Decoder;
use super::event::Event;
use super::loader::Loader;
use super::locked::Locked;
use super::memory::View;
use super::nf4;
use super::ops;
use super::packed::Packed;
use super::spec::Slot;
use crate::error::Result;

/// Bytes of a buffer: a copy of so many takes a millisecond, against which its start is nothing.
const BYTES: usize = 32 << 20;
/// Buffers that take turns.
const BUFFERS: usize = 3;

/// The buffers, each with the end of the copy that last left it.
#[derive(Debug, Default)]
pub(super) struct Staging {
    buffers: Vec<(Locked, Event)>,
    /// Which one is filled next.
    next: usize,
}

impl Staging {
    /// The buffer whose turn it is, of `bytes` bytes at least, once its last copy has ended.
    fn turn(&mut self, context: &Context, bytes: usize) -> Result<&(Locked, Event)> {
        if self.buffers.first().is_none_or(|(host, _)| host.bytes() < bytes) {
            // A buffer waits for its copy before it goes.
            self.buffers.clear();
            self.next = 0;
            for _ in 0..BUFFERS {
                self.buffers.push((Locked::new(context, bytes.max(BYTES))?, Event::new()?));
            }
        }
        let buffer = &self.buffers[self.next];
        buffer.1.synchronize()?;
        Ok(buffer)
    }
}

/// A weight on its way.
pub struct Upload<'a> {
    decoder: &'a Decoder,
    staging: &'a mut Staging,
    /// Where its numbers go first.
    to: View<bf16>,
    then: Then,
    /// Rows on their way so far, and in the buffer that is being filled.
    rows: [usize; 2],
}

/// What becomes of the numbers on the card.
enum Then {
    Nothing,
    /// They stay on the host and are written there at once.
    Stay,
    /// The optimiser's finer ones begin as the same.
    Widen(View<f32>),
    Pack(nf4::Packed, View<f32>),
}

impl Loader {
    /// Begins to copy a weight to its place as bf16 numbers, piece by piece; `None` where the place takes others.
    ///
    /// # Errors
    /// When there is no such weight, or no memory.
    pub fn upload<'a>(&'a mut self, decoder: &'a Decoder, slot: Slot) -> Result<Option<Upload<'a>>> {
        let (to, then) = match decoder.places.get(&slot).cloned() {
            None => return Err(unfit(slot, "a weight of this model", "none")),
            Some(Place::Matrix { view, .. }) if decoder.home(slot).is_some() => (view, Then::Stay),
            Some(Place::Matrix { view, trained: None }) => (view, Then::Nothing),
            Some(Place::Matrix { view, trained: Some(index) }) => {
                (view, decoder.trainables[index].master.map_or(Then::Nothing, Then::Widen))
            }
            Some(Place::Packed(Packed::Nf4(packed))) => {
                let (whole, maxima) = self.scratch(&decoder.context, packed.rows, packed.cols, packed.scratch_len())?;
                (whole, Then::Pack(packed, maxima))
            }
            Some(Place::Packed(Packed::Int8(_)) | Place::Vector { .. }) => return Ok(None),
        };
        decoder.context.bind()?;
        decoder.lower();
        // Without a card there is nothing to read it for.
        let done = if decoder.context.is_dry() { to.rows() } else { 0 };
        Ok(Some(Upload { decoder, staging: &mut self.staging, to, then, rows: [done, 0] }))
    }
}

impl Upload<'_> {
    /// Sends what the last piece was filled with, and gives the next one: where it begins in the weight, in bytes, and memory to
    /// fill with all of it. `None` when all pieces are on their way.
    ///
    /// # Errors
    /// When the device fails.
    pub fn next_piece(&mut self) -> Result<Option<(usize, &mut [u8])>> {
        self.send()?;
        let (width, left) = (self.to.cols() * size_of::<bf16>(), self.to.rows() - self.rows[0]);
        if left == 0 || width == 0 {
            return Ok(None);
        }
        let start = self.rows[0] * width;
        let Self { decoder, staging, .. } = self;
        let (to, rows) = match (&self.then, &decoder.embedding_home) {
            (Then::Stay, Some(home)) => {
                let rows = (BYTES / width).clamp(1, left);
                (home.place(start, rows * width)?, rows)
            }
            _ => {
                let (host, _) = staging.turn(&decoder.context, width)?;
                let rows = (host.bytes() / width).min(left);
                (host.place(0, rows * width)?, rows)
            }
        };
        self.rows[1] = rows;
        // SAFETY: nothing on the card reads the memory now, nobody else has it while this borrow lasts, and it is that large.
        Ok(Some((start, unsafe { std::slice::from_raw_parts_mut(to.cast::<u8>(), rows * width) })))
    }

    fn send(&mut self) -> Result<()> {
        let [done, rows] = self.rows;
        if rows == 0 {
            return Ok(());
        }
        self.rows = [done + rows, 0];
        if matches!(self.then, Then::Stay) {
            return Ok(());
        }
        let Self { decoder, staging, .. } = self;
        let (host, copied) = &staging.buffers[staging.next];
        let to = self.to.slice_rows(done, rows);
        decoder.context.queue_upload(to, host.place(0, to.len() * size_of::<bf16>())?)?;
        copied.record(decoder.context.stream())?;
        staging.next = (staging.next + 1) % BUFFERS;
        Ok(())
    }

    /// Ends it: the numbers are packed or widened behind the copies, which need not have ended.
    ///
    /// # Errors
    /// When pieces are missing, or the device fails.
    pub fn finish(mut self) -> Result<()> {
        self.send()?;
        assert_eq!(self.rows[0], self.to.rows(), "a weight arrives whole");
        let context = &self.decoder.context;
        match self.then {
            Then::Nothing | Then::Stay => Ok(()),
            Then::Widen(master) => ops::widened(context, master, self.to),
            Then::Pack(packed, maxima) => packed.pack(context, self.to, maxima),
        }
    }
}
