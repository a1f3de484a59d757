//! A decoder block's backward pass: in, the gradient of its output and what its forward pass kept; out, the gradient of
//! its input in the same buffer, and the gradients of what trains in it.

use half::bf16;

use super::arena::Arena;
use super::attention;
use super::block::{Attended, Block, Kept, Pass, Scale, chunks};
use super::in_backward::Grads;
use super::memory::View;
use super::ops;
use super::profile::Kind;
use super::trainable::Grad;
use crate::error::Result;

impl Block {
    /// Adds the gradients of what trains in this block, given that of its output in `d`, which becomes that of its input
    /// if `need_dx`. Says whether it did.
    pub fn backward(
        &self,
        pass: &Pass<'_>,
        arena: &mut Arena,
        grads: Grads<'_>,
        d: View<bf16>,
        kept: &Kept,
        need_dx: bool,
    ) -> Result<bool> {
        if kept.attended.is_some() || pass.pieces.len() < 2 {
            return self.backward_whole(pass, arena, grads, d, kept, need_dx, None);
        }
        let mut done = false;
        let start = arena.mark();
        let weights = [self.gate_up.weights(pass.context, arena)?, self.down.weights(pass.context, arena)?];
        for (i, piece) in pass.pieces.iter().enumerate() {
            let rows = |view: View<bf16>| view.slice_rows(piece.first, piece.rows);
            let part = Kept {
                x: rows(kept.x),
                low_down: kept.low_down.map(rows),
                attended: None,
                normed: None,
                gate_up: None,
                product_down: None,
            };
            let pass = pass.of(piece, i == 0);
            done = self.backward_whole(&pass, arena, grads, rows(d), &part, need_dx, Some(weights))?;
        }
        arena.release_high(start);
        Ok(done)
    }

    #[allow(clippy::too_many_arguments)]
    fn backward_whole(
        &self,
        pass: &Pass<'_>,
        arena: &mut Arena,
        grads: Grads<'_>,
        d: View<bf16>,
        kept: &Kept,
        need_dx: bool,
        mlp_weights: Option<[View<bf16>; 2]>,
    ) -> Result<bool> {
        let mark = arena.mark();
        let before_attention = [Some(self.input_norm), self.q_norm, self.k_norm].into_iter().flatten();
        let need_qkv = need_dx || before_attention.into_iter().any(|s| s.trained.is_some()) || self.qkv.trains();
        let need_mid = need_qkv || self.o.trains();
        let attended = match kept.attended {
            Some(attended) => attended,
            None => self.attend(pass, arena, kept.x, None, None, [false, false])?,
        };
        let mut done = self.backward_feed_forward(pass, arena, grads, d, &attended, kept, need_mid, mlp_weights)?;
        if kept.attended.is_none() {
            arena.release_high(attended.before_mid);
        }
        if done {
            done = self.backward_attention(pass, arena, grads, d, attended, kept.x, need_qkv, need_dx)?;
        }
        arena.release_high(mark);
        Ok(done)
    }

