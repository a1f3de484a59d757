//! A tokenizer as GGUF metadata: its tokens by id with their kinds, merges or scores, special tokens, chat template.
//!
//! llama.cpp knows two kinds that matter here: `gpt2`, byte-level BPE with its merges and a named pre-tokenizer, and
//! `llama`, SentencePiece's BPE, which merges by scores.

use std::collections::BTreeMap;

use serde_json::Value;

use super::writer::Meta;
use crate::model::gguf::pretokenizer;
use crate::model::{BaseModel, TextTokenizer};
use crate::{Error, Result};

// Kinds of tokens in the format.
const NORMAL: i32 = 1;
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;
const BYTE: i32 = 6;

/// A token.
struct Token {
    text: String,
    kind: i32,
}

/// The tokenizer's metadata.
///
/// # Errors
/// When llama.cpp has nothing like this tokenizer.
pub(super) fn metadata(base: &BaseModel) -> Result<Vec<(String, Meta)>> {
    let json: Value = serde_json::from_str(&base.tokenizer.to_json()?)
        .map_err(|e| Error::internal(format!("the tokenizer is not JSON: {e}")))?;
    let model = &json["model"];
    let unsupported = |what: String| {
        Error::model(format!("the tokenizer of {} can't be written as GGUF: {what}", base.origin))
            .help("export with `--format hf`")
    };
    if model["type"] != "BPE" {
        return Err(unsupported(format!("it is of the type {}, and only BPE is supported", model["type"])));
    }
    let is_byte_level = json["pre_tokenizer"].to_string().contains("\"ByteLevel\"");
    if !is_byte_level && model["byte_fallback"] != true {
        return Err(unsupported("it is neither byte-level nor falls back to bytes".to_string()));
    }
    let tokens = tokens(base, &json, is_byte_level).map_err(unsupported)?;
    let merges = merges(model).map_err(unsupported)?;

    let mut out = Vec::new();
    let mut put = |key: &str, value: Meta| out.push((format!("tokenizer.ggml.{key}"), value));
    if is_byte_level {
        let pre = pretokenizer::name_of(base.tokenizer.inner())
            .ok_or_else(|| unsupported("llama.cpp has no pre-tokenizer that cuts texts as it does".to_string()))?;
        put("model", Meta::Text("gpt2".to_string()));
        put("pre", Meta::Text(pre.to_string()));
    } else {
        put("model", Meta::Text("llama".to_string()));
        put("pre", Meta::Text("default".to_string()));
        put("scores", Meta::F32s(scores(&tokens, &merges)));
    }
    put("tokens", Meta::Texts(tokens.iter().map(|t| t.text.clone()).collect()));
    put("token_type", Meta::I32s(tokens.iter().map(|t| t.kind).collect()));
    if is_byte_level {
        put("merges", Meta::Texts(merges.iter().map(|(left, right)| format!("{left} {right}")).collect()));
    }
    let unknown = model["unk_token"].as_str().and_then(|text| base.tokenizer.id(text));
    let specials = [
        ("bos_token_id", base.tokenizer.bos().map(|t| t.id)),
        ("eos_token_id", base.tokenizer.eos().map(|t| t.id)),
        ("unknown_token_id", unknown),
        ("padding_token_id", base.tokenizer.pad().map(|t| t.id)),
        // A model with two tokens that end a turn: the tokenizer's own, and one more.
        ("eot_token_id", base.tokenizer.stop_ids().get(1).copied()),
    ];
    for (key, id) in specials {
        if let Some(id) = id {
            put(key, Meta::U32(id));
        }
    }
    let (add_bos, add_eos) = added(&base.tokenizer)?;
    put("add_bos_token", Meta::Bool(add_bos));
    put("add_eos_token", Meta::Bool(add_eos));
    if !is_byte_level {
        put("add_space_prefix", Meta::Bool(prefixes_space(&json)));
    }
    if let Some(template) = &base.chat_template {
        out.push(("tokenizer.chat_template".to_string(), Meta::Text(template.clone())));
    }
    Ok(out)
}

