//! Hugging Face directories: reading, sharding, ties, tokenizer files, hashes, summary.

use candle_core::DType;
use serde_json::json;
use tempfile::tempdir;

use super::fixture::*;
use crate::model::inventory::Kind;
use crate::model::open;

#[test]
fn opens_a_directory_and_reads_every_tensor() {
    let directory = tempdir().unwrap();
    let config = config("llama");
    let tensors = weights(&config);
    write_model(directory.path(), &config, &tensors);
    let model = open_at(directory.path()).unwrap();
    assert_eq!(model.spec.architecture, "llama");
    assert_eq!(model.inventory.tensors.len(), tensors.len());
    assert!(model.inventory.tied);
    for info in &model.inventory.tensors {
        assert_eq!(info.dtype, "f32");
        assert_eq!(model.read_f32(&info.name).unwrap(), tensors[&info.name].1, "{}", info.name);
        let tensor = model.read(&info.name).unwrap();
        assert_eq!(tensor.dtype(), DType::F32);
        assert_eq!(tensor.dims(), info.shape);
        assert_eq!(tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap(), tensors[&info.name].1);
    }
    let first: Vec<&str> = model.inventory.tensors.iter().take(3).map(|t| t.role.as_str()).collect();
    assert_eq!(first, ["embed_tokens", "input_layernorm", "q_proj"]);
    assert_eq!(model.inventory.tensors.last().unwrap().kind, Kind::Norm);
    assert_says(
        &model.read("model.layers.0.mlp.up_proj").unwrap_err(),
        &["no tensor", "did you mean `model.layers.0.mlp.up_proj.weight`"],
    );
    assert_says(&model.read_f32("lm_head.weight").unwrap_err(), &["no tensor `lm_head.weight`"]);
}

#[test]
fn half_precision_is_read_as_stored() {
    let directory = tempdir().unwrap();
    let config = config("qwen3");
    let tensors = weights(&config);
    write_model(directory.path(), &config, &tensors);
    let (name, (shape, data)) = tensors.iter().next().unwrap();
    for dtype in ["bf16", "f16"] {
        let all: Vec<(String, Vec<usize>, Vec<u8>)> = tensors
            .iter()
            .map(|(name, (shape, data))| {
                let bytes = data.iter().flat_map(|v| match dtype {
                    "bf16" => half::bf16::from_f32(*v).to_le_bytes(),
                    _ => half::f16::from_f32(*v).to_le_bytes(),
                });
                (name.clone(), shape.clone(), bytes.collect())
            })
            .collect();
        let kind = if dtype == "bf16" { safetensors::Dtype::BF16 } else { safetensors::Dtype::F16 };
        let views = all.iter().map(|(name, shape, bytes)| {
            (name.clone(), safetensors::tensor::TensorView::new(kind, shape.clone(), bytes).unwrap())
        });
        safetensors::serialize_to_file(views, None, &directory.path().join("model.safetensors")).unwrap();
        let model = open_at(directory.path()).unwrap();
        assert_eq!(model.inventory.tensors[0].dtype, dtype);
        assert_eq!(model.read(name).unwrap().dims(), shape);
        assert_eq!(model.read(name).unwrap().dtype(), if dtype == "bf16" { DType::BF16 } else { DType::F16 });
        let rounded: Vec<f32> = data
            .iter()
            .map(|v| if dtype == "bf16" { half::bf16::from_f32(*v).to_f32() } else { half::f16::from_f32(*v).to_f32() })
            .collect();
        assert_eq!(model.read_f32(name).unwrap(), rounded);
    }
}

/// Writes the tensors as two shards with an index.
fn write_shards(directory: &std::path::Path, tensors: &Tensors) {
    let (mut one, mut two, mut map) = (Tensors::new(), Tensors::new(), serde_json::Map::new());
    for (index, (name, tensor)) in tensors.iter().enumerate() {
        let (shard, file) = if index % 2 == 0 { (&mut one, "a.safetensors") } else { (&mut two, "b.safetensors") };
        shard.insert(name.clone(), tensor.clone());
        map.insert(name.clone(), json!(file));
    }
    write_safetensors(&directory.join("a.safetensors"), &one);
    write_safetensors(&directory.join("b.safetensors"), &two);
    write_json(directory.join("model.safetensors.index.json"), &json!({ "metadata": {}, "weight_map": map }));
}

