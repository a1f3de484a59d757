//! Missing, damaged and contradictory files: each is refused with a message that says what and where, and none panics.

use std::path::Path;

use candle_core::quantized::GgmlDType;
use candle_core::quantized::gguf_file::Value as Meta;
use serde_json::{Value, json};
use tempfile::{TempDir, tempdir};

use super::fixture::*;
use crate::ErrorKind;

/// A sound model directory to damage.
fn sound() -> (TempDir, Value, Tensors) {
    let directory = tempdir().unwrap();
    let config = config("llama");
    let tensors = weights(&config);
    write_model(directory.path(), &config, &tensors);
    (directory, config, tensors)
}

fn truncate(path: &Path, length: u64) {
    std::fs::OpenOptions::new().write(true).open(path).unwrap().set_len(length).unwrap();
}

#[test]
fn damaged_directories_are_refused() {
    type Damage = fn(&Path, &Tensors);
    let cases: &[(&str, Damage, &[&str])] = &[
        (
            "no config",
            |d, _| std::fs::remove_file(d.join("config.json")).unwrap(),
            &["neither config.json nor a GGUF file"],
        ),
        (
            "bad config",
            |d, _| std::fs::write(d.join("config.json"), "{\"hidden").unwrap(),
            &["config.json: not valid JSON", "line 1"],
        ),
        ("config a list", |d, _| std::fs::write(d.join("config.json"), "[]").unwrap(), &["expected a JSON object"]),
        (
            "no weights",
            |d, _| std::fs::remove_file(d.join("model.safetensors")).unwrap(),
            &["no weights", "model.safetensors.index.json"],
        ),
        (
            "pickled weights",
            |d, _| std::fs::rename(d.join("model.safetensors"), d.join("pytorch_model.bin")).unwrap(),
            &["no weights", "save_pretrained"],
        ),
        ("empty weights", |d, _| truncate(&d.join("model.safetensors"), 0), &["model.safetensors is empty"]),
        (
            "7 bytes",
            |d, _| truncate(&d.join("model.safetensors"), 7),
            &["truncated within the safetensors header, after 7 bytes"],
        ),
        (
            "half a header",
            |d, _| truncate(&d.join("model.safetensors"), 300),
            &["truncated within the safetensors header"],
        ),
        ("half the data", |d, _| truncate(&d.join("model.safetensors"), 40_000), &["length, 40000 bytes", "cut off"]),
        (
            "not safetensors",
            |d, _| std::fs::write(d.join("model.safetensors"), [b'x'; 500]).unwrap(),
            &["not a safetensors file"],
        ),
        (
            "LFS pointer",
            |d, _| {
                std::fs::write(d.join("model.safetensors"), "version https://git-lfs.github.com/spec/v1\noid x\n")
                    .unwrap()
            },
            &["Git LFS pointer", "git lfs pull"],
        ),
        (
            "no tokenizer",
            |d, _| std::fs::remove_file(d.join("tokenizer.json")).unwrap(),
            &["tokenizer.json is missing"],
        ),
        (
            "only tokenizer.model",
            |d, _| std::fs::rename(d.join("tokenizer.json"), d.join("tokenizer.model")).unwrap(),
            &["tokenizer.json is missing", "tokenizer.model alone", "AutoTokenizer"],
        ),
        (
            "bad tokenizer",
            |d, _| std::fs::write(d.join("tokenizer.json"), "{}").unwrap(),
            &["tokenizer.json: not a usable tokenizer"],
        ),
        (
            "bad settings",
            |d, _| std::fs::write(d.join("tokenizer_config.json"), "{,}").unwrap(),
            &["tokenizer_config.json: not valid JSON"],
        ),
        (
            "contradictory tokens",
            |d, _| {
                write_json(
                    d.join("tokenizer_config.json"),
                    &json!({ "added_tokens_decoder": { "9999": { "content": "<new>" } } }),
                )
            },
            &["`<new>` id 9999"],
        ),
        (
            "missing tensor",
            |d, tensors| {
                let mut tensors = tensors.clone();
                tensors.remove("model.layers.1.mlp.up_proj.weight");
                write_safetensors(&d.join("model.safetensors"), &tensors);
            },
            &["`model.layers.1.mlp.up_proj.weight` [96, 64] is missing"],
        ),
        (
            "surplus tensors",
            |d, tensors| {
                let mut tensors = tensors.clone();
                tensors.insert("model.layers.0.extra.weight".into(), (vec![2], vec![0.0; 2]));
                tensors.insert("model.layers.0.more.weight".into(), (vec![2], vec![0.0; 2]));
                write_safetensors(&d.join("model.safetensors"), &tensors);
            },
            &["unexpected tensor `model.layers.0.extra.weight` [2] in model.safetensors (and 1 more)"],
        ),
        (
            "wrong shape",
            |d, tensors| {
                let mut tensors = tensors.clone();
                tensors.insert("model.norm.weight".into(), (vec![63], vec![0.0; 63]));
                write_safetensors(&d.join("model.safetensors"), &tensors);
            },
            &["`model.norm.weight` in model.safetensors has shape [63]; the configuration says [64]"],
        ),
        (
            "no prefix",
            |d, tensors| {
                let bare =
                    tensors.iter().map(|(n, t)| (n.trim_start_matches("model.").to_string(), t.clone())).collect();
                write_safetensors(&d.join("model.safetensors"), &bare);
            },
            &["`model.embed_tokens.weight`", "the checkpoint has `embed_tokens.weight`"],
        ),
        (
            "head missing though not tied",
            |d, _| write_json(d.join("config.json"), &with(config("llama"), json!({ "tie_word_embeddings": false }))),
            &["`lm_head.weight`", "tie_word_embeddings"],
        ),
    ];
    for (what, damage, parts) in cases {
        let (directory, _, tensors) = sound();
        damage(directory.path(), &tensors);
        let error = refusal(directory.path());
        assert_eq!(error.kind(), ErrorKind::Model, "{what}");
        assert_says(&error, parts);
        assert!(error.message().contains(directory.path().to_str().unwrap()), "{what}: {error}");
    }
}

