//! Weights are quantised as they are read: while a model is loaded, no more is in memory than what stays and two tensors.
#![allow(clippy::unwrap_used)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use candle_core::{DType, Device, Tensor};
use liftplan::report::Silent;
use liftplan::stats::ModelStatistics;
use liftplan::train::build;
use liftplan::{model, policy};
use liftplan_tests::setup;

/// Counts what is allocated.
struct Counting;

static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: all is handed to the system's allocator as it is.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let live = LIVE.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        PEAK.fetch_max(live, Ordering::Relaxed);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn loading_in_4_or_8_bits_needs_what_stays_and_two_tensors() {
    let dir = tempfile::tempdir().unwrap();
    write_model(dir.path());
    let base = model::open(dir.path().to_str().unwrap(), dir.path(), &mut Silent).unwrap();
    let largest = base.inventory.tensors.iter().map(|info| 4 * info.len()).max().unwrap();
    for storage in ["nf4", "int8"] {
        let tables = format!(
            "[policy]\nname = \"lora\"\nrank = 2\n[train]\nweights = \"bf16\"\n[storage]\nfrozen = \"{storage}\""
        );
        let config = setup::config(dir.path(), &tables).unwrap();
        let plan = policy::plan(&config, &base.inventory, &ModelStatistics::new(&base, &mut Silent)).unwrap();
        // Threads and tables of codes are made once, by whoever comes first.
        drop(build(&base, &plan, 0, &mut Silent).unwrap());
        let before = LIVE.load(Ordering::Relaxed);
        PEAK.store(before, Ordering::Relaxed);
        let decoder = build(&base, &plan, 0, &mut Silent).unwrap();
        let (stays, peak) = (LIVE.load(Ordering::Relaxed) - before, PEAK.load(Ordering::Relaxed) - before);
        let weights: usize = decoder.params().map(|param| param.value.bytes()).sum();
        let gradients: usize = decoder.params().filter_map(|param| param.grad()).map(size_of_val).sum();
        assert!(stays < weights + gradients + 100_000, "{storage}: {stays} bytes stay, of which {weights} are weights");
        assert!(peak < stays + 2 * largest, "{storage}: {peak} bytes at most, {stays} stay, a tensor has {largest}");
        // Without streaming all of the model would have been there as f32.
        let whole: usize = base.inventory.tensors.iter().map(|info| 4 * info.len()).sum();
        assert!(2 * peak < whole, "{storage}: {peak} bytes at most, {whole} in f32");
    }
}

/// A model with wide layers and a small vocabulary, with the tokenizer of the tiny ones.
fn write_model(dir: &std::path::Path) {
    let tiny = liftplan_tests::golden::folder().join("families/llama/model");
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(tiny.join(name), dir.join(name)).unwrap();
    }
    let text = std::fs::read_to_string(tiny.join("config.json")).unwrap();
    let mut config: serde_json::Value = serde_json::from_str(&text).unwrap();
    let (hidden, intermediate, blocks) = (256, 1024, 6);
    for (key, value) in [("hidden_size", hidden), ("intermediate_size", intermediate), ("num_hidden_layers", blocks)] {
        config[key] = value.into();
    }
    std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
    let number = |key: &str| config[key].as_u64().unwrap() as usize;
    let (heads, keys) =
        (number("num_attention_heads") * number("head_dim"), number("num_key_value_heads") * number("head_dim"));
    let mut tensors = HashMap::new();
    let mut put = |name: String, shape: &[usize]| {
        let values = Tensor::randn(0f32, 0.1, shape, &Device::Cpu).unwrap().to_dtype(DType::BF16).unwrap();
        tensors.insert(name, values);
    };
    put("model.embed_tokens.weight".into(), &[number("vocab_size"), hidden]);
    put("model.norm.weight".into(), &[hidden]);
    for block in 0..blocks {
        let shapes = [
            ("self_attn.q_proj", vec![heads, hidden]),
            ("self_attn.k_proj", vec![keys, hidden]),
            ("self_attn.v_proj", vec![keys, hidden]),
            ("self_attn.o_proj", vec![hidden, heads]),
            ("mlp.gate_proj", vec![intermediate, hidden]),
            ("mlp.up_proj", vec![intermediate, hidden]),
            ("mlp.down_proj", vec![hidden, intermediate]),
            ("input_layernorm", vec![hidden]),
            ("post_attention_layernorm", vec![hidden]),
        ];
        for (name, shape) in shapes {
            put(format!("model.layers.{block}.{name}.weight"), &shape);
        }
    }
    candle_core::safetensors::save(&tensors, dir.join("model.safetensors")).unwrap();
}