#[test]
fn shards_read_the_same_and_hash_the_same() {
    let directory = tempdir().unwrap();
    let config = config("qwen2");
    let tensors = weights(&config);
    write_model(directory.path(), &config, &tensors);
    let whole = open_at(directory.path()).unwrap();
    std::fs::remove_file(directory.path().join("model.safetensors")).unwrap();
    write_shards(directory.path(), &tensors);
    let sharded = open_at(directory.path()).unwrap();
    assert_eq!(whole.hash, sharded.hash);
    assert_eq!(whole.inventory, sharded.inventory);
    for name in tensors.keys() {
        assert_eq!(whole.read_f32(name).unwrap(), sharded.read_f32(name).unwrap());
    }
    // Any tensor that changes changes the hash.
    for name in tensors.keys() {
        let mut changed = tensors.clone();
        changed.get_mut(name).unwrap().1[0] += 1.0;
        write_shards(directory.path(), &changed);
        assert_ne!(open_at(directory.path()).unwrap().hash, whole.hash, "{name}");
    }
}

#[test]
fn ties_follow_transformers() {
    let directory = tempdir().unwrap();
    let config = config("llama");
    let tied = weights(&config);
    write_model(directory.path(), &config, &tied);
    let plain = open_at(directory.path()).unwrap();

    // A copy of the embedding in the checkpoint is the tie.
    let embedding = tied["model.embed_tokens.weight"].clone();
    let mut both = tied.clone();
    both.insert("lm_head.weight".into(), embedding.clone());
    write_safetensors(&directory.path().join("model.safetensors"), &both);
    let copied = open_at(directory.path()).unwrap();
    assert!(copied.spec.tied && copied.inventory == plain.inventory && copied.hash == plain.hash);

    // Only the head is there: it is the embedding.
    let mut head_only = both.clone();
    head_only.remove("model.embed_tokens.weight");
    write_safetensors(&directory.path().join("model.safetensors"), &head_only);
    let swapped = open_at(directory.path()).unwrap();
    assert!(swapped.spec.tied);
    assert_eq!(swapped.read_f32("model.embed_tokens.weight").unwrap(), embedding.1);

    // Both are there and differ: not tied, and the user is told.
    both.get_mut("lm_head.weight").unwrap().1[5] += 1.0;
    write_safetensors(&directory.path().join("model.safetensors"), &both);
    let mut warnings = Warnings::default();
    let untied = open(directory.path().to_str().unwrap(), std::path::Path::new("/"), &mut warnings).unwrap();
    assert!(!untied.spec.tied && !untied.inventory.tied);
    assert_eq!(untied.inventory.tensors.last().unwrap().name, "lm_head.weight");
    assert!(warnings.0[0].contains("not tied"), "{:?}", warnings.0);
}

#[test]
fn tokenizer_files_are_read_as_transformers_reads_them() {
    let directory = tempdir().unwrap();
    let config = config("llama");
    write_model(directory.path(), &config, &weights(&config));
    let model = open_at(directory.path()).unwrap();
    let tokenizer = &model.tokenizer;
    let id = |text: &str| tokenizer.id(text).unwrap();
    assert_eq!(tokenizer.vocab_size(), VOCAB);
    assert_eq!(tokenizer.bos().unwrap().text, "<|start|>");
    assert_eq!((tokenizer.eos().unwrap().id, tokenizer.pad()), (id("<|end|>"), None));
    assert_eq!(model.chat_template.as_deref(), Some("T"));
    // The fixture's tokenizer.json truncates to four tokens; that must not reach us.
    let ids = tokenizer.encode("hello hello<|end|>x<tool>", false).unwrap();
    assert_eq!(ids, [id("hello"), id("Ġhello"), id("<|end|>"), id("x"), id("<tool>")]);
    assert_eq!(tokenizer.decode(&ids, false).unwrap(), "hello hello<|end|>x<tool>");
    assert_eq!(tokenizer.decode(&ids, true).unwrap(), "hello hellox<tool>");

    // add_bos_token replaces the post-processor; stop ids gather from three files, without repetition.
    write_json(
        directory.path().join("tokenizer_config.json"),
        &json!({ "bos_token": "<|start|>", "eos_token": "<|end|>", "add_bos_token": true,
                 "chat_template": [{ "name": "other", "template": "no" }, { "name": "default", "template": "D" }] }),
    );
    write_json(
        directory.path().join("generation_config.json"),
        &json!({ "eos_token_id": [id("<|end|>"), id("<|start|>")] }),
    );
    let model = open_at(directory.path()).unwrap();
    assert_eq!(model.tokenizer.encode("x", true).unwrap(), [id("<|start|>"), id("x")]);
    assert_eq!(model.tokenizer.encode("x", false).unwrap(), [id("x")]);
    assert_eq!(model.tokenizer.stop_ids(), [id("<|end|>"), id("<|start|>")]);
    assert_eq!(model.chat_template.as_deref(), Some("D"));

    // The template's own file wins, and the map fills in what the settings lack.
    std::fs::write(directory.path().join("chat_template.jinja"), "J").unwrap();
    std::fs::remove_file(directory.path().join("tokenizer_config.json")).unwrap();
    write_json(
        directory.path().join("special_tokens_map.json"),
        &json!({ "pad_token": { "content": "<tool>" }, "eos_token": "<|gone|>" }),
    );
    let mut warnings = Warnings::default();
    let model = open(directory.path().to_str().unwrap(), std::path::Path::new("/"), &mut warnings).unwrap();
    assert_eq!(model.chat_template.as_deref(), Some("J"));
    assert_eq!(model.tokenizer.pad().unwrap().text, "<tool>");
    assert!(warnings.0.iter().any(|w| w.contains("<|gone|>")), "{:?}", warnings.0);
}

