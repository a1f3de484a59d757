//! The files of Spectrum's own script: its YAML of what to unfreeze, and its JSON of scores, both read and written.
//!
//! The YAML is a list of regular expressions that are matched at the beginning of a parameter's name:
//!
//! ```yaml
//! unfrozen_parameters:
//! - ^lm_head.weight$
//! - ^model.embed_tokens.weight$
//! # mlp.down_proj layers
//! - model.layers.1.mlp.down_proj
//! ```
//!
//! The JSON is either `{LAYER: {"snr": NUMBER, "type": TYPE}}`, or the sorted `{TYPE: {LAYER: NUMBER}}`; Python writes
//! `Infinity` into it, which JSON hasn't.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::{Error, Result};

/// The two lines that Spectrum's script writes into every file, whatever was asked and whatever the model is.
pub const ALWAYS_WRITTEN: [&str; 2] = ["^lm_head.weight$", "^model.embed_tokens.weight$"];
const KEY: &str = "unfrozen_parameters";

/// The entries of the list `unfrozen_parameters`, as they stand. Only this list is understood, and nothing is skipped
/// but comments and empty lines. Errors begin with the line: `line 3: …`.
///
/// # Errors
/// Anything else is in the file, or the list is missing or empty.
pub fn read_unfrozen(text: &str) -> Result<Vec<String>> {
    let mut entries = Vec::new();
    let (mut inside, mut indent) = (false, None);
    for (number, line) in (1..).zip(text.trim_start_matches('\u{feff}').lines()) {
        let wrong = |what: String| {
            Err(Error::config(format!("line {number}: {what}"))
                .help("the file must hold one list, `unfrozen_parameters:`, with an entry a line: `- model.layers.1.mlp.up_proj`"))
        };
        let bare = line.trim();
        if bare.is_empty() || bare.starts_with('#') || (bare == "---" && !inside) {
            continue;
        }
        let depth = line.len() - line.trim_start_matches(' ').len();
        if !inside {
            let rest = line.strip_prefix(KEY).and_then(|rest| rest.trim_start().strip_prefix(':'));
            match rest.map(|rest| without_comment(rest).is_empty()) {
                Some(true) => inside = true,
                Some(false) => return wrong(format!("`{KEY}` must be a list with an entry a line")),
                None => return wrong(format!("expected `{KEY}:`, found `{bare}`")),
            }
            continue;
        }
        if *indent.get_or_insert(depth) != depth {
            return wrong("this entry is not indented as the first one is".into());
        }
        match bare.strip_prefix("- ").map(|entry| scalar(entry.trim())) {
            Some(Some(entry)) => entries.push(entry),
            Some(None) => return wrong(format!("`{bare}` is not a plain or quoted text")),
            None => return wrong(format!("expected an entry, `- NAME`, found `{bare}`")),
        }
    }
    match (inside, entries.is_empty()) {
        (false, _) => Err(Error::config(format!("there is no list `{KEY}` in it"))),
        (true, true) => Err(Error::config(format!("its list `{KEY}` is empty"))),
        (true, false) => Ok(entries),
    }
}

/// A YAML scalar on one line. `None` for what would mean something else than its text.
fn scalar(text: &str) -> Option<String> {
    for quote in ['\'', '"'] {
        if let Some(rest) = text.strip_prefix(quote) {
            let (inner, after) = rest.rsplit_once(quote)?;
            // An escape or a doubled quote would need rules that names of parameters don't.
            let plain = !inner.contains(quote) && (quote == '\'' || !inner.contains('\\'));
            return (plain && without_comment(after).is_empty() && !inner.is_empty()).then(|| inner.to_string());
        }
    }
    let text = without_comment(text);
    let special = text.starts_with(['[', '{', '&', '*', '!', '|', '>', '%', '@', '`', '-', '?']);
    (!text.is_empty() && !special && !text.contains(": ") && !text.ends_with(':')).then(|| text.to_string())
}

fn without_comment(text: &str) -> &str {
    let end = text.match_indices('#').map(|(at, _)| at).find(|at| *at == 0 || text[..*at].ends_with([' ', '\t']));
    text[..end.unwrap_or(text.len())].trim()
}

