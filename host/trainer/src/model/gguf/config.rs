//! GGUF metadata → Hugging Face's `config.json`, which `arch/` then reads like any other.

use std::collections::BTreeMap;

use serde_json::{Map, Value as Json, json};

use super::{GgufFile, Value};
use crate::model::arch::{self, Family};
use crate::model::weights::Encoding;
use crate::{Error, Result};

type Metadata = BTreeMap<String, Value>;

/// The family of the file, by `general.architecture`.
pub(super) fn family(metadata: &Metadata) -> Result<&'static Family> {
    if let Some(kind) = text(metadata, "general.type")?
        && kind != "model"
    {
        return Err(Error::model(format!("this GGUF file is of type `{kind}`; expected `model`")));
    }
    if let Some(count) = number(metadata, "split.count")?
        && count > 1
    {
        return Err(Error::model(format!("this is one of {count} parts of a split GGUF file"))
            .help("join the parts with `llama-gguf-split --merge` and open the result"));
    }
    let name = text(metadata, "general.architecture")?
        .ok_or_else(|| Error::model("metadata `general.architecture` is missing; is this a model?"))?;
    // llama.cpp keeps Mistral's models as `llama`.
    arch::family(name).filter(|family| family.name != "mistral").ok_or_else(|| {
        Error::model(format!("GGUF models of architecture `{name}` are not supported"))
            .help("supported: llama (which includes Mistral and SmolLM2), qwen2, qwen3")
    })
}

/// Query heads, and key and value heads.
pub(super) fn heads(metadata: &Metadata, family: &Family) -> Result<(usize, usize)> {
    let key = format!("{}.attention.head_count", family.name);
    let heads = required(metadata, &key)?;
    let kv_heads = number(metadata, &format!("{key}_kv"))?.unwrap_or(heads);
    let most = 1 << 24;
    if heads == 0 || kv_heads == 0 || heads > most || kv_heads > most {
        return Err(Error::model(format!("metadata `{key}` is {heads}, `{key}_kv` is {kv_heads}; expected 1 or more")));
    }
    Ok((heads as usize, kv_heads as usize))
}

/// Writes the configuration that the metadata and the tensors' shapes amount to.
pub(super) fn synthesise(gguf: &GgufFile) -> Result<Json> {
    let metadata = &gguf.metadata;
    let family = family(metadata)?;
    let (heads, kv_heads) = heads(metadata, family)?;
    let key = |name: &str| format!("{}.{name}", family.name);
    let hidden = required(metadata, &key("embedding_length"))?;
    let vocab = gguf.tensors.get("model.embed_tokens.weight").and_then(|t| t.shape.first().copied());
    let vocab = vocab.ok_or_else(|| Error::model("tensor `token_embd.weight` is missing"))?;
    if let Some(experts) = number(metadata, &key("expert_count"))?
        && experts > 0
    {
        return Err(Error::model(format!(
            "a mixture of {experts} experts (`{}`) is not supported",
            key("expert_count")
        )));
    }
    let rope_dim = number(metadata, &key("rope.dimension_count"))?;
    let head_dim = match number(metadata, &key("attention.key_length"))?.or(rope_dim) {
        Some(head_dim) => head_dim,
        None => hidden / heads as u64,
    };
    if let Some(rope_dim) = rope_dim.filter(|&dim| dim != head_dim) {
        return Err(Error::model(format!(
            "rotary embedding of {rope_dim} out of {head_dim} elements is not supported"
        )));
    }
    let theta = real(metadata, &key("rope.freq_base"))?.unwrap_or(10_000.0);
    let has = |suffix: &str| gguf.tensors.keys().any(|name| name.ends_with(suffix));

    let mut config = Map::new();
    let mut set = |key: &str, value: Json| config.insert(key.to_string(), value);
    set("architectures", json!([family.class]));
    set("model_type", json!(family.name));
    set("vocab_size", json!(vocab));
    set("hidden_size", json!(hidden));
    set("intermediate_size", json!(required(metadata, &key("feed_forward_length"))?));
    set("num_hidden_layers", json!(required(metadata, &key("block_count"))?));
    set("num_attention_heads", json!(heads));
    set("num_key_value_heads", json!(kv_heads));
    set("head_dim", json!(head_dim));
    set("hidden_act", json!("silu"));
    set("max_position_embeddings", json!(required(metadata, &key("context_length"))?));
    let eps_key = key("attention.layer_norm_rms_epsilon");
    let eps = real(metadata, &eps_key)?.ok_or_else(|| Error::model(format!("metadata `{eps_key}` is missing")))?;
    set("rms_norm_eps", json!(eps));
    set("rope_theta", json!(theta));
    set("rope_scaling", rope_scaling(gguf, family, theta)?);
    set("tie_word_embeddings", json!(!gguf.tensors.contains_key("lm_head.weight")));
    match family.name {
        "llama" | "qwen3" => {
            set("attention_bias", json!(has(".q_proj.bias")));
            if family.name == "llama" {
                set("mlp_bias", json!(has(".up_proj.bias")));
            }
        }
        _ => {}
    }
    for (theirs, ours) in [("bos", "bos_token_id"), ("eos", "eos_token_id"), ("padding", "pad_token_id")] {
        if let Some(id) = number(metadata, &format!("tokenizer.ggml.{theirs}_token_id"))? {
            set(ours, json!(id));
        }
    }
    let dtype = match gguf.tensors.get("model.embed_tokens.weight").map(|t| t.encoding) {
        Some(Encoding::F16) => "float16",
        Some(Encoding::BF16) => "bfloat16",
        _ => "float32",
    };
    set("torch_dtype", json!(dtype));
    Ok(Json::Object(config))
}

