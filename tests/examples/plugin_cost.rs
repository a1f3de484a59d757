//! What plugins cost: loading from the compiled cache, planning for an inventory of an 8B model's size, a pick, a call of
//! the host. Not a test: times depend on the machine.
//!
//!     cargo run --release -p liftplan-tests --example plugin_cost
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::time::Instant;

use liftplan::model::shapes;
use liftplan::plan::{Origin, PlanBuilder, Storage};
use liftplan::plugin::wasm::WasmPlugin;
use liftplan::plugin::{Call, Limits};
use liftplan::policy::{ModelView, Moment, Norms, Policy};
use liftplan_tests::plugins::compiled;
use serde_json::{Value, json};

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
    let inventory = shapes::find("qwen3-8b", Path::new("")).unwrap().inventory;
    println!("{} tensors, medians of 21, ms", inventory.tensors.len());
    println!(
        "{:8} {:>8} {:>8} {:>8} {:>8} {:>10} {:>11} {:>8}",
        "plugin", "compile", "load", "describe", "plan", "host calls", "a call, µs", "pick"
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
        // What the plugin itself does between its calls is in it.
        let call_us = 1e3 * (plan - describe) / calls.max(1) as f64;
        println!("{name:8} {compile:8.1} {load:8.2} {describe:8.2} {plan:8.2} {calls:10} {call_us:11.2} {pick:8.2}");
    }
}