/// The YAML of these layers, each group a type of layer with the names in it.
pub fn write_unfrozen(groups: &[(String, Vec<String>)]) -> String {
    let mut text = format!("{KEY}:\n");
    for (kind, names) in groups {
        text += &format!("# {kind} layers\n");
        for name in names {
            text += &format!("- {name}\n");
        }
    }
    text
}

/// Scores by layer, from either kind of JSON. An infinite score becomes the largest finite number.
///
/// # Errors
/// It is neither kind, a score is not a number, or a layer has two.
pub fn read_scores(text: &str) -> Result<BTreeMap<String, f64>> {
    let text = with_infinities_quoted(text);
    let value: Value =
        serde_json::from_str(&text).map_err(|error| Error::config(format!("it is not JSON: {error}")))?;
    let shapes = "expected {LAYER: {\"snr\": NUMBER, \"type\": TYPE}} or {TYPE: {LAYER: NUMBER}}";
    let Value::Object(outer) = value else { return Err(Error::config(format!("it is not an object; {shapes}"))) };
    let mut scores = BTreeMap::new();
    let mut add = |layer: &str, value: &Value| -> Result<()> {
        let score = match value {
            Value::Number(number) => number.as_f64(),
            Value::String(text) if text == "Infinity" => Some(f64::MAX),
            Value::String(text) if text == "-Infinity" => Some(f64::MIN),
            _ => None,
        };
        let Some(score) = score else {
            return Err(Error::config(format!("the score of `{layer}` is {value}, not a number")));
        };
        match scores.insert(layer.to_string(), score) {
            None => Ok(()),
            Some(_) => Err(Error::config(format!("`{layer}` has two scores"))),
        }
    };
    for (name, inner) in &outer {
        let Value::Object(inner) = inner else {
            return Err(Error::config(format!("`{name}` is {inner}; {shapes}")));
        };
        match inner.get("snr") {
            Some(score) if inner.contains_key("type") => add(name, score)?,
            _ => inner.iter().try_for_each(|(layer, score)| add(layer, score))?,
        }
    }
    if scores.is_empty() {
        return Err(Error::config("there are no scores in it"));
    }
    Ok(scores)
}

/// Python's `Infinity`, `-Infinity` and `NaN` as strings. Outside strings only.
fn with_infinities_quoted(text: &str) -> String {
    let mut result = String::with_capacity(text.len());
    let mut rest = text;
    let mut in_string = false;
    'outer: while let Some(first) = rest.chars().next() {
        if !in_string {
            for word in ["-Infinity", "Infinity", "NaN"] {
                if let Some(after) = rest.strip_prefix(word) {
                    result += &format!("\"{word}\"");
                    rest = after;
                    continue 'outer;
                }
            }
        } else if first == '\\' {
            let length = first.len_utf8() + rest[1..].chars().next().map_or(0, char::len_utf8);
            result += &rest[..length];
            rest = &rest[length..];
            continue;
        }
        in_string ^= first == '"';
        result.push(first);
        rest = &rest[first.len_utf8()..];
    }
    result
}

/// Scores in the first kind of JSON: layer, type and score.
pub fn write_scores(layers: &[(String, String, f64)]) -> String {
    let entry = |(layer, kind, score): &(String, String, f64)| (layer.clone(), json!({ "snr": score, "type": kind }));
    let object: Map<String, Value> = layers.iter().map(entry).collect();
    // An object of strings and finite numbers always has a text.
    format!("{}\n", serde_json::to_string_pretty(&object).unwrap_or_default())
}

/// Spectrum's name of a tensor's layer, `model.layers.1.mlp.down_proj`, and of the layer's type, `mlp.down_proj`.
pub fn layer_and_type(tensor: &str) -> (String, String) {
    let layer = tensor.strip_suffix(".weight").unwrap_or(tensor);
    let parts: Vec<&str> = layer.split('.').collect();
    let number = parts.iter().position(|part| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit()));
    let kind = number.and_then(|number| parts.get(number + 1..)).map(|parts| parts.join("."));
    (layer.to_string(), kind.filter(|kind| !kind.is_empty()).unwrap_or_else(|| layer.to_string()))
}
