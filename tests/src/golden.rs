//! Reads what `tests/golden/families/make.py` and `tests/golden/quantised/make.py` wrote. Their docstrings say what the numbers are.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use serde::Deserialize;
use serde::de::DeserializeOwned;

/// The families that have golden numbers.
pub const FAMILIES: [&str; 5] = ["llama", "llama3", "mistral", "qwen2", "qwen3"];

/// The folder `tests/golden`.
pub fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("golden")
}

/// `data.json`: what all families compute.
#[derive(Debug, Deserialize)]
pub struct Data {
    /// Token ids whose logits are recorded.
    pub sequences: Vec<Vec<u32>>,
    /// Training documents.
    pub documents: Vec<Document>,
}

/// One training document.
#[derive(Debug, Deserialize)]
pub struct Document {
    /// Token ids.
    pub ids: Vec<u32>,
    /// For each of them itself, or -100 where it does not count.
    pub labels: Vec<i64>,
}

impl Document {
    /// For each token, whether it counts in the loss when it is predicted from those before it.
    pub fn is_target(&self) -> Vec<bool> {
        self.labels.iter().map(|&label| label >= 0).collect()
    }
}

/// One training run.
#[derive(Debug, Deserialize)]
pub struct Case {
    /// What was run.
    pub settings: Settings,
    /// What each step gave.
    pub steps: Vec<Step>,
}

/// What a training run did.
#[derive(Debug, Deserialize)]
pub struct Settings {
    /// `lora` or `full`.
    pub method: String,
    /// The constant learning rate.
    pub lr: f64,
    /// Documents a step.
    pub per_step: usize,
    /// Micro-batches that these are to be computed in.
    pub micro_batches: usize,
    /// LoRA's rank.
    #[serde(default)]
    pub rank: usize,
    /// LoRA's alpha.
    #[serde(default)]
    pub alpha: f64,
    /// Rank-stabilised scaling.
    #[serde(default)]
    pub rslora: bool,
    /// DoRA.
    #[serde(default)]
    pub dora: bool,
    /// LoRA+: B's learning rate over A's.
    #[serde(default)]
    pub loraplus_ratio: Option<f64>,
}

/// One optimiser step.
#[derive(Debug, Deserialize)]
pub struct Step {
    /// Mean loss over the step's targets.
    pub loss: f64,
    /// Norm of the gradient before clipping.
    pub grad_norm: f64,
    /// Number of targets.
    pub targets: usize,
}

/// AdamW's settings in all cases.
#[derive(Debug, Deserialize)]
pub struct AdamW {
    /// Decay rates of the moments.
    pub betas: [f64; 2],
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay, of every trained tensor.
    pub weight_decay: f64,
}

/// The golden numbers of one family.
#[derive(Debug)]
pub struct Family {
    /// Its name.
    pub name: &'static str,
    /// The model's directory.
    pub model: PathBuf,
    /// AdamW's settings.
    pub adamw: AdamW,
    /// Gradients were clipped to this norm.
    pub max_grad_norm: f64,
    /// The training runs by name.
    pub cases: BTreeMap<String, Case>,
    tensors: HashMap<String, Tensor>,
}

#[derive(Deserialize)]
struct Written {
    adamw: AdamW,
    max_grad_norm: f64,
    cases: BTreeMap<String, Case>,
}

/// One entry of `schedules.json`: the factor on the learning rate at each step.
#[derive(Debug, Deserialize)]
pub struct Schedule {
    /// `constant`, `linear`, `cosine`, `wsd`.
    pub name: String,
    /// Steps of the run.
    pub steps: u64,
    /// Steps of the warm-up among them.
    pub warmup_steps: u64,
    /// For `wsd`: steps of the decay at the end.
    #[serde(default)]
    pub decay_steps: u64,
    /// The floor.
    pub min_lr_ratio: f64,
    /// The factor at each step.
    pub factors: Vec<f64>,
}

pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> T {
    let text = fs::read_to_string(path).unwrap_or_else(|e| panic!("cannot read {}: {e}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("cannot understand {}: {e}", path.display()))
}

/// What all families compute.
pub fn data() -> Data {
    read_json(&folder().join("families/data.json"))
}

/// The schedules' factors.
pub fn schedules() -> Vec<Schedule> {
    #[derive(Deserialize)]
    struct File {
        cases: Vec<Schedule>,
    }
    read_json::<File>(&folder().join("families/schedules.json")).cases
}

/// The golden numbers of the family called `name`.
pub fn family(name: &'static str) -> Family {
    let here = folder().join("families").join(name);
    read(name, here.join("model"), &here.join("golden"))
}

/// The golden numbers of LoRA over weights that bitsandbytes packed, which `quantised/make.py` made.
pub fn qlora() -> Family {
    read("llama", folder().join("families/llama/model"), &folder().join("quantised/qlora"))
}

/// Reads `stem.json` and `stem.safetensors`.
fn read(name: &'static str, model: PathBuf, stem: &Path) -> Family {
    let Written { adamw, max_grad_norm, cases } = read_json(&stem.with_extension("json"));
    let path = stem.with_extension("safetensors");
    let tensors = candle_core::safetensors::load(&path, &Device::Cpu)
        .unwrap_or_else(|e| panic!("cannot read {}: {e}", path.display()));
    Family { name, model, adamw, max_grad_norm, cases, tensors }
}

impl Family {
    /// The numbers of a tensor of `golden.safetensors`, as `f32`.
    pub fn numbers(&self, key: &str) -> Vec<f32> {
        let tensor = self.tensors.get(key).unwrap_or_else(|| panic!("{}: no golden tensor {key}", self.name));
        numbers(tensor)
    }

    /// All tensors whose keys begin with `prefix`, by what follows it.
    pub fn tensors(&self, prefix: &str) -> BTreeMap<String, Tensor> {
        let under = |(key, tensor): (&String, &Tensor)| Some((key.strip_prefix(prefix)?.to_string(), tensor.clone()));
        self.tensors.iter().filter_map(under).collect()
    }
}

/// All elements of a tensor, as `f32`.
pub fn numbers(tensor: &Tensor) -> Vec<f32> {
    let flat = tensor.to_dtype(DType::F32).and_then(|t| t.flatten_all()).and_then(|t| t.to_vec1());
    flat.unwrap_or_else(|e| panic!("cannot read a tensor's numbers: {e}"))
}
