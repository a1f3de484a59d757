//! The operations, one file each: plain functions, the forward and the backward pass side by side.
//!
//! All take row-major `f32`; `rows` are tokens. A backward pass that gives a parameter's gradient adds to it, one that
//! gives an input's gradient writes it, unless its name says otherwise.

pub mod attention;
pub mod cross_entropy;
pub mod dropout;
pub mod elementwise;
pub mod embedding;
pub mod matmul;
pub mod rms_norm;
pub mod rope;
pub mod swiglu;

mod exp;
pub(crate) mod parallel;
