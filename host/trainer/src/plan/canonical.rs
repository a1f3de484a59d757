//! One text for one value: JSON with sorted keys, no white space, and floats in their shortest form that reads back the
//! same. Equal values have equal text and so equal hashes, on every machine.

use serde::Serialize;
use serde_json::Value;

use crate::hash::sha256;

/// `value` as canonical JSON. What cannot be JSON (a map whose keys aren't strings) becomes `null`; none of this
/// crate's types has any.
pub fn to_string(value: &impl Serialize) -> String {
    let mut text = String::new();
    write(&serde_json::to_value(value).unwrap_or(Value::Null), &mut text);
    text
}

/// The sha256 of `value`'s canonical JSON, in hexadecimal.
pub fn hash(value: &impl Serialize) -> String {
    sha256(to_string(value))
}

pub(super) fn write(value: &Value, text: &mut String) {
    match value {
        Value::Array(items) => {
            text.push('[');
            for (i, item) in items.iter().enumerate() {
                if i > 0 {
                    text.push(',');
                }
                write(item, text);
            }
            text.push(']');
        }
        Value::Object(map) => {
            let mut keys: Vec<_> = map.keys().collect();
            keys.sort();
            text.push('{');
            for (i, key) in keys.into_iter().enumerate() {
                if i > 0 {
                    text.push(',');
                }
                text.push_str(&Value::String(key.clone()).to_string());
                text.push(':');
                write(&map[key], text);
            }
            text.push('}');
        }
        // Negative zero equals zero, so it must read the same.
        Value::Number(number) if number.as_f64() == Some(0.0) && number.is_f64() => text.push_str("0.0"),
        other => text.push_str(&other.to_string()),
    }
}