#[test]
fn damaged_indices_are_refused() {
    let (directory, _, tensors) = sound();
    let place = directory.path();
    std::fs::rename(place.join("model.safetensors"), place.join("a.safetensors")).unwrap();
    let index = |map: Value| write_json(place.join("model.safetensors.index.json"), &json!({ "weight_map": map }));
    let all = |shard: &str| Value::Object(tensors.keys().map(|name| (name.clone(), json!(shard))).collect());
    index(all("a.safetensors"));
    open_at(place).unwrap();
    index(all("b.safetensors"));
    assert_says(&refusal(place), &["shard b.safetensors is missing", "index.json names it"]);
    index(all("../a.safetensors"));
    assert_says(&refusal(place), &["`../a.safetensors`", "not a plain file name"]);
    index(json!({ "x": 5 }));
    assert_says(&refusal(place), &["`weight_map.x`"]);
    index(with(all("a.safetensors"), json!({ "more": "a.safetensors" })));
    assert_says(&refusal(place), &["`more` is not in a.safetensors"]);
    std::fs::write(place.join("model.safetensors.index.json"), "{").unwrap();
    assert_says(&refusal(place), &["index.json: not valid JSON"]);
}

#[test]
fn damaged_ggufs_are_refused() {
    let directory = tempdir().unwrap();
    let path = directory.path().join("m.gguf");
    let config = config("llama");
    let file = Gguf::of(&config, &weights(&config), GgmlDType::Q8_0);
    let bytes = file.bytes();
    let refused = |bytes: &[u8], parts: &[&str]| {
        std::fs::write(&path, bytes).unwrap();
        let error = refusal(&path);
        assert_says(&error, parts);
        assert_says(&error, &["m.gguf"]);
    };
    let patched = |at: usize, with: &[u8]| {
        let mut bytes = bytes.clone();
        bytes[at..at + with.len()].copy_from_slice(with);
        bytes
    };
    refused(b"", &["is empty"]);
    refused(b"GGU", &["not a GGUF file"]);
    refused(&patched(0, b"GGML"), &["begins with 47474d4c"]);
    refused(&patched(4, &1u32.to_le_bytes()), &["version 1", "2 and 3"]);
    refused(&patched(4, &3u32.to_be_bytes()), &["big-endian"]);
    refused(&patched(8, &u64::MAX.to_le_bytes()), &["the number of tensors is 18446744073709551615"]);
    refused(&patched(16, &(1u64 << 40).to_le_bytes()), &["the number of metadata entries"]);
    refused(&patched(24, &u64::MAX.to_le_bytes()), &["the key of metadata entry 0"]);
    refused(&bytes[..100], &["header", "100 bytes"]);
    refused(&bytes[..bytes.len() - 5000], &["truncated: tensor `", "cut off"]);

    let changed = |change: &dyn Fn(&mut Gguf), parts: &[&str]| {
        let mut file = file.clone();
        change(&mut file);
        refused(&file.bytes(), parts);
    };
    changed(&|f| f.tensors[0].2 = 39, &["MXFP4", "supported: F32", &file.tensors[0].0]);
    changed(&|f| f.tensors[0].2 = 999, &["type 999 (unknown)"]);
    changed(&|f| f.tensors[1].0 = f.tensors[0].0.clone(), &["occurs twice"]);
    changed(
        &|f| f.tensors[0].0 = "blk.0.ffn_gate_exps.weight".into(),
        &["unexpected tensor `blk.0.ffn_gate_exps.weight`"],
    );
    changed(&|f| f.tensors[0].1 = vec![1, 1, 1, 1, 1], &["5 dimensions"]);
    changed(&|f| f.tensors[0].1 = vec![usize::MAX / 2, 1 << 32], &["larger than any file"]);
    changed(&|f| f.tensors[0].1 = vec![0, 32], &["dimension of 0"]);
    changed(&|f| f.set("general.alignment", Meta::U32(0)), &["`general.alignment`"]);
    changed(&|f| f.metadata.push(f.metadata[0].clone()), &["`general.architecture` occurs twice"]);
    changed(&|f| f.set("general.architecture", text("mamba")), &["`mamba`", "qwen3"]);
    changed(&|f| f.set("general.type", text("adapter")), &["`adapter`"]);
    changed(&|f| f.set("split.count", Meta::U32(3)), &["3 parts", "llama-gguf-split"]);
    changed(&|f| f.set("llama.expert_count", Meta::U32(8)), &["8 experts"]);
    changed(&|f| f.set("llama.rope.dimension_count", Meta::U32(8)), &["8 out of 16"]);
    changed(&|f| f.set("llama.attention.head_count", Meta::U32(0)), &["head_count"]);
    changed(&|f| f.set("llama.attention.head_count", Meta::U32(3)), &["for 3 heads"]);
    changed(&|f| f.set("llama.block_count", text("two")), &["`llama.block_count` is `two`"]);
    changed(&|f| f.remove("llama.embedding_length"), &["`llama.embedding_length` is missing"]);
    changed(
        &|f| f.set("llama.feed_forward_length", Meta::U32(128)),
        &["has shape [96, 64]; the configuration says [128, 64]"],
    );
    changed(&|f| f.remove("tokenizer.ggml.model"), &["no tokenizer"]);
    changed(&|f| f.set("tokenizer.ggml.model", text("t5")), &["`t5`", "gpt2, llama"]);
    changed(&|f| f.remove("tokenizer.ggml.merges"), &["tokenizer.ggml.merges"]);
    changed(&|f| f.set("tokenizer.ggml.merges", Meta::Array(vec![text("nospace")])), &["`nospace`"]);
    changed(&|f| f.set("tokenizer.ggml.merges", Meta::Array(vec![text("absent here")])), &["inconsistent"]);
    changed(&|f| f.set("tokenizer.ggml.eos_token_id", Meta::U32(1 << 20)), &["eos_token_id` is 1048576"]);
    changed(&|f| f.set("tokenizer.ggml.token_type", Meta::Array(vec![Meta::I32(1)])), &["1 entries for"]);
}

