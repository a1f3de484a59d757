//! An adapter in the layout of the Python package PEFT: `adapter_config.json` and `adapter_model.safetensors`.
//!
//! PEFT has one rank, alpha, rsLoRA and DoRA for all adapters, with exceptions for rank and alpha by module name; the
//! plan has them by tensor. Tensors that train whole become `modules_to_save`, where PEFT can express that.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::Made;
use super::merge::{Adapter, Merger};
use super::target::Target;
use crate::checkpoint::tensors;
use crate::checkpoint::{NamedTensor, TensorData};
use crate::model::inventory::Kind;
use crate::plan::{AdapterSpec, Treatment};
use crate::{Error, Result};

/// The prefix that PEFT's wrapping gives to every name.
const PREFIX: &str = "base_model.model.";

/// Writes the adapter; answers what to know when using it.
pub(super) fn write(source: &Made<'_>, target: &Target) -> Result<Vec<String>> {
    let base = source.base;
    let merger = Merger::new(source)?;
    let adapted: Vec<(&str, &AdapterSpec)> = source
        .plan
        .entries
        .iter()
        .filter_map(|entry| match &entry.treatment {
            Treatment::Adapt(spec) => Some((module_of(&entry.tensor), spec)),
            Treatment::Frozen | Treatment::Train => None,
        })
        .collect();
    if adapted.is_empty() {
        return Err(use_hf("the plan has no adapters: its tensors train whole".to_string()));
    }
    let saved = modules_to_save(source)?;
    let mut tensors = Vec::new();
    for (module, spec) in &adapted {
        let Adapter { a, b, magnitude } = merger.adapter(&format!("{module}.weight"), spec)?;
        for part in [Some(a), Some(b), magnitude].into_iter().flatten() {
            let data = TensorData::F32(part.data.to_f32()?);
            tensors.push(NamedTensor { name: format!("{PREFIX}{}", part.name), shape: part.shape, data });
        }
    }
    for info in base.inventory.tensors.iter().filter(|t| saved.contains(module_of(&t.name))) {
        let data = TensorData::F32(merger.merged_f32(info)?);
        tensors.push(NamedTensor { name: format!("{PREFIX}{}", info.name), shape: info.shape.clone(), data });
    }
    let metadata: BTreeMap<String, String> = [("format".to_string(), "pt".to_string())].into();
    tensors::write(&target.path("adapter_model.safetensors"), &metadata, &tensors)?;
    let config = config(source, &adapted, &saved)?;
    target.write_json("adapter_config.json", &config)?;
    target.write("README.md", &model_card(source))?;
    Ok(match base.is_gguf() {
        false => Vec::new(),
        true => vec![format!(
            "PEFT applies the adapter to a Hugging Face model; {} is a GGUF file: export with `--format hf` to get one",
            base.origin
        )],
    })
}

/// The module that a tensor belongs to: its name without `.weight` or `.bias`.
fn module_of(tensor: &str) -> &str {
    tensor.rsplit_once('.').map_or(tensor, |(module, _)| module)
}

fn use_hf(message: String) -> Error {
    Error::plan(format!("a PEFT adapter can't express this run: {message}"))
        .help("export the merged model with `--format hf`")
}

/// The modules that train whole.
fn modules_to_save<'a>(source: &Made<'a>) -> Result<BTreeSet<&'a str>> {
    let mut saved = BTreeSet::new();
    let entries = &source.plan.entries;
    for entry in entries.iter().filter(|e| matches!(e.treatment, Treatment::Train)) {
        let module = module_of(&entry.tensor);
        let is_adapted =
            |e: &crate::plan::Entry| module_of(&e.tensor) == module && matches!(e.treatment, Treatment::Adapt(_));
        if entries.iter().any(is_adapted) {
            return Err(use_hf(format!("{} trains whole beside an adapter of its module", entry.tensor)));
        }
        let is_embedding = source.base.inventory.get(&entry.tensor).is_some_and(|t| t.kind == Kind::Embedding);
        if source.base.inventory.tied && is_embedding {
            return Err(use_hf(format!("{} trains whole and is tied to the output head", entry.tensor)));
        }
        saved.insert(module);
    }
    Ok(saved)
}

