//! Attention by cuDNN, where that is faster than our own kernels. In: views of device memory. Out: work queued, or word
//! that our own kernels must do it.
//!
//! It serves documents of one length on Hopper, if that is a multiple of [`STEP`]: a plan is compiled for a shape, which
//! takes up to a second, and round lengths are what training texts are cut to. Plans are kept for the life of the context.
//!
//! cuDNN computes each score of the backward pass once and adds to dQ from all blocks in the order in which they end, so
//! that its last bits differ from run to run. That is for who asks for it ([`Shape::unordered`]). Its other way writes all
//! gradients of scores to memory and has an order; short documents take it, longer ones our own kernels.

use std::collections::HashMap;

use cudarc::cudnn::sys;
use cudarc::driver::result;
use half::bf16;

use super::graph::{DataType, Graph, Plan, Pointwise, Reduce, check, dense};
use super::{Documents, Kept, Shape};
use crate::cuda::context::Context;
use crate::cuda::memory::View;
use crate::error::Result;

/// The oldest version whose graphs of attention are known to be right.
const OLDEST: usize = 91_002;
/// Documents' lengths are multiples of this.
const STEP: usize = 256;
/// The longest documents whose gradients of scores may go to memory: 64 bytes a token and head at this length.
const LONGEST_ORDERED: usize = 512;
/// What a plan of the forward pass may take.
const FORWARD_SCRATCH: usize = 256;

/// Documents of one length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Batch {
    documents: usize,
    length: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Pass {
    Forward,
    Backward { ordered: bool },
}

/// The way of the backward pass, if cuDNN has one for this.
fn backward_pass(batch: Batch, shape: &Shape) -> Option<Pass> {
    let ordered = !shape.unordered;
    (!ordered || batch.length <= LONGEST_ORDERED).then_some(Pass::Backward { ordered })
}

/// What a plan is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    pass: Pass,
    batch: Batch,
    heads: usize,
    kv_heads: usize,
    dim: usize,
    /// From row to row of qkv, out, d_out, d_qkv.
    strides: [usize; 4],
}

/// cuDNN on one card.
#[derive(Debug, Default)]
pub(crate) struct Fused {
    handle: Option<sys::cudnnHandle_t>,
    /// Scratch memory of forward passes, [`FORWARD_SCRATCH`] bytes.
    scratch: u64,
    /// `None` for what cuDNN refuses.
    plans: HashMap<Key, Option<Plan>>,
}

// SAFETY: a handle that any thread may use while its context is current; used behind a mutex.
unsafe impl Send for Fused {}

impl Fused {
    fn handle(&mut self, context: &Context) -> Result<sys::cudnnHandle_t> {
        if let Some(handle) = self.handle {
            return Ok(handle);
        }
        let mut handle = std::ptr::null_mut();
        // SAFETY: writes the handle; the stream lives as long as the context.
        unsafe {
            check("start cuDNN", sys::cudnnCreate(&mut handle))?;
            self.handle = Some(handle);
            check("start cuDNN", sys::cudnnSetStream(handle, context.stream().cast()))?;
            self.scratch =
                super::super::context::check("allocate device memory", result::malloc_sync(FORWARD_SCRATCH))?;
        }
        Ok(handle)
    }

    /// The plan for a key, made at its first use; `None` where cuDNN has none.
    fn plan(&mut self, context: &Context, key: Key) -> Result<Option<(sys::cudnnHandle_t, u64, &Plan)>> {
        let handle = self.handle(context)?;
        let plan = self.plans.entry(key).or_insert_with(|| {
            // SAFETY: reads a number.
            if unsafe { sys::cudnnGetVersion() } < OLDEST {
                return None;
            }
            let graph = match key.pass {
                Pass::Forward => forward_graph(&key),
                Pass::Backward { ordered } => backward_graph(&key, ordered),
            };
            graph.and_then(|graph| graph.plan(handle, scratch_bytes(&key))).ok()
        });
        Ok(plan.as_ref().map(|plan| (handle, self.scratch, plan)))
    }
}

impl Drop for Fused {
    fn drop(&mut self) {
        self.plans.clear();
        if let Some(handle) = self.handle {
            // SAFETY: created by `handle`; the context is current while its last owner drops this.
            unsafe {
                let _ = sys::cudnnDestroy(handle);
                let _ = result::free_sync(self.scratch);
            }
        }
    }
}

/// The documents' number and length, if cuDNN may serve them.
fn batch(context: &Context, shape: &Shape, documents: &Documents) -> Option<Batch> {
    let length = documents.longest;
    let same = documents.host.windows(2).all(|pair| (pair[1] - pair[0]) as usize == length);
    let whole = shape.window.is_none_or(|window| window >= length);
    let fits = shape.dim.is_multiple_of(8) && shape.dim <= 128;
    let round = length > 0 && length.is_multiple_of(STEP);
    let serves = context.fuses() && context.capability().0 == 9 && same && whole && fits && round;
    serves.then(|| Batch { documents: documents.count(), length })
}

