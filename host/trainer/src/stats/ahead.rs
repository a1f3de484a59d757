//! Reading ahead: many threads read, one takes what they read in order, and what was read and not yet let go stays
//! within so many bytes.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread;

use crate::Result;

/// How far the readers are.
#[derive(Debug, Default)]
struct State {
    /// What is read next.
    next: usize,
    /// Bytes that are read or being read.
    used: usize,
    /// Whether nothing more is wanted.
    stopped: bool,
}

#[derive(Debug, Default)]
struct Room {
    state: Mutex<State>,
    changed: Condvar,
}

impl Room {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next thing to read, once there is room for it; nothing at the end. What comes first gets its room first, so
    /// that the taker never waits for something that waits for room itself.
    fn next(&self, sizes: &[usize], limit: usize) -> Option<usize> {
        let mut state = self.state();
        loop {
            let size = *sizes.get(state.next)?;
            if state.stopped {
                return None;
            }
            if state.used == 0 || state.used + size <= limit {
                state.used += size;
                state.next += 1;
                return Some(state.next - 1);
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn stop(&self) {
        self.state().stopped = true;
        self.changed.notify_all();
    }
}

/// The bytes of something that was read; they are free again when this is dropped.
#[derive(Debug)]
pub(super) struct Held {
    room: Arc<Room>,
    bytes: usize,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.room.state().used -= self.bytes;
        self.room.changed.notify_all();
    }
}

/// Stops the readers when the taker ends, and when one of them panics.
struct Stop<'a> {
    room: &'a Room,
    always: bool,
}

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        if self.always || thread::panicking() {
            self.room.stop();
        }
    }
}

/// Reads what has these sizes in bytes on so many threads, and gives it to `take` in order. At most `limit` bytes are
/// held at a time, or one thing that is larger: who keeps several must keep less.
///
/// # Errors
/// The first one of `take`; reading ends then.
pub(super) fn read_ahead<T: Send>(
    sizes: &[usize],
    limit: usize,
    threads: usize,
    read: impl Fn(usize) -> T + Sync,
    mut take: impl FnMut(usize, T, Held) -> Result<()>,
) -> Result<()> {
    let room = Arc::new(Room::default());
    thread::scope(|scope| {
        let (send, arriving) = mpsc::channel();
        for _ in 0..threads.clamp(1, sizes.len().max(1)) {
            let (send, room, read) = (send.clone(), Arc::clone(&room), &read);
            scope.spawn(move || {
                let _stop = Stop { room: &room, always: false };
                while let Some(number) = room.next(sizes, limit) {
                    // Held from here on, so that the bytes are free again wherever it is dropped.
                    let held = Held { room: Arc::clone(&room), bytes: sizes[number] };
                    let one = read(number);
                    // Nobody takes it only after an error.
                    let _ = send.send((number, one, held));
                }
            });
        }
        drop(send);
        let _stop = Stop { room: &room, always: true };
        let mut early = BTreeMap::new();
        let mut next = 0;
        for (number, one, held) in arriving {
            early.insert(number, (one, held));
            while let Some((one, held)) = early.remove(&next) {
                take(next, one, held)?;
                next += 1;
            }
        }
        Ok(())
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use super::*;
    use crate::Error;

    #[test]
    fn all_is_read_in_order_within_the_bytes() {
        let sizes: Vec<usize> = (0..200).map(|i| [50, 7, 30, 1][i % 4]).collect();
        for (limit, threads) in [(0, 3), (1, 1), (100, 5), (10_000, 8)] {
            let used = Arc::new(AtomicUsize::new(0));
            let most = AtomicUsize::new(0);
            let mut taken = Vec::new();
            let mut kept = Vec::new();
            let read = |i: usize| {
                most.fetch_max(used.fetch_add(sizes[i], Ordering::SeqCst) + sizes[i], Ordering::SeqCst);
                if i.is_multiple_of(9) {
                    thread::sleep(Duration::from_millis(2));
                }
                10 * i
            };
            read_ahead(&sizes, limit, threads, read, |i, one, held| {
                assert_eq!(one, 10 * i);
                taken.push(i);
                // Two are kept while there is room for a third.
                kept.push((i, held));
                if kept.len() == 2 || limit < 100 {
                    for (i, _) in kept.drain(..) {
                        used.fetch_sub(sizes[i], Ordering::SeqCst);
                    }
                }
                Ok(())
            })
            .unwrap();
            assert!(taken.iter().copied().eq(0..200), "{taken:?}");
            assert!(most.into_inner() <= limit.max(50), "{limit} bytes");
        }
        read_ahead(&[], 5, 4, |_| (), |_, (), _| Err(Error::internal("there is nothing to take"))).unwrap();
    }

    #[test]
    fn an_error_and_a_panic_end_it() {
        let error = read_ahead(
            &[10; 1000],
            30,
            4,
            |i| i,
            |i, _, _| match i {
                17 => Err(Error::internal("enough")),
                _ => Ok(()),
            },
        );
        assert_eq!(error.unwrap_err().message(), "enough");
        let broken = || {
            read_ahead(&[10; 1000], 30, 4, |i| assert!(i != 21, "on purpose"), |_, (), _| Ok(())).unwrap();
        };
        assert!(catch_unwind(AssertUnwindSafe(broken)).is_err());
    }
}
