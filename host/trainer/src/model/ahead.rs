//! Reading ahead of who loads a model. In: tensors in the order in which they will be read, and how far their reader has come. Out:
//! nothing but pages in the system's cache.
//!
//! A loader that asks for one piece after another lets a disk idle in between: 16 cores that read 32 MB at a time got 1.2 GB/s of a
//! disk that gives 1.7 (`host/docs/log.md`).

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use super::BaseModel;

/// Bytes that are asked for ahead of the reader: more than a disk delivers while a tensor is converted.
const AHEAD: usize = 1 << 30;
/// Bytes of a request: the system takes no more of one than it would read at once by itself.
const STEP: usize = 1 << 20;

/// How far the reader has come.
#[derive(Default)]
pub struct Reader {
    tensors: AtomicUsize,
    stopped: AtomicBool,
}

impl Reader {
    /// Notes that the next of the tensors has been read.
    pub fn has_read_one(&self) {
        self.tensors.fetch_add(1, Ordering::Relaxed);
    }
}

/// Ends the reading ahead, however the reader ends.
struct Stop<'a>(&'a Reader);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.stopped.store(true, Ordering::Relaxed);
    }
}

impl BaseModel {
    /// Does `work`, which reads the tensors of these names in this order and notes how far it has come, while the system is asked
    /// for the ones to come. Names without a tensor are skipped. Where the system can't be asked, `work` is done alone.
    pub fn read_ahead<R>(&self, names: &[&str], work: impl FnOnce(&Reader) -> R) -> R {
        let reader = Reader::default();
        std::thread::scope(|scope| {
            scope.spawn(|| self.ask_ahead(names, &reader));
            let _stop = Stop(&reader);
            work(&reader)
        })
    }

    fn ask_ahead(&self, names: &[&str], reader: &Reader) {
        // Where each tensor begins, were they one behind another.
        let mut begins = vec![0];
        for name in names {
            let len = self.weights.tensors().get(*name).map_or(0, |stored| stored.range.1);
            begins.push(begins[begins.len() - 1] + len);
        }
        for (name, &begin) in names.iter().zip(&begins) {
            let Some(stored) = self.weights.tensors().get(*name) else { continue };
            let (first, len) = stored.range;
            for at in (0..len).step_by(STEP) {
                let read = loop {
                    if reader.stopped.load(Ordering::Relaxed) {
                        return;
                    }
                    let tensors = reader.tensors.load(Ordering::Relaxed);
                    let read = begins.get(tensors).copied().unwrap_or(usize::MAX);
                    if begin + at < read.saturating_add(AHEAD) {
                        break read;
                    }
                    std::thread::sleep(Duration::from_millis(1));
                };
                if begin + at >= read {
                    self.weights.file(stored).will_be_read(first + at, STEP.min(len - at));
                }
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::path::Path;

    use crate::model::open;
    use crate::report::Silent;

    #[test]
    fn the_reader_does_its_work_and_whoever_reads_ahead_ends_with_it() {
        let tiny = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/models/tiny");
        let base = open(&tiny.display().to_string(), Path::new("."), &mut Silent).unwrap();
        let mut names: Vec<&str> = base.inventory.tensors.iter().map(|info| info.name.as_str()).collect();
        names.insert(1, "no tensor");
        let read = base.read_ahead(&names, |reader| {
            for name in &names {
                let _ = base.read(name);
                reader.has_read_one();
            }
            names.len()
        });
        assert_eq!(read, names.len());
        // Who stops early, and who panics, is not waited for; neither is one that reads more than it said.
        assert_eq!(base.read_ahead(&names, |_| "stopped"), "stopped");
        base.read_ahead(&[], |reader| reader.has_read_one());
        let panics = std::panic::AssertUnwindSafe(|| base.read_ahead(&names, |_| panic!("on purpose")));
        assert!(std::panic::catch_unwind(panics).is_err());
    }
}
