//! Calls of DoRA's kernels (arXiv 2402.09353): products and factors in, outputs; gradients in, those of products and magnitudes.
//!
//! Widths are multiples of 8, as everywhere in the model.

use half::bf16;

use super::context::{Context, Launch};
use super::kernels::{args, sources::DORA, sources::NORM};
use super::memory::View;
use super::profile::Kind;
use crate::error::Result;

/// Rows of a matrix that partial sums are made of.
const CHUNK: usize = 64;

/// What turns a product into a layer's output, for whoever reads it: `factor · p + bias`.
#[derive(Clone, Copy, Debug)]
pub struct Reading {
    /// `[1, outputs]`.
    pub factor: View<f32>,
    /// `[1, outputs]`, if the layer has one.
    pub bias: Option<View<f32>>,
}

/// What the norms of a layer's rows are made of; `B` is `s·B`, as it lies beside the weight.
#[derive(Clone, Copy, Debug)]
pub struct Around {
    /// `‖W‖²` of each row, `[1, outputs]`.
    pub square: View<f32>,
    /// `[outputs, rank]`.
    pub b: View<bf16>,
    /// `W · Aᵀ`, `[outputs, rank]`.
    pub cross: View<f32>,
    /// `A · Aᵀ`, `[rank, rank]`.
    pub gram: View<f32>,
}

fn eights(rows: usize, n: usize) -> Launch {
    Launch { grid: [rows as u32, n.div_ceil(2048) as u32, 1], block: 256, shared: 0 }
}

fn columns(rows: usize, n: usize) -> Launch {
    Launch { grid: [n.div_ceil(1024) as u32, rows.div_ceil(CHUNK) as u32, 1], block: 128, shared: 0 }
}

/// `f32` numbers that sums over `rows` rows of `n` columns take in between.
pub fn parts_len(rows: usize, n: usize) -> usize {
    rows.div_ceil(CHUNK).max(1) * n
}

/// `square = ‖W‖²` of each row of `w[outputs, inputs]`.
///
/// # Errors
/// When the launch fails.
pub fn squares(context: &Context, square: View<f32>, w: View<bf16>) -> Result<()> {
    context.kind(Kind::Adapter);
    let (rows, cols) = (w.rows(), w.cols());
    assert!(square.cols() == rows && cols.is_multiple_of(8), "a square for each row of a weight");
    let arguments = args![square, w, rows, cols, w.stride()];
    context.launch(&DORA, &[], "dora_squares", Launch::new(rows.div_ceil(8), 256), arguments)
}

/// `norm = ‖W + s·B·A‖` of each row, and with `magnitude` `factor = magnitude / norm`: `[1, outputs]` each.
///
/// # Errors
/// When the launch fails.
pub fn norms(
    context: &Context,
    [norm, factor]: [View<f32>; 2],
    magnitude: Option<View<f32>>,
    around: Around,
) -> Result<()> {
    context.kind(Kind::Adapter);
    let Around { square, b, cross, gram } = around;
    let (rows, rank) = (b.rows(), b.cols());
    let of_rows = [norm, factor, square].into_iter().chain(magnitude).all(|view| view.cols() == rows);
    let of_ranks = (cross.rows(), cross.cols()) == (rows, rank) && (gram.rows(), gram.cols()) == (rank, rank);
    assert!(of_rows && of_ranks, "what norms are made of, row by row");
    #[rustfmt::skip]
    let arguments = args![
        norm, factor, magnitude, square, b, cross, gram, rows, rank, b.stride(), cross.stride(), gram.stride()
    ];
    context.launch(&DORA, &[], "dora_norms", Launch::new(rows.div_ceil(8), 256), arguments)
}

/// `y = add + factor · p + bias`; `y` may be `add`.
///
/// # Errors
/// When the launch fails.
pub fn add(context: &Context, y: View<bf16>, add: View<bf16>, p: View<bf16>, reading: Reading) -> Result<()> {
    context.kind(Kind::Adapter);
    let (n, Reading { factor, bias }) = (p.cols(), reading);
    let arguments = args![y, add, p, factor, bias, n, y.stride(), add.stride(), p.stride()];
    context.launch(&DORA, &[], "dora_add", eights(p.rows(), n), arguments)
}

