//! Models made up for one test: a Llama of any size, with the tokenizer of the tiny ones and random weights.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use half::bf16;
use liftplan::model::shapes;
use liftplan_engine::rng::Random;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};

use crate::golden::folder;

/// Writes a Llama to the directory `at`, in f32 or bf16; `changes` are keys of its `config.json`. No two of its weights are
/// alike. Each tensor has a file of its own, so that no more than one is held while they are written.
///
/// # Panics
/// The configuration describes no model, or the directory can't be written.
#[allow(clippy::unwrap_used)]
pub fn write_llama(at: &Path, dtype: Dtype, changes: &[(&str, usize)]) {
    let tiny = folder().join("families/llama/model");
    for file in ["tokenizer.json", "tokenizer_config.json"] {
        fs::copy(tiny.join(file), at.join(file)).unwrap();
    }
    let text = fs::read_to_string(tiny.join("config.json")).unwrap();
    let mut config: Value = serde_json::from_str(&text).unwrap();
    for (key, value) in changes {
        config[*key] = (*value).into();
    }
    fs::write(at.join("config.json"), config.to_string()).unwrap();

    let tensors = shapes::find(&at.display().to_string(), Path::new("")).unwrap().inventory.tensors;
    let mut files = BTreeMap::new();
    for (i, tensor) in tensors.iter().enumerate() {
        let mut random = Random::new(i as u64, 0);
        let numbers = std::iter::repeat_with(|| random.uniform() - 0.5).take(tensor.len());
        let bytes: Vec<u8> = match dtype {
            Dtype::F32 => numbers.flat_map(f32::to_le_bytes).collect(),
            Dtype::BF16 => numbers.flat_map(|number| bf16::from_f32(number).to_le_bytes()).collect(),
            other => panic!("no model is made in {other}"),
        };
        let view = TensorView::new(dtype, tensor.shape.clone(), &bytes).unwrap();
        let file = format!("model-{:05}-of-{:05}.safetensors", i + 1, tensors.len());
        fs::write(at.join(&file), safetensors::serialize([(&tensor.name, view)], None).unwrap()).unwrap();
        files.insert(&tensor.name, file);
    }
    let index = json!({ "metadata": {}, "weight_map": files });
    fs::write(at.join("model.safetensors.index.json"), index.to_string()).unwrap();
}
