//! Exports of golden runs, read back: weights, tokenizer and configuration must be those of the run.

#![allow(clippy::unwrap_used)]

use std::path::Path;

use serde_json::json;

use super::fixtures::{base, family, golden_adapter, lora_plan, lora_run, moved, plan, spec, write_config, write_run};
use super::*;
use crate::checkpoint::TensorFile;
use crate::model::inventory::Kind;
use crate::model::{self, BaseModel};
use crate::plan::AdapterSpec;
use crate::plan::Treatment;
use crate::report::Silent;

const FAMILIES: [&str; 5] = ["llama", "llama3", "mistral", "qwen2", "qwen3"];
const TEXTS: [&str; 4] = ["Hello, world! 12345", "<|im_start|>user\nhi<|im_end|>", "  ünïcödé 🙂\n\n", ""];

fn run_export(run: &Path, format: Format, out: &Path, options: &Options) -> Result<Exported> {
    export(run, None, format, out, options, &mut Silent)
}

fn reopen(path: &Path) -> BaseModel {
    model::open(path.to_str().unwrap(), Path::new("/"), &mut Silent).unwrap()
}

/// The tiny model of a family, its rope scaled for the context length that all published Llama 3 models began with:
/// GGUF keeps only the factors that follow from it, and a reader recognises those.
fn published_base(family_name: &str, dir: &Path) -> BaseModel {
    if family_name != "llama3" {
        return base(family_name);
    }
    let copy = dir.join("llama3-8192");
    std::fs::create_dir(&copy).unwrap();
    for entry in std::fs::read_dir(family(family_name).join("model")).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, copy.join(path.file_name().unwrap())).unwrap();
    }
    let config = std::fs::read_to_string(copy.join("config.json")).unwrap();
    let scaled =
        config.replace("\"original_max_position_embeddings\": 64", "\"original_max_position_embeddings\": 8192");
    assert_ne!(scaled, config);
    std::fs::write(copy.join("config.json"), scaled).unwrap();
    reopen(&copy)
}

/// `W + s·B·A` (and DoRA's rows) by the definition, in f64.
fn expected(base: &BaseModel, family: &str, case: &str, name: &str) -> Vec<f32> {
    let weight = base.read_f32(name).unwrap();
    let Some(module) = name.strip_suffix(".weight") else { return weight };
    let trained = golden_adapter(family, case);
    let part = |suffix: &str| trained.iter().find(|t| t.name == format!("{module}.{suffix}"));
    let (Some(a), Some(b)) = (part("lora_A.weight"), part("lora_B.weight")) else { return weight };
    let (av, bv) = (a.data.to_f32().unwrap(), b.data.to_f32().unwrap());
    let (rank, into) = (a.shape[0], a.shape[1]);
    let magnitude = part("lora_magnitude_vector").map(|m| m.data.to_f32().unwrap());
    let mut out = Vec::new();
    for (o, row) in weight.chunks(into).enumerate() {
        let delta =
            |i: usize| (0..rank).map(|r| f64::from(bv[o * rank + r]) * f64::from(av[r * into + i])).sum::<f64>();
        let row: Vec<f64> =
            row.iter().enumerate().map(|(i, w)| f64::from(*w) + spec(case).scale() * delta(i)).collect();
        let norm = row.iter().map(|w| w * w).sum::<f64>().sqrt();
        let factor = magnitude.as_ref().map_or(1.0, |m| f64::from(m[o]) / norm);
        out.extend(row.iter().map(|w| (w * factor) as f32));
    }
    out
}

#[track_caller]
fn assert_close(name: &str, got: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(got.len(), expected.len(), "{name}");
    let largest = expected.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    let difference = got.iter().zip(expected).fold(0.0f32, |m, (a, b)| m.max((a - b).abs()));
    assert!(difference <= tolerance * largest, "{name}: differs by {difference}, and the largest is {largest}");
}

#[track_caller]
fn assert_same_tokenizer(ours: &BaseModel, theirs: &BaseModel) {
    for text in TEXTS {
        let ids = |m: &BaseModel| m.tokenizer.encode(text, true).unwrap();
        assert_eq!(ids(ours), ids(theirs), "{text:?}");
        let decoded = |m: &BaseModel| m.tokenizer.decode(&ids(m), false).unwrap();
        assert_eq!(decoded(ours), decoded(theirs));
    }
    assert_eq!(ours.tokenizer.bos(), theirs.tokenizer.bos());
    assert_eq!(ours.tokenizer.eos(), theirs.tokenizer.eos());
    assert_eq!(ours.tokenizer.pad(), theirs.tokenizer.pad());
    assert_eq!(ours.chat_template, theirs.chat_template);
}

