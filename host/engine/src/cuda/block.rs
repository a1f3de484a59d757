//! A decoder block on the card: its forward pass at each level of keeping, and its backward pass.
//!
//! Residual additions happen inside the products, `mid = attended·Wᵀ + x`, and the gradient of the residual stream stays
//! in one buffer that each norm's backward pass adds to.

use half::bf16;

use super::arena::{Arena, Mark};
use super::attention::{self, Documents};
use super::context::Context;
use super::group::Group;
use super::memory::View;
use super::ops::{self, Heads};
use super::profile::Kind;
use super::trainable::{Grad, Trainable};
use crate::error::Result;

/// A norm's scale.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scale {
    pub view: View<f32>,
    /// Which trainable it is, if it trains.
    pub trained: Option<usize>,
}

/// A block's weights.
#[derive(Debug)]
pub(crate) struct Block {
    pub attention: attention::Shape,
    pub eps: f32,
    pub hidden: usize,
    pub intermediate: usize,
    pub input_norm: Scale,
    pub q_norm: Option<Scale>,
    pub k_norm: Option<Scale>,
    pub qkv: Group,
    pub o: Group,
    pub post_norm: Scale,
    pub gate_up: Group,
    pub down: Group,
}

/// How much of a block's forward pass is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Its input: all else is computed again.
    Input,
    /// What the large products and attention gave; norms and rotations are made again.
    Products,
    /// All that the backward pass reads.
    All,
}

/// What all blocks of a pass share.
pub(crate) struct Pass<'a> {
    pub context: &'a Context,
    pub documents: &'a Documents,
    /// Pieces of whole documents that blocks which keep only their input take one after another.
    pub pieces: &'a [Piece],
    pub positions: View<i32>,
    /// Cosines and sines, `[positions, 2, dim / 2]`.
    pub table: View<f32>,
    /// Rows of the feed-forward layer at once.
    pub mlp_rows: usize,
    /// Whether the gradients are to be replaced and not added to.
    pub first: bool,
}

/// Some of the documents of a batch.
#[derive(Clone, Debug)]
pub(crate) struct Piece {
    pub first: usize,
    pub rows: usize,
    pub documents: Documents,
}

impl<'a> Pass<'a> {
    /// The pass over one piece.
    fn of(&self, piece: &'a Piece, first: bool) -> Self {
        Self {
            documents: &piece.documents,
            positions: self.positions.slice_cols(piece.first, piece.rows),
            first: self.first && first,
            ..*self
        }
    }
}

/// What is kept of the attention half.
#[derive(Clone, Copy)]
struct Attended {
    normed: Option<View<bf16>>,
    qkv: View<bf16>,
    rotated: Option<View<bf16>>,
    out: View<bf16>,
    lse: View<f32>,
    mid: View<bf16>,
    before_mid: Mark,
}

/// What a block's forward pass keeps.
pub(crate) struct Kept {
    pub x: View<bf16>,
    low_down: Option<View<bf16>>,
    attended: Option<Attended>,
    normed: Option<View<bf16>>,
    gate_up: Option<View<bf16>>,
}

impl Block {
    pub fn trains(&self) -> bool {
        let scales = [Some(self.input_norm), self.q_norm, self.k_norm, Some(self.post_norm)];
        scales.into_iter().flatten().any(|scale| scale.trained.is_some())
            || [&self.qkv, &self.o, &self.gate_up, &self.down].into_iter().any(Group::trains)
    }

    fn heads(&self) -> Heads {
        Heads {
            heads: self.attention.heads,
            kv_heads: self.attention.kv_heads,
            dim: self.attention.dim,
            q_norm: self.q_norm.map(|scale| scale.view),
            k_norm: self.k_norm.map(|scale| scale.view),
            bias: self.qkv.bias,
            eps: self.eps,
        }
    }

    /// Whether rotated heads can take the place of those before: nothing reads these again then.
    fn rotates_in_place(&self) -> bool {
        self.q_norm.is_none() && self.k_norm.is_none() && self.qkv.bias.is_none()
    }

    fn normed(
        &self,
        pass: &Pass<'_>,
        arena: &mut Arena,
        kept: bool,
        x: View<bf16>,
        scale: Scale,
        room: usize,
    ) -> Result<View<bf16>> {
        let normed = arena.take_view(kept, x.rows(), x.cols(), room)?;
        ops::rms_norm(pass.context, normed, x, scale.view, None, self.eps)?;
        Ok(normed)
    }

    /// Room that the gradient of the residual stream needs behind its columns.
    pub fn residual_room(&self) -> usize {
        self.o.rank.max(self.down.rank)
    }

