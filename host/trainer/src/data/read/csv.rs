//! CSV and TSV with a header line. All values are texts.

use std::fs::File;
use std::sync::Arc;

use csv::{ByteRecord, ErrorKind, ReaderBuilder};
use serde_json::{Map, Value};

use super::{Row, Rows};
use crate::data::types::RowOrigin;
use crate::{Error, Result};

/// One record a row; fields may be quoted and may then hold line breaks. A row's line is its first.
pub fn rows(file: File, name: Arc<str>, delimiter: u8) -> Result<Rows> {
    let mut reader = ReaderBuilder::new().delimiter(delimiter).from_reader(file);
    let header = reader.byte_headers().map_err(|e| Error::data(format!("{name}: cannot read the header: {e}")))?;
    let mut columns: Vec<String> = Vec::with_capacity(header.len());
    for field in header {
        let field = field.strip_prefix(b"\xef\xbb\xbf").unwrap_or(field);
        let column = std::str::from_utf8(field)
            .map_err(|_| Error::data(format!("{name}:1: the header is not valid UTF-8")))?
            .trim()
            .to_string();
        if columns.contains(&column) {
            return Err(Error::data(format!("{name}:1: the header names the column `{column}` twice")));
        }
        columns.push(column);
    }
    let mut record = ByteRecord::new();
    let mut failed = false;
    Ok(Box::new(std::iter::from_fn(move || {
        if failed {
            return None;
        }
        let line = reader.position().line();
        let read = reader.read_byte_record(&mut record);
        let line = record.position().map_or(line, csv::Position::line);
        let columns = match read {
            Ok(false) => return None,
            Ok(true) => texts(&columns, &record),
            Err(e) => match e.kind() {
                ErrorKind::UnequalLengths { expected_len, len, .. } => {
                    Err(format!("{len} fields, but the header has {expected_len}"))
                }
                _ => {
                    failed = true;
                    return Some(Err(Error::data(format!("cannot read {name}, line {line}: {e}"))));
                }
            },
        };
        let origin = RowOrigin { file: name.clone(), line, is_row: false };
        Some(Ok(Row { origin, columns }))
    })))
}

fn texts(columns: &[String], record: &ByteRecord) -> std::result::Result<Map<String, Value>, String> {
    let pairs = columns.iter().zip(record).map(|(column, field)| match std::str::from_utf8(field) {
        Ok(text) => Ok((column.clone(), Value::String(text.to_string()))),
        Err(e) => Err(format!("not valid UTF-8 in column `{column}` at byte {}", e.valid_up_to() + 1)),
    });
    pairs.collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::tests::read_all;
    use serde_json::json;

    #[test]
    fn quotes_line_breaks_and_broken_rows() {
        let content = b"\xef\xbb\xbftext, label\n\"a, \"\"b\"\"\nc\",1\nonly\n\"\xff\",2\nlast,3\n";
        let rows = read_all("a.csv", content).unwrap();
        assert_eq!(rows[0], (2, Ok(json!({"text": "a, \"b\"\nc", "label": "1"}))));
        assert_eq!(rows[1], (4, Err("1 fields, but the header has 2".into())));
        assert_eq!(rows[2], (5, Err("not valid UTF-8 in column `text` at byte 1".into())));
        assert_eq!(rows[3], (6, Ok(json!({"text": "last", "label": "3"}))));
    }

    #[test]
    fn tabs_and_headers_alone() {
        assert_eq!(read_all("a.tsv", b"a\tb\n1,0\t2\n").unwrap()[0].1, Ok(json!({"a": "1,0", "b": "2"})));
        assert_eq!(read_all("a.csv", b"a,b\n").unwrap().len(), 0);
        assert_eq!(read_all("a.csv", b"").unwrap().len(), 0);
        let twice = read_all("a.csv", b"a,a\n1,2\n").unwrap_err();
        assert!(twice.message().contains("column `a` twice"), "{twice}");
    }
}
