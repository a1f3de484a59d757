//! Signatures by minisign (Ed25519 over BLAKE2b, <https://jedisct1.github.io/minisign/>).

use std::path::Path;

use minisign_verify::{Error as Minisign, PublicKey, Signature};

use crate::plugin::escaped;
use crate::{Error, Result};

/// Most bytes of a signature's file or a key's.
pub(super) const MAX_BYTES: usize = 4096;

/// A public key, and its text.
#[derive(Clone, Debug, PartialEq)]
pub struct Key {
    key: PublicKey,
    /// The key in base64, one line.
    pub text: String,
}

impl Key {
    /// A key as `minisign -G` prints it: base64, `RW…`.
    ///
    /// # Errors
    /// It is none.
    pub fn parse(text: &str) -> Result<Self> {
        match PublicKey::from_base64(text.trim()) {
            Ok(key) => Ok(Self { key, text: text.trim().to_string() }),
            Err(_) => Err(Error::config(format!("{} is no minisign public key", escaped(text, 80)))
                .help("it is one line of base64 that begins with RW; minisign writes it to minisign.pub")),
        }
    }

    /// A key in base64, or the path of a file such as `minisign.pub`, whose last line is one.
    ///
    /// # Errors
    /// It is neither.
    pub fn read(text: &str, here: &Path) -> Result<Self> {
        let path = here.join(text);
        if !path.is_file() {
            return Self::parse(text);
        }
        let content = super::source::read_file(&path)?;
        let content = String::from_utf8_lossy(&content);
        let last = content.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default();
        Self::parse(last).map_err(|error| error.at(path.display()))
    }

    /// Checks that `signature`, the content of a `.minisig` file, was made of `bytes` with this key, and gives the
    /// signed comment.
    ///
    /// # Errors
    /// It was not.
    pub fn verify(&self, bytes: &[u8], signature: &[u8]) -> Result<String> {
        let help = "do not use this file; ask its author for the right file, signature and key";
        let text = std::str::from_utf8(signature).ok().filter(|text| text.len() <= MAX_BYTES);
        let signature = text.and_then(|text| Signature::decode(text).ok()).ok_or_else(|| {
            Error::plan("the signature is no minisign signature").help("minisign writes it to FILE.minisig")
        })?;
        match self.key.verify(bytes, &signature, false) {
            Ok(()) => Ok(signature.trusted_comment().to_string()),
            Err(Minisign::UnexpectedKeyId) => {
                Err(Error::plan(format!("the signature was made with another key than {}", self.text)).help(help))
            }
            Err(Minisign::UnsupportedLegacyMode | Minisign::UnexpectedAlgorithm | Minisign::UnsupportedAlgorithm) => {
                Err(Error::plan("the signature has an old form that is not accepted")
                    .help("its author can sign it anew with minisign 0.8 or later"))
            }
            Err(_) => Err(Error::plan("the signature does not fit the file: one of them was changed").help(help)),
        }
    }
}
