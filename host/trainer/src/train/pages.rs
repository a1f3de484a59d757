//! Optimiser states in files of the run's directory, mapped into memory: what is not in use leaves the process's memory.

use std::fs::{self, OpenOptions};
use std::io::{self, Read};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use liftplan_engine::optim::{MakePages, Pages};
use memmap2::MmapMut;

/// A mapped file that has no name any more, so that it goes when the process does.
struct Mapped(MmapMut);

impl Pages for Mapped {
    fn bytes(&self) -> &[u8] {
        &self.0
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }

    fn release(&self) {
        // SAFETY: the mapping is shared with its file, so that what was written stays in the file's pages and is read from
        // there again: no byte changes, also for who holds a reference into the mapping.
        #[cfg(unix)]
        // When the system declines the advice, the pages stay where they are.
        let _ = unsafe { self.0.unchecked_advise(memmap2::UncheckedAdvice::DontNeed) };
    }
}

/// Makes pages in files below `run`.
pub(super) fn in_directory(run: &Path) -> MakePages {
    let (run, count) = (run.to_path_buf(), AtomicU64::new(0));
    Arc::new(move |bytes| {
        let path = run.join(format!(".states-{}-{}", std::process::id(), count.fetch_add(1, Ordering::Relaxed)));
        let made = make(&path, bytes);
        // Named only as long as it takes to map it.
        let removed = fs::remove_file(&path);
        let mapped = made?;
        removed?;
        Ok(Box::new(mapped) as Box<dyn Pages>)
    })
}

fn make(path: &Path, bytes: usize) -> io::Result<Mapped> {
    let mut file = OpenOptions::new().create_new(true).read(true).write(true).open(path)?;
    // Written, not only made long: a disk that is full must say so here, not when a page is touched.
    io::copy(&mut io::repeat(0).take(bytes as u64), &mut file)?;
    // SAFETY: the file was just made under a name of this process's own, and loses that name at once: nobody else changes it.
    Ok(Mapped(unsafe { MmapMut::map_mut(&file) }?))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn pages_keep_what_was_written_after_they_were_released_and_leave_no_file() {
        let dir = tempfile::tempdir().unwrap();
        let make = in_directory(dir.path());
        let mut pages = make(1 << 20).unwrap();
        assert!(pages.bytes().iter().all(|byte| *byte == 0));
        pages.bytes_mut().iter_mut().enumerate().for_each(|(i, byte)| *byte = i as u8);
        pages.release();
        assert!(pages.bytes().iter().enumerate().all(|(i, byte)| *byte == i as u8));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        assert!(in_directory(&dir.path().join("nowhere"))(8).is_err());
    }
}
