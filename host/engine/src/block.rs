//! A decoder block: attention and a gated feed-forward layer, each behind a norm and beside a residual path.
//!
//! Its forward pass keeps what its backward pass reads, or only its input if the block is to be recomputed. Cheap
//! things (normalised rows, the activation) are always made again instead of being kept.

use std::sync::Arc;

use crate::cache::LayerCache;
use crate::error::{Result, expect_shape};
use crate::linear::{DropoutPass, Linear, LinearKept};
use crate::mat::Mat;
use crate::ops::attention::{self, Heads, Span};
use crate::ops::matmul::Into;
use crate::ops::{elementwise, rms_norm, rope, swiglu};
use crate::param::Param;

/// A block's dimensions.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BlockShape {
    /// Width of the residual stream.
    pub hidden: usize,
    /// Width inside the feed-forward layer.
    pub intermediate: usize,
    /// The attention's heads.
    pub heads: Heads,
    /// Epsilon of the norms.
    pub rms_eps: f32,
}

/// A decoder block's weights.
#[derive(Debug)]
pub struct Block {
    /// Its dimensions.
    pub shape: BlockShape,
    /// Scale of the norm before attention, `[1, hidden]`.
    pub input_norm: Param,
    /// Queries, `[heads·dim, hidden]`.
    pub q: Linear,
    /// Keys, `[key heads·dim, hidden]`.
    pub k: Linear,
    /// Values, `[key heads·dim, hidden]`.
    pub v: Linear,
    /// Scale of each query head's norm, `[1, dim]`, if the model has it.
    pub q_norm: Option<Param>,
    /// Scale of each key head's norm, `[1, dim]`, if the model has it.
    pub k_norm: Option<Param>,
    /// Output of the attention, `[hidden, heads·dim]`.
    pub o: Linear,
    /// Scale of the norm before the feed-forward layer, `[1, hidden]`.
    pub post_norm: Param,
    /// `[intermediate, hidden]`.
    pub gate: Linear,
    /// `[intermediate, hidden]`.
    pub up: Linear,
    /// `[hidden, intermediate]`.
    pub down: Linear,
}

/// What all blocks of one pass share.
pub(crate) struct Pass<'a> {
    pub table: Arc<rope::Table>,
    pub positions: &'a [u32],
    pub spans: &'a [Span],
    pub dropout: DropoutPass,
}

/// What a block's forward pass keeps.
pub(crate) struct BlockKept {
    /// The block's input, `[tokens, hidden]`.
    pub(crate) x: Mat,
    /// `None` when the block is recomputed.
    inner: Option<Inner>,
}

struct Inner {
    attention: AttentionKept,
    /// The residual stream after attention, `[tokens, hidden]`.
    mid: Mat,
    mid_inverse_rms: Mat,
    gate: Mat,
    up: Mat,
    kept: [LinearKept; 3],
}

struct AttentionKept {
    inverse_rms: Mat,
    /// Before the heads' norm, with the inverse roots of the mean squares, if the model has it.
    q_before: Option<(Mat, Mat)>,
    k_before: Option<(Mat, Mat)>,
    q: Mat,
    k: Mat,
    v: Mat,
    out: Mat,
    lse: Mat,
    kept: [LinearKept; 4],
}

impl Block {
    /// Fails unless the weights fit the shape.
    ///
    /// # Errors
    /// Naming the first weight that does not.
    pub fn check(&self) -> Result<()> {
        let BlockShape { hidden, intermediate, heads, .. } = self.shape;
        let (q_cols, k_cols) = (heads.queries * heads.dim, heads.keys * heads.dim);
        let linears = [
            (&self.q, q_cols, hidden),
            (&self.k, k_cols, hidden),
            (&self.v, k_cols, hidden),
            (&self.o, hidden, q_cols),
            (&self.gate, intermediate, hidden),
            (&self.up, intermediate, hidden),
            (&self.down, hidden, intermediate),
        ];
        for (linear, out, input) in linears {
            expect_shape(linear.weight.name(), [out, input], [linear.outputs(), linear.inputs()])?;
        }
        for (norm, width) in [(&self.input_norm, hidden), (&self.post_norm, hidden)] {
            expect_shape(norm.name(), width, norm.cols())?;
        }
        for norm in self.q_norm.iter().chain(&self.k_norm) {
            expect_shape(norm.name(), heads.dim, norm.cols())?;
        }
        Ok(())
    }

