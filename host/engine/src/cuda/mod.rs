//! The engine on NVIDIA GPUs: the same plans and the same numbers as the CPU engine, in bf16 with `f32` accumulation.
//!
//! Nothing is linked: the driver, cuBLASLt and NVRTC are opened when a [`Context`] is made, and a missing one is an
//! error that says how to get it. Kernels are compiled for the card at hand and cached ([`kernels`]).
//!
//! ```text
//! Context ── Builder ── Decoder: accumulate, losses, logits, extend, grad_norm, update
//!                          │
//!              plan (what fits) ── step: embed → blocks → loss → blocks back
//!                                          │
//!                    group (fused linear layers, adapters folded in) → gemm, ops, attention, nf4
//!
//! Context ── singular: matrices → eigenvalues of their squares
//! ```

pub mod account;
pub mod arena;
pub mod attention;
pub mod builder;
pub mod context;
pub mod decoder;
pub mod dora;
pub mod gemm;
pub mod generate;
pub mod kernels;
pub mod libraries;
pub mod memory;
pub mod nf4;
pub mod ops;
pub mod optim;
pub mod packed;
pub mod plan;
pub mod profile;
pub mod singular;
pub mod slab;
pub mod spec;
pub mod trainable;

mod block;
mod block_backward;
mod event;
mod group;
mod group_dora;
mod in_backward;
mod inputs;
mod layout;
mod loader;
mod locked;
mod loss;
mod magnitudes;
mod observe;
mod offload;
mod regroup;
mod retrain;
mod staging;
mod states;
mod step;
mod tuning;
mod watched;

pub use account::Account;
pub use block::Level;
pub use builder::Builder;
pub use context::Context;
pub use decoder::Decoder;
pub use generate::Cache;
pub use loader::{Data, Loader};
pub use memory::{Buffer, View};
pub use observe::GradientSum;
pub use optim::Update;
pub use plan::StepPlan;
pub use profile::Kind;

pub use spec::{AdapterSpec, ModelShape, Options, Role, Slot, Storage, TensorSpec, Treatment};
pub use staging::Upload;
pub use trainable::{MomentFormat, Trainable};
