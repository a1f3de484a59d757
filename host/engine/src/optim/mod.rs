//! Optimisers: from gradients to changed weights. Their states are named tensors that can be saved and loaded, so that
//! a resumed run goes on bit for bit.

mod adamw;
mod clip;

pub use adamw::{AdamW, AdamWOptions, Bf16Update, State};
pub use clip::grad_norm;