    #[allow(clippy::too_many_arguments)]
    fn backward_feed_forward(
        &self,
        pass: &Pass<'_>,
        arena: &mut Arena,
        grads: Grads<'_>,
        d: View<bf16>,
        attended: &Attended,
        kept: &Kept,
        need_mid: bool,
        mlp_weights: Option<[View<bf16>; 2]>,
    ) -> Result<bool> {
        let context = pass.context;
        let need_normed = need_mid || self.post_norm.trained.is_some();
        let need_activation = need_normed || self.gate_up.trains() || self.down.trains();
        if !need_activation {
            return Ok(false);
        }
        let start = arena.mark();
        let [gate_up_weight, down_weight] = match mlp_weights {
            Some(weights) => weights,
            None => [self.gate_up.weights(context, arena)?, self.down.weights(context, arena)?],
        };
        for (first, rows) in chunks(d.rows(), pass.mlp_rows) {
            let chunk = arena.mark();
            let is_first = pass.first && first == 0;
            let dropping = pass.dropping_from(first);
            let (d, mid) = (d.slice_rows(first, rows), attended.mid.slice_rows(first, rows));
            let kept_normed = kept.normed.map(|normed| normed.slice_rows(first, rows));
            let recompute = kept.gate_up.is_none();
            let mut normed = kept_normed;
            if normed.is_none() && (recompute || self.gate_up.trains()) {
                let view = self.normed(pass, arena, false, mid, self.post_norm, self.gate_up.rank)?;
                self.gate_up.lower(context, arena, gate_up_weight, view, dropping)?;
                normed = Some(view);
            }
            let gate_up = match (kept.gate_up, normed) {
                (Some(gate_up), _) => gate_up.slice_rows(first, rows),
                (None, Some(normed)) => {
                    let gate_up = arena.high(rows, self.gate_up.outputs, self.gate_up.rank)?;
                    self.gate_up.forward(context, arena, gate_up_weight, normed, gate_up, (None, None), dropping)?;
                    gate_up
                }
                (None, None) => return Ok(false),
            };
            // The gradient of the activation, and in its place the activation, if gradients of weights read it.
            let room = if self.down.factors.is_some() { self.down.rank } else { 0 };
            let activation = arena.high::<bf16>(rows, self.intermediate, room)?;
            let d_down = self.down.product_gradient(context, arena, d, false, dropping)?;
            self.down.lower_gradient(context, down_weight, d_down)?;
            self.down.input_gradient(context, arena, down_weight, [d, d_down], activation, dropping)?;
            let (again, reading) = (self.down.trains(), self.gate_up.reading(dropping));
            match reading {
                None => ops::swiglu_backward(context, gate_up, activation, again)?,
                Some(reading) => {
                    let both = [gate_up, activation];
                    self.gate_up.swiglu_backward(context, arena, grads, reading, both, again)?;
                }
            }
            let low = kept.low_down.map(|low| low.slice_rows(first, rows));
            if let Some(low) = low.filter(|_| self.down.factors.is_some()) {
                context.copy(activation.slice_cols(self.intermediate, self.down.rank), low)?;
                let product = kept.product_down.map(|product| product.slice_rows(first, rows));
                self.down.magnitude_gradients(context, arena, grads, down_weight, d, product, activation, dropping)?;
            }
            self.down.bias_gradients(context, arena, grads, d)?;
            self.down.weight_gradients(context, arena, grads, d_down, activation, low, is_first, dropping)?;
            let d_gate_up = match (reading, normed) {
                (Some(_), _) => gate_up,
                (None, normed) => {
                    self.gate_up.bias_gradients(context, arena, grads, gate_up)?;
                    if let Some(x) = normed {
                        self.gate_up.magnitude_gradients(
                            context,
                            arena,
                            grads,
                            gate_up_weight,
                            gate_up,
                            None,
                            x,
                            dropping,
                        )?;
                    }
                    self.gate_up.product_gradient(context, arena, gate_up, true, dropping)?
                }
            };
            if need_normed || self.gate_up.trains() {
                self.gate_up.lower_gradient(context, gate_up_weight, d_gate_up)?;
            }
            if let Some(normed) = normed {
                let low = Some(normed.slice_cols(self.gate_up.inputs, self.gate_up.rank));
                self.gate_up.weight_gradients(context, arena, grads, d_gate_up, normed, low, is_first, dropping)?;
            }
            if need_normed {
                let d_normed = arena.high::<bf16>(rows, self.hidden, 0)?;
                let d_both = [gate_up, d_gate_up];
                self.gate_up.input_gradient(context, arena, gate_up_weight, d_both, d_normed, dropping)?;
                self.backward_norm(pass, arena, grads, [d, d_normed, mid], self.post_norm, need_mid)?;
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
        grads: Grads<'_>,
        [d, d_normed, x]: [View<bf16>; 3],
        scale: Scale,
        need_dx: bool,
    ) -> Result<()> {
        let grad = match scale.trained.map(|index| grads.trainables[index].grad) {
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
        grads: Grads<'_>,
        d: View<bf16>,
        attended: Attended,
        x: View<bf16>,
        need_qkv: bool,
        need_dx: bool,
    ) -> Result<bool> {
        let context = pass.context;
        let (tokens, shape, heads) = (d.rows(), &self.attention, self.heads(pass.dropping));
        let d_qkv = need_qkv.then(|| arena.high::<bf16>(tokens, self.qkv.outputs, self.qkv.rank)).transpose()?;
        let heads_kept = match attended.qkv {
            None if need_qkv => Some(self.heads_again(pass, arena, x)?),
            qkv => qkv.map(|qkv| (qkv, attended.normed)),
        };
        let after = arena.mark();
        let weight = self.o.weights(context, arena)?;
        let (first, dropping) = (pass.first, pass.dropping);
        self.o.bias_gradients(context, arena, grads, d)?;
        self.o.magnitude_gradients(context, arena, grads, weight, d, attended.product, attended.out, dropping)?;
        let d_o = self.o.product_gradient(context, arena, d, false, dropping)?;
        self.o.lower_gradient(context, weight, d_o)?;
        let low = attended.out.slice_cols(self.o.inputs, self.o.rank);
        self.o.weight_gradients(context, arena, grads, d_o, attended.out, Some(low), first, dropping)?;
        let (Some(d_qkv), Some((qkv, normed))) = (d_qkv, heads_kept) else { return Ok(false) };
        let d_out = arena.high::<bf16>(tokens, shape.heads * shape.dim, 0)?;
        self.o.input_gradient(context, arena, weight, [d, d_o], d_out, dropping)?;
        let rotated = match attended.rotated {
            Some(rotated) => rotated,
            None => {
                let rotated = match self.rotates_in_place() {
                    true => qkv,
                    false => arena.high::<bf16>(tokens, self.qkv.outputs, 0)?,
                };
                ops::rope(context, &heads, rotated, qkv, pass.positions, pass.table)?;
                rotated
            }
        };
        let workspace = arena.high::<u8>(1, attention::workspace_bytes(context, shape, pass.documents), 0)?;
        context.kind(Kind::Attention);
        let kept = attention::Kept { qkv: rotated, out: attended.out, lse: attended.lse };
        attention::backward(context, shape, pass.documents, kept, [d_out, d_qkv], workspace)?;
        arena.release_high(after);
        let norms = [self.q_norm, self.k_norm].map(|scale| {
            match scale.and_then(|scale| scale.trained).map(|index| grads.trainables[index].grad) {
                Some(Grad::Wide(grad)) => Some(grad),
                _ => None,
            }
        });
        let norm_grads = match norms {
            [None, None] => None,
            norms => Some((norms, arena.high::<f32>(1, ops::rope_parts_len(shape.dim), 0)?)),
        };
        ops::rope_backward(context, &heads, d_qkv, qkv, pass.positions, pass.table, norm_grads)?;
        arena.release_high(after);
        let weight = self.qkv.weights(context, arena)?;
        self.qkv.bias_gradients(context, arena, grads, d_qkv)?;
        // Only gradients of what trains read the normed rows.
        let normed = match normed {
            _ if !self.qkv.trains() => None,
            Some(normed) => Some(normed),
            None => {
                let normed = self.normed(pass, arena, false, x, self.input_norm, self.qkv.rank)?;
                self.qkv.lower(context, arena, weight, normed, dropping)?;
                Some(normed)
            }
        };
        if let Some(normed) = normed {
            self.qkv.magnitude_gradients(context, arena, grads, weight, d_qkv, Some(qkv), normed, dropping)?;
        }
        let need_normed = need_dx || self.input_norm.trained.is_some();
        let mut d_products = d_qkv;
        if need_normed || normed.is_some() {
            d_products = self.qkv.product_gradient(context, arena, d_qkv, true, dropping)?;
            self.qkv.lower_gradient(context, weight, d_products)?;
        }
        if let Some(normed) = normed {
            let low = normed.slice_cols(self.qkv.inputs, self.qkv.rank);
            self.qkv.weight_gradients(context, arena, grads, d_products, normed, Some(low), first, dropping)?;
        }
        if need_normed {
            let d_normed = arena.high::<bf16>(tokens, self.hidden, 0)?;
            self.qkv.input_gradient(context, arena, weight, [d_qkv, d_products], d_normed, dropping)?;
            self.backward_norm(pass, arena, grads, [d, d_normed, x], self.input_norm, need_dx)?;
        }
        Ok(need_dx)
    }

    /// Attention's inputs made again from the block's, with the normed rows if a gradient reads them.
    fn heads_again(
        &self,
        pass: &Pass<'_>,
        arena: &mut Arena,
        x: View<bf16>,
    ) -> Result<(View<bf16>, Option<View<bf16>>)> {
        let qkv = arena.high(x.rows(), self.qkv.outputs, 0)?;
        let start = arena.mark();
        let normed = self.normed(pass, arena, false, x, self.input_norm, self.qkv.rank)?;
        self.project_heads(pass, arena, normed, qkv)?;
        let kept = self.qkv.trains().then_some(normed);
        if kept.is_none() {
            arena.release_high(start);
        }
        Ok((qkv, kept))
    }
}
