//! Calls of the plain kernels: shapes in, a launch queued.

use half::bf16;

use super::context::{Context, Launch};
use super::kernels::{args, sources};
use super::memory::View;
use super::profile::Kind;
use crate::error::Result;

/// Rows of a matrix that partial sums are made of.
const CHUNK: usize = 256;

fn groups(n: usize) -> [(&'static str, i64); 1] {
    [("GROUPS", n.div_ceil(2048).clamp(1, 4) as i64)]
}

/// `y = x / rms(x) · w`; row `i` of `y` is row `rows[i]` of `x`.
///
/// # Errors
/// When the launch fails.
pub fn rms_norm(
    context: &Context,
    y: View<bf16>,
    x: View<bf16>,
    w: View<f32>,
    rows: Option<View<i32>>,
    eps: f32,
) -> Result<()> {
    context.kind(Kind::Norm);
    let arguments = args![y, x, w, rows, x.cols(), y.stride(), x.stride(), eps];
    context.launch(&sources::NORM, &groups(x.cols()), "rms_norm_forward", Launch::new(y.rows(), 256), arguments)
}

/// `dx = residual +` the gradient through the norm, at `rows` of `x`, `dx` and `residual`; the inverse roots are written
/// to `inverse_rms` if it is given.
///
/// # Errors
/// When the launch fails.
#[allow(clippy::too_many_arguments)]
pub fn rms_norm_backward(
    context: &Context,
    dx: View<bf16>,
    inverse_rms: Option<View<f32>>,
    dy: View<bf16>,
    x: View<bf16>,
    w: View<f32>,
    residual: Option<View<bf16>>,
    rows: Option<View<i32>>,
    eps: f32,
) -> Result<()> {
    context.kind(Kind::Norm);
    let residual_stride = residual.map_or(0, |residual| residual.stride());
    #[rustfmt::skip]
    let arguments = args![
        dx, inverse_rms, dy, x, w, residual, rows, x.cols(), dx.stride(), dy.stride(), x.stride(), residual_stride, eps
    ];
    context.launch(&sources::NORM, &groups(x.cols()), "rms_norm_backward", Launch::new(dy.rows(), 256), arguments)
}

/// `f32` numbers that sums over `rows` rows of `n` columns take in between.
pub fn parts_len(rows: usize, n: usize) -> usize {
    rows.div_ceil(CHUNK).max(1) * n
}

fn columns(n: usize, rows: usize) -> Launch {
    Launch { grid: [n.div_ceil(128) as u32, rows.div_ceil(CHUNK) as u32, 1], block: 128, shared: 0 }
}

fn add_parts(context: &Context, out: View<f32>, parts: View<f32>, n: usize, chunks: usize) -> Result<()> {
    let arguments = args![out, parts, n, chunks];
    context.launch(&sources::NORM, &groups(0), "add_parts", Launch::new(n.div_ceil(128), 128), arguments)
}

/// `dw += Σ over rows of dy · x · inverse_rms`; `parts` has [`parts_len`] numbers.
///
/// # Errors
/// When the launch fails.
pub fn rms_norm_weight(
    context: &Context,
    dw: View<f32>,
    dy: View<bf16>,
    x: View<bf16>,
    inverse_rms: View<f32>,
    rows: Option<View<i32>>,
    parts: View<f32>,
) -> Result<()> {
    context.kind(Kind::Norm);
    let (n, count) = (x.cols(), dy.rows());
    let arguments = args![parts, dy, x, inverse_rms, rows, n, count, CHUNK, dy.stride(), x.stride()];
    context.launch(&sources::NORM, &groups(0), "rms_norm_weight", columns(n, count), arguments)?;
    add_parts(context, dw, parts, n, count.div_ceil(CHUNK))
}

/// `db += Σ over rows of dy`; `parts` has [`parts_len`] numbers.
///
/// # Errors
/// When the launch fails.
pub fn column_sums(context: &Context, db: View<f32>, dy: View<bf16>, parts: View<f32>) -> Result<()> {
    context.kind(Kind::Other);
    let (n, count) = (dy.cols(), dy.rows());
    let arguments = args![parts, dy, n, count, CHUNK, dy.stride()];
    context.launch(&sources::NORM, &groups(0), "column_sums", columns(n, count), arguments)?;
    add_parts(context, db, parts, n, count.div_ceil(CHUNK))
}

/// `y += bias`, row by row; as many columns as the bias has.
///
/// # Errors
/// When the launch fails.
pub fn add_bias(context: &Context, y: View<bf16>, bias: View<f32>) -> Result<()> {
    context.kind(Kind::Other);
    let n = bias.cols();
    let launch = Launch { grid: [n.div_ceil(2048) as u32, y.rows() as u32, 1], block: 256, shared: 0 };
    context.launch(&sources::BIAS, &[], "add_bias", launch, args![y, bias, n, y.stride()])
}

/// What the rotary embedding's kernels read of an attention layer.
#[derive(Clone, Copy, Debug)]
pub struct Heads {
    /// Query heads.
    pub heads: usize,
    /// Key heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub dim: usize,
    /// Scale of the queries' norm.
    pub q_norm: Option<View<f32>>,
    /// Scale of the keys' norm.
    pub k_norm: Option<View<f32>>,
    /// Biases of queries, keys and values.
    pub bias: Option<View<f32>>,
    /// What they are to be multiplied by before, with DoRA.
    pub factor: Option<View<f32>>,
    /// Epsilon of the norms.
    pub eps: f32,
}

impl Heads {
    /// Lanes of a warp that share a head: each has eight numbers of each half.
    fn lanes(&self) -> usize {
        (self.dim / 16).next_power_of_two()
    }

    /// Threads of a block that takes `heads` heads in as few turns as `most` warps can, all of them busy in each.
    fn threads(&self, heads: usize, most: usize) -> u32 {
        let warps = heads.div_ceil(32 / self.lanes()).max(1);
        32 * warps.div_ceil(warps.div_ceil(most)) as u32
    }
}

/// Blocks of the rotary embedding, which take tokens in turns: a few turns for each, so that each fetches the next
/// token's numbers while it works.
fn rope_blocks(context: &Context, tokens: usize) -> usize {
    tokens.min(8 * context.multiprocessors())
}

/// Biases, norms and rotation of `from`'s heads into `to`, which may be the same. `table[positions, 2, dim/2]`.
///
/// # Errors
/// When the launch fails.
pub fn rope(
    context: &Context,
    heads: &Heads,
    to: View<bf16>,
    from: View<bf16>,
    positions: View<i32>,
    table: View<f32>,
) -> Result<()> {
    context.kind(Kind::Rope);
    #[rustfmt::skip]
    let arguments = args![
        to, from, positions, table, heads.q_norm, heads.k_norm, heads.bias, heads.factor, to.rows(), heads.heads, heads.kv_heads,
        heads.dim, to.stride(), from.stride(), heads.eps, heads.lanes()
    ];
    let threads = heads.threads(heads.heads + 2 * heads.kv_heads, 12);
    let launch = Launch::new(rope_blocks(context, to.rows()), threads);
    let defines = [("PARTS", 0), ("FACTORS", i64::from(heads.factor.is_some()))];
    context.launch(&sources::ROPE, &defines, "rope_forward", launch, arguments)
}

/// Gradients of the queries' and the keys' norms to add to, and [`rope_parts_len`] numbers in between.
pub type NormGrads = ([Option<View<f32>>; 2], View<f32>);

/// Blocks of the rotary embedding's backward pass when it sums the norms' gradients.
const ROPE_BLOCKS: usize = 1024;

/// `f32` numbers that [`rope_backward`] needs for the norms' gradients.
pub fn rope_parts_len(dim: usize) -> usize {
    ROPE_BLOCKS * 2 * dim
}

/// Turns `d` back in place, through the norms; `before` is what [`rope`] read. With `norm_grads` (of queries, of keys)
/// the norms' gradients are added there.
///
/// # Errors
/// When the launch fails.
pub fn rope_backward(
    context: &Context,
    heads: &Heads,
    d: View<bf16>,
    before: View<bf16>,
    positions: View<i32>,
    table: View<f32>,
    norm_grads: Option<NormGrads>,
) -> Result<()> {
    context.kind(Kind::Rope);
    let tokens = d.rows();
    let blocks = rope_blocks(context, tokens).min(ROPE_BLOCKS);
    let parts = norm_grads.as_ref().map(|(_, parts)| *parts);
    #[rustfmt::skip]
    let arguments = args![
        d, parts, before, positions, table, heads.q_norm, heads.k_norm, heads.bias, heads.factor, tokens, heads.heads,
        heads.kv_heads, heads.dim, d.stride(), before.stride(), heads.eps, heads.lanes()
    ];
    let sums = [("PARTS", i64::from(norm_grads.is_some())), ("FACTORS", i64::from(heads.factor.is_some()))];
    let threads = if norm_grads.is_some() { 256 } else { heads.threads(heads.heads + heads.kv_heads, 10) };
    context.launch(&sources::ROPE, &sums, "rope_backward", Launch::new(blocks, threads), arguments)?;
    let Some((grads, parts)) = norm_grads else { return Ok(()) };
    for (which, grad) in grads.into_iter().enumerate() {
        let Some(grad) = grad else { continue };
        let arguments = args![grad, parts, which * heads.dim, heads.dim, 2 * heads.dim, blocks];
        context.launch(
            &sources::NORM,
            &groups(0),
            "add_strided_parts",
            Launch::new(heads.dim.div_ceil(128), 128),
            arguments,
        )?;
    }
    Ok(())
}

fn eights(rows: usize, n: usize) -> Launch {
    Launch { grid: [n.div_ceil(2048) as u32, rows as u32, 1], block: 256, shared: 0 }
}

/// `y = silu(gate) · up` of `gate_up[rows, 2·n]`.
///
/// # Errors
/// When the launch fails.
pub fn swiglu(context: &Context, y: View<bf16>, gate_up: View<bf16>) -> Result<()> {
    context.kind(Kind::Activation);
    let n = y.cols();
    let arguments = args![y, gate_up, n, n, y.stride(), gate_up.stride()];
    context.launch(&sources::SWIGLU, &[], "swiglu_forward", eights(y.rows(), n), arguments)
}

/// Replaces gate and up by their gradients, and with `again` `dy` by the activation; else it stays.
///
/// # Errors
/// When the launch fails.
pub fn swiglu_backward(context: &Context, gate_up: View<bf16>, dy: View<bf16>, again: bool) -> Result<()> {
    context.kind(Kind::Activation);
    let n = dy.cols();
    let arguments = args![gate_up, dy, n, n, gate_up.stride(), dy.stride(), i32::from(again)];
    context.launch(&sources::SWIGLU, &[], "swiglu_backward", eights(dy.rows(), n), arguments)
}

/// `losses[row] = -ln softmax(logits[row])[target]`; with `scale`, a number on the device, the logits become the
/// gradients of `scale · loss`.
///
/// # Errors
/// When the launch fails.
pub fn cross_entropy(
    context: &Context,
    losses: View<f32>,
    logits: View<bf16>,
    targets: View<i32>,
    scale: Option<View<f32>>,
) -> Result<()> {
    context.kind(Kind::Loss);
    let arguments = args![losses, logits, targets, scale, logits.cols(), logits.stride()];
    context.launch(&sources::LOSS, &[], "cross_entropy", Launch::new(logits.rows(), 1024), arguments)
}

/// Rows of the table.
///
/// # Errors
/// When the launch fails.
pub fn embed(context: &Context, y: View<bf16>, table: View<bf16>, ids: View<i32>) -> Result<()> {
    context.kind(Kind::Other);
    let arguments = args![y, table, ids, y.cols(), y.stride(), table.stride()];
    context.launch(&sources::EMBEDDING, &[], "embedding_forward", Launch::new(y.rows(), 256), arguments)
}

/// Adds to the table's gradient: `places[starts[i]..starts[i + 1]]` are the rows of `dy` for the distinct id `ids[i]`.
///
/// # Errors
/// When the launch fails.
pub fn embed_backward(
    context: &Context,
    d_table: View<f32>,
    dy: View<bf16>,
    [ids, starts, places]: [View<i32>; 3],
) -> Result<()> {
    context.kind(Kind::Other);
    let arguments = args![d_table, dy, ids, starts, places, dy.cols(), d_table.stride(), dy.stride()];
    context.launch(&sources::EMBEDDING, &[], "embedding_backward", Launch::new(ids.cols(), 256), arguments)
}

/// `copy = bf16(master · scale)`.
///
/// # Errors
/// When the launch fails.
pub fn scaled_copy(context: &Context, copy: View<bf16>, master: View<f32>, scale: f32) -> Result<()> {
    context.kind(Kind::Other);
    let arguments = args![copy, master, master.len() as u64, copy.cols(), copy.stride(), scale];
    context.launch(
        &sources::ADAMW,
        &[("MOMENTS", 32)],
        "scaled_copy",
        Launch::new(master.len().div_ceil(256), 256),
        arguments,
    )
}

/// Queues `wide = narrow`, whose rows may lie apart.
///
/// # Errors
/// When the launch fails.
pub fn widened(context: &Context, wide: View<f32>, narrow: View<bf16>) -> Result<()> {
    context.kind(Kind::Other);
    let arguments = args![wide, narrow, wide.len() as u64, narrow.cols(), narrow.stride()];
    let launch = Launch::new(wide.len().div_ceil(256), 256);
    context.launch(&sources::ADAMW, &[("MOMENTS", 32)], "widened", launch, arguments)
}

/// Where [`random_normal`] writes.
#[derive(Clone, Copy, Debug)]
pub enum Filled {
    /// Numbers of 32 bits.
    Wide(View<f32>),
    /// Numbers of 16 bits.
    Narrow(View<bf16>),
}

/// Standard normal numbers times `spread`.
///
/// # Errors
/// When the launch fails.
pub fn random_normal(context: &Context, to: Filled, spread: f32, seed: u64, purpose: u32) -> Result<()> {
    let (wide, narrow, rows, cols, stride) = match to {
        Filled::Wide(view) => (view.ptr(), 0, view.rows(), view.cols(), view.stride()),
        Filled::Narrow(view) => (0, view.ptr(), view.rows(), view.cols(), view.stride()),
    };
    let elements = rows * cols;
    let arguments = args![wide, narrow, elements as u64, cols, stride, spread, seed, purpose];
    let launch = Launch::new(elements.div_ceil(512), 256);
    context.launch(&sources::ADAMW, &[("MOMENTS", 32)], "random_normal", launch, arguments)
}

/// An adapter's dropout in a pass: the mask of an element depends on these and on its place in the whole batch.
#[derive(Clone, Copy, Debug)]
pub struct Mask {
    /// The probability that an element is dropped.
    pub p: f32,
    /// Seed and count of the pass.
    pub pass: (u64, u64),
    /// The adapter's stream.
    pub stream: u32,
    /// Where the rows begin in the batch.
    pub first_row: usize,
}

/// `y = x · mask / (1 - p)`, or `y += …`.
///
/// # Errors
/// When the launch fails.
pub fn dropout(context: &Context, y: View<bf16>, x: View<bf16>, mask: Mask, add: bool) -> Result<()> {
    context.kind(Kind::Adapter);
    let (seed, count) = mask.pass;
    // As rng.rs has it: the count's high bits go into the key.
    let key = seed ^ (count >> 32).rotate_left(32);
    let cols = x.cols();
    #[rustfmt::skip]
    let arguments = args![
        y, x, cols, y.stride(), x.stride(), mask.first_row as u64, mask.p, key, mask.stream, count as u32
    ];
    let defines: &[(&str, i64)] = if add { &[("ADD", 1)] } else { &[] };
    let launch = Launch { grid: [cols.div_ceil(2048) as u32, x.rows() as u32, 1], block: 256, shared: 0 };
    context.launch(&sources::DROPOUT, defines, "dropout", launch, arguments)
}