    /// Its parameters, in the order of the forward pass.
    pub fn params(&self) -> impl Iterator<Item = &Param> {
        let attention = self.q.params().chain(self.k.params()).chain(self.v.params());
        let norms = self.q_norm.iter().chain(&self.k_norm);
        let mlp = self.gate.params().chain(self.up.params()).chain(self.down.params());
        let first = std::iter::once(&self.input_norm).chain(attention).chain(norms).chain(self.o.params());
        first.chain(std::iter::once(&self.post_norm)).chain(mlp)
    }

    /// Its parameters, in the same order.
    pub fn params_mut(&mut self) -> impl Iterator<Item = &mut Param> {
        let attention = self.q.params_mut().chain(self.k.params_mut()).chain(self.v.params_mut());
        let norms = self.q_norm.iter_mut().chain(&mut self.k_norm);
        let mlp = self.gate.params_mut().chain(self.up.params_mut()).chain(self.down.params_mut());
        let first = std::iter::once(&mut self.input_norm).chain(attention).chain(norms).chain(self.o.params_mut());
        first.chain(std::iter::once(&mut self.post_norm)).chain(mlp)
    }

    /// Its linear layers, in the order of the forward pass.
    pub fn linears_mut(&mut self) -> [&mut Linear; 7] {
        [&mut self.q, &mut self.k, &mut self.v, &mut self.o, &mut self.gate, &mut self.up, &mut self.down]
    }

    /// Whether anything in it trains.
    pub fn trains(&self) -> bool {
        self.params().any(Param::trains)
    }

    /// The block's output without keeping anything.
    pub(crate) fn infer(&self, x: Mat, pass: &Pass<'_>, cache: Option<&mut LayerCache>) -> Mat {
        let (mid, _) = self.attend(&x, pass, cache);
        drop(x);
        let (down, ..) = self.feed_forward(&mid, pass);
        plus(down, &mid)
    }

    /// The block's output, keeping what the backward pass reads; with `recompute` only the input.
    pub(crate) fn forward(&self, x: Mat, pass: &Pass<'_>, recompute: bool) -> (Mat, BlockKept) {
        if recompute {
            let out = self.infer(x.duplicate(), pass, None);
            return (out, BlockKept { x, inner: None });
        }
        let (inner, out) = self.forward_inner(&x, pass);
        (out, BlockKept { x, inner: Some(inner) })
    }

    fn forward_inner(&self, x: &Mat, pass: &Pass<'_>) -> (Inner, Mat) {
        let (mid, attention) = self.attend(x, pass, None);
        let (down, mid_inverse_rms, gate, up, kept) = self.feed_forward(&mid, pass);
        let out = plus(down, &mid);
        (Inner { attention, mid, mid_inverse_rms, gate, up, kept }, out)
    }

    /// The residual stream after attention, and what is kept of it.
    fn attend(&self, x: &Mat, pass: &Pass<'_>, cache: Option<&mut LayerCache>) -> (Mat, AttentionKept) {
        let heads = self.shape.heads;
        let (normed, inverse_rms) = self.normed(x, &self.input_norm);
        let (q, q_kept) = self.q.forward(&normed, pass.dropout);
        let (k, k_kept) = self.k.forward(&normed, pass.dropout);
        let (v, v_kept) = self.v.forward(&normed, pass.dropout);
        drop(normed);
        let (mut q, q_before) = self.head_normed(q, self.q_norm.as_ref());
        let (mut k, k_before) = self.head_normed(k, self.k_norm.as_ref());
        rope::forward(&mut q, &pass.table, pass.positions);
        rope::forward(&mut k, &pass.table, pass.positions);
        let mut out = Mat::uninit(x.pool(), x.rows(), heads.queries * heads.dim);
        let mut lse = Mat::uninit(x.pool(), x.rows(), heads.queries);
        match cache {
            None => attention::forward(&mut out, &mut lse, [&q, &k, &v], pass.spans, heads),
            Some(cache) => {
                cache.keys.extend_from_slice(&k);
                cache.values.extend_from_slice(&v);
                attention::forward(&mut out, &mut lse, [&q, &cache.keys, &cache.values], pass.spans, heads);
            }
        }
        let (o, o_kept) = self.o.forward(&out, pass.dropout);
        let kept = [q_kept, k_kept, v_kept, o_kept];
        (plus(o, x), AttentionKept { inverse_rms, q_before, k_before, q, k, v, out, lse, kept })
    }

    fn feed_forward(&self, mid: &Mat, pass: &Pass<'_>) -> (Mat, Mat, Mat, Mat, [LinearKept; 3]) {
        let (normed, inverse_rms) = self.normed(mid, &self.post_norm);
        let (gate, gate_kept) = self.gate.forward(&normed, pass.dropout);
        let (up, up_kept) = self.up.forward(&normed, pass.dropout);
        drop(normed);
        let activation = self.activation(&gate, &up);
        let (down, down_kept) = self.down.forward(&activation, pass.dropout);
        (down, inverse_rms, gate, up, [gate_kept, up_kept, down_kept])
    }

