//! Qwen2 and Qwen2.5: biases on q, k and v alone, and an optional sliding window in the upper blocks.

use super::{Defaults, Family, qwen_windows};

pub(super) static FAMILY: Family = Family {
    name: "qwen2",
    class: "Qwen2ForCausalLM",
    defaults: Defaults { max_positions: 32_768, kv_heads: Some(32), head_dim: None },
    describe: |config, spec| {
        spec.qkv_bias = true;
        spec.windows = qwen_windows(config, spec.blocks)?;
        Ok(())
    },
    gguf_interleaves_qk: false,
};
