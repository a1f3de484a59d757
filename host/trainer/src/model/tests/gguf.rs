//! GGUF files: every tensor type, the order of rows, the configuration, rope factors, tokenizers.

use candle_core::quantized::GgmlDType;
use candle_core::quantized::gguf_file::Value as Meta;
use candle_core::{DType, Device, Tensor};
use serde_json::{Value, json};
use tempfile::tempdir;
use tokenizers::Tokenizer;

use super::fixture::*;
use crate::model::gguf::pretokenizer;
use crate::model::open;
use crate::model::spec::RopeScaling;

/// What a tensor's elements are after a round through `dtype`, by candle's own way of decoding.
fn rounded(data: &[f32], dtype: GgmlDType) -> Vec<f32> {
    let tensor = Tensor::from_slice(data, data.len(), &Device::Cpu).unwrap();
    match dtype {
        GgmlDType::F32 => data.to_vec(),
        GgmlDType::F16 => tensor.to_dtype(DType::F16).unwrap().to_dtype(DType::F32).unwrap().to_vec1().unwrap(),
        GgmlDType::BF16 => tensor.to_dtype(DType::BF16).unwrap().to_dtype(DType::F32).unwrap().to_vec1().unwrap(),
        blocks => {
            let packed = candle_core::quantized::QTensor::quantize(&tensor, blocks).unwrap();
            packed.dequantize(&Device::Cpu).unwrap().to_vec1().unwrap()
        }
    }
}

#[test]
fn every_tensor_type_reads_back_in_hugging_face_order() {
    use GgmlDType::*;
    let directory = tempdir().unwrap();
    let path = directory.path().join("m.gguf");
    // Rows of 256, so that k-quants fit.
    let config = with(config("llama"), json!({ "hidden_size": 256, "intermediate_size": 512, "head_dim": 64 }));
    let tensors = weights(&config);
    for dtype in [F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q2K, Q3K, Q4K, Q5K, Q6K] {
        Gguf::of(&config, &tensors, dtype).write(&path);
        let model = open_at(&path).unwrap();
        for (name, (shape, data)) in &tensors {
            let stored = if shape.len() == 2 { dtype } else { F32 };
            // Rows are whole blocks, so interleaving and quantising rows commute.
            let expected = rounded(data, stored);
            assert_eq!(model.read_f32(name).unwrap(), expected, "{name} as {dtype:?}");
            let tensor = model.read(name).unwrap();
            assert_eq!(tensor.dims(), shape);
            let kept = match stored {
                F16 => DType::F16,
                BF16 => DType::BF16,
                _ => DType::F32,
            };
            assert_eq!(tensor.dtype(), kept);
            let elements = tensor.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
            assert_eq!(elements, expected);
        }
    }
}

#[test]
fn the_configuration_is_that_of_the_original() {
    let directory = tempdir().unwrap();
    let (path, hf) = (directory.path().join("m.gguf"), directory.path().join("hf"));
    std::fs::create_dir(&hf).unwrap();
    for family in ["llama", "qwen2", "qwen3"] {
        for tied in [true, false] {
            let config = with(config(family), json!({ "tie_word_embeddings": tied, "rope_theta": 1e6 }));
            let tensors = weights(&config);
            write_model(&hf, &config, &tensors);
            Gguf::of(&config, &tensors, GgmlDType::F32).write(&path);
            let (original, gguf) = (open_at(&hf).unwrap(), open_at(&path).unwrap());
            assert_eq!(gguf.spec, original.spec, "{family}");
            assert_eq!(gguf.inventory, original.inventory);
            for name in tensors.keys() {
                assert_eq!(gguf.read_f32(name).unwrap(), original.read_f32(name).unwrap(), "{family} {name}");
            }
            assert_eq!(gguf.config_json["eos_token_id"], json!(VOCAB - 2));
            assert_eq!(gguf.chat_template, original.chat_template);
        }
    }
    // Biases are seen from the tensors; Mistral's files say `llama`.
    let config = with(config("llama"), json!({ "attention_bias": true }));
    let tensors = weights(&config);
    Gguf::of(&config, &tensors, GgmlDType::F32).write(&path);
    let model = open_at(&path).unwrap();
    assert!(model.spec.qkv_bias && model.spec.o_bias && !model.spec.mlp_bias);
    let bias = "model.layers.0.self_attn.q_proj.bias";
    assert_eq!(model.read_f32(bias).unwrap(), tensors[bias].1);
}

