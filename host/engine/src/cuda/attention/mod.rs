//! Attention over packed documents: in, queries, keys and values side by side; out, what each query attends to, and the
//! gradients.

mod plain;

use half::bf16;

use super::context::Context;
use super::kernels::Source;
use super::memory::{Buffer, View};
use crate::error::Result;

/// Kernel files beside the plain ones.
pub static SOURCES: &[&Source] = &[];

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

/// Where the documents of a batch begin.
#[derive(Clone, Debug)]
pub struct Documents {
    /// `[documents + 1]`, on the device.
    pub starts: View<i32>,
    /// The same on the host.
    pub host: Vec<u32>,
    /// Tokens of the longest.
    pub longest: usize,
}

impl Documents {
    /// Documents whose starts lie in `starts` already.
    pub fn new(starts: View<i32>, host: Vec<u32>) -> Self {
        let longest = host.windows(2).map(|pair| (pair[1] - pair[0]) as usize).max().unwrap_or(0);
        Self { starts, host, longest }
    }

    /// Copies the starts to the device.
    ///
    /// # Errors
    /// When there is no memory.
    pub fn upload(context: &Context, host: Vec<u32>) -> Result<(Buffer, Self)> {
        let buffer = Buffer::new(context, host.len() * 4)?;
        let starts = buffer.view::<i32>(1, host.len());
        context.upload(starts, &host.iter().map(|&start| start as i32).collect::<Vec<_>>())?;
        Ok((buffer, Self::new(starts, host)))
    }

    /// Number of documents.
    pub fn count(&self) -> usize {
        self.host.len().saturating_sub(1)
    }

    /// Number of tokens.
    pub fn tokens(&self) -> usize {
        self.host.last().map_or(0, |&end| end as usize)
    }
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
    plain::forward(context, shape, documents, qkv, out, lse)
}

/// Bytes that [`backward`] needs in its `workspace`.
pub fn workspace_bytes(shape: &Shape, documents: &Documents) -> usize {
    plain::workspace_bytes(shape, documents)
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
    plain::backward(context, shape, documents, qkv, out, lse, d_out, d_qkv, workspace)
}
