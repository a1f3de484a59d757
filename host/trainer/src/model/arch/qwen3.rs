//! Qwen3: each query and key head is normalised, heads have their own width, biases only where `attention_bias` asks.

use super::{Defaults, Family, qwen_windows};

pub(super) static FAMILY: Family = Family {
    name: "qwen3",
    class: "Qwen3ForCausalLM",
    defaults: Defaults { max_positions: 32_768, kv_heads: Some(32), head_dim: Some(128) },
    describe: |config, spec| {
        let attention_bias = config.opt_bool("attention_bias")?.unwrap_or(false);
        spec.qkv_bias = attention_bias;
        spec.o_bias = attention_bias;
        spec.qk_norm = true;
        spec.windows = qwen_windows(config, spec.blocks)?;
        Ok(())
    },
    gguf_interleaves_qk: false,
};