fn key(pass: Pass, batch: Batch, shape: &Shape, strides: [usize; 4]) -> Key {
    Key { pass, batch, heads: shape.heads, kv_heads: shape.kv_heads, dim: shape.dim, strides }
}

/// What a plan may take for itself: dK and dV of each query head, before those of a key head are added up, and where
/// they go to memory the gradients of scores.
fn scratch_bytes(key: &Key) -> usize {
    match key.pass {
        Pass::Forward => FORWARD_SCRATCH,
        Pass::Backward { ordered } => {
            let scores = if ordered { values(key.batch, key.heads * key.batch.length) } else { 0 };
            (2 * values(key.batch, key.heads * key.dim) + scores) * size_of::<bf16>() + 256
        }
    }
}

/// Numbers of a tensor with so many columns a token.
fn values(batch: Batch, columns: usize) -> usize {
    batch.documents * batch.length * columns
}

/// Σ out·d_out of each row and head, and dQ in `f32`: bytes of each, padded.
fn parts(batch: Batch, shape: &Shape) -> [usize; 2] {
    [shape.heads, shape.heads * shape.dim]
        .map(|columns| (values(batch, columns) * size_of::<f32>()).next_multiple_of(256))
}

/// Bytes of the backward pass's workspace.
pub(super) fn workspace_bytes(context: &Context, shape: &Shape, documents: &Documents) -> usize {
    let Some(batch) = batch(context, shape, documents) else { return 0 };
    let Some(pass) = backward_pass(batch, shape) else { return 0 };
    parts(batch, shape).iter().sum::<usize>() + scratch_bytes(&key(pass, batch, shape, [0; 4]))
}

// What a plan is told when it runs.
const Q: i64 = 1;
const K: i64 = 2;
const V: i64 = 3;
const OUT: i64 = 4;
const LSE: i64 = 5;
const D_OUT: i64 = 6;
const DQ: i64 = 7;
const DK: i64 = 8;
const DV: i64 = 9;
const ALONG: i64 = 10;
const DQ_SUM: i64 = 11;
const SCALE: i64 = 12;
const UNSEEN: i64 = 13;
const ONE: i64 = 14;

/// Shapes and strides of a key's tensors.
struct Layout {
    documents: i64,
    heads: i64,
    kv_heads: i64,
    length: i64,
    dim: i64,
}

impl Layout {
    fn new(key: &Key) -> Self {
        let number = |value: usize| value as i64;
        Self {
            documents: number(key.batch.documents),
            heads: number(key.heads),
            kv_heads: number(key.kv_heads),
            length: number(key.batch.length),
            dim: number(key.dim),
        }
    }

    /// Heads beside each other in rows that lie `stride` apart.
    fn rows(&self, heads: i64, stride: usize) -> ([i64; 4], [i64; 4]) {
        let stride = stride as i64;
        ([self.documents, heads, self.length, self.dim], [self.length * stride, self.dim, stride, 1])
    }

    /// The same with rows and columns exchanged.
    fn columns(&self, heads: i64, stride: usize) -> ([i64; 4], [i64; 4]) {
        let ([b, h, s, d], [bs, hs, ss, ds]) = self.rows(heads, stride);
        ([b, h, d, s], [bs, hs, ds, ss])
    }

    fn scores(&self) -> [i64; 4] {
        [self.documents, self.heads, self.length, self.length]
    }

    /// One number a row and head.
    fn row_numbers(&self) -> [i64; 4] {
        [self.documents, self.heads, self.length, 1]
    }

    /// A value a row and query head, without gaps.
    fn heads_apart(&self) -> [i64; 4] {
        [self.documents, self.heads, self.length, self.dim]
    }
}

const BF16: DataType = DataType::CUDNN_DATA_BFLOAT16;
const F32: DataType = DataType::CUDNN_DATA_FLOAT;

