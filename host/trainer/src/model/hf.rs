//! A model in a Hugging Face directory: `config.json`, safetensors, tokenizer, chat template, stop ids.

use std::path::Path;

use serde_json::Value;
use tokenizers::{AddedToken, Tokenizer};

use super::tokenizer::{Specials, TextTokenizer};
use crate::report::{Event, Observer};
use crate::{Error, ErrorKind, Result};

/// Reads a JSON file of the directory, or `None` if it isn't there.
pub(super) fn read_json(directory: &Path, name: &str) -> Result<Option<Value>> {
    let path = directory.join(name);
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::io(ErrorKind::Model, "read", &path, &e)),
    };
    match serde_json::from_str::<Value>(&text) {
        Ok(value) if value.is_object() => Ok(Some(value)),
        Ok(_) => Err(Error::model(format!("{}: expected a JSON object", path.display()))),
        Err(e) => Err(Error::model(format!("{}: not valid JSON: {e}", path.display())).help("fetch the file again")),
    }
}

/// Reads the tokenizer and chat template of the directory.
///
/// # Errors
/// `tokenizer.json` is missing or damaged, or another file is damaged.
pub(super) fn tokenizer(
    directory: &Path,
    config: &Value,
    embedding_rows: usize,
    observer: &mut dyn Observer,
) -> Result<(TextTokenizer, Option<String>)> {
    let path = directory.join("tokenizer.json");
    if !path.exists() {
        return Err(no_tokenizer(directory));
    }
    let mut tokenizer = parse_tokenizer(&path)?;
    let settings = read_json(directory, "tokenizer_config.json")?.unwrap_or(Value::Null);
    let map = read_json(directory, "special_tokens_map.json")?.unwrap_or(Value::Null);
    let generation = read_json(directory, "generation_config.json")?.unwrap_or(Value::Null);
    add_declared_tokens(&mut tokenizer, &settings).map_err(|e| e.at(directory.display()))?;

    let named = |key: &str| {
        let by_id = || {
            let id = ids(config.get(key_of_id(key))).first().copied();
            id.and_then(|id| tokenizer.id_to_token(id))
        };
        text_of(settings.get(key)).or_else(|| text_of(map.get(key))).or_else(by_id)
    };
    let (bos, eos, pad) = (named("bos_token"), named("eos_token"), named("pad_token"));
    for (role, text) in [("bos_token", &bos), ("eos_token", &eos), ("pad_token", &pad)] {
        if let Some(text) = text.as_deref().filter(|text| tokenizer.token_to_id(text).is_none()) {
            observer
                .on(&Event::Warning(&format!("{role} `{text}` is not in the tokenizer's vocabulary; it is not used")));
        }
    }
    // As transformers does: special tokens are found in texts, even where tokenizer.json has them as plain vocabulary.
    let mut special: Vec<String> = [&bos, &eos, &pad].into_iter().flatten().cloned().collect();
    special.extend(text_of(settings.get("unk_token")).or_else(|| text_of(map.get("unk_token"))));
    for list in
        ["additional_special_tokens", "extra_special_tokens"].map(|key| settings.get(key).and_then(Value::as_array))
    {
        special.extend(list.into_iter().flatten().filter_map(|token| text_of(Some(token))));
    }
    special.retain(|text| !text.is_empty() && tokenizer.token_to_id(text).is_some());
    let special: Vec<AddedToken> =
        special.into_iter().map(|text| AddedToken::from(text, true).normalized(false)).collect();
    tokenizer.add_special_tokens(special).map_err(|e| refused(directory, &e))?;

    // transformers replaces the post-processor where the settings say what to add, or where there is none.
    let flag = |key: &str| settings.get(key).and_then(Value::as_bool);
    let (add_bos, add_eos) = (flag("add_bos_token"), flag("add_eos_token"));
    let explicit = add_bos.is_some() || add_eos.is_some() || tokenizer.get_post_processor().is_none();
    let mut stop_ids = ids(generation.get("eos_token_id"));
    stop_ids.extend(ids(config.get("eos_token_id")));
    let specials = Specials {
        bos,
        eos,
        pad,
        stop_ids,
        adds: explicit.then_some((add_bos.unwrap_or(false), add_eos.unwrap_or(false))),
    };
    let tokenizer = TextTokenizer::new(tokenizer, specials, embedding_rows)?;
    Ok((tokenizer, chat_template(directory, &settings)?))
}

