//! Values in, a typed struct of settings out, or an error that a person can act on.
//!
//! The configuration's sections and the policies' settings are checked by the same function, so that unknown keys,
//! wrong types and wrong choices read the same everywhere. Every message begins with the setting's dotted path in
//! backquotes, which [`super::Places::locate`] turns into file and line.

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::suggest;
use crate::Error;

/// Other trainers' names for settings, and ours.
const SYNONYMS: [(&str, &str); 40] = [
    ("learning_rate", "optimizer.lr"),
    ("adam_epsilon", "optimizer.eps"),
    ("adam_beta1", "optimizer.betas"),
    ("adam_beta2", "optimizer.betas"),
    ("num_train_epochs", "train.epochs"),
    ("num_epochs", "train.epochs"),
    ("max_steps", "train.steps"),
    ("per_device_train_batch_size", "train.batch_size"),
    ("gradient_accumulation_steps", "train.micro_batch_examples"),
    ("micro_batch_size", "train.micro_batch_examples"),
    ("eval_steps", "train.eval_every"),
    ("save_steps", "train.checkpoint_every"),
    ("save_total_limit", "train.keep_checkpoints"),
    ("gradient_checkpointing", "train.recompute"),
    ("grad_clip", "train.max_grad_norm"),
    ("dtype", "train.weights"),
    ("lr_scheduler_type", "schedule.name"),
    ("lr_scheduler", "schedule.name"),
    ("base_model", "model"),
    ("model_name_or_path", "model"),
    ("output_dir", "out"),
    ("max_seq_length", "data.max_length"),
    ("lora_r", "policy.rank"),
    ("lora_alpha", "policy.alpha"),
    ("lora_dropout", "policy.dropout"),
    ("target_modules", "policy.targets"),
    ("r", "policy.rank"),
    ("exclude_modules", "policy.exclude"),
    ("layers_to_transform", "policy.blocks"),
    ("rank_pattern", "policy.ranks"),
    ("alpha_pattern", "policy.alphas"),
    ("use_rslora", "policy.rslora"),
    ("use_dora", "policy.dora"),
    ("load_in_4bit", "storage.frozen"),
    ("load_in_8bit", "storage.frozen"),
    ("bnb_4bit_quant_type", "storage.frozen"),
    ("bnb_4bit_use_double_quant", "storage.double_quantization"),
    ("optimizer_in_bwd", "train.update_in_backward"),
    ("optim", "optimizer.name"),
    ("loraplus_lr_ratio", "policy.lora_plus_ratio"),
];

/// Reads `value` as `T`. `prefix` is the dotted path of what `value` holds (`train`), empty at the top; `elsewhere`
/// lists settings of other sections by their full paths, for keys written in the wrong one.
pub fn parse<T: DeserializeOwned>(
    value: Value,
    prefix: &str,
    elsewhere: &[String],
    make_error: fn(String) -> Error,
) -> Result<T, Error> {
    serde_path_to_error::deserialize(value).map_err(|error| {
        let inside = error.path().to_string();
        let inside = if inside == "." { "" } else { &inside };
        explain(&error.inner().to_string(), prefix, inside, elsewhere, make_error)
    })
}

/// The names of the settings that `T` knows, found by asking for one it cannot know.
pub fn names<T: DeserializeOwned>() -> Vec<String> {
    let probe = serde_json::json!({ "\u{1}": null });
    match serde_json::from_value::<T>(probe) {
        Ok(_) => Vec::new(),
        Err(error) => quoted(&error.to_string()).into_iter().skip(1).collect(),
    }
}