#[test]
fn a_merged_model_has_the_adapters_in_its_weights() {
    let dir = tempfile::tempdir().unwrap();
    let cases = FAMILIES.map(|f| (f, "lora")).into_iter().chain([("llama", "rslora"), ("llama", "dora")]);
    for (name, case) in cases {
        let (run, out) = (dir.path().join(format!("{name}-{case}")), dir.path().join(format!("{name}-{case}-hf")));
        lora_run(&run, name, case);
        let exported = run_export(&run, Format::Hf, &out, &Options::default()).unwrap();
        assert!(exported.files.iter().any(|(n, bytes)| n == "model.safetensors" && *bytes > 300_000));
        let (base, merged) = (base(name), reopen(&out));
        assert_eq!(merged.inventory, base.inventory);
        assert_eq!(merged.config_json, base.config_json);
        for info in &base.inventory.tensors {
            let got = merged.read_f32(&info.name).unwrap();
            let expected = expected(&base, name, case, &info.name);
            let tolerance = if info.kind == Kind::Linear { 1e-6 } else { 0.0 };
            assert_close(&info.name, &got, &expected, tolerance);
        }
        assert_same_tokenizer(&merged, &base);
    }
}

#[test]
fn a_large_model_is_cut_into_shards() {
    let dir = tempfile::tempdir().unwrap();
    let (run, out) = (dir.path().join("run"), dir.path().join("out"));
    lora_run(&run, "qwen3", "lora");
    let options = Options { shard_bytes: 100_000, dtype: Some(Dtype::Bf16), ..Options::default() };
    let exported = run_export(&run, Format::Hf, &out, &options).unwrap();
    let shards: Vec<_> = exported.files.iter().filter(|(n, _)| n.starts_with("model-")).collect();
    assert!(shards.len() > 1 && shards.iter().all(|(_, bytes)| *bytes < 110_000), "{shards:?}");
    let merged = reopen(&out);
    assert_eq!(merged.config_json["dtype"], "bfloat16");
    assert!(merged.inventory.tensors.iter().all(|t| t.dtype == "bf16"));
    let base = base("qwen3");
    for info in &base.inventory.tensors {
        let expected = expected(&base, "qwen3", "lora", &info.name);
        assert_close(&info.name, &merged.read_f32(&info.name).unwrap(), &expected, 1.0 / 256.0);
    }
}

#[test]
fn whole_trained_tensors_take_the_place_of_the_bases() {
    let dir = tempfile::tempdir().unwrap();
    let (run, out) = (dir.path().join("run"), dir.path().join("out"));
    let base = base("llama3");
    let trains = |name: &str| name.contains("layers.1.") || name == "lm_head.weight";
    let plan = plan(&base, |t| if trains(&t.name) { Treatment::Train } else { Treatment::Frozen });
    let trained: Vec<_> = base.inventory.tensors.iter().filter(|t| trains(&t.name)).map(|t| moved(&base, t)).collect();
    write_run(&run, &base, &plan, &trained);
    run_export(&run, Format::Hf, &out, &Options::default()).unwrap();
    let merged = reopen(&out);
    for info in &base.inventory.tensors {
        let expected = match trained.iter().find(|t| t.name == info.name) {
            Some(trained) => trained.data.to_f32().unwrap(),
            None => base.read_f32(&info.name).unwrap(),
        };
        assert_eq!(merged.read_f32(&info.name).unwrap(), expected, "{}", info.name);
    }
    // Nothing of this is an adapter.
    let error = run_export(&run, Format::Peft, &dir.path().join("peft"), &Options::default()).unwrap_err();
    assert!(error.message().ends_with("the plan has no adapters: its tensors train whole"), "{error}");
    assert_eq!(error.help_text(), Some("export the merged model with `--format hf`"));
    assert!(!dir.path().join("peft").exists());
}

