//! Causal attention over packed documents, with grouped heads (GQA) and an optional sliding window.
//!
//! Scores live in one tile of queries × visible keys at a time and are made again in the backward pass from the kept
//! log-sum-exp of each row, as in FlashAttention (arXiv 2205.14135), so memory grows with the tokens, not their square.
//! A query sees the keys of its own document only.

use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use rayon::prelude::*;

use super::exp::exp;
use super::parallel::{Shared, vectorised};

/// The heads of an attention layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heads {
    /// Query heads.
    pub queries: usize,
    /// Key and value heads; divides `queries`.
    pub keys: usize,
    /// Width of a head.
    pub dim: usize,
    /// How many tokens a query sees, itself included; `None` sees all before it.
    pub window: Option<usize>,
}

/// Where one document's queries and keys lie. The last query stands at the last key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// First row of `q`.
    pub query_start: usize,
    /// Rows of `q`.
    pub queries: usize,
    /// First row of `k` and `v`.
    pub key_start: usize,
    /// Rows of `k` and `v`; at least `queries`.
    pub keys: usize,
}

impl Span {
    /// The spans of packed documents that attend to themselves; `starts` as in [`crate::Batch`].
    pub fn documents(starts: &[u32]) -> Vec<Self> {
        let spans = starts.windows(2).map(|pair| {
            let (start, len) = (pair[0] as usize, (pair[1] - pair[0]) as usize);
            Self { query_start: start, queries: len, key_start: start, keys: len }
        });
        spans.filter(|span| span.queries > 0).collect()
    }
}

/// Queries in a tile.
const TILE: usize = 64;

/// The rows of one head, gathered so that the kernels read them in a stream.
struct Gathered(Vec<f32>);

impl Gathered {
    fn new(x: &[f32], cols: usize, rows: std::ops::Range<usize>, head: usize, dim: usize) -> Self {
        let mut values = Vec::with_capacity(rows.len() * dim);
        for row in rows {
            values.extend_from_slice(&x[row * cols + head * dim..][..dim]);
        }
        Self(values)
    }

    fn rows(&self, rows: std::ops::Range<usize>, dim: usize) -> MatRef<'_, f32> {
        MatRef::from_row_major_slice(&self.0[rows.start * dim..rows.end * dim], rows.len(), dim)
    }
}

/// One tile of queries: its rows inside the document and the keys that any of them sees.
#[derive(Clone)]
struct Tile {
    queries: std::ops::Range<usize>,
    keys: std::ops::Range<usize>,
    /// Position of the document's first query among its keys.
    offset: usize,
    window: usize,
}

impl Tile {
    fn all(span: Span, window: Option<usize>) -> impl Iterator<Item = Self> {
        let offset = span.keys - span.queries;
        let window = window.unwrap_or(usize::MAX);
        (0..span.queries).step_by(TILE).map(move |start| {
            let end = (start + TILE).min(span.queries);
            let first_key = (offset + start + 1).saturating_sub(window);
            Self { queries: start..end, keys: first_key..offset + end, offset, window }
        })
    }

    /// The keys that the `i`-th query of the tile sees, counted from the tile's first key.
    fn visible(&self, i: usize) -> std::ops::Range<usize> {
        let position = self.offset + self.queries.start + i;
        let first = (position + 1).saturating_sub(self.window).max(self.keys.start);
        first - self.keys.start..position + 1 - self.keys.start
    }

    fn len(&self) -> usize {
        self.queries.len() * self.keys.len()
    }
}