/// Turns serde's message about the setting at `prefix` + `inside` into ours.
fn explain(message: &str, prefix: &str, inside: &str, elsewhere: &[String], make_error: fn(String) -> Error) -> Error {
    let path = join(prefix, inside);
    let words = quoted(message);
    if message.starts_with("unknown field") {
        let key = words.first().cloned().unwrap_or_default();
        let section = if inside == key {
            prefix.to_string()
        } else {
            path.strip_suffix(&format!(".{key}")).unwrap_or(&path).to_string()
        };
        return unknown_key(&section, &key, &words[1..], elsewhere, make_error);
    }
    if message.starts_with("unknown variant") {
        let (given, known) = words.split_first().map(|(a, b)| (a.as_str(), b)).unwrap_or(("", &[]));
        let error = make_error(format!("`{path}` cannot be \"{given}\""));
        let known: Vec<_> = known.iter().map(|name| format!("\"{name}\"")).collect();
        return match suggest::nearest(&format!("\"{given}\""), known.iter().map(String::as_str)) {
            Some(name) => error.help(format!("did you mean {name}? It can be {}", suggest::list(&known))),
            None => error.help(format!("it can be {}", suggest::list(&known))),
        };
    }
    if message.starts_with("missing field") {
        let key = words.first().cloned().unwrap_or_default();
        return make_error(format!("`{}` is missing", join(&path, &key)));
    }
    let expected = |text: &str| {
        let text = text.trim();
        match text {
            "u8" | "u16" | "u32" | "u64" | "usize" => "a whole number of at least 0",
            "i8" | "i16" | "i32" | "i64" | "isize" => "a whole number",
            "f32" | "f64" => "a number",
            "a boolean" => "true or false",
            "a sequence" => "a list",
            "a map" => "a table",
            _ => text,
        }
        .to_string()
    };
    let given = |text: &str| {
        let (kind, value) = text.split_once(' ').unwrap_or((text, ""));
        match (kind, value) {
            ("map", _) => "a table".to_string(),
            ("sequence", _) => "a list".to_string(),
            ("string", value) => format!("the string {value}"),
            ("boolean" | "integer", value) => value.trim_matches('`').to_string(),
            ("floating", value) => value.trim_start_matches("point ").trim_matches('`').to_string(),
            _ => text.to_string(),
        }
    };
    for start in ["invalid type: ", "invalid value: "] {
        if let Some((was, wanted)) = message.strip_prefix(start).and_then(|rest| rest.split_once(", expected ")) {
            let wanted = wanted.strip_prefix("struct ").map_or_else(|| expected(wanted), |_| "a table".to_string());
            return make_error(format!("`{path}` must be {wanted}, not {}", given(was)));
        }
    }
    let message = message.strip_prefix("invalid length ").map_or_else(
        || message.to_string(),
        |rest| format!("it has {}", rest.replace(", expected", " entries, expected")),
    );
    if path.is_empty() { make_error(message) } else { make_error(format!("`{path}`: {message}")) }
}

/// The error for a key that nobody knows, with the likeliest of those that are known.
pub fn unknown_key(
    section: &str,
    key: &str,
    known: &[String],
    elsewhere: &[String],
    make_error: fn(String) -> Error,
) -> Error {
    let error = make_error(format!("`{}` is not a known setting", join(section, key)));
    let here = |name: &str| join(section, name);
    let exists = |path: &str| {
        known.iter().any(|name| here(name) == path)
            || elsewhere.iter().any(|other| other == path)
            || (!elsewhere.is_empty() && path.starts_with("policy."))
    };
    let synonym = SYNONYMS.iter().find(|(theirs, ours)| *theirs == key && exists(ours)).map(|(_, ours)| *ours);
    let suggestion = synonym
        .map(str::to_string)
        .or_else(|| elsewhere.iter().find(|path| path.rsplit('.').next() == Some(key) && **path != here(key)).cloned())
        .or_else(|| suggest::nearest(key, known.iter().map(String::as_str)).map(here))
        .or_else(|| {
            let last = |path: &'_ String| path.rsplit('.').next().unwrap_or_default().to_string();
            let keys: Vec<String> = elsewhere.iter().map(last).collect();
            let near = suggest::nearest(key, keys.iter().map(String::as_str))?;
            elsewhere.iter().find(|path| last(path) == near).cloned()
        });
    match suggestion {
        Some(path) => error.help(format!("did you mean `{path}`?")),
        None if known.is_empty() => error.help("nothing can be set here"),
        None => {
            let known: Vec<_> = known.iter().map(|name| format!("`{name}`")).collect();
            error.help(format!("it can be {}", suggest::list(&known)))
        }
    }
}

fn join(prefix: &str, key: &str) -> String {
    match (prefix.is_empty(), key.is_empty()) {
        (true, _) => key.to_string(),
        (_, true) => prefix.to_string(),
        _ => format!("{prefix}.{key}"),
    }
}

/// The words that serde's message puts in backquotes.
fn quoted(message: &str) -> Vec<String> {
    message.split('`').skip(1).step_by(2).map(str::to_string).collect()
}
