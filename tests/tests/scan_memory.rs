//! A scan holds at most three times the largest matrix, however large the model is. Alone in its process, whose peak
//! is measured.
#![allow(clippy::unwrap_used)]
#![cfg(target_os = "linux")]

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use liftplan::report::{Silent, process};
use liftplan::stats::{ModelStatistics, Statistic, scan};
use liftplan_tests::golden::folder;
use liftplan_tests::setup;
use safetensors::tensor::{Dtype, TensorView};

const HIDDEN: usize = 1024;
const INTERMEDIATE: usize = 4096;
const BLOCKS: usize = 3;
const MIB: u64 = 1 << 20;

/// Numbers in [-1, 1) that no two weights share.
fn numbers(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let number = || {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        (state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    std::iter::repeat_with(number).take(len).flat_map(f32::to_le_bytes).collect()
}

/// A Llama of three blocks, 144 MiB in f32, whose largest matrices take 16 MiB each.
fn write_model(at: &Path) {
    let tiny = folder().join("families/llama/model");
    for file in ["tokenizer.json", "tokenizer_config.json"] {
        fs::copy(tiny.join(file), at.join(file)).unwrap();
    }
    let mut config: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(tiny.join("config.json")).unwrap()).unwrap();
    for (key, value) in [
        ("hidden_size", HIDDEN),
        ("intermediate_size", INTERMEDIATE),
        ("num_hidden_layers", BLOCKS),
        ("num_attention_heads", 8),
        ("num_key_value_heads", 8),
        ("head_dim", HIDDEN / 8),
    ] {
        config[key] = value.into();
    }
    fs::write(at.join("config.json"), config.to_string()).unwrap();
    let vocab = config["vocab_size"].as_u64().unwrap() as usize;

    let mut shapes = vec![("model.embed_tokens.weight".to_string(), vec![vocab, HIDDEN])];
    for block in 0..BLOCKS {
        let mut add =
            |part: &str, shape: Vec<usize>| shapes.push((format!("model.layers.{block}.{part}.weight"), shape));
        for role in ["q_proj", "k_proj", "v_proj", "o_proj"] {
            add(&format!("self_attn.{role}"), vec![HIDDEN, HIDDEN]);
        }
        add("mlp.gate_proj", vec![INTERMEDIATE, HIDDEN]);
        add("mlp.up_proj", vec![INTERMEDIATE, HIDDEN]);
        add("mlp.down_proj", vec![HIDDEN, INTERMEDIATE]);
        add("input_layernorm", vec![HIDDEN]);
        add("post_attention_layernorm", vec![HIDDEN]);
    }
    shapes.push(("model.norm.weight".to_string(), vec![HIDDEN]));
    // One file a tensor, so that writing them holds no more than one either.
    let mut index = HashMap::new();
    for (i, (name, shape)) in shapes.iter().enumerate() {
        let bytes = numbers(shape.iter().product(), i as u64 + 1);
        let view = TensorView::new(Dtype::F32, shape.clone(), &bytes).unwrap();
        let file = format!("model-{:05}-of-{:05}.safetensors", i + 1, shapes.len());
        fs::write(at.join(&file), safetensors::serialize([(name.as_str(), view)], None).unwrap()).unwrap();
        index.insert(name.clone(), file);
    }
    let index = serde_json::json!({ "metadata": {}, "weight_map": index });
    fs::write(at.join("model.safetensors.index.json"), index.to_string()).unwrap();
}

#[test]
fn a_scan_holds_three_times_the_largest_matrix() {
    process::give_back_large_buffers();
    let dir = tempfile::tempdir().unwrap();
    write_model(dir.path());
    let base = setup::open(dir.path()).unwrap();
    let mut observer = Silent;
    let statistics = ModelStatistics::with_cache(&base, None, &mut observer);

    // From here on the peak is the scan's: Linux starts it anew when 5 is written here.
    fs::write("/proc/self/clear_refs", "5").unwrap();
    let before = process::peak_bytes().unwrap();
    let found = scan(&base.inventory, &statistics, Statistic::Snr, 25.0).unwrap();
    assert_eq!(found.rows.len(), 7 * BLOCKS);
    let held = process::peak_bytes().unwrap() - before;

    let largest = (4 * HIDDEN * INTERMEDIATE) as u64;
    // Beside the matrices there are the stacks of the threads and the allocator's own pages.
    assert!(held < 3 * largest + 6 * MIB, "{} MiB held, the largest matrix has {}", held / MIB, largest / MIB);
    assert!(held > largest, "{} MiB held: that is less than one matrix, so it was not measured", held / MIB);
}
