//! Which of cuBLASLt's algorithms is the fastest for a product: measured once for a class of shapes, and kept on disk, so that the
//! next run computes the same bits.

use std::collections::HashMap;
use std::io::Write;
use std::path::PathBuf;

use super::kernels::cache_root;

/// The choices of one card and one cuBLASLt.
#[derive(Debug, Default)]
pub(crate) struct Choices {
    file: Option<PathBuf>,
    known: HashMap<String, usize>,
}

impl Choices {
    /// Those kept for this card and library.
    pub fn load(card: &str, version: usize) -> Self {
        let plain: String = card.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
        let file = cache_root().map(|root| root.join("products").join(format!("{plain}-{version}.txt")));
        let text = file.as_ref().and_then(|file| std::fs::read_to_string(file).ok()).unwrap_or_default();
        // A line that was cut short is measured again; the last of several counts.
        let known = text.lines().filter_map(|line| line.split_once('\t'));
        let known = known.filter_map(|(key, choice)| Some((key.to_string(), choice.parse().ok()?))).collect();
        Self { file, known }
    }

    /// What was chosen for a shape.
    pub fn get(&self, key: &str) -> Option<usize> {
        self.known.get(key).copied()
    }

    /// Keeps a choice; a cache that cannot be written costs time, not the run.
    pub fn set(&mut self, key: String, choice: usize) {
        if let Some(file) = &self.file {
            let _ = file.parent().map(std::fs::create_dir_all);
            if let Ok(mut out) = std::fs::OpenOptions::new().create(true).append(true).open(file) {
                // In one piece, since other processes write to the same file.
                let _ = out.write_all(format!("{key}\t{choice}\n").as_bytes());
            }
        }
        self.known.insert(key, choice);
    }
}