    /// Writes the block's output to `out`, keeping what `level` says; `None` keeps nothing.
    pub fn forward(
        &self,
        pass: &Pass<'_>,
        arena: &mut Arena,
        x: View<bf16>,
        out: View<bf16>,
        level: Option<Level>,
    ) -> Result<Kept> {
        if level >= Some(Level::Products) || pass.pieces.len() < 2 {
            return self.forward_whole(pass, arena, x, out, level, None);
        }
        let low = self.make_low(arena, x.rows(), level)?;
        for piece in pass.pieces {
            let (x, out) = (x.slice_rows(piece.first, piece.rows), out.slice_rows(piece.first, piece.rows));
            let low = low.map(|low| low.slice_rows(piece.first, piece.rows));
            self.forward_whole(&pass.of(piece, true), arena, x, out, level, low)?;
        }
        Ok(Kept { x, low_down: low, attended: None, normed: None, gate_up: None })
    }

    fn make_low(&self, arena: &mut Arena, rows: usize, level: Option<Level>) -> Result<Option<View<bf16>>> {
        match level {
            Some(_) if self.down.rank > 0 => Ok(Some(arena.low(rows, self.down.rank, 0)?)),
            _ => Ok(None),
        }
    }

    fn forward_whole(
        &self,
        pass: &Pass<'_>,
        arena: &mut Arena,
        x: View<bf16>,
        out: View<bf16>,
        level: Option<Level>,
        low: Option<View<bf16>>,
    ) -> Result<Kept> {
        let mark = arena.mark();
        let keeps = level >= Some(Level::Products);
        let low_down = match low {
            Some(low) => Some(low),
            None => self.make_low(arena, x.rows(), level)?,
        };
        let all = level == Some(Level::All);
        let gate_up = keeps.then(|| arena.low(x.rows(), self.gate_up.outputs, self.gate_up.rank)).transpose()?;
        let mid = arena.take_view(keeps, x.rows(), x.cols(), 0)?;
        let rest = arena.mark();
        let attended = self.attend(pass, arena, x, Some(mid), [keeps, all])?;
        arena.release_high(rest);
        let kept_normed = all.then(|| arena.low(x.rows(), x.cols(), self.gate_up.rank)).transpose()?;
        let after = arena.mark();
        let gate_up_weight = self.gate_up.weights(pass.context, arena)?;
        let down_weight = self.down.weights(pass.context, arena)?;
        for (first, rows) in chunks(x.rows(), pass.mlp_rows) {
            let chunk = arena.mark();
            let mid = mid.slice_rows(first, rows);
            let normed = match kept_normed {
                Some(normed) => normed.slice_rows(first, rows),
                None => arena.high(rows, x.cols(), self.gate_up.rank)?,
            };
            ops::rms_norm(pass.context, normed, mid, self.post_norm.view, None, self.eps)?;
            let gate_up = match gate_up {
                Some(gate_up) => gate_up.slice_rows(first, rows),
                None => arena.high(rows, self.gate_up.outputs, 0)?,
            };
            self.gate_up.lower(pass.context, gate_up_weight, normed)?;
            self.gate_up.forward(pass.context, gate_up_weight, normed, gate_up, None)?;
            let activation = arena.high::<bf16>(rows, self.intermediate, self.down.rank)?;
            ops::swiglu(pass.context, activation, gate_up)?;
            self.down.lower(pass.context, down_weight, activation)?;
            if let Some(low) = low_down {
                let low = low.slice_rows(first, rows);
                pass.context.copy(low, activation.slice_cols(self.intermediate, self.down.rank))?;
            }
            self.down.forward(pass.context, down_weight, activation, out.slice_rows(first, rows), Some(mid))?;
            arena.release_high(chunk);
        }
        arena.release_high(after);
        arena.release_high(mark);
        Ok(Kept { x, low_down, attended: keeps.then_some(attended), normed: kept_normed, gate_up })
    }

