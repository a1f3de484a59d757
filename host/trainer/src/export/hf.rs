//! A merged model as a Hugging Face directory: `config.json`, safetensors, tokenizer.

use std::borrow::Cow;
use std::collections::BTreeMap;

use half::{bf16, f16};
use safetensors::Dtype as StDtype;
use serde_json::{Map, Value, json};

use super::merge::Merger;
use super::target::Target;
use super::{Dtype, Options};
use crate::checkpoint::Source;
use crate::checkpoint::tensors::{self, TensorSource, TensorSpec};
use crate::model::BaseModel;
use crate::model::inventory::TensorInfo;
use crate::report::{Event, Observer};
use crate::{Error, Result};

/// Files beside the weights that belong to the model and stay as they are.
const COPIED: [&str; 11] = [
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "tekken.json",
    "chat_template.jinja",
    "chat_template.json",
];

/// Writes the model; answers what the format can't carry, which is nothing.
pub(super) fn write(
    source: &Source,
    target: &Target,
    options: &Options,
    observer: &mut dyn Observer,
) -> Result<Vec<String>> {
    let merger = Merger::new(&source.base, &source.plan, &source.checkpoint.trainable)?;
    write_weights(&source.base, &merger, target, options, observer)?;
    target.write_json("config.json", &config(&source.base, options.dtype))?;
    write_tokenizer(&source.base, target)?;
    Ok(Vec::new())
}

/// Copies the tokenizer's files, or writes those of a model that came from a GGUF file.
pub(super) fn write_tokenizer(base: &BaseModel, target: &Target) -> Result<()> {
    let copied: Vec<&str> = if base.is_gguf() { Vec::new() } else { COPIED.to_vec() };
    for name in copied {
        target.copy(&base.path, name)?;
    }
    if !target.path("tokenizer.json").exists() {
        target.write("tokenizer.json", &base.tokenizer.to_json()?)?;
    }
    if !target.path("tokenizer_config.json").exists() {
        target.write_json("tokenizer_config.json", &tokenizer_config(base))?;
    }
    if !target.path("generation_config.json").exists() {
        target.write_json("generation_config.json", &generation_config(base))?;
    }
    Ok(())
}

fn tokenizer_config(base: &BaseModel) -> Value {
    let mut config = Map::new();
    config.insert("tokenizer_class".into(), json!("PreTrainedTokenizerFast"));
    let specials =
        [("bos_token", base.tokenizer.bos()), ("eos_token", base.tokenizer.eos()), ("pad_token", base.tokenizer.pad())];
    for (key, token) in specials {
        if let Some(token) = token {
            config.insert(key.into(), json!(token.text));
        }
    }
    config.insert("model_max_length".into(), json!(base.spec.max_positions));
    config.insert("clean_up_tokenization_spaces".into(), json!(false));
    if let Some(template) = &base.chat_template {
        config.insert("chat_template".into(), json!(template));
    }
    Value::Object(config)
}

fn generation_config(base: &BaseModel) -> Value {
    let mut config = Map::new();
    config.insert("_from_model_config".into(), json!(true));
    if let Some(bos) = base.tokenizer.bos() {
        config.insert("bos_token_id".into(), json!(bos.id));
    }
    match base.tokenizer.stop_ids()[..] {
        [] => {}
        [eos] => drop(config.insert("eos_token_id".into(), json!(eos))),
        ref several => drop(config.insert("eos_token_id".into(), json!(several))),
    }
    if let Some(pad) = base.tokenizer.pad() {
        config.insert("pad_token_id".into(), json!(pad.id));
    }
    Value::Object(config)
}

/// The base's configuration, its type that of the weights written.
fn config(base: &BaseModel, dtype: Option<Dtype>) -> Value {
    let mut config = base.config_json.clone();
    let dtype = match dtype {
        Some(dtype) => Some(dtype),
        // What a GGUF file's configuration says of types was made up.
        None if base.is_gguf() => base.inventory.tensors.first().map(|t| dtype_of(t, None)),
        None => None,
    };
    let name = match dtype {
        Some(Dtype::F16) => "float16",
        Some(Dtype::Bf16) => "bfloat16",
        Some(Dtype::F32 | Dtype::Q8_0) => "float32",
        None => return config,
    };
    if let Some(config) = config.as_object_mut() {
        // transformers 5 calls it `dtype`, and reads what older versions call `torch_dtype`; those read only that.
        let key = if config.contains_key("dtype") { "dtype" } else { "torch_dtype" };
        config.insert(key.into(), json!(name));
    }
    config
}

