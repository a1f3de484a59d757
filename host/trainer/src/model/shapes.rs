//! Models that are not here, by their dimensions: what `liftplan plan --shape` computes with.
//!
//! In: the name of a shape known here, or a `config.json`. Out: dimensions and inventory, the same as for an opened
//! model, but no weights.

use std::path::Path;

use serde_json::{Value, json};

use super::arch;
use super::inventory::{Inventory, TensorInfo};
use super::spec::ModelSpec;
use crate::config::suggest;
use crate::{Error, ErrorKind, Result};

/// A model without weights.
#[derive(Clone, Debug, PartialEq)]
pub struct Shape {
    /// Its name, or the path of its configuration.
    pub name: String,
    /// Its dimensions. With experts, `intermediate` is the width of those that work on one token together.
    pub spec: ModelSpec,
    /// Its tensors.
    pub inventory: Inventory,
    /// Its experts, if it is a mixture. Such models can be planned for, but not trained in this version.
    pub experts: Option<Experts>,
}

/// A mixture of experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Experts {
    /// In each block.
    pub count: usize,
    /// That work on one token.
    pub active: usize,
    /// Width inside one of them.
    pub intermediate: usize,
}

/// The shapes that are known by name, as their `config.json` has them.
fn known() -> Vec<(&'static str, Value)> {
    let llama = |hidden: u32, intermediate: u32, blocks: u32, heads: u32, kv_heads: u32, vocab: u32, tied: bool| {
        json!({"model_type": "llama", "hidden_size": hidden, "intermediate_size": intermediate,
            "num_hidden_layers": blocks, "num_attention_heads": heads, "num_key_value_heads": kv_heads,
            "vocab_size": vocab, "tie_word_embeddings": tied, "max_position_embeddings": 131_072})
    };
    let qwen3 = |hidden: u32, intermediate: u32, blocks: u32, heads: u32, tied: bool| {
        json!({"model_type": "qwen3", "hidden_size": hidden, "intermediate_size": intermediate,
            "num_hidden_layers": blocks, "num_attention_heads": heads, "num_key_value_heads": 8, "head_dim": 128,
            "vocab_size": 151_936, "tie_word_embeddings": tied, "max_position_embeddings": 40_960})
    };
    vec![
        ("smollm2-135m", llama(576, 1536, 30, 9, 3, 49_152, true)),
        ("llama-3.2-1b", llama(2048, 8192, 16, 32, 8, 128_256, true)),
        ("llama-3.1-8b", llama(4096, 14_336, 32, 32, 8, 128_256, false)),
        ("llama-3.1-70b", llama(8192, 28_672, 80, 64, 8, 128_256, false)),
        ("qwen3-0.6b", qwen3(1024, 3072, 28, 16, true)),
        ("qwen3-1.7b", qwen3(2048, 6144, 28, 16, true)),
        ("qwen3-4b", qwen3(2560, 9728, 36, 32, true)),
        ("qwen3-8b", qwen3(4096, 12_288, 36, 32, false)),
        ("qwen3-14b", qwen3(5120, 17_408, 40, 40, false)),
        ("qwen3-32b", qwen3(5120, 25_600, 64, 64, false)),
        (
            "gpt-oss-120b",
            json!({"model_type": "gpt_oss", "hidden_size": 2880, "intermediate_size": 2880, "num_hidden_layers": 36,
                "num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 64, "vocab_size": 201_088,
                "num_local_experts": 128, "num_experts_per_tok": 4, "max_position_embeddings": 131_072,
                "sliding_window": 128}),
        ),
    ]
}

/// The shape called `name`, or that of the `config.json` (or the directory that holds one) at that path, seen from
/// `here`.
///
/// # Errors
/// There is neither, or the configuration is not one of a decoder that is supported.
pub fn find(name: &str, here: &Path) -> Result<Shape> {
    if let Some((_, config)) = known().into_iter().find(|(known, _)| *known == name.to_lowercase()) {
        return of_config(name, &config);
    }
    let mut path = here.join(name);
    if path.is_dir() {
        path.push("config.json");
    }
    if !path.is_file() {
        let known = known();
        let names: Vec<String> = known.iter().map(|(name, _)| name.to_string()).collect();
        let error = Error::config(format!("there is no shape \"{name}\", and no file {}", path.display()));
        let list = suggest::list(&names);
        return Err(match suggest::nearest(name, names.iter().map(String::as_str)) {
            Some(near) => error.help(format!("did you mean {near}? There are {list}, and any model's config.json")),
            None => error.help(format!("there are {list}, and any model's config.json")),
        });
    }
    let text = std::fs::read_to_string(&path).map_err(|e| Error::io(ErrorKind::Config, "read", &path, &e))?;
    let config = serde_json::from_str(&text).map_err(|e| {
        Error::config(format!("{} is not JSON: {e}", path.display())).help("give a model's config.json")
    })?;
    of_config(&path.display().to_string(), &config)
}

