//! Reuse of buffers between the operations of a step, and the count of what is in use.
//!
//! A training step asks for the same sizes over and over. Taking them from a pool keeps the operating system out of
//! the step (fresh pages cost more than the arithmetic of small operations), and gives an exact account of the memory.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Free buffers by length, shared by everything that computes on one device. Cloning shares it.
#[derive(Clone, Debug, Default)]
pub struct Pool(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    /// Free buffers by their length in elements; each is initialised over its whole length.
    free: BTreeMap<usize, Vec<Vec<f32>>>,
    free_len: usize,
    live_len: usize,
    peak_live_len: usize,
}

/// Buffers up to this share longer than what was asked for are handed out.
const SLACK_NUMERATOR: usize = 5;
const SLACK_DENOMINATOR: usize = 4;
/// Free buffers beyond a quarter of the peak in use plus this many elements (16 MiB) go back to the system.
pub(crate) const SPARE_LEN: usize = 4 << 20;

impl Pool {
    /// An empty pool.
    pub fn new() -> Self {
        Self::default()
    }

    /// A buffer of at least `len` elements with unspecified contents (NaN in debug builds, so that reading them shows).
    pub(crate) fn take(&self, len: usize) -> Vec<f32> {
        let mut state = self.lock();
        let longest = (len * SLACK_NUMERATOR).div_ceil(SLACK_DENOMINATOR);
        let fitting = state.free.range(len..=longest).next().map(|(&length, _)| length);
        let taken = fitting.and_then(|length| {
            let buffers = state.free.get_mut(&length)?;
            let buffer = buffers.pop();
            if buffers.is_empty() {
                state.free.remove(&length);
            }
            buffer
        });
        let buffer = match taken {
            Some(buffer) => {
                state.free_len -= buffer.len();
                state.account(buffer.len());
                drop(state);
                buffer
            }
            None => {
                state.account(len);
                state.trim();
                drop(state);
                vec![0.0; len]
            }
        };
        poisoned(buffer)
    }

    /// Gives a buffer back.
    pub(crate) fn put(&self, buffer: Vec<f32>) {
        let mut state = self.lock();
        state.live_len = state.live_len.saturating_sub(buffer.len());
        state.free_len += buffer.len();
        state.free.entry(buffer.len()).or_default().push(buffer);
        state.trim();
    }

    /// Bytes in use now.
    pub fn live_bytes(&self) -> usize {
        self.lock().live_len * size_of::<f32>()
    }

    /// The most bytes that were in use at once.
    pub fn peak_bytes(&self) -> usize {
        self.lock().peak_live_len * size_of::<f32>()
    }

    /// Lets go of every free buffer.
    pub fn release(&self) {
        let mut state = self.lock();
        state.free.clear();
        state.free_len = 0;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere leaves the counts intact, so a poisoned lock is still good.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn account(&mut self, len: usize) {
        self.live_len += len;
        self.peak_live_len = self.peak_live_len.max(self.live_len);
    }

    /// Frees the smallest buffers first: they are the cheapest to make again.
    fn trim(&mut self) {
        while self.free_len > self.peak_live_len / 4 + SPARE_LEN
            && self.live_len + self.free_len > self.peak_live_len + SPARE_LEN
        {
            let Some((length, buffers)) = self.free.pop_first() else { break };
            self.free_len -= length * buffers.len();
        }
    }
}

#[cfg(debug_assertions)]
fn poisoned(mut buffer: Vec<f32>) -> Vec<f32> {
    buffer.fill(f32::NAN);
    buffer
}

#[cfg(not(debug_assertions))]
fn poisoned(buffer: Vec<f32>) -> Vec<f32> {
    buffer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_returned_buffer_is_used_again_and_the_peak_is_counted() {
        let pool = Pool::new();
        let first = pool.take(1000);
        let address = first.as_ptr();
        pool.put(first);
        let second = pool.take(900);
        assert_eq!(second.as_ptr(), address);
        assert_eq!(pool.peak_bytes(), 4000);
        let third = pool.take(500);
        assert_eq!(pool.peak_bytes(), 6000);
        pool.put(second);
        pool.put(third);
        assert_eq!(pool.live_bytes(), 0);
    }

    #[test]
    fn ragged_sizes_do_not_pile_up() {
        let pool = Pool::new();
        for step in 0..200 {
            let buffer = pool.take(1_000_000 + step * 37_000);
            pool.put(buffer);
        }
        let free = pool.lock().free_len;
        assert!(free <= pool.lock().peak_live_len + SPARE_LEN, "{free} elements are kept");
    }
}
