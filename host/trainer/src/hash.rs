//! SHA-256: of bytes, of a file, of what is written piece by piece; and how hashes are written, in lower-case hexadecimal.

use std::fs::File;
use std::io::{self, BufReader, Write};
use std::path::Path;

use sha2::{Digest, Sha256};

/// Bytes of a hash.
pub(crate) const BYTES: usize = 32;

/// Bytes in lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The SHA-256 of `bytes`, as it is.
pub(crate) fn digest(bytes: &[u8]) -> [u8; BYTES] {
    Sha256::digest(bytes).into()
}

/// The SHA-256 of `bytes`, in hexadecimal.
pub fn sha256(bytes: impl AsRef<[u8]>) -> String {
    hex(&digest(bytes.as_ref()))
}

/// How many bytes a file has, and their SHA-256 in hexadecimal.
///
/// # Errors
/// It can't be read.
pub(crate) fn sha256_of_file(path: &Path) -> io::Result<(u64, String)> {
    let mut hasher = Hasher::default();
    let bytes = io::copy(&mut BufReader::with_capacity(1 << 20, File::open(path)?), &mut hasher)?;
    Ok((bytes, hasher.finish()))
}

/// A hash in the making: what is written to it is hashed.
#[derive(Default)]
pub(crate) struct Hasher(Sha256);

impl Hasher {
    /// Hashes `bytes` behind what came before.
    pub fn update(&mut self, bytes: impl AsRef<[u8]>) {
        self.0.update(bytes);
    }

    /// The SHA-256 of it all, in hexadecimal.
    pub fn finish(self) -> String {
        hex(&self.0.finalize())
    }
}

impl Write for Hasher {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// "abc", from FIPS 180-4's examples.
    #[test]
    fn bytes_a_file_and_pieces_have_the_same_hash() {
        let known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(sha256("abc"), known);
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "abc").unwrap();
        assert_eq!(sha256_of_file(file.path()).unwrap(), (3, known.to_string()));
        let mut hasher = Hasher::default();
        hasher.update("a");
        hasher.write_all(b"bc").unwrap();
        assert_eq!(hasher.finish(), known);
    }
}
