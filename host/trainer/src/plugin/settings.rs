//! A plugin's settings: its JSON Schema checked when the plugin is read, and a configuration's settings checked against it,
//! with the schema's defaults filled in, before the plugin runs.
//!
//! The schema is a stranger's, so what could make checking slow or unbounded is refused: references, and patterns beyond
//! regular expressions that take linear time.

use jsonschema::error::{TypeKind, ValidationErrorKind};
use jsonschema::{PatternOptions, ValidationError, Validator};
use serde_json::{Map, Value};

use super::text::escaped;
use crate::config::suggest;
use crate::{Error, Result};

/// Most bytes of memory that one compiled pattern may take.
const PATTERN_BYTES: usize = 1 << 20;
/// Most characters of a plugin's text in a message.
const SHOWN: usize = 200;
/// Keywords that make a schema point at schemas.
const REFERENCES: [&str; 4] = ["$ref", "$dynamicRef", "$recursiveRef", "$id"];

/// Checks that `schema` is a JSON Schema for settings: it describes an object, stands alone, and its defaults fit it.
///
/// # Errors
/// The first thing that is wrong, as a message that begins with `settings`.
pub fn check_schema(schema: &Value) -> Result<()> {
    let wrong = |what: String| Error::plan(format!("settings: {what}"));
    let Some(top) = schema.as_object() else {
        return Err(wrong(format!("a JSON Schema is an object, not {}", escaped(&schema.to_string(), 40))));
    };
    if top.get("type").and_then(Value::as_str) != Some("object") {
        return Err(wrong("the schema must describe an object".into()).help("say \"type\": \"object\""));
    }
    refuse_references(schema)?;
    if let Err(error) = jsonschema::meta::validate(schema) {
        return Err(wrong(format!("no valid JSON Schema: {}", describe(&error))));
    }
    compile(schema)?;
    check_defaults(schema, "")
}

/// The settings with every default filled in, checked against `schema`.
///
/// A whole number where the schema has a number becomes a float, so that 1 and 1.0 are the same setting and give the same
/// plan. A default is the `default` of a property that is absent; objects that are there get their missing properties too. A
/// property that the schema doesn't name is refused, unless it has `additionalProperties` or `patternProperties`.
///
/// # Errors
/// The first setting that doesn't fit. Messages begin with its path in backquotes, `` `policy.rank` ``, which becomes
/// file and line.
pub fn resolve(schema: &Value, settings: &Value) -> Result<Value> {
    let mut settings = match settings {
        Value::Null => Value::Object(Map::new()),
        other => other.clone(),
    };
    refuse_unknown(schema, &settings, "policy")?;
    fill(schema, &mut settings);
    if let Err(error) = compile(schema)?.validate(&settings) {
        return Err(explain(&error));
    }
    widen(schema, &mut settings);
    Ok(settings)
}

fn compile(schema: &Value) -> Result<Validator> {
    jsonschema::options()
        .with_pattern_options(PatternOptions::regex().size_limit(PATTERN_BYTES).dfa_size_limit(PATTERN_BYTES))
        .build(schema)
        .map_err(|error| Error::plan(format!("settings: no valid JSON Schema: {}", describe(&error))))
}

/// Each schema below `schema` that describes one named property: the name, the schema.
fn properties(schema: &Value) -> impl Iterator<Item = (&String, &Value)> {
    schema.get("properties").and_then(Value::as_object).into_iter().flatten()
}

fn refuse_references(schema: &Value) -> Result<()> {
    match schema {
        Value::Object(map) => {
            for (key, value) in map {
                // A property may be called so; its schema is an object, where a reference is a string.
                if REFERENCES.contains(&key.as_str()) && value.is_string() {
                    return Err(Error::plan(format!("settings: the schema has `{key}`, and must stand alone"))
                        .help("write what it refers to in its place"));
                }
                refuse_references(value)?;
            }
            Ok(())
        }
        Value::Array(items) => items.iter().try_for_each(refuse_references),
        _ => Ok(()),
    }
}

fn check_defaults(schema: &Value, path: &str) -> Result<()> {
    for (name, property) in properties(schema) {
        let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        check_defaults(property, &path)?;
        let Some(default) = property.get("default") else { continue };
        if let Err(error) = compile(property)?.validate(default) {
            return Err(Error::plan(format!(
                "settings: the default of `{}` does not fit its own schema: {}",
                escaped(&path, SHOWN),
                describe(&error)
            )));
        }
    }
    Ok(())
}

