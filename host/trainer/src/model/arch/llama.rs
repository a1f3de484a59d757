//! Llama, and the models of its shape: Llama 2 and 3.x (with their rope scaling), SmolLM and SmolLM2, TinyLlama.

use super::{Defaults, Family};

pub(super) static FAMILY: Family = Family {
    name: "llama",
    class: "LlamaForCausalLM",
    defaults: Defaults { max_positions: 2048, kv_heads: None, head_dim: None },
    describe: |config, spec| {
        // `attention_bias` covers all four projections of the attention.
        let attention_bias = config.opt_bool("attention_bias")?.unwrap_or(false);
        spec.qkv_bias = attention_bias;
        spec.o_bias = attention_bias;
        spec.mlp_bias = config.opt_bool("mlp_bias")?.unwrap_or(false);
        Ok(())
    },
    gguf_interleaves_qk: true,
};