#[test]
fn a_gguf_file_reads_back_as_the_merged_model() {
    let dir = tempfile::tempdir().unwrap();
    for name in FAMILIES {
        let run = dir.path().join(name);
        let base = published_base(name, dir.path());
        write_run(&run, &base, &lora_plan(&base, "lora"), &golden_adapter(name, "lora"));
        for (dtype, file, tolerance) in
            [(None, format!("{name}-F16.gguf"), 5e-4), (Some(Dtype::Q8_0), format!("{name}-Q8_0.gguf"), 5e-3)]
        {
            let out = dir.path().join(format!("out-{file}"));
            let exported = run_export(&run, Format::Gguf, &out, &Options { dtype, ..Options::default() }).unwrap();
            assert_eq!(exported.files.len(), 1);
            assert_eq!(exported.notes.len(), usize::from(matches!(name, "mistral" | "llama3")), "{:?}", exported.notes);
            let merged = reopen(&out.join(&file));
            assert_same_tokenizer(&merged, &base);
            assert_eq!(merged.inventory.tensors.len(), base.inventory.tensors.len());
            for info in &base.inventory.tensors {
                let expected = expected(&base, name, "lora", &info.name);
                let tolerance = if info.shape.len() == 1 { 0.0 } else { tolerance };
                assert_close(&info.name, &merged.read_f32(&info.name).unwrap(), &expected, tolerance);
            }
            let (ours, theirs) = (&merged.spec, &base.spec);
            assert_eq!((ours.heads, ours.kv_heads, ours.head_dim), (theirs.heads, theirs.kv_heads, theirs.head_dim));
            assert_eq!((ours.tied, ours.max_positions, ours.vocab), (theirs.tied, theirs.max_positions, theirs.vocab));
            assert_eq!((&ours.rope, ours.rms_eps), (&theirs.rope, theirs.rms_eps));
        }
    }
}

#[test]
fn a_model_from_gguf_becomes_a_hugging_face_directory() {
    let dir = tempfile::tempdir().unwrap();
    let (run, gguf) = (dir.path().join("run"), dir.path().join("gguf"));
    lora_run(&run, "qwen2", "lora");
    run_export(&run, Format::Gguf, &gguf, &Options::default()).unwrap();
    // A run whose base is that file, and that changes nothing.
    let from_gguf = reopen(&gguf.join("run-F16.gguf"));
    let (second, out) = (dir.path().join("second"), dir.path().join("hf"));
    let frozen = plan(&from_gguf, |_| Treatment::Frozen);
    write_run(&second, &from_gguf, &frozen, &Vec::new());
    run_export(&second, Format::Hf, &out, &Options::default()).unwrap();
    let again = reopen(&out);
    assert_same_tokenizer(&again, &from_gguf);
    for info in &from_gguf.inventory.tensors {
        assert_eq!(again.read_f32(&info.name).unwrap(), from_gguf.read_f32(&info.name).unwrap());
    }
}

#[test]
fn a_peft_adapter_has_pefts_names_and_values() {
    let dir = tempfile::tempdir().unwrap();
    for case in ["lora", "rslora", "dora"] {
        let (run, out) = (dir.path().join(case), dir.path().join(format!("{case}-peft")));
        lora_run(&run, "llama", case);
        run_export(&run, Format::Peft, &out, &Options::default()).unwrap();
        let adapter = TensorFile::open(&out.join("adapter_model.safetensors")).unwrap();
        let golden = TensorFile::open(&family("llama").join("golden.safetensors")).unwrap();
        let mut count = 0;
        for name in golden.names().unwrap() {
            let Some(ours) = name.strip_prefix(&format!("{case}.final.")) else { continue };
            assert_eq!(adapter.get(ours).unwrap().data, golden.get(&name).unwrap().data, "{ours}");
            count += 1;
        }
        assert!(count >= 28);
        assert_eq!(adapter.names().unwrap().len(), count);
        let config: serde_json::Value =
            serde_json::from_str(&std::fs::read_to_string(out.join("adapter_config.json")).unwrap()).unwrap();
        let expected = json!({
            "r": 4, "lora_alpha": 8, "use_rslora": case == "rslora", "use_dora": case == "dora", "rank_pattern": {},
            "alpha_pattern": {}, "modules_to_save": null, "bias": "none", "peft_type": "LORA", "task_type": "CAUSAL_LM",
            "target_modules": ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"],
        });
        for (key, value) in expected.as_object().unwrap() {
            assert_eq!(&config[key], value, "{key}");
        }
    }
}

