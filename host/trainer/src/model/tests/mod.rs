//! Tests of opening models: tiny ones with random weights, written by `fixture`.

mod arch;
mod damage;
pub mod fixture;
mod gguf;
mod hf;