/// Opens the file and reads every tensor; whether it succeeds doesn't matter, only that nothing panics.
fn exercise(path: &Path) {
    if let Ok(model) = open_at(path) {
        for tensor in &model.inventory.tensors {
            let _ = model.read(&tensor.name);
        }
        let _ = model.tokenizer.encode("hello 12 <tool>", true).and_then(|ids| model.tokenizer.decode(&ids, false));
    }
}

#[test]
fn random_damage_to_a_gguf_never_panics() {
    let directory = tempdir().unwrap();
    let path = directory.path().join("m.gguf");
    let config = config("llama");
    let sound = Gguf::of(&config, &weights(&config), GgmlDType::Q4_0).bytes();
    let header = sound.len() / 4;
    let mut random = Random(0x5eed);
    for round in 0..600 {
        let mut bytes = sound.clone();
        match round % 4 {
            // One byte, mostly in the header.
            0 => {
                let at = random.below(header);
                bytes[at] = random.next() as u8;
            }
            // A length or count becomes huge.
            1 => {
                let at = random.below(header - 8);
                bytes[at..at + 8].copy_from_slice(&(random.next() >> random.below(60)).to_le_bytes());
            }
            2 => bytes.truncate(random.below(sound.len())),
            // Several bytes anywhere.
            _ => (0..20).for_each(|_| {
                let at = random.below(sound.len());
                bytes[at] = random.next() as u8;
            }),
        }
        std::fs::write(&path, &bytes).unwrap();
        exercise(&path);
    }
}

#[test]
fn random_damage_to_a_directory_never_panics() {
    let (directory, ..) = sound();
    let mut random = Random(0xfeed);
    for name in ["model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"] {
        let path = directory.path().join(name);
        let sound = std::fs::read(&path).unwrap();
        for _ in 0..100 {
            let mut bytes = sound.clone();
            if random.below(5) == 0 {
                bytes.truncate(random.below(sound.len()));
            } else {
                for _ in 0..1 + random.below(4) {
                    let at = random.below(sound.len().min(6000));
                    bytes[at] = random.next() as u8;
                }
            }
            std::fs::write(&path, &bytes).unwrap();
            exercise(directory.path());
        }
        std::fs::write(&path, &sound).unwrap();
    }
}
