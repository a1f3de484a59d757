//! The comparison's directory: one cell a child process, found again by the hash of everything it was made from.
//!
//! `cells/NAME-HASH/` has the cell's configuration and results, the messages of its process in `log.txt`, and, once it
//! has ended, `cell.json` with its inputs and how it ended. A cell whose `cell.json` is there is not run again.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::checkpoint::RunLock;
use crate::files::{output_error, write_atomically};
use crate::hash::sha256_of_file;
use crate::plan::canonical;
use crate::{Error, Result};

/// What a cell is made from. Cells with equal inputs are the same cell.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Inputs {
    /// What it does: `plan`, `probe`, `train`, `validation` or `test`.
    pub kind: String,
    /// The run's configuration as TOML, without its place.
    pub config: String,
    /// What else it was told.
    pub settings: Value,
    /// Hash of the base model's weights.
    pub model: String,
    /// Hash of its configuration, tokenizer and chat template.
    pub model_text: String,
    /// sha256 of each file that it reads, by the name under which it is used.
    pub files: BTreeMap<String, String>,
    /// sha256 of the program.
    pub executable: String,
    /// The hash of the cell whose result it reads, if any.
    pub of: Option<String>,
}

/// A cell's place.
#[derive(Clone, Debug)]
pub struct Cell {
    /// Its directory.
    pub dir: PathBuf,
    /// The hash of its inputs.
    pub hash: String,
    inputs: Inputs,
}

/// How a cell ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "status")]
pub enum Ended {
    /// It did what it was to do.
    Done {
        /// Wall time of its process, in seconds.
        seconds: f64,
    },
    /// It did not.
    Failed(Failure),
}

/// Why a cell has no result.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Failure {
    /// Whether memory was what it lacked.
    pub out_of_memory: bool,
    /// In words.
    pub reason: String,
}

impl Failure {
    /// A failure for another reason than memory.
    pub fn new(reason: impl Into<String>) -> Self {
        Self { out_of_memory: false, reason: reason.into() }
    }
}

#[derive(Serialize, Deserialize)]
struct Record {
    hash: String,
    #[serde(flatten)]
    ended: Ended,
    inputs: Inputs,
}

/// A file as it was when its hash was computed.
#[derive(Clone)]
struct Hashed {
    hash: String,
    /// Its length and when it was changed last, by which a file that stayed the same is known without reading it again.
    seen: Option<(u64, SystemTime)>,
}

fn seen(path: &Path) -> Option<(u64, SystemTime)> {
    let metadata = std::fs::metadata(path).ok()?;
    Some((metadata.len(), metadata.modified().ok()?))
}

/// The comparison's directory, held by this process.
pub struct Store {
    root: PathBuf,
    retry: bool,
    hashes: Mutex<BTreeMap<PathBuf, Hashed>>,
    _lock: RunLock,
}

impl Store {
    /// Takes the directory, which is made if it isn't there. With `retry`, cells that failed are run again.
    ///
    /// # Errors
    /// When it holds something else, is in use, or can't be made.
    pub fn open(root: &Path, retry: bool) -> Result<Self> {
        if root.exists() && !root.join("cells").is_dir() {
            let entries = std::fs::read_dir(root)
                .map_err(|error| output_error("use as a comparison's directory", root, &error))?;
            if entries.flatten().any(|entry| entry.file_name() != ".lock") {
                return Err(Error::output(format!("{} is not empty and holds no comparison", root.display()))
                    .help("choose another directory with --out"));
            }
        }
        let lock = RunLock::acquire(root)?;
        let cells = root.join("cells");
        std::fs::create_dir_all(&cells).map_err(|error| output_error("create the directory", &cells, &error))?;
        Ok(Self { root: root.to_path_buf(), retry, hashes: Mutex::default(), _lock: lock })
    }

    /// The directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The place of a cell of its own, called `name` for people.
    pub fn cell(&self, name: &str, inputs: Inputs) -> Cell {
        Self::place(&self.root.join("cells"), name, inputs)
    }

    /// The place of a cell that reads another's result, inside that one's.
    pub fn cell_in(&self, of: &Cell, name: &str, inputs: Inputs) -> Cell {
        Self::place(&of.dir, name, Inputs { of: Some(of.hash.clone()), ..inputs })
    }

    fn place(within: &Path, name: &str, inputs: Inputs) -> Cell {
        let hash = canonical::hash(&inputs);
        // Two methods that are the same are still two: each has its own cells, also where their names differ in letters only
        // that file systems don't all take.
        let place = canonical::hash(&(name, &hash));
        let short = place.get(..8).unwrap_or(&place);
        Cell { dir: within.join(format!("{}-{short}", slug(name))), hash, inputs }
    }

    /// How the cell ended, if it did and need not be run again.
    pub fn ended(&self, cell: &Cell) -> Option<Ended> {
        let text = std::fs::read_to_string(cell.dir.join("cell.json")).ok()?;
        let record: Record = serde_json::from_str(&text).ok()?;
        let counts = record.hash == cell.hash && !(self.retry && matches!(record.ended, Ended::Failed(_)));
        counts.then_some(record.ended)
    }