/// The factors that llama.cpp's converter writes for Llama 3 (`LlamaModel.generate_extra_tensors`).
fn llama3_factors(factor: f64, original: f64, theta: f64, head_dim: usize) -> Vec<f32> {
    (0..head_dim / 2)
        .map(|i| {
            let wavelength = std::f64::consts::TAU * theta.powf(2.0 * i as f64 / head_dim as f64);
            if wavelength < original / 4.0 {
                1.0
            } else if wavelength > original {
                factor as f32
            } else {
                let smooth = (original / wavelength - 1.0) / 3.0;
                (1.0 / ((1.0 - smooth) / factor + smooth)) as f32
            }
        })
        .collect()
}

#[test]
fn llama_3_rope_scaling_comes_from_the_factors() {
    let directory = tempdir().unwrap();
    let path = directory.path().join("m.gguf");
    let config = with(config("llama"), json!({ "rope_theta": 500000.0 }));
    let tensors = weights(&config);
    let file = |factors: Vec<f32>| {
        let mut file = Gguf::of(&config, &tensors, GgmlDType::F32);
        file.tensors.push(("rope_freqs.weight".into(), vec![factors.len()], 0, encode(&factors, GgmlDType::F32)));
        file.write(&path);
    };
    for (factor, original) in [(8.0, 8192usize), (32.0, 8192), (4.0, 2048)] {
        file(llama3_factors(factor, original as f64, 500_000.0, 16));
        let scaling = open_at(&path).unwrap().spec.rope.scaling;
        let RopeScaling::Llama3 { factor: found, low_freq_factor, high_freq_factor, original_max_positions } = scaling
        else {
            panic!("{scaling:?}");
        };
        assert_eq!((found, low_freq_factor, high_freq_factor), (factor, 1.0, 4.0));
        // Few frequencies leave room for several originals; the factors that follow from what was found are the same.
        assert_eq!(
            llama3_factors(found, original_max_positions as f64, 500_000.0, 16),
            llama3_factors(factor, original as f64, 500_000.0, 16)
        );
    }
    file(vec![1.0; 8]);
    assert_eq!(open_at(&path).unwrap().spec.rope.scaling, RopeScaling::None);
    file(vec![1.0, 3.0, 2.0, 5.0, 1.0, 1.0, 7.0, 1.0]);
    assert_says(&refusal(&path), &["m.gguf", "rope_freqs.weight", "llama3"]);

    let scaled = |kind: &str| {
        let mut file = Gguf::of(&config, &tensors, GgmlDType::F32);
        file.set("llama.rope.scaling.type", text(kind));
        file.set("llama.rope.scaling.factor", Meta::F32(2.0));
        file.write(&path);
    };
    scaled("linear");
    assert_eq!(open_at(&path).unwrap().spec.rope.scaling, RopeScaling::Linear { factor: 2.0 });
    scaled("yarn");
    assert_says(&refusal(&path), &["`yarn`", "supported rope types"]);
}

const TEXTS: [&str; 9] = [
    "",
    " ",
    "hello hello 12 3",
    "He'LL it's\n\n  hell\tx",
    "12345",
    "naïve café — ½ ２ १",
    "<|start|>hello<|end|>",
    "a<tool> b",
    "\u{1f600} e\u{301}\r\n",
];

#[test]
fn byte_level_tokenizers_agree_with_tokenizer_json() {
    let directory = tempdir().unwrap();
    let path = directory.path().join("m.gguf");
    let config = config("llama");
    let mut file = Gguf::of(&config, &weights(&config), GgmlDType::F32);
    let bytes = |use_regex: bool| json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex });
    let two = |first: Value, second: Value| json!({ "type": "Sequence", "pretokenizers": [first, second] });
    let split = |regex: &str| json!({ "type": "Split", "pattern": { "Regex": regex }, "behavior": "Isolated", "invert": false });
    let qwen = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
    let llama3 = qwen.replace(r"|\p{N}| ", r"|\p{N}{1,3}| ");
    let cases = [
        ("gpt-2", bytes(true), Value::Null, false),
        ("smollm", two(json!({ "type": "Digits", "individual_digits": true }), bytes(true)), Value::Null, false),
        ("llama-bpe", two(split(&llama3), bytes(false)), Value::Null, true),
        ("qwen2", two(split(qwen), bytes(false)), json!({ "type": "NFC" }), false),
    ];
    for (name, pre_tokenizer, normalizer, ignore_merges) in cases {
        let json = tokenizer_json(pre_tokenizer, normalizer, ignore_merges);
        let mut original = Tokenizer::from_bytes(json.to_string()).unwrap();
        original.with_truncation(None).unwrap();
        assert_eq!(pretokenizer::name_of(&original), Some(name));
        file.set("tokenizer.ggml.pre", text(name));
        file.write(&path);
        let ours = open_at(&path).unwrap().tokenizer;
        assert_eq!(pretokenizer::name_of(ours.inner()), Some(name));
        for text in TEXTS {
            let expected = original.encode(text, false).unwrap().get_ids().to_vec();
            let ids = ours.encode(text, false).unwrap();
            assert_eq!(ids, expected, "{name} {text:?}");
            assert_eq!(ours.decode(&ids, false).unwrap(), original.decode(&ids, false).unwrap());
            assert_eq!(ours.decode(&ids, true).unwrap(), original.decode(&ids, true).unwrap());
        }
        // Llama 3 begins with bos unless the file says otherwise.
        let starts = ours.encode("x", true).unwrap()[0] == ours.bos().unwrap().id;
        assert_eq!(starts, name == "llama-bpe");
    }
    file.set("tokenizer.ggml.add_bos_token", Meta::Bool(true));
    file.set("tokenizer.ggml.add_eos_token", Meta::Bool(true));
    file.set("tokenizer.ggml.eot_token_id", Meta::U32(5));
    file.write(&path);
    let both = open_at(&path).unwrap().tokenizer;
    let (bos, eos) = (both.bos().unwrap().id, both.eos().unwrap().id);
    assert_eq!(both.encode("x", true).unwrap(), [bos, both.id("x").unwrap(), eos]);
    assert_eq!(both.stop_ids(), [eos, 5]);

    file.set("tokenizer.ggml.pre", text("falcon"));
    file.write(&path);
    assert_says(&refusal(&path), &["`falcon`", "smollm", "qwen2"]);
    file.remove("tokenizer.ggml.pre");
    file.write(&path);
    let mut warnings = Warnings::default();
    open(path.to_str().unwrap(), std::path::Path::new("/"), &mut warnings).unwrap();
    assert!(warnings.0[0].contains("using `gpt-2`"), "{:?}", warnings.0);
}