/// `out[queries, heads·dim]` and `lse[queries, heads]` (the log of each row's sum of exponentials) of `q`, `k`, `v`, all
/// `[rows, heads·dim]`. Scores are scaled by `1/sqrt(dim)`.
pub fn forward(out: &mut [f32], lse: &mut [f32], [q, k, v]: [&[f32]; 3], spans: &[Span], heads: Heads) {
    let Heads { queries: query_heads, keys: key_heads, dim, window } = heads;
    let (q_cols, k_cols, group) = (query_heads * dim, key_heads * dim, query_heads / key_heads);
    let scale = 1.0 / (dim as f32).sqrt();
    let (out, lse) = (Shared::new(out), Shared::new(lse));
    tasks(spans, key_heads).into_par_iter().for_each(|(span, key_head)| {
        let key_rows = span.key_start..span.key_start + span.keys;
        let k = Gathered::new(k, k_cols, key_rows.clone(), key_head, dim);
        let v = Gathered::new(v, k_cols, key_rows, key_head, dim);
        let mut scores = Vec::new();
        let mut tile_out = vec![0.0; TILE * dim];
        for head in key_head * group..(key_head + 1) * group {
            let q = Gathered::new(q, q_cols, span.query_start..span.query_start + span.queries, head, dim);
            for tile in Tile::all(span, window) {
                let (rows, cols) = (tile.queries.len(), tile.keys.len());
                scores.resize(tile.len(), 0.0);
                product(
                    Accum::Replace,
                    &mut scores,
                    scale,
                    q.rows(tile.queries.clone(), dim),
                    k.rows(tile.keys.clone(), dim).transpose(),
                );
                let mut sums = [0.0_f32; TILE];
                let mut row_lse = [0.0_f32; TILE];
                vectorised(|| {
                    for (i, row) in scores.chunks_exact_mut(cols).enumerate() {
                        (sums[i], row_lse[i]) = exponentials(row, tile.visible(i));
                    }
                });
                let probabilities = MatRef::from_row_major_slice(&scores, rows, cols);
                product(
                    Accum::Replace,
                    &mut tile_out[..rows * dim],
                    1.0,
                    probabilities,
                    v.rows(tile.keys.clone(), dim),
                );
                for (i, row) in tile_out[..rows * dim].chunks_exact(dim).enumerate() {
                    let at = span.query_start + tile.queries.start + i;
                    // SAFETY: this task alone writes the rows of its document in the columns of its heads.
                    let (out, lse) =
                        unsafe { (out.slice(at * q_cols + head * dim, dim), lse.slice(at * query_heads + head, 1)) };
                    let inverse = 1.0 / sums[i];
                    for (o, x) in out.iter_mut().zip(row) {
                        *o = x * inverse;
                    }
                    lse[0] = row_lse[i];
                }
            }
        }
    });
}

/// What the backward pass reads: the inputs, and what the forward pass gave.
#[derive(Clone, Copy)]
pub struct Kept<'a> {
    /// `[tokens, heads·dim]`.
    pub q: &'a [f32],
    /// `[tokens, key heads·dim]`.
    pub k: &'a [f32],
    /// `[tokens, key heads·dim]`.
    pub v: &'a [f32],
    /// `[tokens, heads·dim]`.
    pub out: &'a [f32],
    /// `[tokens, heads]`.
    pub lse: &'a [f32],
}

