//! `tojson` as `transformers` defines it: Python's `json.dumps(x, ensure_ascii, indent, separators, sort_keys)`.

use minijinja::value::{Kwargs, Value, ValueKind};
use minijinja::{Error, ErrorKind};

use super::keyword;

/// How to write.
struct Style {
    ascii: bool,
    indent: Option<String>,
    item: String,
    key: String,
    sorted: bool,
}

/// The filter.
pub fn tojson(value: &Value, kwargs: Kwargs) -> Result<Value, Error> {
    let indent = match keyword::<Value>(&kwargs, "indent")?.filter(|v| !v.is_none()) {
        None => None,
        Some(text) if text.as_str().is_some() => text.as_str().map(str::to_string),
        Some(number) => Some(" ".repeat(usize::try_from(number)?.min(64))),
    };
    let separators = keyword::<Vec<String>>(&kwargs, "separators")?;
    let (item, key) = match separators.as_deref() {
        Some([item, key]) => (item.clone(), key.clone()),
        Some(_) => return Err(Error::new(ErrorKind::InvalidOperation, "tojson: separators must be two strings")),
        None if indent.is_some() => (",".to_string(), ": ".to_string()),
        None => (", ".to_string(), ": ".to_string()),
    };
    let ascii = keyword::<bool>(&kwargs, "ensure_ascii")?.unwrap_or(false);
    let sorted = keyword::<bool>(&kwargs, "sort_keys")?.unwrap_or(false);
    kwargs.assert_all_used()?;
    let mut out = String::new();
    write(&mut out, value, &Style { ascii, indent, item, key, sorted }, 0)?;
    Ok(Value::from(out))
}

fn write(out: &mut String, value: &Value, style: &Style, depth: usize) -> Result<(), Error> {
    match value.kind() {
        ValueKind::None => out.push_str("null"),
        ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
        ValueKind::Number => out.push_str(&value.to_string()),
        ValueKind::String => write_text(out, value.as_str().unwrap_or_default(), style.ascii),
        ValueKind::Map => {
            let mut keys: Vec<Value> = value.try_iter()?.collect();
            if style.sorted {
                keys.sort_by_key(ToString::to_string);
            }
            let is_empty = keys.is_empty();
            out.push('{');
            for (i, key) in keys.iter().enumerate() {
                separate(out, style, depth + 1, i);
                write_text(out, &key.to_string(), style.ascii);
                out.push_str(&style.key);
                write(out, &value.get_item(key)?, style, depth + 1)?;
            }
            close(out, style, depth, is_empty, '}');
        }
        ValueKind::Seq | ValueKind::Iterable => {
            let items: Vec<Value> = value.try_iter()?.collect();
            out.push('[');
            for (i, item) in items.iter().enumerate() {
                separate(out, style, depth + 1, i);
                write(out, item, style, depth + 1)?;
            }
            close(out, style, depth, items.is_empty(), ']');
        }
        other => return Err(Error::new(ErrorKind::InvalidOperation, format!("tojson cannot write {other}"))),
    }
    Ok(())
}

fn separate(out: &mut String, style: &Style, depth: usize, index: usize) {
    if index > 0 {
        out.push_str(&style.item);
    }
    break_line(out, style, depth);
}

fn close(out: &mut String, style: &Style, depth: usize, is_empty: bool, bracket: char) {
    if !is_empty {
        break_line(out, style, depth);
    }
    out.push(bracket);
}

fn break_line(out: &mut String, style: &Style, depth: usize) {
    if let Some(indent) = &style.indent {
        out.push('\n');
        out.push_str(&indent.repeat(depth));
    }
}

fn write_text(out: &mut String, text: &str, ascii: bool) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            c if c < ' ' || (ascii && !(' '..='~').contains(&c)) => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    out.push_str(&format!("\\u{unit:04x}"));
                }
            }
            c => out.push(c),
        }
    }
    out.push('"');
}