/// `y = r + (factor - 1) · p + bias + add`; `p` may be `r`.
///
/// # Errors
/// When the launch fails.
pub fn mix(
    context: &Context,
    y: View<bf16>,
    [r, p]: [View<f32>; 2],
    reading: Reading,
    add: Option<View<bf16>>,
) -> Result<()> {
    context.kind(Kind::Adapter);
    let (n, Reading { factor, bias }) = (r.cols(), reading);
    let add_stride = add.map_or(0, |add| add.stride());
    let arguments = args![y, r, p, factor, bias, add, n, y.stride(), r.stride(), p.stride(), add_stride];
    context.launch(&DORA, &[], "dora_mix", eights(r.rows(), n), arguments)
}

/// `to = (factor - less) · dy`, as many columns as there are factors; `to` may be `dy`.
///
/// # Errors
/// When the launch fails.
pub fn scale(context: &Context, to: View<bf16>, dy: View<bf16>, factor: View<f32>, less: f32) -> Result<()> {
    context.kind(Kind::Adapter);
    let n = factor.cols();
    let arguments = args![to, dy, factor, less, n, to.stride(), dy.stride()];
    context.launch(&DORA, &[], "dora_scale", eights(dy.rows(), n), arguments)
}

/// `grad += Σ over rows of dy · p / norm`; `parts` has [`parts_len`] numbers.
///
/// # Errors
/// When the launch fails.
pub fn magnitude(
    context: &Context,
    grad: View<f32>,
    [dy, p]: [View<bf16>; 2],
    norm: View<f32>,
    parts: View<f32>,
) -> Result<()> {
    context.kind(Kind::Adapter);
    let (rows, n) = (dy.rows(), norm.cols());
    let arguments = args![parts, dy, p, n, rows, CHUNK, dy.stride(), p.stride()];
    context.launch(&DORA, &[], "dora_sums", columns(rows, n), arguments)?;
    add_magnitude(context, grad, norm, parts, n, rows)
}

/// `grad += (Σ of the sums of chunks of rows) / norm`; a chunk's sums lie `stride` apart.
///
/// # Errors
/// When the launch fails.
pub fn add_magnitude(
    context: &Context,
    grad: View<f32>,
    norm: View<f32>,
    parts: View<f32>,
    stride: usize,
    rows: usize,
) -> Result<()> {
    context.kind(Kind::Adapter);
    let n = norm.cols();
    let arguments = args![grad, parts, norm, n, stride, rows.div_ceil(CHUNK)];
    context.launch(&DORA, &[], "dora_magnitude", Launch::new(n.div_ceil(128), 128), arguments)
}

/// `grad += Σ of the sums of chunks of rows`, from column `first` of sums that lie `stride` apart: a bias's gradient.
///
/// # Errors
/// When the launch fails.
pub fn add_bias(
    context: &Context,
    grad: View<f32>,
    parts: View<f32>,
    [first, stride]: [usize; 2],
    rows: usize,
) -> Result<()> {
    context.kind(Kind::Other);
    let n = grad.cols();
    let arguments = args![grad, parts, first, n, stride, rows.div_ceil(CHUNK)];
    let defines = &[("GROUPS", 1)];
    context.launch(&NORM, defines, "add_strided_parts", Launch::new(n.div_ceil(128), 128), arguments)
}

/// `y = silu(gate) · up` of the products `gate_up[rows, 2·n]`.
///
/// # Errors
/// When the launch fails.
pub fn swiglu(context: &Context, y: View<bf16>, gate_up: View<bf16>, reading: Reading) -> Result<()> {
    context.kind(Kind::Activation);
    let (n, Reading { factor, bias }) = (y.cols(), reading);
    let arguments = args![y, gate_up, factor, bias, n, y.stride(), gate_up.stride()];
    context.launch(&DORA, &[], "dora_swiglu", eights(y.rows(), n), arguments)
}

/// Replaces the products of gate and up by their gradients, and with `again` `dy` by the activation. `parts` take the sums for
/// [`add_magnitude`], `bias_parts` those for [`add_bias`]: [`parts_len`] numbers of all columns.
///
/// # Errors
/// When the launch fails.
pub fn swiglu_backward(
    context: &Context,
    gate_up: View<bf16>,
    dy: View<bf16>,
    reading: Reading,
    (parts, bias_parts): (View<f32>, Option<View<f32>>),
    again: bool,
) -> Result<()> {
    context.kind(Kind::Activation);
    let (rows, n, Reading { factor, bias }) = (dy.rows(), dy.cols(), reading);
    #[rustfmt::skip]
    let arguments = args![
        gate_up, dy, parts, bias_parts, factor, bias, n, rows, CHUNK, gate_up.stride(), dy.stride(), i32::from(again)
    ];
    context.launch(&DORA, &[], "dora_swiglu_backward", columns(rows, n), arguments)
}
