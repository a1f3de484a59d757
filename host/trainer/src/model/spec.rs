//! A decoder's dimensions and options, read from `config.json` or GGUF metadata by the family's file in `arch/`.

use serde::{Deserialize, Serialize};

/// What the shared decoder block needs to know of a model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelSpec {
    /// The family: `llama`, `mistral`, `qwen2`, `qwen3`.
    pub architecture: String,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Width inside the feed-forward layer.
    pub intermediate: usize,
    /// Number of decoder blocks.
    pub blocks: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
    /// Rows of the embedding.
    pub vocab: usize,
    /// Epsilon of every RMS norm.
    pub rms_eps: f64,
    /// Longest sequence the model was made for.
    pub max_positions: usize,
    /// Sliding window of each block: `None` sees everything before it, `Some(w)` its own and the `w - 1` tokens before.
    pub windows: Vec<Option<usize>>,
    /// Rotary embedding.
    pub rope: RopeSpec,
    /// Whether the head is the embedding.
    pub tied: bool,
    /// Whether q, k and v have a bias (Qwen2, or Llama's `attention_bias`).
    pub qkv_bias: bool,
    /// Whether o has a bias (Llama's `attention_bias`).
    pub o_bias: bool,
    /// Whether gate, up and down have a bias (Llama's `mlp_bias`).
    pub mlp_bias: bool,
    /// Whether each query and key head is normalised (Qwen3).
    pub qk_norm: bool,
}

/// Rotary position embedding, as Hugging Face's `rope_scaling` / `rope_parameters` describe it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RopeSpec {
    /// Base of the frequencies.
    pub theta: f64,
    /// How they are stretched for longer sequences.
    pub scaling: RopeScaling,
}

/// The rope scaling kinds that the supported families use.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RopeScaling {
    /// None.
    None,
    /// Positions divided by a factor.
    Linear {
        /// The divisor.
        factor: f64,
    },
    /// Llama 3.x: low frequencies divided, high ones kept, a smooth ramp between.
    Llama3 {
        /// The divisor of the low frequencies.
        factor: f64,
        /// Wavelengths above `original_max_positions / low_freq_factor` are divided.
        low_freq_factor: f64,
        /// Wavelengths below `original_max_positions / high_freq_factor` are kept.
        high_freq_factor: f64,
        /// The context length of pre-training.
        original_max_positions: usize,
    },
}

impl RopeSpec {
    /// The inverse frequencies of the turned pairs, `[head_dim / 2]`, in the reference's order of `f32` operations:
    /// `theta^(-2i / head_dim)`, then stretched.
    pub fn inverse_frequencies(&self, head_dim: usize) -> Vec<f32> {
        let plain = (0..head_dim / 2).map(|i| 1.0 / (self.theta as f32).powf(2.0 * i as f32 / head_dim as f32));
        match self.scaling {
            RopeScaling::None => plain.collect(),
            RopeScaling::Linear { factor } => plain.map(|frequency| frequency / factor as f32).collect(),
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_positions } => {
                let original = original_max_positions as f64;
                let stretch = |frequency: f32| {
                    let wavelength = std::f64::consts::TAU / f64::from(frequency);
                    let low = f64::from(frequency) / factor;
                    if wavelength < original / high_freq_factor {
                        return frequency;
                    }
                    if wavelength > original / low_freq_factor {
                        return low as f32;
                    }
                    let smooth = (original / wavelength - low_freq_factor) / (high_freq_factor - low_freq_factor);
                    ((1.0 - smooth) * low + smooth * f64::from(frequency)) as f32
                };
                plain.map(stretch).collect()
            }
        }
    }
}