    /// Notes how the cell ended.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn end(&self, cell: &Cell, ended: &Ended) -> Result<()> {
        let record = Record { hash: cell.hash.clone(), ended: ended.clone(), inputs: cell.inputs.clone() };
        let text =
            serde_json::to_string_pretty(&record).map_err(|error| Error::internal(format!("a cell: {error}")))?;
        write_atomically(&cell.dir.join("cell.json"), text.as_bytes())
    }

    /// The sha256 of a file's content, computed once.
    ///
    /// # Errors
    /// When it can't be read.
    pub fn file_hash(&self, path: &Path) -> Result<String> {
        let mut hashes = self.hashes.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(hashed) = hashes.get(path) {
            return Ok(hashed.hash.clone());
        }
        let seen = seen(path);
        let hash = hash_of(path)?;
        hashes.insert(path.to_path_buf(), Hashed { hash: hash.clone(), seen });
        Ok(hash)
    }

    /// Whether all files whose hashes were asked for are still what they were: what a process read in between belongs to
    /// other inputs if not.
    ///
    /// # Errors
    /// When one changed, or is gone.
    pub fn check_unchanged(&self) -> Result<()> {
        let mut hashes = self.hashes.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        for (path, hashed) in hashes.iter_mut() {
            let now = seen(path);
            if now.is_some() && now == hashed.seen {
                continue;
            }
            if hash_of(path)? != hashed.hash {
                return Err(Error::data(format!("{} changed while the comparison ran", path.display())).help(
                    "the same command goes on with the file as it is now; what ended with the old one is kept for that one",
                ));
            }
            hashed.seen = now;
        }
        Ok(())
    }
}

fn hash_of(path: &Path) -> Result<String> {
    let (_, hash) = sha256_of_file(path).map_err(|error| Error::io(crate::ErrorKind::Data, "read", path, &error))?;
    Ok(hash)
}

/// The name in letters that every file system takes.
fn slug(name: &str) -> String {
    let mut slug = String::new();
    for c in name.chars() {
        match c {
            'a'..='z' | '0'..='9' | '.' => slug.push(c),
            'A'..='Z' => slug.push(c.to_ascii_lowercase()),
            _ if slug.ends_with('-') || slug.is_empty() => {}
            _ => slug.push('-'),
        }
    }
    let short: String = slug.trim_matches(['-', '.']).chars().take(60).collect();
    if short.is_empty() { "cell".to_string() } else { short }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn inputs(config: &str) -> Inputs {
        Inputs {
            kind: "train".into(),
            config: config.into(),
            settings: Value::Null,
            model: "m".into(),
            model_text: "t".into(),
            files: BTreeMap::new(),
            executable: "e".into(),
            of: None,
        }
    }

    #[test]
    fn a_cell_is_found_again_by_its_inputs_and_by_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("comparison");
        let store = Store::open(&root, false).unwrap();
        let cell = store.cell("LoRA, lr 0.004 · seed 1", inputs("a"));
        assert!(store.ended(&cell).is_none());
        std::fs::create_dir_all(&cell.dir).unwrap();
        store.end(&cell, &Ended::Done { seconds: 1.5 }).unwrap();
        assert!(cell.dir.file_name().unwrap().to_str().unwrap().starts_with("lora-lr-0.004-seed-1-"));
        drop(store);

        let store = Store::open(&root, false).unwrap();
        assert_eq!(
            store.ended(&store.cell("LoRA, lr 0.004 · seed 1", inputs("a"))),
            Some(Ended::Done { seconds: 1.5 })
        );
        let others = [
            inputs("b"),
            Inputs { model: "n".into(), ..inputs("a") },
            Inputs { model_text: "u".into(), ..inputs("a") },
            Inputs { executable: "f".into(), ..inputs("a") },
            Inputs { files: [("data".to_string(), "1".to_string())].into(), ..inputs("a") },
        ];
        for other in others {
            assert!(store.ended(&store.cell("LoRA, lr 0.004 · seed 1", other)).is_none());
        }
    }

    #[test]
    fn methods_that_are_the_same_have_cells_of_their_own_whatever_their_names() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path(), false).unwrap();
        let [octopus, monkey, ape] = ["🐙, seed 1", "🙈, seed 1", "LoRA"].map(|name| store.cell(name, inputs("a")));
        assert_ne!(octopus.dir, monkey.dir);
        assert_ne!(ape.dir, store.cell("lora", inputs("a")).dir);
        assert_eq!(octopus.hash, monkey.hash);
    }

    #[test]
    fn a_file_that_changes_under_the_comparison_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("data.jsonl");
        std::fs::write(&file, "one").unwrap();
        let store = Store::open(&folder.path().join("comparison"), false).unwrap();
        store.file_hash(&file).unwrap();
        store.check_unchanged().unwrap();
        // Touched, and the same.
        std::fs::write(&file, "one").unwrap();
        store.check_unchanged().unwrap();
        std::fs::write(&file, "other").unwrap();
        let error = store.check_unchanged().unwrap_err();
        assert!(error.message().ends_with("data.jsonl changed while the comparison ran"), "{error}");
        std::fs::remove_file(&file).unwrap();
        assert!(store.check_unchanged().is_err());
    }

    #[test]
    fn what_failed_stays_so_unless_asked_otherwise() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path(), false).unwrap();
        let cell = store.cell("c", inputs("a"));
        std::fs::create_dir_all(&cell.dir).unwrap();
        let failed = Ended::Failed(Failure::new("the loss is not finite"));
        store.end(&cell, &failed).unwrap();
        assert_eq!(store.ended(&cell), Some(failed));
        drop(store);
        assert_eq!(Store::open(folder.path(), true).unwrap().ended(&cell), None);
    }

    #[test]
    fn a_directory_of_something_else_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("letter.txt"), "dear").unwrap();
        let error = Store::open(folder.path(), false).err().unwrap();
        assert!(error.message().ends_with("is not empty and holds no comparison"), "{error}");
    }
}