fn forward_graph(key: &Key) -> Result<Graph> {
    let (mut g, at) = (Graph::default(), Layout::new(key));
    let [stride, out_stride, ..] = key.strides;
    let mut tensor = |uid, (dims, strides)| g.outside(uid, dims, strides, BF16);
    let q = tensor(Q, at.rows(at.heads, stride))?;
    let k = tensor(K, at.columns(at.kv_heads, stride))?;
    let v = tensor(V, at.rows(at.kv_heads, stride))?;
    let out = tensor(OUT, at.rows(at.heads, out_stride))?;
    let lse = g.outside(LSE, at.row_numbers(), dense(at.row_numbers()), F32)?;
    let (scale, unseen) = (g.number(SCALE)?, g.number(UNSEEN)?);
    let inside = |g: &mut Graph, dims: [i64; 4], data| g.inside(dims, dense(dims), data);
    let scores = inside(&mut g, at.scores(), F32)?;
    g.multiply(q, k, scores)?;
    let scaled = g.map(Pointwise::CUDNN_POINTWISE_MUL, scores, Some(scale))?;
    let seen = g.causal(scaled, unseen)?;
    let most = inside(&mut g, at.row_numbers(), F32)?;
    g.reduce(Reduce::CUDNN_REDUCE_TENSOR_MAX, seen, most)?;
    let below = g.map(Pointwise::CUDNN_POINTWISE_SUB, seen, Some(most))?;
    let exponentials = g.map(Pointwise::CUDNN_POINTWISE_EXP, below, None)?;
    let sum = inside(&mut g, at.row_numbers(), F32)?;
    g.reduce(Reduce::CUDNN_REDUCE_TENSOR_ADD, exponentials, sum)?;
    let log = g.map(Pointwise::CUDNN_POINTWISE_LOG, sum, None)?;
    g.pointwise(Pointwise::CUDNN_POINTWISE_ADD, most, Some(log), lse)?;
    let weights = inside(&mut g, at.scores(), BF16)?;
    g.pointwise(Pointwise::CUDNN_POINTWISE_DIV, exponentials, Some(sum), weights)?;
    g.multiply(weights, v, out)?;
    Ok(g)
}

fn backward_graph(key: &Key, ordered: bool) -> Result<Graph> {
    let (mut g, at) = (Graph::default(), Layout::new(key));
    let [stride, out_stride, d_out_stride, d_stride] = key.strides;
    let mut tensor = |uid, (dims, strides)| g.outside(uid, dims, strides, BF16);
    let q = tensor(Q, at.rows(at.heads, stride))?;
    let k = tensor(K, at.columns(at.kv_heads, stride))?;
    let v = tensor(V, at.columns(at.kv_heads, stride))?;
    let out = tensor(OUT, at.rows(at.heads, out_stride))?;
    let d_out = tensor(D_OUT, at.rows(at.heads, d_out_stride))?;
    let dq = tensor(DQ, at.rows(at.heads, d_stride))?;
    let dk = tensor(DK, at.rows(at.kv_heads, d_stride))?;
    let dv = tensor(DV, at.rows(at.kv_heads, d_stride))?;
    let lse = g.outside(LSE, at.row_numbers(), dense(at.row_numbers()), F32)?;
    let along = g.outside(ALONG, at.row_numbers(), dense(at.row_numbers()), F32)?;
    let (scale, unseen, one) = (g.number(SCALE)?, g.number(UNSEEN)?, g.number(ONE)?);
    let inside = |g: &mut Graph, dims: [i64; 4]| g.inside(dims, dense(dims), F32);

    // Σ out·d_out.
    let [b, h, s, d] = at.heads_apart();
    let product = g.inside([b, h, s, d], [h * s * d, s * d, h * d, 1], F32)?;
    g.pointwise(Pointwise::CUDNN_POINTWISE_MUL, d_out, Some(out), product)?;
    let sum = inside(&mut g, at.row_numbers())?;
    g.reduce(Reduce::CUDNN_REDUCE_TENSOR_ADD, product, sum)?;
    g.pointwise(Pointwise::CUDNN_POINTWISE_MUL, sum, Some(one), along)?;

    // The weights again, and dV.
    let scores = inside(&mut g, at.scores())?;
    g.multiply(q, k, scores)?;
    let scaled = g.map(Pointwise::CUDNN_POINTWISE_MUL, scores, Some(scale))?;
    let below = g.map(Pointwise::CUDNN_POINTWISE_SUB, scaled, Some(lse))?;
    let seen = g.causal(below, unseen)?;
    let weights = g.map(Pointwise::CUDNN_POINTWISE_EXP, seen, None)?;
    let scores_turned = [h * s * s, s * s, 1, s];
    let of_queries = |g: &mut Graph, x, rows, to: super::graph::Tensor| {
        let turned = g.inside(at.scores(), scores_turned, BF16)?;
        g.reshape(x, turned)?;
        if at.heads == at.kv_heads {
            return g.multiply(turned, rows, to);
        }
        let of_heads = g.inside(at.heads_apart(), dense(at.heads_apart()), BF16)?;
        g.multiply(turned, rows, of_heads)?;
        g.reduce(Reduce::CUDNN_REDUCE_TENSOR_ADD, of_heads, to)
    };
    of_queries(&mut g, weights, d_out, dv)?;

    // The gradient of the scores, dK and dQ.
    let d_weights = inside(&mut g, at.scores())?;
    g.multiply(d_out, v, d_weights)?;
    let less = g.map(Pointwise::CUDNN_POINTWISE_SUB, d_weights, Some(along))?;
    let softened = g.map(Pointwise::CUDNN_POINTWISE_MUL, less, Some(weights))?;
    let d_scores = g.map(Pointwise::CUDNN_POINTWISE_MUL, softened, Some(scale))?;
    of_queries(&mut g, d_scores, q, dk)?;
    let (dims, strides) = at.rows(at.kv_heads, stride);
    let k_rows = g.inside(dims, strides, BF16)?;
    g.reshape(k, k_rows)?;
    if ordered {
        g.multiply(d_scores, k_rows, dq)?;
        return Ok(g);
    }
    let dq_sum = g.outside(DQ_SUM, at.heads_apart(), dense(at.heads_apart()), F32)?;
    g.multiply(d_scores, k_rows, dq_sum)?;
    g.pointwise(Pointwise::CUDNN_POINTWISE_IDENTITY, dq_sum, None, dq)?;
    Ok(g)
}

