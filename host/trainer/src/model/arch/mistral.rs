//! Mistral: Llama without biases, and with a sliding window over every block.

use super::{Defaults, Family};

pub(super) static FAMILY: Family = Family {
    name: "mistral",
    class: "MistralForCausalLM",
    defaults: Defaults { max_positions: 131_072, kv_heads: Some(8), head_dim: None },
    describe: |config, spec| {
        // An absent key means 4096, an explicit null means no window (v0.2 and later).
        let window = match config.is_null("sliding_window") {
            true => None,
            false => Some(config.opt_usize("sliding_window")?.unwrap_or(4096)),
        };
        spec.windows = vec![window; spec.blocks];
        Ok(())
    },
    gguf_interleaves_qk: true,
};