/// The type that a tensor is written in.
fn dtype_of(info: &TensorInfo, wanted: Option<Dtype>) -> Dtype {
    match (wanted, info.dtype.as_str()) {
        (Some(dtype), _) => dtype,
        (None, "bf16") => Dtype::Bf16,
        (None, "f16") => Dtype::F16,
        (None, _) => Dtype::F32,
    }
}

/// One file's tensors.
struct Shard<'a> {
    merger: &'a Merger<'a>,
    tensors: &'a [&'a TensorInfo],
    dtype: Option<Dtype>,
}

impl TensorSource for Shard<'_> {
    fn specs(&self) -> Vec<TensorSpec> {
        let spec = |info: &&TensorInfo| TensorSpec {
            name: info.name.clone(),
            dtype: match dtype_of(info, self.dtype) {
                Dtype::F16 => StDtype::F16,
                Dtype::Bf16 => StDtype::BF16,
                Dtype::F32 | Dtype::Q8_0 => StDtype::F32,
            },
            shape: info.shape.clone(),
        };
        self.tensors.iter().map(spec).collect()
    }

    fn bytes(&self, index: usize) -> Result<Cow<'_, [u8]>> {
        let info = self.tensors.get(index).ok_or_else(|| Error::internal(format!("there is no tensor {index}")))?;
        // f16 and bf16 go through f32 and back unchanged, so that untouched tensors stay bit for bit what they were.
        let values = self.merger.merged_f32(info)?;
        Ok(Cow::Owned(match dtype_of(info, self.dtype) {
            Dtype::F32 | Dtype::Q8_0 => bytemuck::cast_slice(&values).to_vec(),
            Dtype::F16 => bytemuck::cast_slice(&to_f16(&info.name, &values)?).to_vec(),
            Dtype::Bf16 => values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect(),
        }))
    }
}

/// Half floats.
///
/// # Errors
/// When a finite value is beyond their range.
pub(super) fn to_f16(name: &str, values: &[f32]) -> Result<Vec<f16>> {
    let halves: Vec<f16> = values.iter().map(|v| f16::from_f32(*v)).collect();
    match halves.iter().zip(values).find(|(h, v)| h.is_infinite() && v.is_finite()) {
        None => Ok(halves),
        Some((_, value)) => Err(Error::output(format!("{name} holds {value}, which is beyond the range of f16"))
            .help("choose another --dtype: f32 or bf16 for hf, q8_0 for gguf")),
    }
}

fn write_weights(
    base: &BaseModel,
    merger: &Merger<'_>,
    target: &Target,
    options: &Options,
    observer: &mut dyn Observer,
) -> Result<()> {
    let bytes_of = |info: &TensorInfo| {
        let size = match dtype_of(info, options.dtype) {
            Dtype::F16 | Dtype::Bf16 => 2,
            Dtype::F32 | Dtype::Q8_0 => 4,
        };
        info.len() as u64 * size
    };
    let mut shards: Vec<Vec<&TensorInfo>> = vec![Vec::new()];
    let (mut filled, mut total) = (0, 0);
    for info in &base.inventory.tensors {
        let bytes = bytes_of(info);
        if filled > 0 && filled + bytes > options.shard_bytes {
            shards.push(Vec::new());
            filled = 0;
        }
        filled += bytes;
        total += bytes;
        if let Some(shard) = shards.last_mut() {
            shard.push(info);
        }
    }
    let metadata: BTreeMap<String, String> = [("format".to_string(), "pt".to_string())].into();
    let (count, mut written, mut weight_map) = (shards.len(), 0, BTreeMap::new());
    for (index, infos) in shards.iter().enumerate() {
        let name = match count {
            1 => "model.safetensors".to_string(),
            _ => format!("model-{:05}-of-{count:05}.safetensors", index + 1),
        };
        let shard = Shard { merger, tensors: infos, dtype: options.dtype };
        tensors::write(&target.path(&name), &metadata, &shard)?;
        weight_map.extend(infos.iter().map(|info| (info.name.as_str(), name.clone())));
        written += infos.iter().map(|info| bytes_of(info)).sum::<u64>();
        observer.on(&Event::Progress { unit: "bytes", done: written, total });
    }
    if count > 1 {
        let index = json!({"metadata": {"total_size": total}, "weight_map": weight_map});
        target.write_json("model.safetensors.index.json", &index)?;
    }
    Ok(())
}