/// The shape that a `config.json` with this content describes; errors call it `name`.
///
/// # Errors
/// It is not the configuration of a decoder that is supported.
pub fn of_config(name: &str, config: &Value) -> Result<Shape> {
    let mut config = config.clone();
    let experts = match config.get("model_type").and_then(Value::as_str) {
        Some("gpt_oss") => Some(experts(name, &mut config)?),
        _ => None,
    };
    let spec = arch::spec_from_config(&arch::Config::new(name.to_string(), &config)?)?;
    let mut tensors = arch::expected_tensors(&spec);
    if let Some(experts) = experts {
        tensors = tensors.into_iter().flat_map(|tensor| with_experts(tensor, experts, spec.hidden)).collect();
    }
    let inventory =
        Inventory { architecture: spec.architecture.clone(), tensors, tied: spec.tied, blocks: spec.blocks };
    Ok(Shape { name: name.to_string(), spec, inventory, experts })
}

/// gpt-oss as a Llama whose feed-forward layer is as wide as the experts that work on one token.
fn experts(name: &str, config: &mut Value) -> Result<Experts> {
    let number = |key: &str| -> Result<usize> {
        let value = config.get(key).and_then(Value::as_u64).and_then(|value| usize::try_from(value).ok());
        value.filter(|value| (1..1 << 24).contains(value)).ok_or_else(|| {
            Error::model(format!("{name}: `{key}` is not a number above 0")).help("give the model's own config.json")
        })
    };
    let experts = Experts {
        count: number("num_local_experts")?,
        active: number("num_experts_per_tok")?,
        intermediate: number("intermediate_size")?,
    };
    if let Some(config) = config.as_object_mut() {
        config.insert("model_type".into(), "llama".into());
        config.insert("intermediate_size".into(), (experts.active * experts.intermediate).into());
        config.insert("attention_bias".into(), true.into());
        config.insert("hidden_act".into(), "silu".into());
        for unread in ["rope_scaling", "rope_parameters", "quantization_config"] {
            config.remove(unread);
        }
    }
    Ok(experts)
}

/// The weights of all experts of a block in place of one, each role's one below the other, as one matrix.
fn with_experts(tensor: TensorInfo, experts: Experts, hidden: usize) -> Vec<TensorInfo> {
    let (rows, cols) = match tensor.role.as_str() {
        "gate_proj" | "up_proj" => (experts.count * experts.intermediate, hidden),
        "down_proj" => (experts.count * hidden, experts.intermediate),
        _ => return vec![tensor],
    };
    let fused = TensorInfo {
        name: tensor.name.replace(".mlp.", ".mlp.experts."),
        role: format!("experts.{}", tensor.role),
        shape: vec![rows, cols],
        ..tensor.clone()
    };
    if tensor.role != "gate_proj" {
        return vec![fused];
    }
    let router = TensorInfo {
        name: tensor.name.replace("gate_proj", "router"),
        role: "router".into(),
        shape: vec![experts.count, hidden],
        ..tensor
    };
    vec![router, fused]
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::model::inventory::Kind;

    fn billions(name: &str) -> f64 {
        let shape = find(name, Path::new("")).unwrap();
        let total: usize = shape.inventory.tensors.iter().map(TensorInfo::len).sum();
        assert!(shape.inventory.tensors.iter().all(|tensor| tensor.kind != Kind::Linear || tensor.shape.len() == 2));
        total as f64 / 1e9
    }

    /// As the models' cards state them.
    #[test]
    fn known_shapes_have_their_published_number_of_parameters() {
        for (name, published) in [
            ("smollm2-135m", 0.1345),
            ("llama-3.2-1b", 1.236),
            ("llama-3.1-8b", 8.030),
            ("llama-3.1-70b", 70.55),
            ("qwen3-0.6b", 0.596),
            ("qwen3-1.7b", 1.721),
            ("qwen3-4b", 4.022),
            ("Qwen3-8B", 8.191),
            ("qwen3-14b", 14.77),
            ("qwen3-32b", 32.76),
            ("gpt-oss-120b", 116.8),
        ] {
            let off = billions(name) / published - 1.0;
            assert!(off.abs() < 0.002, "{name}: {} instead of {published} billion", billions(name));
        }
    }

    #[test]
    fn an_unknown_shape_names_the_nearest() {
        let error = find("qwen-8b", Path::new("")).unwrap_err();
        assert!(error.help_text().unwrap().starts_with("did you mean qwen3-8b?"), "{error}");
    }

    #[test]
    fn a_configuration_gives_a_shape() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/families/qwen3/model");
        let shape = find(&folder.display().to_string(), Path::new("")).unwrap();
        assert_eq!(shape.spec.architecture, "qwen3");
        assert!(shape.inventory.tensors.len() > 10);
    }
}
