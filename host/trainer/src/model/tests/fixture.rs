//! Tiny models with random weights, as Hugging Face directories and as GGUF files.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::quantized::gguf_file::Value as Meta;
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};

use crate::model::arch::{Config, expected_tensors, spec_from_config};
use crate::model::gguf::names;
use crate::model::spec::ModelSpec;
use crate::model::{BaseModel, open};
use crate::report::{Event, Observer};
use crate::{Error, Result};

/// Collects warnings.
#[derive(Default)]
pub struct Warnings(pub Vec<String>);

impl Observer for Warnings {
    fn on(&mut self, event: &Event<'_>) {
        if let Event::Warning(text) = event {
            self.0.push(text.to_string());
        }
    }
}

/// A small deterministic generator (xorshift64*).
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    pub fn number(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }
}

/// The tokens of the fixture's byte-level tokenizer: 256 bytes, some merges, and special tokens last.
pub const MERGES: [(&str, &str); 6] = [("h", "e"), ("l", "l"), ("he", "ll"), ("hell", "o"), ("Ġ", "hello"), ("1", "2")];
pub const SPECIALS: [&str; 3] = ["<|start|>", "<|end|>", "<tool>"];
pub const VOCAB: usize = 256 + MERGES.len() + SPECIALS.len();

/// GPT-2's printable stand-ins of the 256 bytes, and the merged and special tokens after them.
pub fn tokens() -> Vec<String> {
    let printable = |b: u32| matches!(b, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let mut next = 256;
    let mut tokens: Vec<String> = (0..256u32)
        .map(|byte| {
            let code = if printable(byte) {
                byte
            } else {
                next += 1;
                next - 1
            };
            char::from_u32(code).unwrap().to_string()
        })
        .collect();
    tokens.extend(MERGES.iter().map(|(left, right)| format!("{left}{right}")));
    tokens.extend(SPECIALS.iter().map(|s| s.to_string()));
    tokens
}

/// A tiny configuration of the family.
pub fn config(family: &str) -> Value {
    let class = match family {
        "llama" => "LlamaForCausalLM",
        "mistral" => "MistralForCausalLM",
        "qwen2" => "Qwen2ForCausalLM",
        _ => "Qwen3ForCausalLM",
    };
    json!({
        "architectures": [class], "model_type": family, "hidden_size": 64, "intermediate_size": 96,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
        "vocab_size": VOCAB, "rms_norm_eps": 1e-5, "max_position_embeddings": 128, "hidden_act": "silu",
        "rope_theta": 10000.0, "tie_word_embeddings": true, "sliding_window": null, "eos_token_id": VOCAB - 2,
    })
}

/// Puts `changes` over `config`; null removes nothing, it is a value.
pub fn with(mut config: Value, changes: Value) -> Value {
    for (key, value) in changes.as_object().unwrap() {
        config[key] = value.clone();
    }
    config
}

pub fn spec(config: &Value) -> Result<ModelSpec> {
    spec_from_config(&Config::new("config.json", config)?)
}

/// Random weights for every tensor of the configuration.
pub fn weights(config: &Value) -> BTreeMap<String, (Vec<usize>, Vec<f32>)> {
    let mut random = Random(7);
    let tensors = expected_tensors(&spec(config).unwrap());
    tensors
        .into_iter()
        .map(|t| {
            let data = (0..t.len()).map(|_| random.number()).collect();
            (t.name, (t.shape, data))
        })
        .collect()
}

pub type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

pub fn write_safetensors(path: &Path, tensors: &Tensors) {
    let bytes: BTreeMap<&String, Vec<u8>> =
        tensors.iter().map(|(name, (_, data))| (name, data.iter().flat_map(|v| v.to_le_bytes()).collect())).collect();
    let views = tensors
        .iter()
        .map(|(name, (shape, _))| (name, TensorView::new(Dtype::F32, shape.clone(), &bytes[name]).unwrap()));
    safetensors::serialize_to_file(views, None, path).unwrap();
}

/// `tokenizer.json` of the fixture.
pub fn tokenizer_json(pre_tokenizer: Value, normalizer: Value, ignore_merges: bool) -> Value {
    let all = tokens();
    let vocab: serde_json::Map<String, Value> =
        all.iter().enumerate().map(|(id, token)| (token.clone(), json!(id))).collect();
    let added: Vec<Value> = SPECIALS
        .iter()
        .map(|token| {
            let id = all.iter().position(|t| t == token).unwrap();
            json!({ "id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                    "normalized": false, "special": *token != "<tool>" })
        })
        .collect();
    json!({
        "version": "1.0", "truncation": { "max_length": 4, "strategy": "LongestFirst", "stride": 0, "direction": "Right" },
        "padding": null, "added_tokens": added, "normalizer": normalizer, "pre_tokenizer": pre_tokenizer,
        "post_processor": null, "decoder": { "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true },
        "model": { "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                   "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": ignore_merges,
                   "vocab": vocab, "merges": MERGES.map(|(l, r)| json!([l, r])) }
    })
}

pub fn gpt2_pre_tokenizer() -> Value {
    json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true })
}

pub fn write_json(path: PathBuf, value: &Value) {
    std::fs::write(path, serde_json::to_string(value).unwrap()).unwrap();
}

/// Writes a whole model directory.
pub fn write_model(directory: &Path, config: &Value, tensors: &Tensors) {
    write_json(directory.join("config.json"), config);
    write_json(directory.join("tokenizer.json"), &tokenizer_json(gpt2_pre_tokenizer(), Value::Null, false));
    write_json(
        directory.join("tokenizer_config.json"),
        &json!({ "bos_token": "<|start|>", "eos_token": { "content": "<|end|>", "lstrip": false }, "chat_template": "T" }),
    );
    write_safetensors(&directory.join("model.safetensors"), tensors);
}

pub fn open_at(path: &Path) -> Result<BaseModel> {
    open(path.to_str().unwrap(), Path::new("/"), &mut Warnings::default())
}

/// The error of opening `path`, which must not succeed.
pub fn refusal(path: &Path) -> Error {
    match open_at(path) {
        Ok(_) => panic!("{} was opened", path.display()),
        Err(error) => error,
    }
}

pub fn assert_says(error: &Error, parts: &[&str]) {
    let text = error.to_string();
    for part in parts {
        assert!(text.contains(part), "`{part}` is not in: {text}");
    }
}

/// Builds GGUF files, sound or not.
#[derive(Clone, Default)]
pub struct Gguf {
    pub metadata: Vec<(String, Meta)>,
    /// Name, shape (outermost first), ggml's type number, bytes.
    pub tensors: Vec<(String, Vec<usize>, u32, Vec<u8>)>,
}

pub fn text(value: &str) -> Meta {
    Meta::String(value.to_string())
}

impl Gguf {
    /// The GGUF file of a model whose tensors are all stored as `dtype` where its blocks fit, else as f32.
    pub fn of(config: &Value, tensors: &Tensors, dtype: GgmlDType) -> Self {
        let family = if config["model_type"] == "mistral" { "llama" } else { config["model_type"].as_str().unwrap() };
        let key = |name: &str| format!("{family}.{name}");
        let number = |name: &str| Meta::U32(config[name].as_u64().unwrap() as u32);
        let strings = |list: Vec<String>| Meta::Array(list.into_iter().map(Meta::String).collect());
        let merges = MERGES.iter().map(|(left, right)| format!("{left} {right}")).collect();
        let kinds = (0..VOCAB)
            .map(|id| {
                Meta::I32(if id == VOCAB - 1 {
                    4
                } else if id >= VOCAB - 3 {
                    3
                } else {
                    1
                })
            })
            .collect();
        let mut file = Gguf {
            metadata: vec![
                ("general.architecture".into(), text(family)),
                (key("embedding_length"), number("hidden_size")),
                (key("feed_forward_length"), number("intermediate_size")),
                (key("block_count"), number("num_hidden_layers")),
                (key("attention.head_count"), number("num_attention_heads")),
                (key("attention.head_count_kv"), number("num_key_value_heads")),
                (key("attention.key_length"), number("head_dim")),
                (key("context_length"), number("max_position_embeddings")),
                (key("attention.layer_norm_rms_epsilon"), Meta::F32(1e-5)),
                (key("rope.freq_base"), Meta::F32(config["rope_theta"].as_f64().unwrap() as f32)),
                ("tokenizer.ggml.model".into(), text("gpt2")),
                ("tokenizer.ggml.pre".into(), text("gpt-2")),
                ("tokenizer.ggml.tokens".into(), strings(tokens())),
                ("tokenizer.ggml.merges".into(), strings(merges)),
                ("tokenizer.ggml.token_type".into(), Meta::Array(kinds)),
                ("tokenizer.ggml.bos_token_id".into(), Meta::U32(VOCAB as u32 - 3)),
                ("tokenizer.ggml.eos_token_id".into(), Meta::U32(VOCAB as u32 - 2)),
                ("tokenizer.chat_template".into(), text("T")),
            ],
            tensors: Vec::new(),
        };
        let interleaved = matches!(family, "llama");
        for (name, (shape, data)) in tensors {
            let heads = match name {
                n if interleaved && n.contains(".q_proj.") => config["num_attention_heads"].as_u64().unwrap() as usize,
                n if interleaved && n.contains(".k_proj.") => config["num_key_value_heads"].as_u64().unwrap() as usize,
                _ => 0,
            };
            let data = if heads > 0 { interleave(data, shape[0], heads) } else { data.clone() };
            let fits = shape.len() == 2 && shape[1] % dtype.block_size() == 0;
            let dtype = if fits { dtype } else { GgmlDType::F32 };
            let bytes = encode(&data, dtype);
            file.tensors.push((names::llama_cpp(name).unwrap(), shape.clone(), number_of(dtype), bytes));
        }
        file
    }

    pub fn set(&mut self, key: &str, value: Meta) {
        self.metadata.retain(|(known, _)| known != key);
        self.metadata.push((key.to_string(), value));
    }

    pub fn remove(&mut self, key: &str) {
        self.metadata.retain(|(known, _)| known != key);
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut out = b"GGUF\x03\0\0\0".to_vec();
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.metadata.len() as u64).to_le_bytes());
        for (key, value) in &self.metadata {
            put_text(&mut out, key);
            put_value(&mut out, value, true);
        }
        let mut offset = 0usize;
        for (name, shape, kind, data) in &self.tensors {
            put_text(&mut out, name);
            out.extend((shape.len() as u32).to_le_bytes());
            shape.iter().rev().for_each(|d| out.extend((*d as u64).to_le_bytes()));
            out.extend(kind.to_le_bytes());
            out.extend((offset as u64).to_le_bytes());
            offset += data.len().div_ceil(32) * 32;
        }
        for (_, _, _, data) in &self.tensors {
            out.resize(out.len().div_ceil(32) * 32, 0);
            out.extend(data);
        }
        out
    }

    pub fn write(&self, path: &Path) {
        std::fs::write(path, self.bytes()).unwrap();
    }
}

