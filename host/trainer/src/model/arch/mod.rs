//! The model families: `config.json` → [`ModelSpec`] → the list of tensors that the checkpoint must hold.
//!
//! What all decoders share is here. A family's file says only how it differs: its defaults, its biases, its sliding
//! window, its extra norms. Adding a family is adding a file and a line in [`FAMILIES`].

mod config;
mod llama;
mod mistral;
mod qwen2;
mod qwen3;
mod rope;

pub use config::Config;

use crate::Result;
use crate::model::inventory::{Kind, TensorInfo};
use crate::model::spec::{ModelSpec, RopeScaling, RopeSpec};

/// A family of models that share one description.
pub struct Family {
    /// Its name, which is Hugging Face's `model_type`.
    pub name: &'static str,
    /// Its class in `architectures` of `config.json`.
    pub class: &'static str,
    /// Hugging Face's defaults for what `config.json` may leave out.
    pub(super) defaults: Defaults,
    /// Fills in what differs from a plain decoder.
    pub(super) describe: fn(&Config, &mut ModelSpec) -> Result<()>,
    /// Whether llama.cpp stores q and k with the halves of each head interleaved.
    pub(super) gguf_interleaves_qk: bool,
}

/// What Hugging Face's configuration class of a family fills in for absent keys.
pub(super) struct Defaults {
    pub max_positions: usize,
    pub kv_heads: Option<usize>,
    /// `None`: `hidden / heads`.
    pub head_dim: Option<usize>,
}

/// Every supported family.
pub static FAMILIES: [&Family; 4] = [&llama::FAMILY, &mistral::FAMILY, &qwen2::FAMILY, &qwen3::FAMILY];

/// The largest value of any dimension; beyond it a configuration is damaged rather than large.
const LARGEST_DIMENSION: usize = 1 << 24;
/// The largest number of blocks, for the same reason.
const MOST_BLOCKS: usize = 4096;

/// The names of the supported families, for messages.
pub fn supported() -> String {
    FAMILIES.iter().map(|f| f.name).collect::<Vec<_>>().join(", ")
}

/// The family called `name`.
pub fn family(name: &str) -> Option<&'static Family> {
    FAMILIES.iter().copied().find(|f| f.name == name)
}

/// The family that a configuration asks for, by `model_type` or else by `architectures`.
///
/// # Errors
/// The family is unknown or not named.
fn family_of(config: &Config) -> Result<&'static Family> {
    let named = match config.opt_str("model_type")? {
        Some(name) => name.to_string(),
        None => {
            let class = config.first_of("architectures").ok_or_else(|| {
                config.error("neither `model_type` nor `architectures` says what kind of model this is")
            })?;
            match FAMILIES.iter().find(|f| f.class == class) {
                Some(family) => family.name.to_string(),
                None => class,
            }
        }
    };
    family(&named).ok_or_else(|| {
        config
            .error(format!("models of type `{named}` are not supported"))
            .help(format!("supported families: {}", supported()))
    })
}

/// Reads a model's dimensions and options from its configuration.
///
/// # Errors
/// The family, activation, rope type or quantisation isn't supported, a key is missing or has the wrong type, or the
/// dimensions contradict each other.
pub fn spec_from_config(config: &Config) -> Result<ModelSpec> {
    let family = family_of(config)?;
    if let Some(quantization) = config.opt_object("quantization_config")? {
        let method = quantization.get("quant_method").and_then(|m| m.as_str()).unwrap_or("unknown");
        // What bitsandbytes made is read as it is; FP4 is refused at its tensors.
        if method != "bitsandbytes" {
            return Err(config
                .error(format!(
                    "the checkpoint is quantised (`quantization_config`, method `{method}`), which is not supported"
                ))
                .help("use the unquantised checkpoint, one by bitsandbytes, or a GGUF file"));
        }
    }
    let activation = config.opt_str("hidden_act")?.unwrap_or("silu");
    if !matches!(activation, "silu" | "swish") {
        return Err(config
            .error(format!("activation `{activation}` (`hidden_act`) is not supported"))
            .help("supported: silu"));
    }

    let (hidden, heads) = (config.usize("hidden_size")?, config.usize("num_attention_heads")?);
    let (blocks, vocab) = (config.usize("num_hidden_layers")?, config.usize("vocab_size")?);
    let max_positions = config.opt_usize("max_position_embeddings")?.unwrap_or(family.defaults.max_positions);
    let kv_heads = config.opt_usize("num_key_value_heads")?.or(family.defaults.kv_heads).unwrap_or(heads);
    // Checked before anything is derived or allocated from them.
    for (key, value, most) in [
        ("hidden_size", hidden, LARGEST_DIMENSION),
        ("num_attention_heads", heads, LARGEST_DIMENSION),
        ("num_key_value_heads", kv_heads, LARGEST_DIMENSION),
        ("num_hidden_layers", blocks, MOST_BLOCKS),
        ("vocab_size", vocab, LARGEST_DIMENSION),
        ("max_position_embeddings", max_positions, 1 << 40),
    ] {
        config.check(key, value, 1, most)?;
    }
    let head_dim = match config.opt_usize("head_dim")?.or(family.defaults.head_dim) {
        Some(head_dim) => head_dim,
        None if !hidden.is_multiple_of(heads) => {
            return Err(config.error(format!(
                "`hidden_size` {hidden} is not a multiple of `num_attention_heads` {heads}, and there is no `head_dim`"
            )));
        }
        None => hidden / heads,
    };
    let mut spec = ModelSpec {
        architecture: family.name.to_string(),
        hidden,
        intermediate: config.usize("intermediate_size")?,
        blocks,
        heads,
        kv_heads,
        head_dim,
        vocab,
        rms_eps: config.opt_f64("rms_norm_eps")?.unwrap_or(1e-6),
        max_positions,
        windows: vec![None; blocks],
        rope: RopeSpec { theta: 10_000.0, scaling: RopeScaling::None },
        tied: config.opt_bool("tie_word_embeddings")?.unwrap_or(false),
        qkv_bias: false,
        o_bias: false,
        mlp_bias: false,
        qk_norm: false,
    };
    spec.rope = rope::read(config, max_positions)?;
    (family.describe)(config, &mut spec)?;
    check(config, &spec)?;
    Ok(spec)
}

