//! The engine on NVIDIA GPUs: the same plans and the same numbers as the CPU engine, in bf16 with `f32` accumulation.
//!
//! Nothing is linked: the driver, cuBLASLt and NVRTC are opened when a [`Context`] is made, and a missing one is an
//! error that says how to get it. Kernels are compiled for the card at hand and cached ([`kernels`]).

pub mod attention;
pub mod context;
pub mod gemm;
pub mod kernels;
pub mod libraries;
pub mod memory;
pub mod profile;

pub use context::Context;
pub use memory::{Buffer, View};
pub use profile::Kind;