fn fill(schema: &Value, settings: &mut Value) {
    let Some(map) = settings.as_object_mut() else { return };
    for (name, property) in properties(schema) {
        match (map.get_mut(name), property.get("default")) {
            (Some(present), _) => fill(property, present),
            (None, Some(default)) => {
                let mut value = default.clone();
                fill(property, &mut value);
                map.insert(name.clone(), value);
            }
            (None, None) => {}
        }
    }
}

fn widen(schema: &Value, value: &mut Value) {
    match value {
        Value::Number(number) if schema.get("type").and_then(Value::as_str) == Some("number") => {
            if let Some(float) = number.as_f64().and_then(serde_json::Number::from_f64) {
                *number = float;
            }
        }
        Value::Object(map) => {
            for (name, value) in map {
                let of_name = schema.get("properties").and_then(|properties| properties.get(name));
                if let Some(schema) = of_name.or_else(|| schema.get("additionalProperties")) {
                    widen(schema, value);
                }
            }
        }
        Value::Array(items) => {
            if let Some(schema) = schema.get("items") {
                items.iter_mut().for_each(|item| widen(schema, item));
            }
        }
        _ => {}
    }
}

fn refuse_unknown(schema: &Value, settings: &Value, path: &str) -> Result<()> {
    let Some(map) = settings.as_object() else { return Ok(()) };
    let open = ["additionalProperties", "patternProperties", "unevaluatedProperties"]
        .iter()
        .any(|keyword| schema.get(keyword).is_some());
    let known: Vec<(&String, &Value)> = properties(schema).collect();
    for (name, value) in map {
        match known.iter().find(|(known, _)| *known == name) {
            Some((_, property)) => refuse_unknown(property, value, &format!("{path}.{name}"))?,
            None if open || schema.get("properties").is_none() && path != "policy" => {}
            None => {
                let error = Error::config(format!("`{path}.{name}` is not a setting of the plugin"));
                let names: Vec<String> = known.iter().map(|(known, _)| escaped(known, SHOWN)).collect();
                return Err(match suggest::nearest(name, names.iter().map(String::as_str)) {
                    Some(near) => error.help(format!("did you mean `{path}.{near}`?")),
                    None if names.is_empty() => error.help("it has no settings"),
                    None => error.help(format!("it has {}", suggest::list(&names))),
                });
            }
        }
    }
    Ok(())
}

/// What is wrong with a setting, in the configuration's words.
fn explain(error: &ValidationError<'_>) -> Error {
    let mut path = "policy".to_string();
    for part in error.instance_path().as_str().split('/').skip(1) {
        path.push('.');
        path.push_str(&part.replace("~1", "/").replace("~0", "~"));
    }
    let value = escaped(&error.instance().to_string(), SHOWN);
    let message = match error.kind() {
        ValidationErrorKind::Required { property } => {
            let name = property.as_str().unwrap_or_default();
            return Error::config(format!("`{path}.{}` is missing, and has no default", escaped(name, SHOWN)));
        }
        ValidationErrorKind::Type { kind: TypeKind::Single(kind) } => format!("must be of type {kind}, not {value}"),
        ValidationErrorKind::Minimum { limit } => format!("must be at least {limit}, not {value}"),
        ValidationErrorKind::Maximum { limit } => format!("must be at most {limit}, not {value}"),
        ValidationErrorKind::ExclusiveMinimum { limit } => format!("must be above {limit}, not {value}"),
        ValidationErrorKind::ExclusiveMaximum { limit } => format!("must be below {limit}, not {value}"),
        ValidationErrorKind::Enum { options } => {
            let options: Vec<String> =
                options.as_array().into_iter().flatten().map(|option| escaped(&option.to_string(), SHOWN)).collect();
            format!("must be one of {}, not {value}", suggest::list(&options))
        }
        _ => format!("does not fit: {}", escaped(&error.to_string(), SHOWN)),
    };
    Error::config(format!("`{path}` {message}"))
}