/// Refuses dimensions that contradict each other.
fn check(config: &Config, spec: &ModelSpec) -> Result<()> {
    config.check("intermediate_size", spec.intermediate, 1, LARGEST_DIMENSION)?;
    config.check("head_dim", spec.head_dim, 2, LARGEST_DIMENSION)?;
    if !spec.head_dim.is_multiple_of(2) {
        return Err(config.error(format!("`head_dim` is {}, but rotary embedding needs an even number", spec.head_dim)));
    }
    if !spec.heads.is_multiple_of(spec.kv_heads) {
        return Err(config.error(format!(
            "`num_attention_heads` {} is not a multiple of `num_key_value_heads` {}",
            spec.heads, spec.kv_heads
        )));
    }
    if !(spec.rms_eps.is_finite() && spec.rms_eps > 0.0) {
        return Err(config.error(format!("`rms_norm_eps` is {}; expected a positive number", spec.rms_eps)));
    }
    if spec.windows.contains(&Some(0)) {
        return Err(config.error("`sliding_window` is 0; expected a positive number or null"));
    }
    Ok(())
}

/// The sliding windows of a Qwen model: by `layer_types`, or from block `max_window_layers` on.
fn qwen_windows(config: &Config, blocks: usize) -> Result<Vec<Option<usize>>> {
    let window = match config.opt_bool("use_sliding_window")?.unwrap_or(false) {
        true if config.is_null("sliding_window") => None,
        true => Some(config.opt_usize("sliding_window")?.unwrap_or(4096)),
        false => None,
    };
    if let Some(types) = config.opt_strings("layer_types")? {
        if types.len() != blocks {
            return Err(
                config.error(format!("`layer_types` has {} entries; expected one a block, {blocks}", types.len()))
            );
        }
        return types
            .iter()
            .map(|kind| match kind.as_str() {
                "full_attention" => Ok(None),
                "sliding_attention" => Ok(window),
                other => Err(config
                    .error(format!("layer type `{other}` in `layer_types` is not supported"))
                    .help("supported: full_attention, sliding_attention")),
            })
            .collect();
    }
    let first = config.opt_usize("max_window_layers")?.unwrap_or(28);
    Ok((0..blocks).map(|block| window.filter(|_| block >= first)).collect())
}

/// The tensors that a model of these dimensions has, in the order of the forward pass; `dtype` is left empty.
pub fn expected_tensors(spec: &ModelSpec) -> Vec<TensorInfo> {
    let mut tensors = Vec::with_capacity(3 + 9 * spec.blocks);
    let mut push = |name: String, role: &str, kind: Kind, block: Option<usize>, shape: Vec<usize>| {
        tensors.push(TensorInfo { name, role: role.to_string(), kind, block, shape, dtype: String::new() });
    };
    let (hidden, inner) = (spec.hidden, spec.intermediate);
    let (q_width, kv_width) = (spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim);

    push("model.embed_tokens.weight".into(), "embed_tokens", Kind::Embedding, None, vec![spec.vocab, hidden]);
    for block in 0..spec.blocks {
        let prefix = format!("model.layers.{block}");
        let mut norm = |part: &str, role: &str, width: usize| {
            push(format!("{prefix}.{part}{role}.weight"), role, Kind::Norm, Some(block), vec![width]);
        };
        norm("", "input_layernorm", hidden);
        if spec.qk_norm {
            norm("self_attn.", "q_norm", spec.head_dim);
            norm("self_attn.", "k_norm", spec.head_dim);
        }
        let mut linear = |part: &str, role: &str, out: usize, input: usize, bias: bool| {
            push(format!("{prefix}.{part}.{role}.weight"), role, Kind::Linear, Some(block), vec![out, input]);
            if bias {
                push(format!("{prefix}.{part}.{role}.bias"), role, Kind::Bias, Some(block), vec![out]);
            }
        };
        linear("self_attn", "q_proj", q_width, hidden, spec.qkv_bias);
        linear("self_attn", "k_proj", kv_width, hidden, spec.qkv_bias);
        linear("self_attn", "v_proj", kv_width, hidden, spec.qkv_bias);
        linear("self_attn", "o_proj", hidden, q_width, spec.o_bias);
        push(
            format!("{prefix}.post_attention_layernorm.weight"),
            "post_attention_layernorm",
            Kind::Norm,
            Some(block),
            vec![hidden],
        );
        let mut linear = |role: &str, out: usize, input: usize| {
            push(format!("{prefix}.mlp.{role}.weight"), role, Kind::Linear, Some(block), vec![out, input]);
            if spec.mlp_bias {
                push(format!("{prefix}.mlp.{role}.bias"), role, Kind::Bias, Some(block), vec![out]);
            }
        };
        linear("gate_proj", inner, hidden);
        linear("up_proj", inner, hidden);
        linear("down_proj", hidden, inner);
    }
    push("model.norm.weight".into(), "norm", Kind::Norm, None, vec![hidden]);
    if !spec.tied {
        push("lm_head.weight".into(), "lm_head", Kind::Head, None, vec![spec.vocab, hidden]);
    }
    tensors
}
