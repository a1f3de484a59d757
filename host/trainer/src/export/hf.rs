//! A merged model as a Hugging Face directory: `config.json`, safetensors, tokenizer.

use std::borrow::Cow;
use std::collections::BTreeMap;

use half::{bf16, f16};
use safetensors::Dtype as StDtype;
use serde_json::{Map, Value, json};

use super::merge::Merger;
use super::packed::Packer;
use super::target::Target;
use super::{BaseWeights, Dtype, Made, Options, packed};
use crate::checkpoint::tensors::{self, TensorSource, TensorSpec};
use crate::model::BaseModel;
use crate::model::inventory::TensorInfo;
use crate::plan::Storage;
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
    source: &Made<'_>,
    target: &Target,
    options: &Options,
    observer: &mut dyn Observer,
) -> Result<Vec<String>> {
    let base_weights = options.base.unwrap_or(BaseWeights::Original);
    let is_packed = base_weights == BaseWeights::Packed;
    if is_packed {
        packed::check(source.plan, source.base)?;
    }
    let merger = Merger::new(source)?.over(base_weights);
    write_weights(source.base, &merger, target, options, observer)?;
    let mut config = config(source.base, options.dtype);
    if let Some(config) = config.as_object_mut() {
        // A base that was quantised already is written as plain numbers, unless it is to stay so.
        config.remove("quantization_config");
        if is_packed {
            config.insert("quantization_config".into(), packed::quantization_config(source.plan, source.base));
        }
    }
    target.write_json("config.json", &config)?;
    write_tokenizer(source.base, target)?;
    let trained_over = source.plan.entries.iter().find(|entry| !entry.storage.can_train());
    Ok(match (options.base, trained_over) {
        (None, Some(entry)) => vec![format!(
            "the run trained beside weights kept as {}; this model has the original ones (--base dequantised writes what the run saw)",
            entry.storage
        )],
        _ => Vec::new(),
    })
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

/// One tensor of a file: a whole one of the model, or a part of a packed one.
struct Item<'a> {
    info: &'a TensorInfo,
    spec: TensorSpec,
    part: Option<(Storage, usize)>,
}

/// One file's tensors.
struct Shard<'a> {
    merger: &'a Merger<'a>,
    packer: &'a Packer<'a>,
    items: Vec<Item<'a>>,
    dtype: Option<Dtype>,
}

/// The tensors that one of the model's becomes.
fn items<'a>(info: &'a TensorInfo, merger: &Merger<'_>, options: &Options) -> Vec<Item<'a>> {
    let storage = merger.storage(&info.name);
    let stays_packed = options.base == Some(BaseWeights::Packed) && merger.is_untouched(&info.name);
    if stays_packed && !storage.can_train() {
        let parts = packed::specs(info, storage).into_iter().enumerate();
        return parts.map(|(part, spec)| Item { info, spec, part: Some((storage, part)) }).collect();
    }
    let dtype = match dtype_of(info, options.dtype) {
        Dtype::F16 => StDtype::F16,
        Dtype::Bf16 => StDtype::BF16,
        Dtype::F32 | Dtype::Q8_0 => StDtype::F32,
    };
    vec![Item { info, spec: TensorSpec { name: info.name.clone(), dtype, shape: info.shape.clone() }, part: None }]
}

impl TensorSource for Shard<'_> {
    fn specs(&self) -> Vec<TensorSpec> {
        self.items.iter().map(|item| item.spec.clone()).collect()
    }

    fn bytes(&self, index: usize) -> Result<Cow<'_, [u8]>> {
        let item = self.items.get(index).ok_or_else(|| Error::internal(format!("there is no tensor {index}")))?;
        let info = item.info;
        if let Some((storage, part)) = item.part {
            return self.packer.bytes(info, storage, part).map(Cow::Owned);
        }
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
    let bytes_of = |item: &Item<'_>| (item.spec.shape.iter().product::<usize>() * item.spec.dtype.bitsize() / 8) as u64;
    let packer = Packer::new(base);
    let mut shards: Vec<Vec<Item<'_>>> = vec![Vec::new()];
    let (mut filled, mut total) = (0, 0);
    for info in &base.inventory.tensors {
        let items = items(info, merger, options);
        let bytes: u64 = items.iter().map(bytes_of).sum();
        if filled > 0 && filled + bytes > options.shard_bytes {
            shards.push(Vec::new());
            filled = 0;
        }
        filled += bytes;
        total += bytes;
        if let Some(shard) = shards.last_mut() {
            shard.extend(items);
        }
    }
    let metadata: BTreeMap<String, String> = [("format".to_string(), "pt".to_string())].into();
    let (count, mut written, mut weight_map) = (shards.len(), 0, BTreeMap::new());
    for (index, items) in shards.into_iter().enumerate() {
        let name = match count {
            1 => "model.safetensors".to_string(),
            _ => format!("model-{:05}-of-{count:05}.safetensors", index + 1),
        };
        let shard = Shard { merger, packer: &packer, items, dtype: options.dtype };
        tensors::write(&target.path(&name), &metadata, &shard)?;
        weight_map.extend(shard.items.iter().map(|item| (item.spec.name.clone(), name.clone())));
        written += shard.items.iter().map(bytes_of).sum::<u64>();
        observer.on(&Event::Progress { unit: "bytes", done: written, total });
    }
    if count > 1 {
        let index = json!({"metadata": {"total_size": total}, "weight_map": weight_map});
        target.write_json("model.safetensors.index.json", &index)?;
    }
    Ok(())
}