fn describe(error: &ValidationError<'_>) -> String {
    let place = error.instance_path().as_str();
    let text = escaped(&error.to_string(), SHOWN);
    if place.is_empty() { text } else { format!("{text} (at {})", escaped(place, SHOWN)) }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::*;

    fn schema() -> Value {
        json!({
            "type": "object",
            "properties": {
                "rank": { "type": "integer", "minimum": 1, "default": 8 },
                "dropout": { "type": "number", "minimum": 0, "exclusiveMaximum": 1, "default": 0.0 },
                "mode": { "enum": ["top", "bottom"], "default": "top" },
                "seed": { "type": "integer" },
                "nested": { "type": "object", "properties": { "k": { "type": "integer", "default": 2 } } },
                "ranks": { "type": "object", "additionalProperties": { "type": "integer" } },
                "required": { "type": "boolean" }
            },
            "required": ["required"]
        })
    }

    #[track_caller]
    fn refused(settings: Value) -> String {
        resolve(&schema(), &settings).unwrap_err().to_string()
    }

    #[test]
    fn defaults_are_filled_where_nothing_was_said() {
        check_schema(&schema()).unwrap();
        let resolved = resolve(&schema(), &json!({ "required": true, "dropout": 0.5, "nested": {} })).unwrap();
        let expected = json!({ "required": true, "dropout": 0.5, "nested": { "k": 2 }, "rank": 8, "mode": "top" });
        assert_eq!(resolved, expected);
        assert_eq!(resolve(&schema(), &resolved).unwrap(), resolved, "resolved settings resolve to themselves");
        assert_eq!(resolve(&json!({ "type": "object" }), &Value::Null).unwrap(), json!({}));
    }

    #[test]
    fn settings_that_do_not_fit_are_named() {
        assert_eq!(refused(json!({})), "`policy.required` is missing, and has no default");
        assert_eq!(refused(json!({ "required": true, "rank": 0 })), "`policy.rank` must be at least 1, not 0");
        assert_eq!(
            refused(json!({ "required": true, "rank": "8" })),
            "`policy.rank` must be of type integer, not \"8\""
        );
        assert_eq!(refused(json!({ "required": true, "dropout": 1 })), "`policy.dropout` must be below 1, not 1");
        assert_eq!(
            refused(json!({ "required": true, "mode": "middle" })),
            "`policy.mode` must be one of \"top\" and \"bottom\", not \"middle\""
        );
        assert_eq!(
            refused(json!({ "required": true, "ranks": { "a": 1.5 } })),
            "`policy.ranks.a` must be of type integer, not 1.5"
        );
        assert_eq!(
            refused(json!({ "rnak": 1 })),
            "`policy.rnak` is not a setting of the plugin\n  help: did you mean `policy.rank`?"
        );
        assert_eq!(
            refused(json!({ "required": true, "nested": { "j": 1 } })),
            "`policy.nested.j` is not a setting of the plugin\n  help: it has k"
        );
        let none = resolve(&json!({ "type": "object" }), &json!({ "rank": 1 })).unwrap_err();
        assert_eq!(none.to_string(), "`policy.rank` is not a setting of the plugin\n  help: it has no settings");
    }

    #[test]
    fn schemas_that_are_none_or_unbounded_are_refused() {
        for (schema, message) in [
            (json!([]), "settings: a JSON Schema is an object, not []"),
            (json!({}), "settings: the schema must describe an object\n  help: say \"type\": \"object\""),
            (
                json!({ "type": "object", "properties": { "a": { "type": "integre" } } }),
                "settings: no valid JSON Schema: \"integre\" is not valid under any of the schemas listed in the \
                 'anyOf' keyword (at /properties/a/type)",
            ),
            (
                json!({ "type": "object", "properties": { "a": { "$ref": "#" } } }),
                "settings: the schema has `$ref`, and must stand alone\n  help: write what it refers to in its place",
            ),
            (
                json!({ "type": "object", "properties": { "a": { "type": "integer", "default": "x" } } }),
                "settings: the default of `a` does not fit its own schema: \"x\" is not of type \"integer\"",
            ),
        ] {
            assert_eq!(check_schema(&schema).unwrap_err().to_string(), message);
        }
        let backtracking =
            json!({ "type": "object", "properties": { "a": { "type": "string", "pattern": "(a)\\1" } } });
        assert!(check_schema(&backtracking).unwrap_err().message().contains("no valid JSON Schema"));
        let named_so = json!({ "type": "object", "properties": { "$ref": { "type": "string" } } });
        check_schema(&named_so).unwrap();
    }

    #[test]
    fn a_pattern_that_would_backtrack_for_ever_takes_no_time() {
        let schema = json!({ "type": "object", "properties": { "a": { "type": "string", "pattern": "^(a+)+$" } } });
        check_schema(&schema).unwrap();
        let started = std::time::Instant::now();
        resolve(&schema, &json!({ "a": "a".repeat(5000) + "!" })).unwrap_err();
        assert!(started.elapsed().as_secs() < 2);
    }
}