/// llama.cpp's order of the rows of rotated projections: the halves of each head interleaved.
fn interleave(data: &[f32], rows: usize, heads: usize) -> Vec<f32> {
    let (row, half) = (data.len() / rows, rows / heads / 2);
    let mut out = Vec::with_capacity(data.len());
    for head in 0..heads {
        for index in 0..half {
            for part in 0..2 {
                let from = (head * 2 * half + part * half + index) * row;
                out.extend(&data[from..from + row]);
            }
        }
    }
    out
}

pub fn encode(data: &[f32], dtype: GgmlDType) -> Vec<u8> {
    match dtype {
        GgmlDType::F32 => data.iter().flat_map(|v| v.to_le_bytes()).collect(),
        GgmlDType::F16 => data.iter().flat_map(|v| half::f16::from_f32(*v).to_le_bytes()).collect(),
        GgmlDType::BF16 => data.iter().flat_map(|v| half::bf16::from_f32(*v).to_le_bytes()).collect(),
        blocks => {
            let tensor = Tensor::from_slice(data, data.len(), &Device::Cpu).unwrap();
            QTensor::quantize(&tensor, blocks).unwrap().data().unwrap().into_owned()
        }
    }
}

pub fn number_of(dtype: GgmlDType) -> u32 {
    match dtype {
        GgmlDType::F32 => 0,
        GgmlDType::F16 => 1,
        GgmlDType::Q4_0 => 2,
        GgmlDType::Q4_1 => 3,
        GgmlDType::Q5_0 => 6,
        GgmlDType::Q5_1 => 7,
        GgmlDType::Q8_0 => 8,
        GgmlDType::Q2K => 10,
        GgmlDType::Q3K => 11,
        GgmlDType::Q4K => 12,
        GgmlDType::Q5K => 13,
        GgmlDType::Q6K => 14,
        GgmlDType::BF16 => 30,
        other => panic!("{other:?} is not written"),
    }
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

fn put_value(out: &mut Vec<u8>, value: &Meta, typed: bool) {
    let kind: u32 = match value {
        Meta::U32(_) => 4,
        Meta::I32(_) => 5,
        Meta::F32(_) => 6,
        Meta::Bool(_) => 7,
        Meta::String(_) => 8,
        Meta::Array(_) => 9,
        other => panic!("{other:?} is not written"),
    };
    if typed {
        out.extend(kind.to_le_bytes());
    }
    match value {
        Meta::U32(v) => out.extend(v.to_le_bytes()),
        Meta::I32(v) => out.extend(v.to_le_bytes()),
        Meta::F32(v) => out.extend(v.to_le_bytes()),
        Meta::Bool(v) => out.push(u8::from(*v)),
        Meta::String(v) => put_text(out, v),
        Meta::Array(elements) => {
            let kind: u32 = match elements.first() {
                Some(Meta::I32(_)) => 5,
                Some(Meta::F32(_)) => 6,
                Some(Meta::String(_)) => 8,
                _ => 4,
            };
            out.extend(kind.to_le_bytes());
            out.extend((elements.len() as u64).to_le_bytes());
            elements.iter().for_each(|element| put_value(out, element, false));
        }
        _ => {}
    }
}