/// Every row of the embedding has a token; rows that the tokenizer doesn't know get a name of their own.
fn tokens(base: &BaseModel, json: &Value, is_byte_level: bool) -> Result<Vec<Token>, String> {
    let rows = base.spec.vocab;
    let mut texts: BTreeMap<usize, (String, i32)> = BTreeMap::new();
    let unknown = json["model"]["unk_token"].as_str();
    for (text, id) in json["model"]["vocab"].as_object().ok_or("it has no vocabulary")? {
        let id = id.as_u64().ok_or_else(|| format!("the id of {text} is not a number"))? as usize;
        let is_byte = text.len() == 6 && text.starts_with("<0x") && text.ends_with('>');
        let kind = match () {
            () if !is_byte_level && unknown == Some(text.as_str()) => UNKNOWN,
            () if !is_byte_level && is_byte => BYTE,
            () => NORMAL,
        };
        texts.insert(id, (text.clone(), kind));
    }
    for token in json["added_tokens"].as_array().map(Vec::as_slice).unwrap_or_default() {
        let (Some(text), Some(id)) = (token["content"].as_str(), token["id"].as_u64()) else { continue };
        let kind = match token["special"].as_bool() {
            _ if !is_byte_level && unknown == Some(text) => UNKNOWN,
            Some(true) => CONTROL,
            // Some models have control tokens that they don't mark as special; llama.cpp's converter sees it by the name.
            _ if text == "<pad>" || (text.starts_with("<|") && text.ends_with("|>")) => CONTROL,
            // llama.cpp takes a user's token as it stands, and keeps spaces in it as spaces.
            _ => USER_DEFINED,
        };
        texts.insert(id as usize, (text.to_string(), kind));
    }
    if let Some((id, (text, _))) = texts.last_key_value()
        && *id >= rows
    {
        return Err(format!("token {text} has the id {id}, and the model's embedding has {rows} rows"));
    }
    Ok((0..rows)
        .map(|id| match texts.remove(&id) {
            Some((text, kind)) => Token { text, kind },
            None => Token { text: format!("[PAD{id}]"), kind: UNUSED },
        })
        .collect())
}

/// The merges, written as pairs or, in older files, as `left right`.
fn merges(model: &Value) -> Result<Vec<(String, String)>, String> {
    let merges = model["merges"].as_array().ok_or("it has no merges")?;
    let pair = |merge: &Value| match (merge.as_str(), merge[0].as_str(), merge[1].as_str()) {
        (Some(text), _, _) => text.split_once(' ').map(|(l, r)| (l.to_string(), r.to_string())),
        // GGUF separates the two by a space, and llama.cpp's converter writes one inside as GPT-2 writes bytes.
        (_, Some(left), Some(right)) => Some((left.replace(' ', "Ġ"), right.replace(' ', "Ġ"))),
        _ => None,
    };
    merges.iter().map(|m| pair(m).ok_or_else(|| format!("its merge {m} is not two tokens"))).collect()
}

/// SentencePiece's scores, by which llama.cpp merges: the pair that makes the piece with the highest score goes first.
/// A piece's score is minus the rank of the first merge that makes it, so that both merge in the same order; pieces that
/// no merge makes come after them all, as in SentencePiece's own files.
fn scores(tokens: &[Token], merges: &[(String, String)]) -> Vec<f32> {
    let mut ranks: BTreeMap<String, usize> = BTreeMap::new();
    for (rank, (left, right)) in merges.iter().enumerate() {
        ranks.entry(format!("{left}{right}")).or_insert(rank);
    }
    let mut singles = merges.len();
    tokens
        .iter()
        .map(|token| match (token.kind, ranks.get(&token.text)) {
            (NORMAL, Some(rank)) => -(*rank as f32),
            (NORMAL, None) => {
                singles += 1;
                -((singles - 1) as f32)
            }
            _ => 0.0,
        })
        .collect()
}

/// Whether the tokenizer puts bos before a text, and eos after it.
fn added(tokenizer: &TextTokenizer) -> Result<(bool, bool)> {
    let ids = tokenizer.encode("a", true)?;
    let is = |id: Option<&u32>, token: Option<u32>| token.is_some() && id.copied() == token;
    Ok((is(ids.first(), tokenizer.bos().map(|t| t.id)), is(ids.last(), tokenizer.eos().map(|t| t.id))))
}

/// Whether a space goes before a text: by the normaliser (`Prepend`), or by the pre-tokenizer (`Metaspace`).
fn prefixes_space(json: &Value) -> bool {
    let prepends = json["normalizer"].to_string().contains("\"Prepend\"");
    let metaspace = &json["pre_tokenizer"];
    let is_metaspace = metaspace["type"] == "Metaspace" && metaspace["prepend_scheme"] != "never";
    prepends || is_metaspace
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_give_the_order_of_the_merges() {
        let token = |text: &str, kind| Token { text: text.to_string(), kind };
        let tokens =
            [token("<s>", CONTROL), token("a", NORMAL), token("b", NORMAL), token("ab", NORMAL), token("abb", NORMAL)];
        let pair = |l: &str, r: &str| (l.to_string(), r.to_string());
        let merges = [pair("a", "b"), pair("ab", "b"), pair("a", "bb")];
        assert_eq!(scores(&tokens, &merges), [0.0, -3.0, -4.0, 0.0, -1.0]);
    }

    #[test]
    fn merges_are_read_in_both_spellings() {
        let model = serde_json::json!({"merges": ["a b", ["c ", "d"]]});
        let pair = |l: &str, r: &str| (l.to_string(), r.to_string());
        assert_eq!(merges(&model), Ok(vec![pair("a", "b"), pair("cĠ", "d")]));
        assert!(merges(&serde_json::json!({"merges": [3]})).is_err());
    }
}