/// `rope_scaling` of the configuration: from metadata, or, for Llama 3, from the factors in the tensor `rope_freqs`.
fn rope_scaling(gguf: &GgufFile, family: &Family, theta: f64) -> Result<Json> {
    let metadata = &gguf.metadata;
    let key = |name: &str| format!("{}.rope.{name}", family.name);
    let kind = text(metadata, &key("scaling.type"))?;
    let factor = real(metadata, &key("scaling.factor"))?.or(real(metadata, &key("scale_linear"))?).unwrap_or(1.0);
    if let Some(factors) = gguf.rope_factors.as_deref().filter(|factors| factors.iter().any(|&f| f != 1.0)) {
        return llama3_parameters(factors, theta).ok_or_else(|| {
            Error::model("the factors in `rope_freqs.weight` are not those of Llama 3's rope scaling")
                .help("supported rope types: default, linear, llama3")
        });
    }
    match kind {
        None if factor == 1.0 => Ok(Json::Null),
        Some("none") => Ok(Json::Null),
        None | Some("linear") => Ok(json!({ "rope_type": "linear", "factor": factor })),
        Some(other) => {
            Err(Error::model(format!("rope scaling `{other}` (`{}`) is not supported", key("scaling.type")))
                .help("supported rope types: default, linear, llama3"))
        }
    }
}

/// Llama 3's parameters behind the factors that llama.cpp's converter computed from them, or `None` if there are none.
///
/// A factor is 1 where the wavelength is below `original / high`, `factor` where it is above `original / low`, and the
/// inverse of a blend between them. `low` and `high` are 1 and 4 in all published models; only the rest is searched.
fn llama3_parameters(factors: &[f32], theta: f64) -> Option<Json> {
    let (low, high) = (1.0, 4.0);
    let largest = factors.iter().copied().fold(0f32, f32::max) as f64;
    let factor = if (largest - largest.round()).abs() < 1e-3 { largest.round() } else { largest };
    let fits = |original: f64| {
        factors.iter().enumerate().all(|(index, &found)| {
            let wavelength = std::f64::consts::TAU * theta.powf(index as f64 / factors.len() as f64);
            let expected = if wavelength < original / high {
                1.0
            } else if wavelength > original / low {
                factor
            } else {
                let smooth = (original / wavelength - low) / (high - low);
                1.0 / ((1.0 - smooth) / factor + smooth)
            };
            (found as f64 - expected).abs() <= 1e-3 * expected
        })
    };
    // 8192 is what all published models have; the first that fits wins.
    let original =
        [8192u64, 4096, 2048, 1024, 512, 16_384, 32_768, 65_536, 131_072].into_iter().find(|&o| fits(o as f64))?;
    Some(json!({
        "rope_type": "llama3", "factor": factor, "low_freq_factor": low, "high_freq_factor": high,
        "original_max_position_embeddings": original,
    }))
}

/// A string of the metadata, or `None` where the key is absent.
pub(super) fn text<'a>(metadata: &'a Metadata, key: &str) -> Result<Option<&'a str>> {
    match metadata.get(key) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(other) => Err(Error::model(format!("metadata `{key}` is {}; expected a string", brief(other)))),
    }
}

/// A whole number of the metadata, whatever its width, or `None` where the key is absent.
pub(super) fn number(metadata: &Metadata, key: &str) -> Result<Option<u64>> {
    let Some(value) = metadata.get(key) else { return Ok(None) };
    let number = match value {
        Value::I8(v) => u64::try_from(*v).ok(),
        Value::I16(v) => u64::try_from(*v).ok(),
        Value::I32(v) => u64::try_from(*v).ok(),
        Value::I64(v) => u64::try_from(*v).ok(),
        Value::Bool(_) => None,
        other => other.to_u64().ok(),
    };
    let wrong = || Error::model(format!("metadata `{key}` is {}; expected a whole number", brief(value)));
    number.map(Some).ok_or_else(wrong)
}

fn required(metadata: &Metadata, key: &str) -> Result<u64> {
    number(metadata, key)?.ok_or_else(|| Error::model(format!("metadata `{key}` is missing; expected a whole number")))
}

/// A real number of the metadata; an f32 by its shortest decimal form, so that 1e-5 comes out as 1e-5.
fn real(metadata: &Metadata, key: &str) -> Result<Option<f64>> {
    let real = match metadata.get(key) {
        None => return Ok(None),
        Some(Value::F32(v)) => format!("{v}").parse().unwrap_or(f64::NAN),
        Some(Value::F64(v)) => *v,
        Some(_) => return Ok(number(metadata, key)?.map(|v| v as f64)),
    };
    match real.is_finite() {
        true => Ok(Some(real)),
        false => Err(Error::model(format!("metadata `{key}` is {real}; expected a finite number"))),
    }
}

/// A value for a message, without the contents of an array.
fn brief(value: &Value) -> String {
    match value {
        Value::Array(elements) => format!("an array of {}", elements.len()),
        Value::String(text) => format!("`{}`", text.chars().take(40).collect::<String>()),
        other => format!("{other:?}"),
    }
}
