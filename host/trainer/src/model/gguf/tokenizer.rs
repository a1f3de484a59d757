//! GGUF metadata → tokenizer: byte-level BPE (`gpt2`) and SentencePiece-like BPE (`llama`).
//!
//! The result is what `tokenizer.json` of the original model holds, so that texts get the same ids in both.

use std::collections::BTreeMap;

use serde_json::{Value as Json, json};
use tokenizers::models::bpe::{BPE, Merges, Vocab};
use tokenizers::{AddedToken, DecoderWrapper, NormalizerWrapper, PreTokenizerWrapper, Tokenizer};

use super::Value;
use super::config::{number, text};
use super::pretokenizer::{self, PreTokenizer};
use crate::model::tokenizer::{Specials, TextTokenizer};
use crate::report::{Event, Observer};
use crate::{Error, Result};

type Metadata = BTreeMap<String, Value>;

/// The kinds of a token in `tokenizer.ggml.token_type`.
const UNKNOWN: u64 = 2;
const CONTROL: u64 = 3;
const USER_DEFINED: u64 = 4;
const BYTE: u64 = 6;

/// Builds the tokenizer, and returns it with the chat template. `embedding_rows` are the model's.
pub(super) fn build(
    metadata: &Metadata,
    embedding_rows: usize,
    observer: &mut dyn Observer,
) -> Result<(TextTokenizer, Option<String>)> {
    let kind = text(metadata, "tokenizer.ggml.model")?
        .ok_or_else(|| Error::model("the file has no tokenizer (`tokenizer.ggml.model` is missing)"))?;
    let tokens = strings(metadata, "tokenizer.ggml.tokens")?
        .ok_or_else(|| Error::model("metadata `tokenizer.ggml.tokens` is missing"))?;
    if tokens.is_empty() || tokens.len() > u32::MAX as usize {
        return Err(Error::model(format!("metadata `tokenizer.ggml.tokens` has {} tokens", tokens.len())));
    }
    let types = token_types(metadata, tokens.len())?;
    let (mut tokenizer, adds_bos) = match kind {
        "gpt2" => byte_level(metadata, &tokens, observer)?,
        "llama" => sentence_piece(metadata, &tokens, types.as_deref())?,
        other => {
            return Err(Error::model(format!(
                "tokenizers of type `{other}` (`tokenizer.ggml.model`) are not supported"
            ))
            .help("supported: gpt2, llama"));
        }
    };

    let special = |name: &str| -> Result<Option<String>> {
        let key = format!("tokenizer.ggml.{name}_token_id");
        match number(metadata, &key)? {
            None => Ok(None),
            Some(id) => match usize::try_from(id).ok().and_then(|id| tokens.get(id)) {
                Some(token) => Ok(Some(token.clone())),
                None => Err(Error::model(format!("metadata `{key}` is {id}, but there are {} tokens", tokens.len()))),
            },
        }
    };
    let (bos, eos, pad) = (special("bos")?, special("eos")?, special("padding")?);
    let mut added = Vec::new();
    match &types {
        Some(types) => {
            for (token, kind) in tokens.iter().zip(types) {
                match *kind {
                    CONTROL | UNKNOWN => added.push(AddedToken::from(token.clone(), true).normalized(false)),
                    USER_DEFINED => added.push(AddedToken::from(token.clone(), false).normalized(false)),
                    _ => {}
                }
            }
        }
        None => {
            let unknown = special("unknown")?;
            for token in [&bos, &eos, &pad, &unknown].into_iter().flatten() {
                added.push(AddedToken::from(token.clone(), true).normalized(false));
            }
        }
    }
    // In one call, in the order of their ids: each call rebuilds the search automaton.
    added.retain(|token| !token.content.is_empty());
    tokenizer.add_tokens(added).map_err(inconsistent)?;

    let adds = |name: &str, default: bool| -> Result<bool> {
        let key = format!("tokenizer.ggml.add_{name}_token");
        match metadata.get(&key) {
            None => Ok(default),
            Some(Value::Bool(adds)) => Ok(*adds),
            Some(_) => Err(Error::model(format!("metadata `{key}` is not a truth value"))),
        }
    };
    let mut stop_ids = Vec::new();
    for name in ["eot", "eom"] {
        if let Some(token) = special(name)?.and_then(|token| tokenizer.token_to_id(&token)) {
            stop_ids.push(token);
        }
    }
    let specials = Specials { bos, eos, pad, stop_ids, adds: Some((adds("bos", adds_bos)?, adds("eos", false)?)) };
    let tokenizer = TextTokenizer::new(tokenizer, specials, embedding_rows)?;
    Ok((tokenizer, text(metadata, "tokenizer.chat_template")?.map(String::from)))
}