    /// The attention half; `[products, all]` say what goes to the arena's low end. Without `mid` it is made behind all
    /// else, so that it can be given back first.
    fn attend(
        &self,
        pass: &Pass<'_>,
        arena: &mut Arena,
        x: View<bf16>,
        mid: Option<View<bf16>>,
        [products, all]: [bool; 2],
    ) -> Result<Attended> {
        let context = pass.context;
        let (tokens, shape) = (x.rows(), &self.attention);
        let qkv = arena.take_view(products, tokens, self.qkv.outputs, 0)?;
        let out = arena.take_view::<bf16>(products, tokens, shape.heads * shape.dim, self.o.rank)?;
        let lse = arena.take_view::<f32>(products, shape.heads, tokens, 0)?;
        let in_place = self.rotates_in_place();
        let rotated = match in_place {
            true => qkv,
            false => arena.take_view(all, tokens, self.qkv.outputs, 0)?,
        };
        let before_mid = arena.mark();
        let mid = match mid {
            Some(mid) => mid,
            None => arena.high(tokens, x.cols(), 0)?,
        };
        let inner = arena.mark();
        let normed = self.normed(pass, arena, all, x, self.input_norm, self.qkv.rank)?;
        let weight = self.qkv.weights(context, arena)?;
        self.qkv.lower(context, weight, normed)?;
        self.qkv.forward(context, weight, normed, qkv, None)?;
        arena.release_high(inner);
        ops::rope(context, &self.heads(), rotated, qkv, pass.positions, pass.table)?;
        context.kind(Kind::Attention);
        attention::forward(context, shape, pass.documents, rotated, out, lse)?;
        let weight = self.o.weights(context, arena)?;
        self.o.lower(context, weight, out)?;
        self.o.forward(context, weight, out, mid, Some(x))?;
        arena.release_high(inner);
        Ok(Attended {
            normed: all.then_some(normed),
            qkv,
            rotated: (all || !products || in_place).then_some(rotated),
            out,
            lse,
            mid,
            before_mid,
        })
    }

    /// Adds the gradients of what trains in this block, given that of its output in `d`, which becomes that of its input
    /// if `need_dx`. Says whether it did.
    pub fn backward(
        &self,
        pass: &Pass<'_>,
        arena: &mut Arena,
        trainables: &[Trainable],
        d: View<bf16>,
        kept: &Kept,
        need_dx: bool,
    ) -> Result<bool> {
        if kept.attended.is_some() || pass.pieces.len() < 2 {
            return self.backward_whole(pass, arena, trainables, d, kept, need_dx);
        }
        let mut done = false;
        for (i, piece) in pass.pieces.iter().enumerate() {
            let rows = |view: View<bf16>| view.slice_rows(piece.first, piece.rows);
            let part = Kept {
                x: rows(kept.x),
                low_down: kept.low_down.map(rows),
                attended: None,
                normed: None,
                gate_up: None,
            };
            done = self.backward_whole(&pass.of(piece, i == 0), arena, trainables, rows(d), &part, need_dx)?;
        }
        Ok(done)
    }

    fn backward_whole(
        &self,
        pass: &Pass<'_>,
        arena: &mut Arena,
        trainables: &[Trainable],
        d: View<bf16>,
        kept: &Kept,
        need_dx: bool,
    ) -> Result<bool> {
        let mark = arena.mark();
        let before_attention = [Some(self.input_norm), self.q_norm, self.k_norm].into_iter().flatten();
        let need_qkv = need_dx || before_attention.into_iter().any(|s| s.trained.is_some()) || self.qkv.trains();
        let need_mid = need_qkv || self.o.trains();
        let attended = match kept.attended {
            Some(attended) => attended,
            None => self.attend(pass, arena, kept.x, None, [false, false])?,
        };
        let mut done = self.backward_feed_forward(pass, arena, trainables, d, &attended, kept, need_mid)?;
        if kept.attended.is_none() {
            arena.release_high(attended.before_mid);
        }
        if done {
            done = self.backward_attention(pass, arena, trainables, d, attended, kept.x, need_qkv, need_dx)?;
        }
        arena.release_high(mark);
        Ok(done)
    }

