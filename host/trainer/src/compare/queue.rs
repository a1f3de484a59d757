//! A list of tasks, some at a time, in threads; what each gave, in the order of the list.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError, mpsc};

use crate::{Error, Result};

/// Does `work` for each item, `jobs` at a time, and calls `each` on this thread whenever one begins or ends. Gives the
/// results in the order of the items.
///
/// # Errors
/// The first error; no further task begins after it, or after `stop` is set.
pub fn run<I: Sync, T: Send>(
    items: &[I],
    jobs: usize,
    stop: &AtomicBool,
    work: impl Fn(&I) -> Result<T> + Sync,
    mut each: impl FnMut(usize, Option<&T>),
) -> Result<Vec<T>> {
    enum Said<T> {
        Begun(usize),
        Ended(usize, Result<T>),
    }
    let waiting: Mutex<VecDeque<usize>> = Mutex::new((0..items.len()).collect());
    let (sender, receiver) = mpsc::channel();
    let mut results: Vec<Option<T>> = items.iter().map(|_| None).collect();
    let mut failed = None;
    std::thread::scope(|scope| {
        for _ in 0..jobs.min(items.len()) {
            let (sender, waiting, work) = (sender.clone(), &waiting, &work);
            scope.spawn(move || {
                loop {
                    let next = waiting.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
                    let Some(i) = next.filter(|_| !stop.load(Ordering::Relaxed)) else { break };
                    // The receiver outlives every sender.
                    sender.send(Said::Begun(i)).ok();
                    sender.send(Said::Ended(i, work(&items[i]))).ok();
                }
            });
        }
        drop(sender);
        for said in receiver {
            match said {
                Said::Begun(i) => each(i, None),
                Said::Ended(i, Ok(result)) => {
                    each(i, Some(&result));
                    results[i] = Some(result);
                }
                Said::Ended(_, Err(error)) => {
                    waiting.lock().unwrap_or_else(PoisonError::into_inner).clear();
                    failed.get_or_insert(error);
                }
            }
        }
    });
    if let Some(error) = failed {
        return Err(error);
    }
    results.into_iter().collect::<Option<Vec<T>>>().ok_or_else(stopped)
}

/// The error of a comparison that the user stopped.
pub fn stopped() -> Error {
    Error::interrupted("the comparison was stopped").help("the same command goes on where it was")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn results_keep_the_order_of_the_list_and_an_error_ends_it() {
        let stop = AtomicBool::new(false);
        let items: Vec<u64> = (0..20).collect();
        let slow_first = |i: &u64| {
            std::thread::sleep(std::time::Duration::from_millis(20 - i));
            Ok(i * i)
        };
        let squares = run(&items, 4, &stop, slow_first, |_, _| {}).unwrap();
        assert_eq!(squares, items.iter().map(|i| i * i).collect::<Vec<_>>());

        let fails = |i: &u64| if *i == 3 { Err(Error::internal("three")) } else { Ok(*i) };
        assert_eq!(run(&items, 1, &stop, fails, |_, _| {}).unwrap_err().message(), "three");
        stop.store(true, Ordering::Relaxed);
        assert_eq!(run(&items, 2, &stop, |i| Ok(*i), |_, _| {}).unwrap_err().exit_code(), 130);
    }
}