/// Byte-level BPE. Returns the tokenizer and whether it puts bos in front by default.
fn byte_level(metadata: &Metadata, tokens: &[String], observer: &mut dyn Observer) -> Result<(Tokenizer, bool)> {
    let merges = strings(metadata, "tokenizer.ggml.merges")?
        .ok_or_else(|| Error::model("metadata `tokenizer.ggml.merges` is missing; a `gpt2` tokenizer needs it"))?;
    let merges = pairs(&merges)?;
    let pre = pre_tokenizer(metadata, observer)?;
    let bpe = BPE::builder()
        .vocab_and_merges(vocabulary(tokens), merges)
        .ignore_merges(pre.ignore_merges)
        .build()
        .map_err(inconsistent)?;
    let mut tokenizer = Tokenizer::new(bpe);
    tokenizer.with_normalizer(part::<Option<NormalizerWrapper>>(pre.normalizer_json())?).map_err(inconsistent)?;
    tokenizer.with_pre_tokenizer(part::<Option<PreTokenizerWrapper>>(pre.pre_tokenizer_json())?);
    let decoder = json!({ "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true });
    tokenizer.with_decoder(part::<Option<DecoderWrapper>>(decoder)?);
    Ok((tokenizer, pre.adds_bos))
}

/// Merges from their text form, two tokens with a space between them.
fn pairs(merges: &[String]) -> Result<Merges> {
    let pair = |merge: &String| match merge.split_once(' ') {
        Some((left, right)) => Ok((left.to_string(), right.to_string())),
        None => Err(Error::model(format!("merge `{merge}` in `tokenizer.ggml.merges` is not two tokens"))),
    };
    merges.iter().map(pair).collect()
}

/// The pre-tokenizer by its name; where a file names none (or `default`), the family's.
fn pre_tokenizer(metadata: &Metadata, observer: &mut dyn Observer) -> Result<PreTokenizer> {
    let named = text(metadata, "tokenizer.ggml.pre")?.filter(|name| *name != "default");
    let name = match named {
        Some(name) => name,
        None => {
            let guess = match text(metadata, "general.architecture")? {
                Some("qwen2" | "qwen3") => "qwen2",
                _ => "gpt-2",
            };
            observer.on(&Event::Warning(&format!(
                "the GGUF file does not name its pre-tokenizer (`tokenizer.ggml.pre`); using `{guess}`"
            )));
            guess
        }
    };
    pretokenizer::by_name(name).ok_or_else(|| {
        Error::model(format!("pre-tokenizer `{name}` (`tokenizer.ggml.pre`) is not supported"))
            .help(format!("supported: {}", pretokenizer::names()))
    })
}

/// SentencePiece's BPE with byte fallback, as transformers rebuilds it: spaces become `▁`, one is put in front, and the
/// merges follow from the scores.
fn sentence_piece(metadata: &Metadata, tokens: &[String], types: Option<&[u64]>) -> Result<(Tokenizer, bool)> {
    let vocab = vocabulary(tokens);
    let merges = match strings(metadata, "tokenizer.ggml.merges")? {
        Some(merges) => pairs(&merges)?,
        None => merges_from_scores(metadata, tokens, types, &vocab)?,
    };
    let unknown = match number(metadata, "tokenizer.ggml.unknown_token_id")? {
        Some(id) => usize::try_from(id).ok().and_then(|id| tokens.get(id)).cloned(),
        None => Some("<unk>".to_string()).filter(|unknown| vocab.contains_key(unknown)),
    };
    let mut builder = BPE::builder().vocab_and_merges(vocab, merges).fuse_unk(true).byte_fallback(true);
    if let Some(unknown) = unknown {
        builder = builder.unk_token(unknown);
    }
    let bpe = builder.build().map_err(inconsistent)?;
    let prefix = match metadata.get("tokenizer.ggml.add_space_prefix") {
        None => true,
        Some(Value::Bool(prefix)) => *prefix,
        Some(_) => return Err(Error::model("metadata `tokenizer.ggml.add_space_prefix` is not a truth value")),
    };
    let mut tokenizer = Tokenizer::new(bpe);
    let replace = json!({ "type": "Replace", "pattern": { "String": " " }, "content": "▁" });
    let mut normalizers = vec![replace];
    let mut decoders = vec![
        json!({ "type": "Replace", "pattern": { "String": "▁" }, "content": " " }),
        json!({ "type": "ByteFallback" }),
        json!({ "type": "Fuse" }),
    ];
    if prefix {
        normalizers.insert(0, json!({ "type": "Prepend", "prepend": "▁" }));
        decoders.push(json!({ "type": "Strip", "content": " ", "start": 1, "stop": 0 }));
    }
    let normalizer = json!({ "type": "Sequence", "normalizers": normalizers });
    tokenizer.with_normalizer(part::<Option<NormalizerWrapper>>(normalizer)?).map_err(inconsistent)?;
    tokenizer.with_decoder(part::<Option<DecoderWrapper>>(json!({ "type": "Sequence", "decoders": decoders }))?);
    Ok((tokenizer, true))
}

/// The merges behind SentencePiece's scores: every way to put a piece together from two others, best piece first.
/// The order among equals is that of `generate_merges` in transformers.
fn merges_from_scores(metadata: &Metadata, tokens: &[String], types: Option<&[u64]>, vocab: &Vocab) -> Result<Merges> {
    let scores: Vec<f32> = match metadata.get("tokenizer.ggml.scores") {
        Some(Value::Array(scores)) => scores.iter().filter_map(|score| score.to_f32().ok()).collect(),
        _ => return Err(Error::model("metadata has neither `tokenizer.ggml.merges` nor `tokenizer.ggml.scores`")),
    };
    if scores.len() != tokens.len() {
        return Err(Error::model(format!(
            "`tokenizer.ggml.scores` has {} scores for {} tokens",
            scores.len(),
            tokens.len()
        )));
    }
    let is_piece = |id: usize| types.is_none_or(|types| !matches!(types[id], UNKNOWN | CONTROL | BYTE));
    let mut merges: Vec<(f32, usize, usize, &str, &str)> = Vec::new();
    for (_, (token, &score)) in tokens.iter().zip(&scores).enumerate().filter(|(id, _)| is_piece(*id)) {
        let mut ways: Vec<(u32, u32, usize)> = token
            .char_indices()
            .skip(1)
            .filter_map(|(at, _)| Some((*vocab.get(&token[..at])?, *vocab.get(&token[at..])?, at)))
            .collect();
        ways.sort();
        for (_, _, at) in ways {
            let (left, right) = token.split_at(at);
            merges.push((score, left.chars().count(), right.chars().count(), left, right));
        }
    }
    merges.sort_by(|a, b| b.0.total_cmp(&a.0).then(b.1.cmp(&a.1)).then(b.2.cmp(&a.2)));
    Ok(merges.into_iter().map(|(_, _, _, left, right)| (left.to_string(), right.to_string())).collect())
}

fn vocabulary(tokens: &[String]) -> Vocab {
    tokens.iter().enumerate().map(|(id, token)| (token.clone(), id as u32)).collect()
}

/// A part of a tokenizer from its JSON form, which this file wrote.
fn part<T: serde::de::DeserializeOwned>(json: Json) -> Result<T> {
    serde_json::from_value(json).map_err(|e| Error::internal(format!("tokenizer part: {e}")))
}

fn inconsistent(error: tokenizers::Error) -> Error {
    Error::model(format!("the tokenizer in the metadata is inconsistent: {error}"))
}

fn strings(metadata: &Metadata, key: &str) -> Result<Option<Vec<String>>> {
    match metadata.get(key) {
        None => Ok(None),
        Some(Value::Array(values)) => values
            .iter()
            .map(|value| match value {
                Value::String(text) => Ok(text.clone()),
                _ => Err(Error::model(format!("metadata `{key}` holds something else than strings"))),
            })
            .collect::<Result<_>>()
            .map(Some),
        Some(_) => Err(Error::model(format!("metadata `{key}` is not an array"))),
    }
}

fn token_types(metadata: &Metadata, tokens: usize) -> Result<Option<Vec<u64>>> {
    let key = "tokenizer.ggml.token_type";
    let Some(value) = metadata.get(key) else { return Ok(None) };
    let types: Option<Vec<u64>> = match value {
        Value::Array(values) => values
            .iter()
            .map(|value| match value {
                Value::I32(kind) => u64::try_from(*kind).ok(),
                other => other.to_u64().ok(),
            })
            .collect(),
        _ => None,
    };
    match types {
        Some(types) if types.len() == tokens => Ok(Some(types)),
        Some(types) => Err(Error::model(format!("`{key}` has {} entries for {tokens} tokens", types.len()))),
        None => Err(Error::model(format!("metadata `{key}` is not an array of whole numbers"))),
    }
}