    #[allow(clippy::too_many_arguments)]
    fn backward_feed_forward(
        &self,
        pass: &Pass<'_>,
        arena: &mut Arena,
        trainables: &[Trainable],
        d: View<bf16>,
        attended: &Attended,
        kept: &Kept,
        need_mid: bool,
    ) -> Result<bool> {
        let context = pass.context;
        let need_normed = need_mid || self.post_norm.trained.is_some();
        let need_activation = need_normed || self.gate_up.trains() || self.down.needs_input();
        if !need_activation {
            return Ok(false);
        }
        let start = arena.mark();
        let gate_up_weight = self.gate_up.weights(context, arena)?;
        let down_weight = self.down.weights(context, arena)?;
        for (first, rows) in chunks(d.rows(), pass.mlp_rows) {
            let chunk = arena.mark();
            let is_first = pass.first && first == 0;
            let (d, mid) = (d.slice_rows(first, rows), attended.mid.slice_rows(first, rows));
            let kept_normed = kept.normed.map(|normed| normed.slice_rows(first, rows));
            let recompute = kept.gate_up.is_none();
            let mut normed = kept_normed;
            if normed.is_none() && (recompute || self.gate_up.needs_input()) {
                let view = self.normed(pass, arena, false, mid, self.post_norm, self.gate_up.rank)?;
                self.gate_up.lower(context, gate_up_weight, view)?;
                normed = Some(view);
            }
            let gate_up = match (kept.gate_up, normed) {
                (Some(gate_up), _) => gate_up.slice_rows(first, rows),
                (None, Some(normed)) => {
                    let gate_up = arena.high(rows, self.gate_up.outputs, self.gate_up.rank)?;
                    self.gate_up.forward(context, gate_up_weight, normed, gate_up, None)?;
                    gate_up
                }
                (None, None) => return Ok(false),
            };
            // The gradient of the activation, and in its place the activation.
            let activation = arena.high::<bf16>(rows, self.intermediate, 0)?;
            self.down.lower_gradient(context, down_weight, d)?;
            self.down.input_gradient(context, down_weight, d, activation)?;
            ops::swiglu_backward(context, gate_up, activation)?;
            let low = kept.low_down.map(|low| low.slice_rows(first, rows));
            self.down.weight_gradients(context, arena, trainables, d, activation, low, is_first)?;
            let d_gate_up = gate_up;
            self.gate_up.lower_gradient(context, gate_up_weight, d_gate_up)?;
            if let Some(normed) = normed {
                let low = normed.slice_cols(self.gate_up.inputs, self.gate_up.rank);
                self.gate_up.weight_gradients(context, arena, trainables, d_gate_up, normed, Some(low), is_first)?;
            }
            if need_normed {
                let d_normed = arena.high::<bf16>(rows, self.hidden, 0)?;
                self.gate_up.input_gradient(context, gate_up_weight, d_gate_up, d_normed)?;
                self.backward_norm(pass, arena, trainables, [d, d_normed, mid], self.post_norm, need_mid)?;
            }
            arena.release_high(chunk);
        }
        arena.release_high(start);
        Ok(need_mid)
    }

    /// `d += ` the gradient through a norm, and the norm's own.
    fn backward_norm(
        &self,
        pass: &Pass<'_>,
        arena: &mut Arena,
        trainables: &[Trainable],
        [d, d_normed, x]: [View<bf16>; 3],
        scale: Scale,
        need_dx: bool,
    ) -> Result<()> {
        let grad = match scale.trained.map(|index| trainables[index].grad) {
            Some(Grad::Wide(grad)) => Some(grad),
            _ => None,
        };
        let inverse_rms = grad.map(|_| arena.high::<f32>(1, x.rows(), 0)).transpose()?;
        let to = if need_dx { d } else { arena.high(x.rows(), x.cols(), 0)? };
        ops::rms_norm_backward(pass.context, to, inverse_rms, d_normed, x, scale.view, Some(d), None, self.eps)?;
        if let (Some(grad), Some(inverse_rms)) = (grad, inverse_rms) {
            let parts = arena.high::<f32>(1, ops::parts_len(x.rows(), x.cols()), 0)?;
            ops::rms_norm_weight(pass.context, grad, d_normed, x, inverse_rms, None, parts)?;
        }
        Ok(())
    }