/// What most adapters have.
fn usual<T: PartialOrd + Copy>(values: impl Iterator<Item = T>) -> Option<T> {
    let mut counts: Vec<(T, usize)> = Vec::new();
    for value in values {
        match counts.iter_mut().find(|(v, _)| *v == value) {
            Some((_, n)) => *n += 1,
            None => counts.push((value, 1)),
        }
    }
    // The first of equals, so that the choice doesn't depend on anything else.
    let most = counts.iter().map(|(_, n)| *n).max()?;
    counts.into_iter().find(|(_, n)| *n == most).map(|(value, _)| value)
}

fn config(source: &Made<'_>, adapted: &[(&str, &AdapterSpec)], saved: &BTreeSet<&str>) -> Result<Value> {
    let dora = adapted.iter().filter(|(_, s)| s.dora).count();
    if dora != 0 && dora != adapted.len() {
        return Err(use_hf(format!("{dora} of {} adapters are DoRA's, and PEFT has all or none", adapted.len())));
    }
    let rslora = adapted.iter().all(|(_, s)| s.rslora);
    // With rsLoRA for some only, PEFT gets the plain scale alpha / rank for all, and alphas that give the same factor.
    let alpha_of = |s: &AdapterSpec| match s.rslora == rslora {
        true => s.alpha,
        false => s.scale() * s.rank as f64,
    };
    let rank = usual(adapted.iter().map(|(_, s)| s.rank)).unwrap_or(1);
    let alpha = usual(adapted.iter().map(|(_, s)| alpha_of(s))).unwrap_or(1.0);
    let dropout = usual(adapted.iter().map(|(_, s)| s.dropout)).unwrap_or(0.0);
    let ranks: BTreeMap<&str, usize> =
        adapted.iter().filter(|(_, s)| s.rank != rank).map(|(m, s)| (*m, s.rank)).collect();
    let alphas: BTreeMap<&str, Value> =
        adapted.iter().filter(|(_, s)| alpha_of(s) != alpha).map(|(m, s)| (*m, number(alpha_of(s)))).collect();
    Ok(json!({
        "alpha_pattern": alphas,
        "base_model_name_or_path": source.base.origin,
        "bias": "none",
        "fan_in_fan_out": false,
        "inference_mode": true,
        "init_lora_weights": true,
        "lora_alpha": number(alpha),
        "lora_dropout": dropout,
        "modules_to_save": if saved.is_empty() { Value::Null } else { json!(saved) },
        "peft_type": "LORA",
        "r": rank,
        "rank_pattern": ranks,
        "target_modules": target_modules(source, adapted),
        "task_type": "CAUSAL_LM",
        "use_dora": dora > 0,
        "use_rslora": rslora,
    }))
}

/// PEFT writes whole alphas as whole numbers, and so do others that read them.
fn number(value: f64) -> Value {
    if value.fract() == 0.0 && value.abs() < 1e15 { json!(value as i64) } else { json!(value) }
}

/// Roles such as `q_proj`, where each of a role's linear layers has an adapter; else the modules' full names.
fn target_modules(source: &Made<'_>, adapted: &[(&str, &AdapterSpec)]) -> Vec<String> {
    let names: BTreeSet<&str> = adapted.iter().map(|(module, _)| *module).collect();
    let role = |module: &str| module.rsplit('.').next().unwrap_or(module).to_string();
    let roles: BTreeSet<String> = names.iter().map(|m| role(m)).collect();
    let linears = source.base.inventory.tensors.iter().filter(|t| matches!(t.kind, Kind::Linear | Kind::Head));
    let whole = linears.map(|t| module_of(&t.name)).filter(|m| roles.contains(&role(m))).all(|m| names.contains(m));
    if whole { roles.into_iter().collect() } else { names.into_iter().map(String::from).collect() }
}

fn model_card(source: &Made<'_>) -> String {
    let origin = &source.base.origin;
    let policy = &source.plan.origin.policy;
    let step = source.step;
    format!(
        "---\nbase_model: {}\nlibrary_name: peft\npipeline_tag: text-generation\ntags:\n- lora\n- liftplan\n---\n\n\
         # {}\n\nAn adapter for `{origin}`, trained with Liftplan by the policy `{policy}` for {step} steps.\n\n\
         ```python\nfrom peft import AutoPeftModelForCausalLM\n\n\
         model = AutoPeftModelForCausalLM.from_pretrained(\"this directory\")\n```\n",
        json!(origin),
        source.name
    )
}