    fn activation(&self, gate: &Mat, up: &Mat) -> Mat {
        let mut activation = Mat::uninit(gate.pool(), gate.rows(), gate.cols());
        swiglu::forward(&mut activation, gate, up);
        activation
    }

    fn normed(&self, x: &Mat, norm: &Param) -> (Mat, Mat) {
        let mut y = Mat::uninit(x.pool(), x.rows(), x.cols());
        let mut inverse_rms = Mat::uninit(x.pool(), x.rows(), x.len() / norm.cols() / x.rows().max(1));
        rms_norm::forward(&mut y, &mut inverse_rms, x, &norm.value.as_f32(), self.shape.rms_eps);
        (y, inverse_rms)
    }

    fn head_normed(&self, x: Mat, norm: Option<&Param>) -> (Mat, Option<(Mat, Mat)>) {
        match norm {
            None => (x, None),
            Some(norm) => {
                let (y, inverse_rms) = self.normed(&x, norm);
                (y, Some((x, inverse_rms)))
            }
        }
    }

    /// Adds the gradients of what trains in this block, given that of its output; gives that of its input if `need_dx`.
    pub(crate) fn backward(&mut self, d_out: Mat, kept: BlockKept, pass: &Pass<'_>, need_dx: bool) -> Option<Mat> {
        let BlockKept { x, inner } = kept;
        let inner = match inner {
            Some(inner) => inner,
            None => self.forward_inner(&x, pass).0,
        };
        let Inner { attention, mid, mid_inverse_rms, gate, up, kept } = inner;
        let need_qkv = need_dx || self.trains_before_attention();
        let need_mid = need_qkv || self.o.trains();
        let d_mid = self.backward_feed_forward(d_out, &mid, &mid_inverse_rms, gate, up, &kept, pass, need_mid)?;
        drop((mid, mid_inverse_rms));
        self.backward_attention(d_mid, &x, attention, pass, need_qkv, need_dx)
    }

    /// Shows each linear layer with the rows that it read in a forward pass that kept them, and the block's input.
    pub(crate) fn show_inputs(&self, kept: &BlockKept, see: &mut dyn FnMut(&Linear, &Mat)) {
        let Some(inner) = &kept.inner else { return };
        let normed = renormed(&kept.x, &inner.attention.inverse_rms, &self.input_norm);
        [&self.q, &self.k, &self.v].into_iter().for_each(|linear| see(linear, &normed));
        see(&self.o, &inner.attention.out);
        let normed = renormed(&inner.mid, &inner.mid_inverse_rms, &self.post_norm);
        [&self.gate, &self.up].into_iter().for_each(|linear| see(linear, &normed));
        see(&self.down, &self.activation(&inner.gate, &inner.up));
    }

    fn trains_before_attention(&self) -> bool {
        let norms = [&self.input_norm].into_iter().chain(&self.q_norm).chain(&self.k_norm);
        norms.into_iter().any(Param::trains) || self.q.trains() || self.k.trains() || self.v.trains()
    }

    #[allow(clippy::too_many_arguments)]
    fn backward_feed_forward(
        &mut self,
        mut d_out: Mat,
        mid: &Mat,
        inverse_rms: &Mat,
        mut gate: Mat,
        mut up: Mat,
        kept: &[LinearKept; 3],
        pass: &Pass<'_>,
        need_mid: bool,
    ) -> Option<Mat> {
        let need_normed = need_mid || self.post_norm.trains();
        let need_activation = need_normed || self.gate.trains() || self.up.trains();
        let activation = self.down.needs_input().then(|| self.activation(&gate, &up));
        let mut d_activation = need_activation.then(|| Mat::uninit(gate.pool(), gate.rows(), gate.cols()));
        let d_input = d_activation.as_mut().map(|d| (Into::Replace, d));
        self.down.backward(&d_out, activation.as_ref(), &kept[2], pass.dropout, d_input);
        drop(activation);
        let d_activation = d_activation?;
        swiglu::backward(&mut gate, &mut up, &d_activation);
        drop(d_activation);
        let (d_gate, d_up) = (gate, up);

        let needs_normed = self.gate.needs_input() || self.up.needs_input();
        let normed = needs_normed.then(|| renormed(mid, inverse_rms, &self.post_norm));
        let mut d_normed = need_normed.then(|| Mat::uninit(mid.pool(), mid.rows(), mid.cols()));
        let first = d_normed.as_mut().map(|d| (Into::Replace, d));
        self.gate.backward(&d_gate, normed.as_ref(), &kept[0], pass.dropout, first);
        let second = d_normed.as_mut().map(|d| (Into::Add, d));
        self.up.backward(&d_up, normed.as_ref(), &kept[1], pass.dropout, second);
        let d_normed = d_normed?;
        if let Some(d_norm) = self.post_norm.grad_mut() {
            rms_norm::backward_weight(d_norm, &d_normed, mid, inverse_rms);
        }
        if !need_mid {
            return None;
        }
        // The residual path carries the output's gradient on; the norm's is added to it.
        rms_norm::backward_input(true, &mut d_out, &d_normed, mid, inverse_rms, &self.post_norm.value.as_f32());
        Some(d_out)
    }

