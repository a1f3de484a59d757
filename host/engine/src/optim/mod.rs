//! Optimisers: from gradients to changed weights. Their states are named tensors that can be saved and loaded, so that
//! a resumed run goes on bit for bit.

mod adamw;
mod clip;
mod state;

pub use adamw::{AdamW, AdamWOptions, Bf16Update};
pub use clip::grad_norm;
pub use state::{BLOCK, Buffer, LEAST_FOR_BITS8, LEAST_FOR_PAGES, MakePages, Moment, Pages, State};
