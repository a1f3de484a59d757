//! config.json → ModelSpec, family by family.

use serde_json::{Value, json};

use super::fixture::{assert_says, config, spec, with};
use crate::model::arch::expected_tensors;
use crate::model::spec::RopeScaling;

fn refused(family: &str, changes: Value, parts: &[&str]) {
    assert_says(&spec(&with(config(family), changes)).unwrap_err(), parts);
}

#[test]
fn each_family_has_its_biases_norms_and_windows() {
    let llama = spec(&with(config("llama"), json!({ "attention_bias": true, "mlp_bias": true }))).unwrap();
    assert!(llama.qkv_bias && llama.o_bias && llama.mlp_bias && !llama.qk_norm);
    assert_eq!(expected_tensors(&llama).iter().filter(|t| t.name.ends_with(".bias")).count(), 2 * 7);

    let mistral = spec(&with(config("mistral"), json!({ "sliding_window": 8 }))).unwrap();
    assert_eq!(mistral.windows, [Some(8), Some(8)]);
    assert_eq!(spec(&config("mistral")).unwrap().windows, [None, None]);
    let mut absent = config("mistral");
    absent.as_object_mut().unwrap().remove("sliding_window");
    assert_eq!(spec(&absent).unwrap().windows, [Some(4096); 2]);

    let qwen2 = spec(&config("qwen2")).unwrap();
    assert!(qwen2.qkv_bias && !qwen2.o_bias && !qwen2.mlp_bias);
    let windows = |changes: Value| spec(&with(config("qwen2"), changes)).unwrap().windows;
    assert_eq!(windows(json!({ "sliding_window": 8, "max_window_layers": 1 })), [None, None]);
    assert_eq!(
        windows(json!({ "use_sliding_window": true, "sliding_window": 8, "max_window_layers": 1 })),
        [None, Some(8)]
    );
    let types = json!({ "use_sliding_window": true, "sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"] });
    assert_eq!(windows(types), [Some(8), None]);

    let mut qwen3 = config("qwen3");
    qwen3.as_object_mut().unwrap().remove("head_dim");
    let qwen3 = spec(&qwen3).unwrap();
    assert!(qwen3.qk_norm && qwen3.head_dim == 128 && !qwen3.qkv_bias);
    let names: Vec<String> = expected_tensors(&qwen3).into_iter().map(|t| t.name).collect();
    assert!(names.contains(&"model.layers.1.self_attn.q_norm.weight".to_string()));
}

#[test]
fn rope_is_read_in_both_forms() {
    let rope = |changes: Value| spec(&with(config("llama"), changes)).unwrap().rope;
    assert_eq!(rope(json!({ "rope_theta": 5e5 })).theta, 5e5);
    let new = rope(json!({ "rope_theta": null, "rope_parameters": { "rope_theta": 7000.0, "rope_type": "default" } }));
    assert_eq!((new.theta, new.scaling), (7000.0, RopeScaling::None));
    let parameters = json!({ "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                             "original_max_position_embeddings": 8192 });
    let expected =
        RopeScaling::Llama3 { factor: 32.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_max_positions: 8192 };
    assert_eq!(rope(json!({ "rope_scaling": parameters })).scaling, expected);
    assert_eq!(rope(json!({ "rope_parameters": parameters })).scaling, expected);
    assert_eq!(
        rope(json!({ "rope_scaling": { "type": "linear", "factor": 2.0 } })).scaling,
        RopeScaling::Linear { factor: 2.0 }
    );

    refused(
        "llama",
        json!({ "rope_scaling": { "rope_type": "yarn", "factor": 4.0 } }),
        &["`yarn`", "default, linear, llama3"],
    );
    refused("llama", json!({ "rope_scaling": { "rope_type": "linear" } }), &["`rope_scaling.factor` is missing"]);
    refused("llama", json!({ "rope_scaling": { "rope_type": "linear", "factor": -1 } }), &["is -1", "positive"]);
    refused(
        "llama",
        json!({ "rope_parameters": { "full_attention": { "rope_theta": 1e4 } } }),
        &["differs by layer type"],
    );
    refused("llama", json!({ "partial_rotary_factor": 0.5 }), &["`partial_rotary_factor` 0.5"]);
}

#[test]
fn what_is_not_supported_is_refused_by_name() {
    refused("llama", json!({ "model_type": "gemma3" }), &["`gemma3`", "llama, mistral, qwen2, qwen3"]);
    refused("llama", json!({ "model_type": null, "architectures": ["BloomForCausalLM"] }), &["`BloomForCausalLM`"]);
    refused(
        "llama",
        json!({ "model_type": null, "architectures": null }),
        &["neither `model_type` nor `architectures`"],
    );
    refused("llama", json!({ "hidden_act": "gelu" }), &["`gelu`", "supported: silu"]);
    refused("llama", json!({ "quantization_config": { "quant_method": "gptq" } }), &["gptq", "GGUF"]);
    refused("qwen2", json!({ "layer_types": ["linear_attention", "full_attention"] }), &["linear_attention"]);
    refused("qwen2", json!({ "layer_types": ["full_attention"] }), &["1 entries", "one a block, 2"]);
}

#[test]
fn wrong_values_name_key_value_and_expectation() {
    refused("llama", json!({ "hidden_size": null }), &["config.json", "`hidden_size` is missing"]);
    refused("llama", json!({ "hidden_size": "64" }), &["`hidden_size` is \"64\"; expected a whole number"]);
    refused("llama", json!({ "num_hidden_layers": 0 }), &["`num_hidden_layers` is 0"]);
    refused("llama", json!({ "num_hidden_layers": 1000000000000u64 }), &["expected a number from 1 to 4096"]);
    refused("llama", json!({ "intermediate_size": 1u64 << 60 }), &["`intermediate_size`"]);
    refused("llama", json!({ "num_key_value_heads": 3 }), &["not a multiple of `num_key_value_heads` 3"]);
    refused("llama", json!({ "head_dim": 15 }), &["`head_dim` is 15", "even"]);
    refused(
        "llama",
        json!({ "head_dim": null, "num_attention_heads": 7, "num_key_value_heads": 7 }),
        &["not a multiple"],
    );
    refused("llama", json!({ "rms_norm_eps": 0.0 }), &["`rms_norm_eps` is 0"]);
    refused("llama", json!({ "tie_word_embeddings": 1 }), &["true or false"]);
    refused("mistral", json!({ "sliding_window": 0 }), &["`sliding_window` is 0"]);
}