    fn backward_attention(
        &mut self,
        mut d_mid: Mat,
        x: &Mat,
        kept: AttentionKept,
        pass: &Pass<'_>,
        need_qkv: bool,
        need_dx: bool,
    ) -> Option<Mat> {
        let pool = x.pool().clone();
        let heads = self.shape.heads;
        let AttentionKept { inverse_rms, q_before, k_before, q, k, v, out, lse, kept } = kept;
        let mut d_attended = need_qkv.then(|| Mat::uninit(&pool, out.rows(), out.cols()));
        let d_input = d_attended.as_mut().map(|d| (Into::Replace, d));
        self.o.backward(&d_mid, Some(&out), &kept[3], pass.dropout, d_input);
        let d_attended = d_attended?;
        let mut dq = Mat::uninit(&pool, q.rows(), q.cols());
        let mut dk = Mat::uninit(&pool, k.rows(), k.cols());
        let mut dv = Mat::uninit(&pool, v.rows(), v.cols());
        let inputs = attention::Kept { q: &q, k: &k, v: &v, out: &out, lse: &lse };
        attention::backward([&mut dq, &mut dk, &mut dv], &d_attended, inputs, pass.spans, heads);
        drop((d_attended, q, k, v, out, lse));
        rope::backward(&mut dq, &pass.table, pass.positions);
        rope::backward(&mut dk, &pass.table, pass.positions);
        let dq = self.backward_head_norm(dq, q_before, true);
        let dk = self.backward_head_norm(dk, k_before, false);

        let need_normed = need_dx || self.input_norm.trains();
        let needs_normed = [&self.q, &self.k, &self.v].into_iter().any(Linear::needs_input);
        let normed = needs_normed.then(|| renormed(x, &inverse_rms, &self.input_norm));
        let mut d_normed = need_normed.then(|| Mat::uninit(&pool, x.rows(), x.cols()));
        let gradients = [(&mut self.q, &dq), (&mut self.k, &dk), (&mut self.v, &dv)];
        for (i, (linear, dy)) in gradients.into_iter().enumerate() {
            let into = if i == 0 { Into::Replace } else { Into::Add };
            let d_input = d_normed.as_mut().map(|d| (into, d));
            linear.backward(dy, normed.as_ref(), &kept[i], pass.dropout, d_input);
        }
        let d_normed = d_normed?;
        if let Some(d_norm) = self.input_norm.grad_mut() {
            rms_norm::backward_weight(d_norm, &d_normed, x, &inverse_rms);
        }
        if !need_dx {
            return None;
        }
        rms_norm::backward_input(true, &mut d_mid, &d_normed, x, &inverse_rms, &self.input_norm.value.as_f32());
        Some(d_mid)
    }

    fn backward_head_norm(&mut self, dy: Mat, before: Option<(Mat, Mat)>, of_queries: bool) -> Mat {
        let norm = if of_queries { &mut self.q_norm } else { &mut self.k_norm };
        let (Some(norm), Some((x, inverse_rms))) = (norm, before) else { return dy };
        if let Some(d_norm) = norm.grad_mut() {
            rms_norm::backward_weight(d_norm, &dy, &x, &inverse_rms);
        }
        let mut dx = Mat::uninit(x.pool(), x.rows(), x.cols());
        rms_norm::backward_input(false, &mut dx, &dy, &x, &inverse_rms, &norm.value.as_f32());
        dx
    }
}

/// `y + x`, in `y`'s buffer.
fn plus(mut y: Mat, x: &Mat) -> Mat {
    elementwise::add(&mut y, x);
    y
}

fn renormed(x: &Mat, inverse_rms: &Mat, norm: &Param) -> Mat {
    let mut y = Mat::uninit(x.pool(), x.rows(), x.cols());
    rms_norm::again(&mut y, x, inverse_rms, &norm.value.as_f32());
    y
}