#[test]
fn ranks_by_pattern_and_saved_modules_go_into_pefts_configuration() {
    let dir = tempfile::tempdir().unwrap();
    let (run, out) = (dir.path().join("run"), dir.path().join("out"));
    let base = base("llama3");
    let small = |rank, rslora| Treatment::Adapt(AdapterSpec { rank, rslora, ..spec("lora") });
    let plan = plan(&base, |t| match (t.role.as_str(), t.block) {
        ("q_proj", Some(0)) => small(4, false),
        ("q_proj", Some(1)) => small(2, false),
        ("v_proj", Some(1)) => small(4, true),
        ("lm_head", _) => Treatment::Train,
        _ => Treatment::Frozen,
    });
    let mut trained: Vec<_> = golden_adapter("llama3", "lora");
    trained.retain(|t| t.name.contains("q_proj") || t.name.contains("layers.1.self_attn.v_proj"));
    for tensor in trained.iter_mut().filter(|t| t.name.contains("layers.1.self_attn.q_proj")) {
        // [rank, in] keeps its first rows, [out, rank] its first columns.
        let (values, columns) = (tensor.data.to_f32().unwrap(), tensor.shape[1]);
        let (rows, kept) = if tensor.shape[0] == 4 { (2, columns) } else { (tensor.shape[0], 2) };
        let data = values.chunks(columns).take(rows).flat_map(|row| row[..kept].to_vec()).collect();
        tensor.shape = vec![rows, kept];
        tensor.data = crate::checkpoint::TensorData::F32(data);
    }
    let head = base.inventory.get("lm_head.weight").unwrap();
    trained.push(moved(&base, head));
    write_run(&run, &base, &plan, &trained);
    run_export(&run, Format::Peft, &out, &Options::default()).unwrap();
    let config: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(out.join("adapter_config.json")).unwrap()).unwrap();
    let (q0, q1, v1) =
        ("model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj", "model.layers.1.self_attn.v_proj");
    assert_eq!(config["target_modules"], json!([q0, q1, v1]));
    assert_eq!(config["rank_pattern"], json!({q1: 2}));
    // alpha / rank = 8 / sqrt(4) for the one with rsLoRA.
    assert_eq!(config["alpha_pattern"], json!({v1: 16}));
    assert_eq!(config["use_rslora"], json!(false));
    assert_eq!(config["modules_to_save"], json!(["lm_head"]));
    let adapter = TensorFile::open(&out.join("adapter_model.safetensors")).unwrap();
    assert_eq!(adapter.get("base_model.model.lm_head.weight").unwrap().data, moved(&base, head).data);
}

#[test]
fn a_target_that_holds_something_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (run, out) = (dir.path().join("run"), dir.path().join("out"));
    lora_run(&run, "llama", "lora");
    run_export(&run, Format::Peft, &out, &Options::default()).unwrap();
    let error = run_export(&run, Format::Hf, &out, &Options::default()).unwrap_err();
    assert_eq!(error.message(), format!("the directory {} is not empty", out.display()));
    // By force, an earlier export is replaced whole …
    run_export(&run, Format::Hf, &out, &Options { force: true, ..Options::default() }).unwrap();
    assert!(!out.join("adapter_config.json").exists() && out.join("model.safetensors").exists());
    // … and anything else never is.
    std::fs::write(out.join("thesis.tex"), "").unwrap();
    let error = run_export(&run, Format::Hf, &out, &Options { force: true, ..Options::default() }).unwrap_err();
    assert!(error.message().contains("holds more than an export: ") && error.message().contains("thesis.tex"));
    let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left.len(), 2, "{left:?}");
}

#[test]
fn what_does_not_belong_together_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (run, out) = (dir.path().join("run"), dir.path().join("out"));
    let error = run_export(&run, Format::Hf, &out, &Options::default()).unwrap_err();
    assert!(error.message().ends_with("is not a run: it has no config.toml"), "{error}");
    lora_run(&dir.path().join("good"), "llama", "lora");
    // The adapter of another case: a magnitude is missing.
    let base = base("llama");
    write_run(&run, &base, &lora_plan(&base, "dora"), &golden_adapter("llama", "lora"));
    let error = run_export(&run, Format::Hf, &out, &Options::default()).unwrap_err();
    assert!(error.message().contains("there is no tensor model.layers.0.self_attn.q_proj.lora_magnitude"), "{error}");
    // The other way round, one is left over.
    let run = dir.path().join("second");
    write_run(&run, &base, &lora_plan(&base, "lora"), &golden_adapter("llama", "dora"));
    let error = run_export(&run, Format::Hf, &out, &Options::default()).unwrap_err();
    assert!(error.message().contains("it has 42 tensors, and the plan trains 28"), "{error}");
    // Another base model.
    write_config(&run, &family("qwen3").join("model"));
    let error = run_export(&run, Format::Hf, &out, &Options::default()).unwrap_err();
    assert!(error.message().contains("the plan"), "{error}");
    // The same model with other weights.
    let other = dir.path().join("other");
    run_export(&dir.path().join("good"), Format::Hf, &other, &Options::default()).unwrap();
    write_config(&run, &other);
    let error = run_export(&run, Format::Hf, &out, &Options::default()).unwrap_err();
    assert!(error.message().contains("was made with another model (sha256 "), "{error}");
    assert!(!out.exists());
}