    #[allow(clippy::too_many_arguments)]
    fn backward_attention(
        &self,
        pass: &Pass<'_>,
        arena: &mut Arena,
        trainables: &[Trainable],
        d: View<bf16>,
        attended: Attended,
        x: View<bf16>,
        need_qkv: bool,
        need_dx: bool,
    ) -> Result<bool> {
        let context = pass.context;
        let (tokens, shape, heads) = (d.rows(), &self.attention, self.heads());
        let d_qkv = need_qkv.then(|| arena.high::<bf16>(tokens, self.qkv.outputs, self.qkv.rank)).transpose()?;
        let after = arena.mark();
        let weight = self.o.weights(context, arena)?;
        self.o.lower_gradient(context, weight, d)?;
        let low = attended.out.slice_cols(self.o.inputs, self.o.rank);
        self.o.weight_gradients(context, arena, trainables, d, attended.out, Some(low), pass.first)?;
        let Some(d_qkv) = d_qkv else { return Ok(false) };
        let d_out = arena.high::<bf16>(tokens, shape.heads * shape.dim, 0)?;
        self.o.input_gradient(context, weight, d, d_out)?;
        let rotated = match attended.rotated {
            Some(rotated) => rotated,
            None => {
                let rotated = arena.high::<bf16>(tokens, self.qkv.outputs, 0)?;
                ops::rope(context, &heads, rotated, attended.qkv, pass.positions, pass.table)?;
                rotated
            }
        };
        let workspace = arena.high::<u8>(1, attention::workspace_bytes(shape, pass.documents), 0)?;
        context.kind(Kind::Attention);
        let (out, lse) = (attended.out, attended.lse);
        attention::backward(context, shape, pass.documents, rotated, out, lse, d_out, d_qkv, workspace)?;
        arena.release_high(after);
        let grads = [self.q_norm, self.k_norm].map(|scale| {
            match scale.and_then(|scale| scale.trained).map(|index| trainables[index].grad) {
                Some(Grad::Wide(grad)) => Some(grad),
                _ => None,
            }
        });
        let norm_grads = match grads {
            [None, None] => None,
            grads => Some((grads, arena.high::<f32>(1, ops::rope_parts_len(shape.dim), 0)?)),
        };
        ops::rope_backward(context, &heads, d_qkv, attended.qkv, pass.positions, pass.table, norm_grads)?;
        arena.release_high(after);
        let weight = self.qkv.weights(context, arena)?;
        self.qkv.lower_gradient(context, weight, d_qkv)?;
        if self.qkv.trains() {
            let normed = match attended.normed {
                Some(normed) => normed,
                None => {
                    let normed = self.normed(pass, arena, false, x, self.input_norm, self.qkv.rank)?;
                    self.qkv.lower(context, weight, normed)?;
                    normed
                }
            };
            let low = normed.slice_cols(self.qkv.inputs, self.qkv.rank);
            self.qkv.weight_gradients(context, arena, trainables, d_qkv, normed, Some(low), pass.first)?;
        }
        if need_dx || self.input_norm.trained.is_some() {
            let d_normed = arena.high::<bf16>(tokens, self.hidden, 0)?;
            self.qkv.input_gradient(context, weight, d_qkv, d_normed)?;
            self.backward_norm(pass, arena, trainables, [d, d_normed, x], self.input_norm, need_dx)?;
        }
        Ok(need_dx)
    }

    /// Reads new tokens behind what the cache holds: `x` becomes the block's output.
    pub fn extend(
        &self,
        pass: &Pass<'_>,
        arena: &mut Arena,
        x: View<bf16>,
        [keys, values]: [View<bf16>; 2],
        first: usize,
    ) -> Result<()> {
        let (context, tokens, shape) = (pass.context, x.rows(), &self.attention);
        let mark = arena.mark();
        let normed = self.normed(pass, arena, false, x, self.input_norm, self.qkv.rank)?;
        let qkv = arena.high::<bf16>(tokens, self.qkv.outputs, 0)?;
        let weight = self.qkv.weights(context, arena)?;
        self.qkv.lower(context, weight, normed)?;
        self.qkv.forward(context, weight, normed, qkv, None)?;
        ops::rope(context, &self.heads(), qkv, qkv, pass.positions, pass.table)?;
        let (q_cols, kv_cols) = (shape.heads * shape.dim, shape.kv_heads * shape.dim);
        context.copy(keys.slice_rows(first, tokens), qkv.slice_cols(q_cols, kv_cols))?;
        context.copy(values.slice_rows(first, tokens), qkv.slice_cols(q_cols + kv_cols, kv_cols))?;
        let out = arena.high::<bf16>(tokens, q_cols, self.o.rank)?;
        context.kind(Kind::Attention);
        attention::decode(context, shape, qkv.slice_cols(0, q_cols), [keys, values], first, out)?;
        let weight = self.o.weights(context, arena)?;
        self.o.lower(context, weight, out)?;
        self.o.forward(context, weight, out, x, Some(x))?;
        arena.release_high(mark);
        let normed = self.normed(pass, arena, false, x, self.post_norm, self.gate_up.rank)?;
        let gate_up = arena.high::<bf16>(tokens, self.gate_up.outputs, 0)?;
        let weight = self.gate_up.weights(context, arena)?;
        self.gate_up.lower(context, weight, normed)?;
        self.gate_up.forward(context, weight, normed, gate_up, None)?;
        let activation = arena.high::<bf16>(tokens, self.intermediate, self.down.rank)?;
        ops::swiglu(context, activation, gate_up)?;
        let weight = self.down.weights(context, arena)?;
        self.down.lower(context, weight, activation)?;
        self.down.forward(context, weight, activation, x, Some(x))?;
        arena.release_high(mark);
        Ok(())
    }
}

/// `(first, rows)` of pieces of at most `at_once` rows.
fn chunks(rows: usize, at_once: usize) -> impl Iterator<Item = (usize, usize)> {
    let at_once = at_once.max(1);
    (0..rows).step_by(at_once).map(move |first| (first, at_once.min(rows - first)))
}