#[test]
fn a_token_beyond_the_embedding_is_an_error_where_it_is_used() {
    let directory = tempdir().unwrap();
    let small = with(config("llama"), json!({ "vocab_size": VOCAB - 1 }));
    write_model(directory.path(), &small, &weights(&small));
    let model = open_at(directory.path()).unwrap();
    assert!(model.tokenizer.encode("hello", false).is_ok());
    assert_says(&model.tokenizer.encode("a<tool>", false).unwrap_err(), &["`<tool>`", &format!("{} rows", VOCAB - 1)]);
}

#[test]
fn the_summary_counts_every_parameter() {
    let directory = tempdir().unwrap();
    let config = config("qwen2");
    let tensors = weights(&config);
    write_model(directory.path(), &config, &tensors);
    let summary = open_at(directory.path()).unwrap().summary();
    let elements: usize = tensors.values().map(|(_, data)| data.len()).sum();
    assert_eq!((summary.parameters, summary.bytes), (elements as u64, 4 * elements as u64));
    let q: Vec<_> = summary.roles.iter().filter(|r| r.role == "q_proj").collect();
    assert_eq!((q[0].kind, q[0].count, &q[0].shape), (Kind::Linear, 2, &vec![64, 64]));
    assert_eq!((q[1].kind, q[1].count, &q[1].shape), (Kind::Bias, 2, &vec![64]));
    let round: crate::model::Summary = serde_json::from_str(&serde_json::to_string(&summary).unwrap()).unwrap();
    assert_eq!(round, summary);
}

#[test]
fn references_that_are_not_there_are_explained() {
    let directory = tempdir().unwrap();
    let config = config("llama");
    let model = directory.path().join("models");
    std::fs::create_dir(&model).unwrap();
    write_model(&model, &config, &weights(&config));
    let says = |reference: &str, parts: &[&str]| match open(reference, directory.path(), &mut Warnings::default()) {
        Ok(_) => panic!("{reference} was opened"),
        Err(error) => assert_says(&error, parts),
    };
    assert!(open("models", directory.path(), &mut Warnings::default()).is_ok());
    says("", &["empty", "`org/name`"]);
    says("modles", &["`modles` not found", "did you mean", "models`?"]);
    says("models/tiny", &["`models/tiny` not found", "Hugging Face directory"]);
    says("./absent.gguf", &["`./absent.gguf` not found"]);
    says("models/model.safetensors", &["is not a model", "name its directory"]);
    std::fs::write(directory.path().join("notes.txt"), "x").unwrap();
    says("notes.txt", &["is not a model", "GGUF file"]);
    std::fs::create_dir(directory.path().join("ggufs")).unwrap();
    says("ggufs", &["neither config.json nor a GGUF file"]);
    for name in ["a.gguf", "b.gguf"] {
        Gguf::of(&config, &weights(&config), candle_core::quantized::GgmlDType::F16)
            .write(&directory.path().join("ggufs").join(name));
    }
    says("ggufs", &["several GGUF files: a.gguf, b.gguf", "name one"]);
    std::fs::remove_file(directory.path().join("ggufs/b.gguf")).unwrap();
    assert!(open("ggufs", directory.path(), &mut Warnings::default()).unwrap().is_gguf());
}
