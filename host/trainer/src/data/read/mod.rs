//! Readers: a file, by its extension, becomes rows, and each row knows where it stood.
//!
//! In: a path. Out: [`Rows`], which yields a [`Row`] for each row, readable or not. A row that is not readable does not
//! end the file; a file that is not readable is an error.

use std::path::Path;
use std::sync::Arc;

use serde_json::{Map, Value};

use super::types::RowOrigin;
use crate::{Error, ErrorKind, Result};

mod csv;
mod json;
mod parquet;

/// One row of a file: its columns by name, or why it cannot be read.
#[derive(Debug)]
pub struct Row {
    /// Where it stood.
    pub origin: RowOrigin,
    /// Its columns, or what is wrong with it.
    pub columns: std::result::Result<Map<String, Value>, String>,
}

/// The rows of a file, in order.
pub type Rows = Box<dyn Iterator<Item = Result<Row>>>;

/// What files may end in.
const EXTENSIONS: [&str; 6] = [".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet"];

/// Opens a file. `shown` is how it is named in messages and in the rows' origins.
///
/// # Errors
/// If the file is missing, has an extension that no reader knows, or cannot be read at all.
pub fn open(path: &Path, shown: &str) -> Result<Rows> {
    if path.is_dir() {
        return Err(Error::data(format!("{shown} is a directory, not a file of data"))
            .help("name the files in it one by one, as a list"));
    }
    let extension = path.extension().and_then(|e| e.to_str()).unwrap_or("").to_ascii_lowercase();
    if !EXTENSIONS.iter().any(|known| known[1..] == extension) {
        return Err(Error::data(format!("{shown}: a data file must end in one of {}", EXTENSIONS.join(", ")))
            .help("rename the file, or convert it to one of these"));
    }
    let file = std::fs::File::open(path).map_err(|e| {
        let error = Error::io(ErrorKind::Data, "read", path, &e);
        match e.kind() {
            std::io::ErrorKind::NotFound => error.help(
                "paths in a configuration are seen from its directory, and those on the command line from the current one",
            ),
            _ => error,
        }
    })?;
    let name: Arc<str> = shown.into();
    match extension.as_str() {
        "csv" => csv::rows(file, name, b','),
        "tsv" => csv::rows(file, name, b'\t'),
        "parquet" => parquet::rows(file, name),
        "json" => json::document(file, name),
        _ => json::lines(file, name),
    }
}

/// What a JSON value is, for messages.
pub fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a truth value",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub mod tests {
    use super::*;

    /// The rows of a file with this content, as `(line, columns or problem)`.
    pub fn read_all(name: &str, content: &[u8]) -> Result<Vec<(u64, std::result::Result<Value, String>)>> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        std::fs::write(&path, content).unwrap();
        open(&path, name)?.map(|row| row.map(|row| (row.origin.line, row.columns.map(Value::Object)))).collect()
    }

    #[test]
    fn files_that_cannot_be_read_are_errors_that_name_them() {
        let missing = open(Path::new("/nowhere/a.jsonl"), "a.jsonl").err().unwrap();
        assert!(missing.message().contains("/nowhere/a.jsonl"), "{missing}");
        let dir = tempfile::tempdir().unwrap();
        assert!(open(dir.path(), "d").err().unwrap().message().contains("d is a directory"));
        let text = read_all("a.txt", b"hello").unwrap_err();
        assert!(text.message().contains("a.txt: a data file must end in one of .jsonl"), "{text}");
    }
}
