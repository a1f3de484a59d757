//! Runs for the tests of exports, made from the tiny models of `tests/golden/families` and what PEFT trained on them.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::checkpoint::{NamedTensor, State, Store, TensorData, TensorFile};
use crate::model::inventory::{Kind, TensorInfo};
use crate::model::{self, BaseModel};
use crate::plan::{AdapterSpec, Entry, Origin, Picks, Plan, Storage, Treatment};
use crate::report::{Hashes, Silent};

/// The folder of a family's tiny model and golden numbers.
pub fn family(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/families").join(name)
}

/// The tiny base model of a family.
pub fn base(name: &str) -> BaseModel {
    model::open(family(name).join("model").to_str().unwrap(), Path::new("/"), &mut Silent).unwrap()
}

/// The adapter that PEFT trained in a golden case.
pub fn spec(case: &str) -> AdapterSpec {
    AdapterSpec { rank: 4, alpha: 8.0, dropout: 0.0, rslora: case == "rslora", dora: case == "dora" }
}

/// A plan that treats each tensor as told.
pub fn plan(base: &BaseModel, treat: impl Fn(&TensorInfo) -> Treatment) -> Plan {
    let entry = |info: &TensorInfo| Entry {
        tensor: info.name.clone(),
        treatment: treat(info),
        storage: Storage::F32,
        lr_scale: 1.0,
        lr_scale_b: 1.0,
    };
    Plan {
        version: Plan::VERSION,
        origin: Origin { policy: "test".into(), version: "1".into(), settings: serde_json::json!({}) },
        entries: base.inventory.tensors.iter().map(entry).collect(),
        picks: Picks::default(),
        scores: BTreeMap::new(),
    }
}

/// The plan of a golden LoRA case: every linear layer of the blocks has an adapter.
pub fn lora_plan(base: &BaseModel, case: &str) -> Plan {
    plan(base, |info| match info.kind {
        Kind::Linear => Treatment::Adapt(spec(case)),
        _ => Treatment::Frozen,
    })
}

/// What PEFT trained in a golden case, under the names that a checkpoint has.
pub fn golden_adapter(family_name: &str, case: &str) -> Vec<NamedTensor> {
    let golden = TensorFile::open(&family(family_name).join("golden.safetensors")).unwrap();
    let prefix = format!("{case}.final.base_model.model.");
    let named = golden.all().unwrap().into_iter();
    named.filter_map(|t| Some(NamedTensor { name: t.name.strip_prefix(&prefix)?.to_string(), ..t })).collect()
}

/// Writes the configuration of a run of the model at `model`.
pub fn write_config(run: &Path, model: &Path) {
    let config = format!("model = {model:?}\n[data]\ntrain = \"x.jsonl\"\n[policy]\nname = \"lora\"\n");
    std::fs::write(run.join("config.toml"), config).unwrap();
}

/// Writes the run directory `run` with one checkpoint, of step 20.
pub fn write_run(run: &Path, base: &BaseModel, plan: &Plan, trained: &Vec<NamedTensor>) {
    std::fs::create_dir_all(run).unwrap();
    write_config(run, &base.path);
    crate::plan::file::write(plan, &run.join("plan.json")).unwrap();
    let state = State {
        step: 20,
        hashes: Hashes { model: base.hash.clone(), plan: plan.hash(), ..Hashes::default() },
        ..State::default()
    };
    Store::of(run).write(state, trained, &Vec::new()).unwrap();
}

/// The run of a golden LoRA case.
pub fn lora_run(run: &Path, family_name: &str, case: &str) {
    let base = base(family_name);
    write_run(run, &base, &lora_plan(&base, case), &golden_adapter(family_name, case));
}

/// A tensor of the shape of `info` whose values tell it from the base's.
pub fn moved(base: &BaseModel, info: &TensorInfo) -> NamedTensor {
    let values = base.read_f32(&info.name).unwrap();
    let data = values.iter().enumerate().map(|(i, v)| v * 0.9 + 0.01 * ((i % 7) as f32 - 3.0)).collect();
    NamedTensor { name: info.name.clone(), shape: info.shape.clone(), data: TensorData::F32(data) }
}
