//! A folder in which `liftplan train c.toml` works: a tiny model, a little data, a configuration. Cases spoil it.

use std::fs;
use std::path::Path;

use liftplan_tests::command::liftplan;
use liftplan_tests::golden;
use tempfile::TempDir;

const CONFIG: &str = r#"model = "model"
out = "run"

[data]
train = "train.jsonl"

[policy]
name = "lora"
rank = 2

[train]
steps = 2
batch_size = 2

[optimizer]
lr = 1e-3
"#;

const ROWS: [&str; 6] = [
    r#"{"text": "the cat sat on the mat", "label": "calm"}"#,
    r#"{"text": "the dog ran to the door", "label": "busy"}"#,
    r#"{"text": "a bird sings in the tree", "label": "calm"}"#,
    r#"{"text": "the train is late again", "label": "busy"}"#,
    r#"{"text": "rain falls on the roof", "label": "calm"}"#,
    r#"{"text": "the phone rings and rings", "label": "busy"}"#,
];

/// The folder; it disappears in the end.
pub struct Folder(TempDir);

impl Folder {
    /// Everything in it is good.
    pub fn new() -> Self {
        let folder = Self(tempfile::tempdir().unwrap());
        fs::create_dir(folder.path().join("model")).unwrap();
        for entry in fs::read_dir(golden::folder().join("families/llama/model")).unwrap() {
            let file = entry.unwrap().path();
            fs::copy(&file, folder.path().join("model").join(file.file_name().unwrap())).unwrap();
        }
        folder.write("c.toml", CONFIG);
        folder.write("train.jsonl", ROWS.join("\n"));
        folder
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Writes a file, and the folders above it.
    pub fn write(&self, file: &str, content: impl AsRef<[u8]>) {
        let path = self.path().join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    /// Removes a file.
    pub fn remove(&self, file: &str) {
        fs::remove_file(self.path().join(file)).unwrap();
    }

    /// Replaces a text that is in the file.
    pub fn replace(&self, file: &str, from: &str, to: &str) {
        let path = self.path().join(file);
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains(from), "{from} isn't in {text}");
        fs::write(path, text.replacen(from, to, 1)).unwrap();
    }

    /// Puts lines after the line `[section]` of the configuration, which gets the section if it has none.
    pub fn set(&self, section: &str, lines: &str) {
        let header = format!("[{section}]\n");
        let path = self.path().join("c.toml");
        let text = fs::read_to_string(&path).unwrap();
        let text = match text.contains(&header) {
            true => text.replacen(&header, &format!("{header}{lines}\n"), 1),
            false => format!("{text}\n{header}{lines}\n"),
        };
        fs::write(path, text).unwrap();
    }

    /// Changes the content of a file.
    pub fn change(&self, file: &str, change: impl FnOnce(&mut Vec<u8>)) {
        let path = self.path().join(file);
        let mut bytes = fs::read(&path).unwrap();
        change(&mut bytes);
        fs::write(path, bytes).unwrap();
    }

    /// Trains, so that there is a run.
    pub fn train(&self) {
        let ran = liftplan(self.path(), &["train", "c.toml"]);
        assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    }
}
