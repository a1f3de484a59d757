//! Attention over packed documents: in, queries, keys and values side by side; out, what each query attends to, and the
//! gradients. And of a few new queries against a cache.
//!
//! Three ways: cuDNN's fused attention where it serves and is faster ([`fused`]), our own on the tensor cores for heads of
//! a multiple of 16 ([`flash`]), and plain arithmetic for all others ([`plain`]). All give the same numbers but for
//! rounding, and all but cuDNN's backward pass the same bits in every run.

mod decode;
mod documents;
mod flash;
pub(crate) mod fused;
mod graph;
mod plain;

use half::bf16;

pub use self::decode::{decode, decode_parts_len};
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
    flash::SOURCES[6],
    flash::SOURCES[7],
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
    /// Whether sums of the backward pass may be made in an order that differs from run to run, where that is faster.
    pub unordered: bool,
}

/// What an attention layer reads and makes, and its backward pass reads.
#[derive(Clone, Copy, Debug)]
pub struct Kept {
    /// Queries, keys and values beside each other: `[tokens, (heads + 2·kv_heads)·dim]`; rows may lie further apart.
    pub qkv: View<bf16>,
    /// `[tokens, heads·dim]`; rows may lie further apart.
    pub out: View<bf16>,
    /// The logarithm of each row's sum of exponentials: one document behind another, of each first all rows of the first
    /// head. As many numbers as `[heads, tokens]`.
    pub lse: View<f32>,
}

/// Makes `kept.out` and `kept.lse` of `kept.qkv`.
///
/// # Errors
/// When a kernel does not compile or the device fails.
pub fn forward(context: &Context, shape: &Shape, documents: &Documents, kept: Kept) -> Result<()> {
    if fused::forward(context, shape, documents, kept)? {
        return Ok(());
    }
    forward_once(context, shape, documents, kept)
}

/// The same without cuDNN, whose plans take up to a second to make: for documents whose length may never come again.
///
/// # Errors
/// When a kernel does not compile or the device fails.
pub fn forward_once(context: &Context, shape: &Shape, documents: &Documents, kept: Kept) -> Result<()> {
    if flash::serves(context, shape) {
        flash::forward(context, shape, documents, kept)
    } else {
        plain::forward(context, shape, documents, kept)
    }
}

/// Whether our own backward pass makes all gradients of these documents at once, where cuDNN does not serve.
pub fn in_one_pass(context: &Context, shape: &Shape, documents: &Documents) -> bool {
    flash::one_pass(context, shape, documents).is_some()
}

/// Bytes that [`backward`] needs in its `workspace`.
pub fn workspace_bytes(context: &Context, shape: &Shape, documents: &Documents) -> usize {
    let own = flash::workspace_bytes(context, shape, documents).max(plain::workspace_bytes(shape, documents));
    own.max(fused::workspace_bytes(context, shape, documents))
}

/// Writes `d_qkv`, of `qkv`'s shape, given `d_out`; `kept` is the forward pass's.
///
/// # Errors
/// When a kernel does not compile or the device fails.
pub fn backward(
    context: &Context,
    shape: &Shape,
    documents: &Documents,
    kept: Kept,
    [d_out, d_qkv]: [View<bf16>; 2],
    workspace: View<u8>,
) -> Result<()> {
    if fused::backward(context, shape, documents, kept, [d_out, d_qkv], workspace)? {
        return Ok(());
    }
    if flash::serves(context, shape) {
        flash::backward(context, shape, documents, kept, [d_out, d_qkv], workspace)
    } else {
        plain::backward(context, shape, documents, kept, [d_out, d_qkv], workspace)
    }
}