#[test]
fn formats_and_types_are_chosen_by_name() {
    assert_eq!("gguf".parse::<Format>().unwrap(), Format::Gguf);
    assert_eq!("Q8_0".parse::<Dtype>().unwrap(), Dtype::Q8_0);
    let error = "onnx".parse::<Format>().unwrap_err();
    assert_eq!(error.to_string(), "unknown export format `onnx`\n  help: choose one of peft, hf, gguf, delta");
    let dir = tempfile::tempdir().unwrap();
    let (run, out) = (dir.path().join("run"), dir.path().join("out"));
    lora_run(&run, "llama", "lora");
    for (format, dtype, message) in [
        (Format::Peft, Dtype::F16, "the format peft can't be written as f16"),
        (Format::Hf, Dtype::Q8_0, "the format hf can't be written as q8_0"),
        (Format::Gguf, Dtype::Bf16, "the format gguf can't be written as bf16"),
    ] {
        let options = Options { dtype: Some(dtype), ..Options::default() };
        assert_eq!(run_export(&run, format, &out, &options).unwrap_err().message(), message);
    }
}

/// A tokenizer as Llama 2's: SentencePiece's pieces, with bytes for what it doesn't know.
fn sentence_piece_tokenizer() -> serde_json::Value {
    let mut tokens: Vec<String> = ["<unk>", "<s>", "</s>"].map(String::from).into();
    tokens.extend((0..256).map(|byte| format!("<0x{byte:02X}>")));
    tokens.extend(["▁h", "hi", "▁hi", "el", "ell", "ello", "▁", "h", "i", "e", "l", "o"].map(String::from));
    let vocab: serde_json::Map<String, serde_json::Value> =
        tokens.iter().enumerate().map(|(id, text)| (text.clone(), json!(id))).collect();
    let special = |id: usize| {
        json!({"id": id, "content": tokens[id], "single_word": false, "lstrip": false,
                                     "rstrip": false, "normalized": false, "special": true})
    };
    json!({
        "version": "1.0",
        "added_tokens": [special(0), special(1), special(2)],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
        "pre_tokenizer": null,
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}},
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "vocab": vocab,
            "merges": [["▁", "h"], ["h", "i"], ["▁h", "i"], ["▁", "hi"], ["e", "l"], ["el", "l"], ["ell", "o"]]},
    })
}

#[test]
fn a_sentence_piece_tokenizer_survives_gguf() {
    let dir = tempfile::tempdir().unwrap();
    let (directory, run, out) = (dir.path().join("llama-2"), dir.path().join("run"), dir.path().join("out"));
    std::fs::create_dir(&directory).unwrap();
    for name in ["config.json", "model.safetensors"] {
        std::fs::copy(family("llama").join("model").join(name), directory.join(name)).unwrap();
    }
    std::fs::write(directory.join("tokenizer.json"), sentence_piece_tokenizer().to_string()).unwrap();
    let config = json!({"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"});
    std::fs::write(directory.join("tokenizer_config.json"), config.to_string()).unwrap();
    let base = reopen(&directory);
    write_run(&run, &base, &plan(&base, |_| Treatment::Frozen), &Vec::new());
    run_export(&run, Format::Gguf, &out, &Options::default()).unwrap();
    let again = reopen(&out.join("run-F16.gguf"));
    for text in ["hi hello", "hihi  ü", "", "hell o"] {
        let ids = base.tokenizer.encode(text, true).unwrap();
        assert_eq!(again.tokenizer.encode(text, true).unwrap(), ids, "{text:?}");
        assert_eq!(again.tokenizer.decode(&ids, true).unwrap(), base.tokenizer.decode(&ids, true).unwrap());
    }
    // `<s> ▁hi ▁h ello`: by merges, as the original does it.
    let ids = again.tokenizer.encode("hi hello", true).unwrap();
    let pieces: Vec<String> = ids.iter().filter_map(|id| again.tokenizer.token(*id)).collect();
    assert_eq!(pieces, ["<s>", "▁hi", "▁h", "ello"]);
}
