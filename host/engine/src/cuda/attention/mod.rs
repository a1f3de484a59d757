//! Attention over packed documents: in, queries, keys and values side by side; out, what each query attends to, and the
//! gradients. And of a few new queries against a cache.
//!
//! Heads of a multiple of 16 run on the tensor cores ([`flash`]), others on plain arithmetic ([`plain`]); all of it is
//! deterministic.

mod decode;
mod documents;
mod flash;
mod plain;

use half::bf16;

pub use self::decode::decode;
pub use self::documents::Documents;
use super::context::Context;
use super::kernels::Source;
use super::memory::View;
use crate::error::Result;

/// Attention's kernel files beside the plain ones.
pub static SOURCES: &[&Source] = &[
    flash::SOURCES[0],
    flash::SOURCES[1],
    flash::SOURCES[2],
    flash::SOURCES[3],
    flash::SOURCES[4],
    flash::SOURCES[5],
    &decode::DECODE,
];

/// An attention layer's dimensions.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shape {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of a head; a multiple of 8, up to 256.
    pub dim: usize,
    /// How many tokens a query sees, itself included.
    pub window: Option<usize>,
    /// Factor on the scores, `1/sqrt(dim)`.
    pub scale: f32,
}

/// `out[tokens, heads·dim]` and `lse[heads, tokens]` of `qkv[tokens, (heads + 2·kv_heads)·dim]`, whose rows may lie
/// further apart.
///
/// # Errors
/// When a kernel does not compile or the device fails.
pub fn forward(
    context: &Context,
    shape: &Shape,
    documents: &Documents,
    qkv: View<bf16>,
    out: View<bf16>,
    lse: View<f32>,
) -> Result<()> {
    if flash::serves(context, shape) {
        flash::forward(context, shape, documents, qkv, out, lse)
    } else {
        plain::forward(context, shape, documents, qkv, out, lse)
    }
}

/// Bytes that [`backward`] needs in its `workspace`.
pub fn workspace_bytes(shape: &Shape, documents: &Documents) -> usize {
    flash::workspace_bytes(shape, documents).max(plain::workspace_bytes(shape, documents))
}

/// Writes `d_qkv`, of `qkv`'s shape, given `d_out`; `out` and `lse` are the forward pass's.
///
/// # Errors
/// When a kernel does not compile or the device fails.
#[allow(clippy::too_many_arguments)]
pub fn backward(
    context: &Context,
    shape: &Shape,
    documents: &Documents,
    qkv: View<bf16>,
    out: View<bf16>,
    lse: View<f32>,
    d_out: View<bf16>,
    d_qkv: View<bf16>,
    workspace: View<u8>,
) -> Result<()> {
    if flash::serves(context, shape) {
        flash::backward(context, shape, documents, qkv, out, lse, d_out, d_qkv, workspace)
    } else {
        plain::backward(context, shape, documents, qkv, out, lse, d_out, d_qkv, workspace)
    }
}
