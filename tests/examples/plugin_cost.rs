//! What plugins cost: loading from the compiled cache, planning for an inventory of an 8B model's size, a pick, a call of
//! the host. Not a test: times depend on the machine.
//!
//!     cargo run --release -p liftplan-tests --example plugin_cost
#![allow(clippy::unwrap_used)]

use std::time::Instant;

use liftplan::model::inventory::{Inventory, Kind, TensorInfo};
use liftplan::plan::{Origin, PlanBuilder, Storage};
use liftplan::plugin::wasm::WasmPlugin;
use liftplan::plugin::{Call, Limits};
use liftplan::policy::{ModelView, Moment, Norms, Policy};
use liftplan_tests::plugins::compiled;
use serde_json::{Value, json};

/// 36 blocks of 11 tensors, and three: Qwen3-8B's names and shapes.
fn inventory() -> Inventory {
    let tensor = |name: String, role: &str, kind, block, shape: &[usize]| TensorInfo {
        name,
        role: role.into(),
        kind,
        block,
        shape: shape.to_vec(),
        dtype: "bf16".into(),
    };
    let mut tensors =
        vec![tensor("model.embed_tokens.weight".into(), "embed_tokens", Kind::Embedding, None, &[151_936, 4096])];
    let of_block: [(&str, &str, Kind, &[usize]); 11] = [
        ("input_layernorm", "input_layernorm", Kind::Norm, &[4096]),
        ("self_attn.q_norm", "q_norm", Kind::Norm, &[128]),
        ("self_attn.k_norm", "k_norm", Kind::Norm, &[128]),
        ("self_attn.q_proj", "q_proj", Kind::Linear, &[4096, 4096]),
        ("self_attn.k_proj", "k_proj", Kind::Linear, &[1024, 4096]),
        ("self_attn.v_proj", "v_proj", Kind::Linear, &[1024, 4096]),
        ("self_attn.o_proj", "o_proj", Kind::Linear, &[4096, 4096]),
        ("post_attention_layernorm", "post_attention_layernorm", Kind::Norm, &[4096]),
        ("mlp.gate_proj", "gate_proj", Kind::Linear, &[12288, 4096]),
        ("mlp.up_proj", "up_proj", Kind::Linear, &[12288, 4096]),
        ("mlp.down_proj", "down_proj", Kind::Linear, &[4096, 12288]),
    ];
    for block in 0..36 {
        for (name, role, kind, shape) in of_block {
            tensors.push(tensor(format!("model.layers.{block}.{name}.weight"), role, kind, Some(block), shape));
        }
    }
    tensors.push(tensor("model.norm.weight".into(), "norm", Kind::Norm, None, &[4096]));
    tensors.push(tensor("lm_head.weight".into(), "lm_head", Kind::Head, None, &[151_936, 4096]));
    Inventory { architecture: "qwen3".into(), tensors, tied: false, blocks: 36 }
}

/// The median of the milliseconds that `work` takes, 21 times.
fn median_ms(mut work: impl FnMut()) -> f64 {
    let mut times: Vec<f64> = (0..21)
        .map(|_| {
            let started = Instant::now();
            work();
            started.elapsed().as_secs_f64() * 1e3
        })
        .collect();
    times.sort_by(f64::total_cmp);
    times[10]
}

fn main() {
    let cache = tempfile::tempdir().unwrap();
    let limits = Limits::default();
    let inventory = inventory();
    println!("{} tensors, medians of 21, ms", inventory.tensors.len());
    println!(
        "{:8} {:>8} {:>8} {:>8} {:>8} {:>10} {:>8}",
        "plugin", "compile", "load", "describe", "plan", "host calls", "pick"
    );
    for name in ["lora", "full", "lisa", "badam"] {
        let bytes = std::fs::read(compiled(name)).unwrap();
        let started = Instant::now();
        let plugin = WasmPlugin::load_with_cache(&bytes, &limits, Some(cache.path())).unwrap();
        let compile = started.elapsed().as_secs_f64() * 1e3;
        let load = median_ms(|| drop(WasmPlugin::load_with_cache(&bytes, &limits, Some(cache.path())).unwrap()));
        // A fresh instance and a call that does nothing.
        let describe = median_ms(|| drop(plugin.describe().unwrap()));
        let settings = plugin.resolve(&json!({})).unwrap();
        let text = settings.to_string();
        let mut calls = 0;
        let plan = median_ms(|| {
            let view = ModelView::new(&inventory, 1);
            let mut builder = PlanBuilder::new(&inventory, Storage::Bf16);
            let mut call = Call::new(&view, None, &mut builder, &limits, &plugin.metadata().capabilities);
            WasmPlugin::make_plan(&plugin, &text, &mut call).unwrap();
            calls = call.meter.host_calls;
        });
        let view = ModelView::new(&inventory, 1);
        let mut builder = PlanBuilder::new(&inventory, Storage::Bf16);
        Policy::make_plan(&plugin, &settings, &view, &mut builder).unwrap();
        let first =
            builder.build(Origin { policy: name.into(), version: String::new(), settings: Value::Null }).unwrap();
        let norms = Norms::default();
        let pick = median_ms(|| {
            let moment = Moment {
                step: 21,
                total_steps: 100,
                since: 1,
                losses: &[],
                norms: &norms,
                settings: &settings,
                view: &view,
            };
            let mut builder = PlanBuilder::revising(&inventory, &first, Storage::Bf16);
            Policy::revise(&plugin, &moment, &mut builder).unwrap();
        });
        println!("{name:8} {compile:8.1} {load:8.2} {describe:8.2} {plan:8.2} {calls:10} {pick:8.2}");
    }
}
