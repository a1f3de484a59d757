//! A file mapped into memory: its pages are read when they are touched and dropped when memory is short.

use std::fs::File;
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use rayon::prelude::*;

use crate::{Error, ErrorKind, Result};

/// A read-only mapping of a whole file.
pub struct MappedFile {
    path: PathBuf,
    #[cfg(unix)]
    file: File,
    map: Mmap,
}

impl MappedFile {
    /// Maps the file at `path`.
    ///
    /// # Errors
    /// The file can't be opened or mapped, isn't a regular file, or is empty.
    pub fn open(path: &Path) -> Result<Self> {
        let failed = |e: std::io::Error| Error::io(ErrorKind::Model, "open", path, &e);
        let file = File::open(path).map_err(failed)?;
        let length = match file.metadata().map_err(failed)? {
            metadata if metadata.is_file() => metadata.len(),
            _ => return Err(Error::model(format!("{} is not a file", path.display()))),
        };
        if length == 0 {
            return Err(Error::model(format!("{} is empty", path.display())).help("fetch the file again"));
        }
        // SAFETY: the map is read-only and private to this process. Nothing in Liftplan writes a model's files; if
        // another program shortens one while we read it the process is stopped by a signal, which any reader of
        // mapped weights accepts for not holding the whole model in memory twice.
        let map = unsafe { Mmap::map(&file) }.map_err(failed)?;
        Ok(Self {
            path: path.to_path_buf(),
            #[cfg(unix)]
            file,
            map,
        })
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file's contents.
    pub fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// Copies the bytes from `start` on to `to`, which they fill, on all cores: a disk gives what it has only to several who ask,
    /// and reading the file, rather than its map, spares a fault for each page.
    ///
    /// # Errors
    /// The file can't be read, or has become shorter.
    pub fn read(&self, start: usize, to: &mut [u8]) -> Result<()> {
        const PIECE: usize = 4 << 20;
        to.par_chunks_mut(PIECE).enumerate().try_for_each(|(i, piece)| {
            let at = start + i * PIECE;
            #[cfg(unix)]
            let read = std::os::unix::fs::FileExt::read_exact_at(&self.file, piece, at as u64);
            #[cfg(not(unix))]
            let read = {
                piece.copy_from_slice(&self.map[at..at + piece.len()]);
                Ok(())
            };
            read.map_err(|error| Error::io(ErrorKind::Model, "read", &self.path, &error))
        })
    }

    /// Asks the system to read these bytes from the disk meanwhile. Where it can't, nothing happens.
    pub fn will_be_read(&self, start: usize, len: usize) {
        #[cfg(unix)]
        let _ = self.map.advise_range(memmap2::Advice::WillNeed, start, len);
    }

    /// Lets go of the pages of these bytes until they are read again, so that a model that was read counts once in
    /// memory, as weights, and not a second time as its file. Where the system can't, nothing changes.
    pub fn release(&self, start: usize, len: usize) {
        // SAFETY: dropping pages of a read-only mapping of a file changes no byte: the next access reads them anew.
        #[cfg(unix)]
        let _ = unsafe { self.map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, start, len) };
    }

    /// The file's name without its directory, for messages.
    pub fn name(&self) -> String {
        self.path.file_name().unwrap_or(self.path.as_os_str()).to_string_lossy().into_owned()
    }
}