/// Addresses of queries, keys and values in rows of all three.
fn heads_of(shape: &Shape, rows: View<bf16>) -> [u64; 3] {
    let columns = [0, shape.heads * shape.dim, (shape.heads + shape.kv_heads) * shape.dim];
    columns.map(|column| rows.slice_cols(column, 0).ptr())
}

/// Queues the forward pass; says whether it did.
pub(super) fn forward(context: &Context, shape: &Shape, documents: &Documents, kept: Kept) -> Result<bool> {
    let Some(batch) = batch(context, shape, documents) else { return Ok(false) };
    if context.is_dry() {
        return Ok(true);
    }
    let Kept { qkv, out, lse } = kept;
    let key = key(Pass::Forward, batch, shape, [qkv.stride(), out.stride(), 0, 0]);
    context.with_fused(|fused| {
        let Some((handle, scratch, plan)) = fused.plan(context, key)? else { return Ok(false) };
        let [q, k, v] = heads_of(shape, qkv);
        let (scale, unseen) = (shape.scale, f32::NEG_INFINITY);
        let number = |value: &f32| std::ptr::from_ref(value) as u64;
        let tensors = [
            (Q, q),
            (K, k),
            (V, v),
            (OUT, out.ptr()),
            (LSE, lse.ptr()),
            (SCALE, number(&scale)),
            (UNSEEN, number(&unseen)),
        ];
        // SAFETY: the views have the shapes of the key; numbers are read before the call returns.
        context.measured(|| unsafe { plan.run(handle, &tensors, scratch) })?;
        Ok(true)
    })
}

/// Queues the backward pass; says whether it did.
pub(super) fn backward(
    context: &Context,
    shape: &Shape,
    documents: &Documents,
    kept: Kept,
    [d_out, d_qkv]: [View<bf16>; 2],
    workspace: View<u8>,
) -> Result<bool> {
    let Some(batch) = batch(context, shape, documents) else { return Ok(false) };
    let Some(pass) = backward_pass(batch, shape) else { return Ok(false) };
    if context.is_dry() {
        return Ok(true);
    }
    let Kept { qkv, out, lse } = kept;
    let key = key(pass, batch, shape, [qkv.stride(), out.stride(), d_out.stride(), d_qkv.stride()]);
    let [along_bytes, dq_bytes] = parts(batch, shape);
    let along = workspace.ptr();
    let (dq_sum, scratch) = (along + along_bytes as u64, along + (along_bytes + dq_bytes) as u64);
    context.with_fused(|fused| {
        let Some((handle, _, plan)) = fused.plan(context, key)? else { return Ok(false) };
        let ([q, k, v], [dq, dk, dv]) = (heads_of(shape, qkv), heads_of(shape, d_qkv));
        let (scale, unseen, one) = (shape.scale, f32::NEG_INFINITY, 1.0_f32);
        let number = |value: &f32| std::ptr::from_ref(value) as u64;
        let mut tensors = vec![
            (Q, q),
            (K, k),
            (V, v),
            (OUT, out.ptr()),
            (LSE, lse.ptr()),
            (D_OUT, d_out.ptr()),
            (DQ, dq),
            (DK, dk),
            (DV, dv),
            (ALONG, along),
            (SCALE, number(&scale)),
            (UNSEEN, number(&unseen)),
            (ONE, number(&one)),
        ];
        if pass == (Pass::Backward { ordered: false }) {
            tensors.push((DQ_SUM, dq_sum));
        }
        // SAFETY: the views have the shapes of the key, the workspace the bytes that `workspace_bytes` says.
        context.measured(|| unsafe { plan.run(handle, &tensors, scratch) })?;
        Ok(true)
    })
}
