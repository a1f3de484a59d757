//! Parquet, through the row interface: nested lists and structures become JSON lists and objects.

use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use parquet::file::reader::SerializedFileReader;
use parquet::record::{Field, Row as ParquetRow};
use serde_json::{Map, Number, Value};

use super::{Row, Rows};
use crate::data::types::RowOrigin;
use crate::{Error, Result};

/// One row of the file's schema a row, numbered from 1.
pub fn rows(file: File, name: Arc<str>) -> Result<Rows> {
    let broken = |what: String| {
        Error::data(format!("{name} is not a readable Parquet file: {what}"))
            .help("the file may be cut short or damaged; fetch or write it again")
    };
    // The crate's decoders check most of what they read, but a damaged page can still make them panic.
    let reader = catch_unwind(AssertUnwindSafe(|| SerializedFileReader::new(file)))
        .map_err(|_| broken("its metadata is damaged".into()))?
        .map_err(|e| broken(e.to_string()))?;
    let mut iter = reader.into_iter();
    let mut line = 0;
    let mut failed = false;
    let shown = name.clone();
    Ok(Box::new(std::iter::from_fn(move || {
        if failed {
            return None;
        }
        line += 1;
        let damaged = |what: String| {
            Error::data(format!("cannot read {shown}, row {line}: {what}"))
                .help("the file may be cut short or damaged; fetch or write it again")
        };
        let next = catch_unwind(AssertUnwindSafe(|| iter.next()));
        let row = match next {
            Ok(None) => return None,
            Ok(Some(Ok(row))) => row,
            Ok(Some(Err(e))) => {
                failed = true;
                return Some(Err(damaged(e.to_string())));
            }
            Err(_) => {
                failed = true;
                return Some(Err(damaged("a page is damaged".into())));
            }
        };
        let origin = RowOrigin { file: shown.clone(), line, is_row: true };
        Some(Ok(Row { origin, columns: object(&row) }))
    })))
}

fn object(row: &ParquetRow) -> std::result::Result<Map<String, Value>, String> {
    row.get_column_iter()
        .map(|(name, field)| Ok((name.clone(), value(field).map_err(|e| format!("column `{name}`: {e}"))?)))
        .collect()
}

fn value(field: &Field) -> std::result::Result<Value, String> {
    Ok(match field {
        Field::Null => Value::Null,
        Field::Bool(b) => Value::Bool(*b),
        Field::Byte(n) => (*n).into(),
        Field::Short(n) => (*n).into(),
        Field::Int(n) => (*n).into(),
        Field::Long(n) => (*n).into(),
        Field::UByte(n) => (*n).into(),
        Field::UShort(n) => (*n).into(),
        Field::UInt(n) => (*n).into(),
        Field::ULong(n) => (*n).into(),
        Field::Float16(n) => float(f64::from(*n)),
        Field::Float(n) => float(f64::from(*n)),
        Field::Double(n) => float(*n),
        Field::Str(s) => Value::String(s.clone()),
        // Some writers leave out the annotation that says that a column is text.
        Field::Bytes(bytes) => {
            Value::String(std::str::from_utf8(bytes.data()).map_err(|_| "not valid UTF-8".to_string())?.to_string())
        }
        Field::Group(row) => Value::Object(object(row)?),
        Field::ListInternal(list) => Value::Array(list.elements().iter().map(value).collect::<Result<_, _>>()?),
        Field::MapInternal(map) => {
            let pairs = map.entries().iter().map(|(key, item)| {
                let key = match value(key)? {
                    Value::String(key) => key,
                    other => other.to_string(),
                };
                Ok::<_, String>((key, value(item)?))
            });
            Value::Object(pairs.collect::<Result<_, _>>()?)
        }
        // Dates, times and decimals, in the crate's own words.
        other => Value::String(other.to_string()),
    })
}

fn float(n: f64) -> Value {
    Number::from_f64(n).map_or(Value::Null, Value::Number)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::Arc;

    use parquet::data_type::{ByteArray, ByteArrayType, Int64Type};
    use parquet::file::properties::WriterProperties;
    use parquet::file::writer::SerializedFileWriter;
    use parquet::schema::parser::parse_message_type;
    use serde_json::json;

    use super::super::tests::read_all;

    /// `text`, an optional `label`, raw bytes, and messages as a list of structures, three rows in two row groups.
    fn file() -> Vec<u8> {
        let schema = "message m { required binary text (UTF8); optional int64 label; required binary raw;
            required group messages (LIST) { repeated group list { required group element {
                required binary role (UTF8); required binary content (UTF8); } } } }";
        let schema = Arc::new(parse_message_type(schema).unwrap());
        let mut bytes = Vec::new();
        let mut writer = SerializedFileWriter::new(&mut bytes, schema, Arc::new(WriterProperties::new())).unwrap();
        for (texts, labels) in [(vec!["a", "é"], vec![Some(1), None]), (vec!["c"], vec![Some(3)])] {
            let rows = texts.len();
            let mut group = writer.next_row_group().unwrap();
            let words = |words: &[&str]| words.iter().map(|w| ByteArray::from(*w)).collect::<Vec<_>>();
            let mut column = group.next_column().unwrap().unwrap();
            column.typed::<ByteArrayType>().write_batch(&words(&texts), None, None).unwrap();
            column.close().unwrap();
            let mut column = group.next_column().unwrap().unwrap();
            let values: Vec<i64> = labels.iter().flatten().copied().collect();
            let levels: Vec<i16> = labels.iter().map(|l| i16::from(l.is_some())).collect();
            column.typed::<Int64Type>().write_batch(&values, Some(&levels), None).unwrap();
            column.close().unwrap();
            let mut column = group.next_column().unwrap().unwrap();
            column.typed::<ByteArrayType>().write_batch(&words(&vec!["raw"; rows]), None, None).unwrap();
            column.close().unwrap();
            for part in [["user", "assistant"], ["hi", "ho"]] {
                let mut column = group.next_column().unwrap().unwrap();
                let (definition, repetition) = (vec![1; rows * 2], [0, 1].repeat(rows));
                let values = words(&part.repeat(rows));
                column.typed::<ByteArrayType>().write_batch(&values, Some(&definition), Some(&repetition)).unwrap();
                column.close().unwrap();
            }
            group.close().unwrap();
        }
        writer.close().unwrap();
        bytes
    }

    #[test]
    fn nested_columns_nulls_and_row_numbers() {
        let rows = read_all("a.parquet", &file()).unwrap();
        let messages = json!([{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]);
        assert_eq!(rows.len(), 3);
        assert_eq!(rows[0], (1, Ok(json!({"text": "a", "label": 1, "raw": "raw", "messages": messages}))));
        assert_eq!(rows[1], (2, Ok(json!({"text": "é", "label": null, "raw": "raw", "messages": messages}))));
        assert_eq!(rows[2].0, 3);
    }

    #[test]
    fn damaged_files_are_errors_and_never_panics() {
        let good = file();
        for cut in [0, 3, 8, good.len() / 2, good.len() - 1] {
            let error = read_all("a.parquet", &good[..cut]).unwrap_err();
            assert!(error.message().contains("a.parquet"), "{error}");
        }
        for at in (0..good.len()).step_by(11) {
            let mut bytes = good.clone();
            bytes[at] ^= 0xff;
            // Whatever the damage, an answer or an error comes back.
            let _ = read_all("a.parquet", &bytes);
        }
    }
}
