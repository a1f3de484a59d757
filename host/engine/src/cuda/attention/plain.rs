//! The plainest correct attention, for every shape: a reference, and the path where nothing faster serves.

use half::bf16;

use super::{Documents, Kept, Shape};
use crate::cuda::context::{Context, Launch};
use crate::cuda::kernels::{args, sources::ATTENTION_PLAIN};
use crate::cuda::memory::View;
use crate::error::Result;

fn launch(tokens: usize, heads: usize) -> Launch {
    Launch { grid: [tokens.div_ceil(4) as u32, heads as u32, 1], block: 128, shared: 0 }
}

pub(super) fn forward(context: &Context, shape: &Shape, documents: &Documents, kept: Kept) -> Result<()> {
    let Kept { qkv, out, lse } = kept;
    let tokens = documents.tokens();
    #[rustfmt::skip]
    let arguments = args![
        out, lse, qkv, documents.starts, documents.count(), tokens, shape.heads, shape.kv_heads, shape.dim,
        shape.window.unwrap_or(0), shape.scale, qkv.stride(), out.stride()
    ];
    context.launch(&ATTENTION_PLAIN, &[], "attention_plain_forward", launch(tokens, shape.heads), arguments)
}

pub(super) fn workspace_bytes(shape: &Shape, documents: &Documents) -> usize {
    shape.heads * documents.tokens() * size_of::<f32>()
}

pub(super) fn backward(
    context: &Context,
    shape: &Shape,
    documents: &Documents,
    kept: Kept,
    [d_out, d_qkv]: [View<bf16>; 2],
    workspace: View<u8>,
) -> Result<()> {
    let Kept { qkv, out, lse } = kept;
    let (tokens, delta) = (documents.tokens(), workspace);
    let Shape { heads, kv_heads, dim, window, scale, .. } = *shape;
    let window = window.unwrap_or(0);
    #[rustfmt::skip]
    let arguments = args![
        d_qkv, delta, d_out, out, lse, qkv, documents.starts, documents.count(), tokens, heads, kv_heads, dim, window,
        scale, qkv.stride(), out.stride(), d_out.stride(), d_qkv.stride()
    ];
    context.launch(&ATTENTION_PLAIN, &[], "attention_plain_backward_q", launch(tokens, heads), arguments)?;
    #[rustfmt::skip]
    let arguments = args![
        d_qkv, delta, d_out, lse, qkv, documents.starts, documents.count(), tokens, heads, kv_heads, dim, window,
        scale, qkv.stride(), d_out.stride(), d_qkv.stride()
    ];
    context.launch(&ATTENTION_PLAIN, &[], "attention_plain_backward_kv", launch(tokens, kv_heads), arguments)
}