#[test]
fn sentence_piece_tokenizers_merge_by_score_and_fall_back_to_bytes() {
    let directory = tempdir().unwrap();
    let path = directory.path().join("m.gguf");
    let mut tokens: Vec<(String, f32, i32)> =
        [("<unk>", 2), ("<s>", 3), ("</s>", 3)].map(|(t, kind)| (t.to_string(), 0.0, kind)).to_vec();
    tokens.extend((0..256).map(|byte| (format!("<0x{byte:02X}>"), 0.0, 6)));
    // In the order in which SentencePiece learned them: the score is minus the rank.
    for (rank, piece) in ["he", "ll", "▁he", "llo", "▁hello", "▁", "h", "e", "l", "o", "x"].iter().enumerate() {
        tokens.push((piece.to_string(), -(rank as f32), 1));
    }
    let vocab = tokens.len();
    let config = with(config("llama"), json!({ "vocab_size": vocab }));
    let mut file = Gguf::of(&config, &weights(&config), GgmlDType::F32);
    let array = |values: Vec<Meta>| Meta::Array(values);
    for key in ["tokenizer.ggml.merges", "tokenizer.ggml.pre"] {
        file.remove(key);
    }
    file.set("tokenizer.ggml.model", text("llama"));
    file.set("tokenizer.ggml.tokens", array(tokens.iter().map(|(token, ..)| text(token)).collect()));
    file.set("tokenizer.ggml.scores", array(tokens.iter().map(|(_, score, _)| Meta::F32(*score)).collect()));
    file.set("tokenizer.ggml.token_type", array(tokens.iter().map(|(.., kind)| Meta::I32(*kind)).collect()));
    for (name, id) in [("unknown", 0), ("bos", 1), ("eos", 2)] {
        file.set(&format!("tokenizer.ggml.{name}_token_id"), Meta::U32(id));
    }
    file.write(&path);
    let tokenizer = open_at(&path).unwrap().tokenizer;
    let pieces = |text: &str, special: bool| -> Vec<String> {
        tokenizer.encode(text, special).unwrap().iter().map(|id| tokenizer.token(*id).unwrap()).collect()
    };
    assert_eq!(pieces("hello hello", true), ["<s>", "▁hello", "▁hello"]);
    assert_eq!(pieces("hellx", false), ["▁he", "ll", "x"]);
    assert_eq!(pieces("é", false), ["▁", "<0xC3>", "<0xA9>"]);
    assert_eq!(pieces("x</s>", false), ["▁", "x", "</s>"]);
    for text in ["hello hello", "  x", "é \u{1f600}\n"] {
        assert_eq!(tokenizer.decode(&tokenizer.encode(text, false).unwrap(), false).unwrap(), text);
    }
    file.set("tokenizer.ggml.add_space_prefix", Meta::Bool(false));
    file.write(&path);
    let bare = open_at(&path).unwrap().tokenizer;
    assert_eq!(bare.encode("hello", false).unwrap(), ["he", "llo"].map(|piece| bare.id(piece).unwrap()));
}