/// Reads `tokenizer.json`. The library that reads it panics on some damaged files, so the file is first checked to be
/// JSON, which is what it takes for granted, and a panic that is left is caught.
fn parse_tokenizer(path: &Path) -> Result<Tokenizer> {
    let text = std::fs::read_to_string(path).map_err(|e| Error::io(ErrorKind::Model, "read", path, &e))?;
    let unusable = |why: String| {
        Error::model(format!("{}: not a usable tokenizer: {why}", path.display())).help("fetch the file again")
    };
    serde_json::from_str::<serde::de::IgnoredAny>(&text).map_err(|e| unusable(format!("not valid JSON: {e}")))?;
    match std::panic::catch_unwind(|| Tokenizer::from_bytes(text.as_bytes())) {
        Ok(Ok(tokenizer)) => Ok(tokenizer),
        Ok(Err(e)) => Err(unusable(e.to_string())),
        Err(_) => Err(unusable("it contradicts itself".to_string())),
    }
}

fn key_of_id(key: &str) -> &'static str {
    match key {
        "bos_token" => "bos_token_id",
        "eos_token" => "eos_token_id",
        _ => "pad_token_id",
    }
}

/// A special token's text, which is given as a string or as an object with `content`.
fn text_of(value: Option<&Value>) -> Option<String> {
    match value? {
        Value::String(text) => Some(text.clone()),
        Value::Object(token) => token.get("content")?.as_str().map(String::from),
        _ => None,
    }
}

/// Token ids, which are given as a number or as a list.
fn ids(value: Option<&Value>) -> Vec<u32> {
    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    match value {
        Some(Value::Array(list)) => list.iter().filter_map(id).collect(),
        Some(single) => id(single).into_iter().collect(),
        None => Vec::new(),
    }
}

/// Adds the tokens that `tokenizer_config.json` declares and `tokenizer.json` lacks, as transformers does.
fn add_declared_tokens(tokenizer: &mut Tokenizer, settings: &Value) -> Result<()> {
    let Some(declared) = settings.get("added_tokens_decoder").and_then(Value::as_object) else { return Ok(()) };
    let mut declared: Vec<(u32, &Value)> =
        declared.iter().filter_map(|(id, token)| Some((id.parse().ok()?, token))).collect();
    declared.sort_by_key(|(id, _)| *id);
    let known = tokenizer.get_added_tokens_decoder();
    let mut missing = Vec::new();
    for (id, token) in declared.into_iter().filter(|(id, _)| !known.contains_key(id)) {
        let Some(text) = text_of(Some(token)) else { continue };
        let flag = |key: &str| token.get(key).and_then(Value::as_bool);
        let special = flag("special").unwrap_or(false);
        let added = AddedToken::from(text.clone(), special)
            .single_word(flag("single_word").unwrap_or(false))
            .lstrip(flag("lstrip").unwrap_or(false))
            .rstrip(flag("rstrip").unwrap_or(false))
            .normalized(flag("normalized").unwrap_or(!special));
        missing.push((id, text, added));
    }
    let tokens: Vec<AddedToken> = missing.iter().map(|(_, _, token)| token.clone()).collect();
    tokenizer
        .add_tokens(tokens)
        .map_err(|e| Error::model(format!("tokenizer_config.json: its added tokens are refused: {e}")))?;
    match missing.iter().find(|(id, text, _)| tokenizer.token_to_id(text) != Some(*id)) {
        None => Ok(()),
        Some((id, text, _)) => Err(Error::model(format!(
            "tokenizer_config.json gives token `{text}` id {id}, but tokenizer.json makes it {:?}",
            tokenizer.token_to_id(text)
        ))
        .help("the two files are not of the same tokenizer")),
    }
}

/// The chat template: `chat_template.jinja`, or that of `tokenizer_config.json` (of several, the one called `default`).
fn chat_template(directory: &Path, settings: &Value) -> Result<Option<String>> {
    let path = directory.join("chat_template.jinja");
    match std::fs::read_to_string(&path) {
        Ok(template) => return Ok(Some(template)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
        Err(e) => return Err(Error::io(ErrorKind::Model, "read", &path, &e)),
    }
    Ok(match settings.get("chat_template") {
        Some(Value::String(template)) => Some(template.clone()),
        Some(Value::Array(templates)) => templates
            .iter()
            .find(|entry| entry.get("name").and_then(Value::as_str) == Some("default"))
            .and_then(|entry| entry.get("template")?.as_str().map(String::from)),
        _ => None,
    })
}

fn refused(directory: &Path, error: &tokenizers::Error) -> Error {
    Error::model(format!("{}: the special tokens are refused: {error}", directory.display()))
}

fn no_tokenizer(directory: &Path) -> Error {
    let error = Error::model(format!("{}: tokenizer.json is missing", directory.display()));
    let older = ["tokenizer.model", "vocab.json"].into_iter().find(|name| directory.join(name).exists());
    match older {
        Some(older) => error.help(format!(
            "{older} alone is not supported; `AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)` of transformers \
             writes tokenizer.json"
        )),
        None => error.help("fetch it from where the model came from"),
    }
}
