//! JSON lines, and JSON documents that are a list of objects.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::sync::Arc;

use serde_json::{Map, Value};

use super::{Row, Rows, kind_of};
use crate::data::types::RowOrigin;
use crate::{Error, Result};

/// One object a line; lines of nothing but white space are not rows.
pub fn lines(file: File, name: Arc<str>) -> Result<Rows> {
    Ok(Box::new(lines_of(BufReader::new(file), name)))
}

/// A list of objects; a file that begins otherwise is read as JSON lines.
pub fn document(mut file: File, name: Arc<str>) -> Result<Rows> {
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).map_err(|e| Error::data(format!("cannot read {name}: {e}")))?;
    let content = without_byte_order_mark(&bytes);
    if content.iter().find(|b| !b.is_ascii_whitespace()) != Some(&b'[') {
        if let Ok(Value::Object(_)) = serde_json::from_slice(content)
            && content.trim_ascii().contains(&b'\n')
        {
            return Err(Error::data(format!("{name} is one JSON object, but a list of objects is expected")));
        }
        return Ok(Box::new(lines_of(std::io::Cursor::new(bytes), name)));
    }
    let values: Vec<Value> = serde_json::from_slice(content)
        .map_err(|e| Error::data(format!("{name}:{}: not valid JSON: {}", e.line(), describe(&e))))?;
    Ok(Box::new((1..).zip(values).map(move |(line, value)| {
        let origin = RowOrigin { file: name.clone(), line, is_row: true };
        Ok(Row { origin, columns: object(value) })
    })))
}

fn lines_of(mut reader: impl BufRead + 'static, name: Arc<str>) -> impl Iterator<Item = Result<Row>> {
    let mut line = 0;
    let mut buffer = Vec::new();
    std::iter::from_fn(move || {
        loop {
            buffer.clear();
            line += 1;
            match reader.read_until(b'\n', &mut buffer) {
                Ok(0) => return None,
                Ok(_) => {}
                Err(e) => return Some(Err(Error::data(format!("cannot read {name}, line {line}: {e}")))),
            }
            let content = if line == 1 { without_byte_order_mark(&buffer) } else { &buffer };
            if content.trim_ascii().is_empty() {
                continue;
            }
            let origin = RowOrigin { file: name.clone(), line, is_row: false };
            return Some(Ok(Row { origin, columns: parse(content) }));
        }
    })
}

fn parse(content: &[u8]) -> std::result::Result<Map<String, Value>, String> {
    let text = std::str::from_utf8(content).map_err(|e| format!("not valid UTF-8 at byte {}", e.valid_up_to() + 1))?;
    let value =
        serde_json::from_str(text).map_err(|e| format!("not valid JSON at column {}: {}", e.column(), describe(&e)))?;
    object(value)
}

fn object(value: Value) -> std::result::Result<Map<String, Value>, String> {
    match value {
        Value::Object(map) => Ok(map),
        other => Err(format!("expected an object, found {}", kind_of(&other))),
    }
}

/// The parser's message without its position, which is counted within the line.
fn describe(error: &serde_json::Error) -> String {
    let text = error.to_string();
    text.split(" at line ").next().unwrap_or(&text).to_string()
}

fn without_byte_order_mark(bytes: &[u8]) -> &[u8] {
    bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::tests::read_all;
    use serde_json::json;

    #[test]
    fn lines_keep_their_numbers_past_blank_and_broken_ones() {
        let content = b"\xef\xbb\xbf{\"a\": 1}\r\n\n{\"a\": \n{\"a\": \"\xff\"}\n[1]\n{\"a\": 2}";
        let rows = read_all("a.jsonl", content).unwrap();
        assert_eq!(rows.iter().map(|r| r.0).collect::<Vec<_>>(), [1, 3, 4, 5, 6]);
        assert_eq!(rows[0].1, Ok(json!({"a": 1})));
        assert_eq!(rows[1].1, Err("not valid JSON at column 0: EOF while parsing a value".into()));
        assert_eq!(rows[2].1, Err("not valid UTF-8 at byte 8".into()));
        assert_eq!(rows[3].1, Err("expected an object, found a list".into()));
        assert_eq!(rows[4].1, Ok(json!({"a": 2})));
    }

    #[test]
    fn a_document_is_a_list_of_objects_or_lines() {
        let rows = read_all("a.json", b" [{\"a\": 1}, 2]").unwrap();
        assert_eq!(rows[0], (1, Ok(json!({"a": 1}))));
        assert_eq!(rows[1], (2, Err("expected an object, found a number".into())));
        assert_eq!(read_all("a.json", b"{\"a\": 1}\n{\"a\": 2}\n").unwrap().len(), 2);
        let one = read_all("a.json", b"{\n\"a\": 1\n}").unwrap_err();
        assert!(one.message().contains("one JSON object"), "{one}");
        let broken = read_all("a.json", b"[{\"a\": 1},\n{\"a\" 2}]").unwrap_err();
        assert!(broken.message().starts_with("a.json:2: not valid JSON"), "{broken}");
    }
}
