//! The base model: exit code 3.

use crate::Case;
use crate::fixture::Folder;

const INSPECT: &[&str] = &["inspect", "model"];
const GGUF: &[&str] = &["inspect", "m.gguf"];

/// Rewrites the header of the model's safetensors file, leaving the data as it is.
fn header(folder: &Folder, change: fn(&str) -> String) {
    folder.change("model/model.safetensors", |bytes| {
        let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let changed = change(std::str::from_utf8(&bytes[8..8 + length]).unwrap());
        let mut file = (changed.len() as u64).to_le_bytes().to_vec();
        file.extend(changed.as_bytes());
        file.extend(&bytes[8 + length..]);
        *bytes = file;
    });
}

/// The beginning of a GGUF file: version, numbers of tensors and of metadata entries.
fn gguf(version: u32, tensors: u64, entries: u64) -> Vec<u8> {
    [&b"GGUF"[..], &version.to_le_bytes(), &tensors.to_le_bytes(), &entries.to_le_bytes()].concat()
}

/// A GGUF string.
fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
}

pub const CASES: [Case; 26] = [
    Case {
        name: "no such model",
        arrange: |_| {},
        arguments: &["inspect", "./modle"],
        code: 3,
        message: "error: model `./modle` not found: there is no {dir}/./modle\n  \
                  help: did you mean `{dir}/model`?",
    },
    Case {
        name: "a hub that doesn't answer",
        arrange: |_| {},
        arguments: &["inspect", "org/name"],
        code: 3,
        message: "error: cannot fetch `org/name` from http://127.0.0.1:9: request error: io: Connection refused (os error 111)\n  \
                  help: check the network; then run the same command again, and a download goes on where it stopped. Without a network, name a directory or a GGUF file",
    },
    Case {
        name: "an empty folder",
        arrange: |f| std::fs::create_dir(f.path().join("empty")).unwrap(),
        arguments: &["inspect", "empty"],
        code: 3,
        message: "error: {dir}/empty has neither config.json nor a GGUF file\n  \
                  help: expected a Hugging Face directory, a GGUF file, or a hub id such as `org/name`",
    },
    Case {
        name: "no config.json",
        arrange: |f| f.remove("model/config.json"),
        arguments: INSPECT,
        code: 3,
        message: "error: {dir}/model has neither config.json nor a GGUF file\n  \
                  help: expected a Hugging Face directory, a GGUF file, or a hub id such as `org/name`",
    },
    Case {
        name: "config.json is no JSON",
        arrange: |f| f.change("model/config.json", |b| b.truncate(40)),
        arguments: INSPECT,
        code: 3,
        message: "error: {dir}/model/config.json: not valid JSON: EOF while parsing a string at line 3 column 17\n  \
                  help: fetch the file again",
    },
    Case {
        name: "config.json of another family",
        arrange: |f| {
            f.replace("model/config.json", "LlamaForCausalLM", "GPT2LMHeadModel");
            f.replace("model/config.json", "\"llama\"", "\"gpt2\"")
        },
        arguments: INSPECT,
        code: 3,
        message: "error: {dir}/model/config.json: models of type `gpt2` are not supported\n  \
                  help: supported families: llama, mistral, qwen2, qwen3",
    },
    Case {
        name: "config.json lacks a dimension",
        arrange: |f| f.replace("model/config.json", "hidden_size", "hiden_size"),
        arguments: INSPECT,
        code: 3,
        message: "error: {dir}/model/config.json: `hidden_size` is missing; expected a whole number",
    },
    Case {
        name: "a dimension is text",
        arrange: |f| f.replace("model/config.json", "\"hidden_size\": 64", "\"hidden_size\": \"64\""),
        arguments: INSPECT,
        code: 3,
        message: "error: {dir}/model/config.json: `hidden_size` is \"64\"; expected a whole number",
    },
    Case {
        name: "a dimension is zero",
        arrange: |f| f.replace("model/config.json", "\"num_attention_heads\": 4", "\"num_attention_heads\": 0"),
        arguments: INSPECT,
        code: 3,
        message: "error: {dir}/model/config.json: `num_attention_heads` is 0; expected a number from 1 to 16777216",
    },
    Case {
        name: "config.json contradicts the weights",
        arrange: |f| f.replace("model/config.json", "\"intermediate_size\": 96", "\"intermediate_size\": 128"),
        arguments: INSPECT,
        code: 3,
        message: "error: {dir}/model: tensor `model.layers.0.mlp.gate_proj.weight` in model.safetensors has shape [96, 64]; the configuration says [128, 64]\n  \
                  help: the configuration and the weights are not of the same model",
    },
    Case {
        name: "more blocks than weights",
        arrange: |f| f.replace("model/config.json", "\"num_hidden_layers\": 2", "\"num_hidden_layers\": 3"),
        arguments: INSPECT,
        code: 3,
        message: "error: {dir}/model: tensor `model.layers.2.input_layernorm.weight` [64] is missing from the checkpoint\n  \
                  help: the configuration and the weights are not of the same model, or the checkpoint is incomplete",
    },
    Case {
        name: "no weights",
        arrange: |f| f.remove("model/model.safetensors"),
        arguments: INSPECT,
        code: 3,
        message: "error: {dir}/model: no weights; expected model.safetensors or model.safetensors.index.json\n  \
                  help: is this the right directory?",
    },
    Case {
        name: "empty weights",
        arrange: |f| f.write("model/model.safetensors", ""),
        arguments: INSPECT,
        code: 3,
        message: "error: {dir}/model/model.safetensors is empty\n  \
                  help: fetch the file again",
    },
    Case {
        name: "truncated weights",
        arrange: |f| f.change("model/model.safetensors", |b| b.truncate(200_000)),
        arguments: INSPECT,
        code: 3,
        message: "error: {dir}/model/model.safetensors: the file's length, 200000 bytes, is not what its safetensors header says\n  \
                  help: fetch the file again; the download was probably cut off",
    },
    Case {
        name: "a header without end",
        arrange: |f| f.change("model/model.safetensors", |b| b[..8].fill(0xff)),
        arguments: INSPECT,
        code: 3,
        message: "error: {dir}/model/model.safetensors: not a safetensors file\n  \
                  help: expected a safetensors header",
    },
    Case {
        name: "a header that is no JSON",
        arrange: |f| header(f, |h| h.replacen('{', "[", 1)),
        arguments: INSPECT,
        code: 3,
        message: "error: {dir}/model/model.safetensors: damaged safetensors header: invalid JSON in header: invalid type: sequence, expected struct HashMetadata at line 1 column 0\n  \
                  help: fetch the file again",
    },
    Case {
        name: "a tensor is missing",
        arrange: |f| header(f, |h| h.replacen("model.norm.weight", "model.nrom.weight", 1)),
        arguments: INSPECT,
        code: 3,
        message: "error: {dir}/model: tensor `model.norm.weight` [64] is missing from the checkpoint\n  \
                  help: the checkpoint has `model.layers.0.input_layernorm.weight`; expected the names of transformers",
    },
    Case {
        name: "a tensor of a type that isn't read",
        arrange: |f| header(f, |h| h.replacen("\"F32\"", "\"I32\"", 1)),
        arguments: INSPECT,
        code: 3,
        message: "error: {dir}/model/model.safetensors: tensor `model.embed_tokens.weight` has type I32\n  \
                  help: supported types: F32, F16, BF16",
    },
    Case {
        name: "a shard is missing",
        arrange: |f| {
            f.remove("model/model.safetensors");
            f.write(
                "model/model.safetensors.index.json",
                r#"{"weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors"}}"#,
            )
        },
        arguments: INSPECT,
        code: 3,
        message: "error: {dir}/model: shard model-00001-of-00002.safetensors is missing\n  \
                  help: model.safetensors.index.json names it; fetch the whole checkpoint again",
    },
    Case {
        name: "no tokenizer",
        arrange: |f| f.remove("model/tokenizer.json"),
        arguments: INSPECT,
        code: 3,
        message: "error: {dir}/model: tokenizer.json is missing\n  \
                  help: fetch it from where the model came from",
    },
    Case {
        name: "a damaged tokenizer",
        arrange: |f| f.change("model/tokenizer.json", |b| b.truncate(1000)),
        arguments: INSPECT,
        code: 3,
        message: "error: {dir}/model/tokenizer.json: not a usable tokenizer: not valid JSON: EOF while parsing a string at line 51 column 9\n  \
                  help: fetch the file again",
    },
    Case {
        name: "an empty GGUF file",
        arrange: |f| f.write("m.gguf", ""),
        arguments: GGUF,
        code: 3,
        message: "error: {dir}/m.gguf is empty\n  \
                  help: fetch the file again",
    },
    Case {
        name: "a GGUF file that is none",
        arrange: |f| f.write("m.gguf", "PK\u{3}\u{4} and so on, at some length"),
        arguments: GGUF,
        code: 3,
        message: "error: {dir}/m.gguf: not a GGUF file: it begins with 504b0304, expected 47475546 (`GGUF`)",
    },
    Case {
        name: "a GGUF file of the future",
        arrange: |f| f.write("m.gguf", gguf(9, 0, 0)),
        arguments: GGUF,
        code: 3,
        message: "error: {dir}/m.gguf: GGUF version 9 is not supported\n  \
                  help: supported: 2 and 3; convert the file with a current llama.cpp",
    },
    Case {
        name: "a GGUF file with endless metadata",
        arrange: |f| f.write("m.gguf", gguf(3, 1, u64::MAX)),
        arguments: GGUF,
        code: 3,
        message: "error: {dir}/m.gguf: damaged GGUF header: the number of tensors is 1, more than the file's 24 bytes can hold\n  \
                  help: fetch the file again",
    },
    Case {
        name: "a GGUF file of another family",
        arrange: |f| {
            f.write(
                "m.gguf",
                [gguf(3, 0, 1), text("general.architecture"), 8u32.to_le_bytes().to_vec(), text("bert")].concat(),
            )
        },
        arguments: GGUF,
        code: 3,
        message: "error: {dir}/m.gguf: GGUF models of architecture `bert` are not supported\n  \
                  help: supported: llama (which includes Mistral and SmolLM2), qwen2, qwen3",
    },
];