/// Writes the gradients of `q`, `k` and `v`, given that of `out`.
pub fn backward([dq, dk, dv]: [&mut [f32]; 3], d_out: &[f32], kept: Kept<'_>, spans: &[Span], heads: Heads) {
    let Heads { queries: query_heads, keys: key_heads, dim, window } = heads;
    let (q_cols, k_cols, group) = (query_heads * dim, key_heads * dim, query_heads / key_heads);
    let scale = 1.0 / (dim as f32).sqrt();
    let (dq, dk, dv) = (Shared::new(dq), Shared::new(dk), Shared::new(dv));
    tasks(spans, key_heads).into_par_iter().for_each(|(span, key_head)| {
        let key_rows = span.key_start..span.key_start + span.keys;
        let query_rows = span.query_start..span.query_start + span.queries;
        let k = Gathered::new(kept.k, k_cols, key_rows.clone(), key_head, dim);
        let v = Gathered::new(kept.v, k_cols, key_rows.clone(), key_head, dim);
        let (mut head_dk, mut head_dv) = (vec![0.0; span.keys * dim], vec![0.0; span.keys * dim]);
        let (mut p, mut dp) = (Vec::new(), Vec::new());
        let mut tile_dq = vec![0.0; TILE * dim];
        for head in key_head * group..(key_head + 1) * group {
            let q = Gathered::new(kept.q, q_cols, query_rows.clone(), head, dim);
            let out = Gathered::new(kept.out, q_cols, query_rows.clone(), head, dim);
            let d_out = Gathered::new(d_out, q_cols, query_rows.clone(), head, dim);
            for tile in Tile::all(span, window) {
                let (rows, cols) = (tile.queries.len(), tile.keys.len());
                let (tile_q, tile_k) = (q.rows(tile.queries.clone(), dim), k.rows(tile.keys.clone(), dim));
                let tile_d_out = d_out.rows(tile.queries.clone(), dim);
                p.resize(tile.len(), 0.0);
                dp.resize(tile.len(), 0.0);
                product(Accum::Replace, &mut p, scale, tile_q, tile_k.transpose());
                product(Accum::Replace, &mut dp, 1.0, tile_d_out, v.rows(tile.keys.clone(), dim).transpose());
                vectorised(|| {
                    for (i, (p, dp)) in p.chunks_exact_mut(cols).zip(dp.chunks_exact_mut(cols)).enumerate() {
                        let query = tile.queries.start + i;
                        let lse = kept.lse[(span.query_start + query) * query_heads + head];
                        let at = query * dim..(query + 1) * dim;
                        let along: f32 = out.0[at.clone()].iter().zip(&d_out.0[at]).map(|(o, d)| o * d).sum();
                        score_gradients(p, dp, tile.visible(i), lse, along, scale);
                    }
                });
                let d_keys = tile.keys.start * dim..tile.keys.end * dim;
                let p = MatRef::from_row_major_slice(&p, rows, cols);
                let d_scores = MatRef::from_row_major_slice(&dp, rows, cols);
                product(Accum::Add, &mut head_dv[d_keys.clone()], 1.0, p.transpose(), tile_d_out);
                product(Accum::Add, &mut head_dk[d_keys], 1.0, d_scores.transpose(), tile_q);
                product(Accum::Replace, &mut tile_dq[..rows * dim], 1.0, d_scores, tile_k);
                for (i, row) in tile_dq[..rows * dim].chunks_exact(dim).enumerate() {
                    let at = span.query_start + tile.queries.start + i;
                    // SAFETY: this task alone writes the rows of its document in the columns of its heads.
                    unsafe { dq.slice(at * q_cols + head * dim, dim) }.copy_from_slice(row);
                }
            }
        }
        for (i, row) in key_rows.enumerate() {
            let (at, from) = (row * k_cols + key_head * dim, i * dim..(i + 1) * dim);
            // SAFETY: this task alone writes the rows of its document in the columns of its key head.
            let (dk, dv) = unsafe { (dk.slice(at, dim), dv.slice(at, dim)) };
            dk.copy_from_slice(&head_dk[from.clone()]);
            dv.copy_from_slice(&head_dv[from]);
        }
    });
}

/// Elements that one thread holds in the backward pass over a document of `tokens`: the gathered rows of q, k, v, the
/// output and its gradient, the gradients of k and v, and two tiles of scores.
pub(crate) fn scratch_len(tokens: usize, dim: usize) -> usize {
    tokens * (7 * dim + 2 * TILE)
}

/// One task a document and key head: no two write the same numbers, and sums are made in the same order on any number
/// of cores.
fn tasks(spans: &[Span], key_heads: usize) -> Vec<(Span, usize)> {
    spans.iter().flat_map(|&span| (0..key_heads).map(move |head| (span, head))).collect()
}

fn product(into: Accum, c: &mut [f32], alpha: f32, a: MatRef<'_, f32>, b: MatRef<'_, f32>) {
    let c = MatMut::from_row_major_slice_mut(c, a.nrows(), b.ncols());
    matmul(c, into, a, b, alpha, Par::Seq);
}

/// Replaces a row of scores by `e^(score - max)` inside `visible` and 0 outside; gives the sum and the log-sum-exp.
#[inline(always)]
fn exponentials(row: &mut [f32], visible: std::ops::Range<usize>) -> (f32, f32) {
    row[..visible.start].fill(0.0);
    row[visible.end..].fill(0.0);
    let row = &mut row[visible];
    let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    for x in row.iter_mut() {
        *x = exp(*x - max);
    }
    let sum: f32 = row.iter().sum();
    (sum, max + sum.ln())
}

/// Replaces scaled scores `p` by probabilities and `dp` by the gradients of the unscaled scores.
#[inline(always)]
fn score_gradients(p: &mut [f32], dp: &mut [f32], visible: std::ops::Range<usize>, lse: f32, along: f32, scale: f32) {
    for outside in [0..visible.start, visible.end..p.len()] {
        p[outside.clone()].fill(0.0);
        dp[outside].fill(0.0);
    }
    for (p, dp) in p[visible.clone()].iter_mut().zip(&mut dp[visible]) {
        *p = exp(*p - lse);
        *dp = *p * (*dp - along) * scale;
    }
}
