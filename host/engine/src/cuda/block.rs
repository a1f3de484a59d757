//! A decoder block on the card: its weights, and its forward pass at each level of keeping.
//!
//! Residual additions happen inside the products, `mid = attended·Wᵀ + x`, and the gradient of the residual stream stays
//! in one buffer that each norm's backward pass adds to.

use half::bf16;

use super::arena::{ALIGNMENT, Arena, Mark};
use super::attention::{self, Documents};
use super::context::Context;
use super::dora;
use super::group::{Dropping, Group};
use super::memory::View;
use super::ops::{self, Heads};
use super::profile::Kind;

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
    /// Bytes of its gradients, where blocks share a place for them.
    pub window_bytes: usize,
}

/// How much of a block's forward pass is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Its input: all else is computed again.
    Input,
    /// Its input and what attention and the product behind it gave: attention's inputs and the feed-forward half are made again.
    Attended,
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
    /// Dropout of adapters, in training.
    pub dropping: Option<Dropping>,
    /// Whether magnitudes' factors are to be made, if they do not hold.
    pub factors: bool,
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
    pub(super) fn of(&self, piece: &'a Piece, first: bool) -> Self {
        Self {
            documents: &piece.documents,
            positions: self.positions.slice_cols(piece.first, piece.rows),
            first: self.first && first,
            dropping: self.dropping_from(piece.first),
            factors: self.factors && piece.first == 0,
            ..*self
        }
    }

    /// Dropout of the rows from `first` on.
    pub(super) fn dropping_from(&self, first: usize) -> Option<Dropping> {
        self.dropping.map(|dropping| Dropping { first_row: dropping.first_row + first, ..dropping })
    }
}

/// What is kept of the attention half.
#[derive(Clone, Copy)]
pub(super) struct Attended {
    pub normed: Option<View<bf16>>,
    pub qkv: Option<View<bf16>>,
    pub rotated: Option<View<bf16>>,
    pub out: View<bf16>,
    pub lse: View<f32>,
    /// What the output layer's factors multiply, with magnitudes.
    pub product: Option<View<bf16>>,
    pub mid: View<bf16>,
    pub before_mid: Mark,
}

/// Where [`Level::Attended`] keeps what it does.
#[derive(Clone, Copy)]
pub(super) struct AttendedPlace {
    out: View<bf16>,
    lse: View<f32>,
    mid: View<bf16>,
}

/// What a block's forward pass keeps.
pub(crate) struct Kept {
    pub x: View<bf16>,
    pub(super) low_down: Option<View<bf16>>,
    pub(super) attended: Option<Attended>,
    pub(super) normed: Option<View<bf16>>,
    pub(super) gate_up: Option<View<bf16>>,
    /// What the last layer's factors multiply, with magnitudes.
    pub(super) product_down: Option<View<bf16>>,
}

impl Block {
    /// Whether anything in it trains now.
    pub fn trains(&self) -> bool {
        let scales = [Some(self.input_norm), self.q_norm, self.k_norm, Some(self.post_norm)];
        scales.into_iter().flatten().any(|scale| scale.trained.is_some())
            || self.groups().into_iter().any(Group::trains)
    }

    pub(super) fn groups(&self) -> [&Group; 4] {
        [&self.qkv, &self.o, &self.gate_up, &self.down]
    }

    pub(super) fn heads(&self, dropping: Option<Dropping>) -> Heads {
        Heads {
            heads: self.attention.heads,
            kv_heads: self.attention.kv_heads,
            dim: self.attention.dim,
            q_norm: self.q_norm.map(|scale| scale.view),
            k_norm: self.k_norm.map(|scale| scale.view),
            bias: self.qkv.bias,
            factor: self.qkv.reading(dropping).map(|reading| reading.factor),
            eps: self.eps,
        }
    }

    /// Whether rotated heads can take the place of those before: nothing reads these again then.
    pub(super) fn rotates_in_place(&self) -> bool {
        self.q_norm.is_none() && self.k_norm.is_none() && self.qkv.bias.is_none() && self.qkv.factors.is_none()
    }

    /// A group's weights, with its factors as they are to be.
    pub(super) fn ready(&self, pass: &Pass<'_>, arena: &mut Arena, group: &Group) -> Result<View<bf16>> {
        let weight = group.weights(pass.context, arena)?;
        if pass.factors {
            group.make_factors(pass.context, arena, weight)?;
        }
        Ok(weight)
    }

    /// The gated activation of what the products of gate and up wrote.
    pub(super) fn activate(
        &self,
        context: &Context,
        activation: View<bf16>,
        gate_up: View<bf16>,
        dropping: Option<Dropping>,
    ) -> Result<()> {
        match self.gate_up.reading(dropping) {
            None => ops::swiglu(context, activation, gate_up),
            Some(reading) => dora::swiglu(context, activation, gate_up, reading),
        }
    }

    pub(super) fn normed(
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

    /// Queries, keys and values of normed rows, before they are rotated.
    pub(super) fn project_heads(
        &self,
        pass: &Pass<'_>,
        arena: &mut Arena,
        normed: View<bf16>,
        qkv: View<bf16>,
    ) -> Result<()> {
        let start = arena.mark();
        let weight = self.ready(pass, arena, &self.qkv)?;
        self.qkv.lower(pass.context, arena, weight, normed, pass.dropping)?;
        self.qkv.forward(pass.context, arena, weight, normed, qkv, (None, None), pass.dropping)?;
        arena.release_high(start);
        Ok(())
    }

    /// Room that the gradient of the residual stream needs behind its columns.
    pub fn residual_room(&self) -> usize {
        self.o.rank.max(self.down.rank)
    }

    /// Bytes of what [`Level::Attended`] keeps beside the input, for so many tokens.
    pub fn attended_bytes(&self, tokens: usize) -> usize {
        let place = self.attended_place(0, tokens);
        (place.mid.ptr() as usize + tokens * self.hidden * size_of::<bf16>()).next_multiple_of(ALIGNMENT)
    }

    /// What lies where in such a place, which begins at an address.
    fn attended_place(&self, address: u64, tokens: usize) -> AttendedPlace {
        let aligned = |at: u64| at.next_multiple_of(ALIGNMENT as u64);
        let (cols, stride) = (self.o.inputs, self.o.inputs + self.o.rank);
        let out = View::at(address, tokens, cols, stride);
        let lse = View::at(aligned(out.ptr() + (tokens * stride * 2) as u64), self.attention.heads, tokens, tokens);
        let mid = View::at(aligned(lse.ptr() + 4 * lse.len() as u64), tokens, self.hidden, self.hidden);
        AttendedPlace { out, lse, mid }
    }

    /// Writes the block's output to `out`, keeping what `level` says; `None` keeps nothing. [`Level::Attended`] keeps it in `place`.
    pub fn forward(
        &self,
        pass: &Pass<'_>,
        arena: &mut Arena,
        x: View<bf16>,
        out: View<bf16>,
        level: Option<Level>,
        place: Option<View<u8>>,
    ) -> Result<Kept> {
        if level >= Some(Level::Attended) || pass.pieces.len() < 2 {
            return self.forward_whole(pass, arena, x, out, level, place);
        }
        let low_down = self.make_low(arena, x.rows(), level)?;
        let start = arena.mark();
        let mid = arena.high(x.rows(), x.cols(), 0)?;
        for piece in pass.pieces {
            let mark = arena.mark();
            let rows = |view: View<bf16>| view.slice_rows(piece.first, piece.rows);
            self.attend(&pass.of(piece, true), arena, rows(x), Some(rows(mid)), None, [false, false])?;
            arena.release_high(mark);
        }
        // Packed weights are unpacked once for all pieces.
        self.feed_forward(pass, arena, mid, out, [None, None, low_down, None])?;
        arena.release_high(start);
        Ok(Kept { x, low_down, attended: None, normed: None, gate_up: None, product_down: None })
    }

    fn make_low(&self, arena: &mut Arena, rows: usize, level: Option<Level>) -> Result<Option<View<bf16>>> {
        match level {
            Some(_) if self.down.adapters_train() => Ok(Some(arena.low(rows, self.down.rank, 0)?)),
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
        place: Option<View<u8>>,
    ) -> Result<Kept> {
        let mark = arena.mark();
        let place = place.map(|place| self.attended_place(place.ptr(), x.rows()));
        let (keeps, all) = (level >= Some(Level::Products), level == Some(Level::All));
        let low_down = self.make_low(arena, x.rows(), level)?;
        let gate_up = keeps.then(|| arena.low(x.rows(), self.gate_up.outputs, self.gate_up.rank)).transpose()?;
        let keeps_product = keeps && self.down.keeps_products(pass.dropping);
        let product_down = keeps_product.then(|| arena.low(x.rows(), x.cols(), 0)).transpose()?;
        let mid = match place {
            Some(place) => place.mid,
            None => arena.take_view(keeps, x.rows(), x.cols(), 0)?,
        };
        let rest = arena.mark();
        let attended = self.attend(pass, arena, x, Some(mid), place, [keeps, all])?;
        arena.release_high(rest);
        // Normed rows are read again by gradients of weights alone.
        let keeps_normed = all && self.gate_up.trains();
        let normed = keeps_normed.then(|| arena.low(x.rows(), x.cols(), self.gate_up.rank)).transpose()?;
        self.feed_forward(pass, arena, mid, out, [gate_up, normed, low_down, product_down])?;
        arena.release_high(mark);
        let attended = (keeps || place.is_some()).then_some(attended);
        Ok(Kept { x, low_down, attended, normed, gate_up, product_down })
    }

    /// The feed-forward half, a few rows at a time; what is given to keep is written there.
    fn feed_forward(
        &self,
        pass: &Pass<'_>,
        arena: &mut Arena,
        mid: View<bf16>,
        out: View<bf16>,
        [gate_up, normed, low_down, product_down]: [Option<View<bf16>>; 4],
    ) -> Result<()> {
        let start = arena.mark();
        let gate_up_weight = self.ready(pass, arena, &self.gate_up)?;
        let down_weight = self.ready(pass, arena, &self.down)?;
        for (first, rows) in chunks(mid.rows(), pass.mlp_rows) {
            let chunk = arena.mark();
            let mid = mid.slice_rows(first, rows);
            let normed = match normed {
                Some(normed) => normed.slice_rows(first, rows),
                None => arena.high(rows, mid.cols(), self.gate_up.rank)?,
            };
            ops::rms_norm(pass.context, normed, mid, self.post_norm.view, None, self.eps)?;
            let gate_up = match gate_up {
                Some(gate_up) => gate_up.slice_rows(first, rows),
                None => arena.high(rows, self.gate_up.outputs, 0)?,
            };
            let dropping = pass.dropping_from(first);
            self.gate_up.lower(pass.context, arena, gate_up_weight, normed, dropping)?;
            self.gate_up.forward(pass.context, arena, gate_up_weight, normed, gate_up, (None, None), dropping)?;
            let activation = arena.high::<bf16>(rows, self.intermediate, self.down.rank)?;
            self.activate(pass.context, activation, gate_up, dropping)?;
            self.down.lower(pass.context, arena, down_weight, activation, dropping)?;
            if let Some(low) = low_down {
                let low = low.slice_rows(first, rows);
                pass.context.copy(low, activation.slice_cols(self.intermediate, self.down.rank))?;
            }
            let (out, product) = (out.slice_rows(first, rows), product_down.map(|view| view.slice_rows(first, rows)));
            self.down.forward(pass.context, arena, down_weight, activation, out, (Some(mid), product), dropping)?;
            arena.release_high(chunk);
        }
        arena.release_high(start);
        Ok(())
    }

    /// The attention half; `[products, all]` say what goes to the arena's low end, `place` what goes elsewhere. Without `mid`
    /// it is made behind all else, so that it can be given back first.
    pub(super) fn attend(
        &self,
        pass: &Pass<'_>,
        arena: &mut Arena,
        x: View<bf16>,
        mid: Option<View<bf16>>,
        place: Option<AttendedPlace>,
        [products, all]: [bool; 2],
    ) -> Result<Attended> {
        let context = pass.context;
        let (tokens, shape) = (x.rows(), &self.attention);
        let qkv = arena.take_view(products, tokens, self.qkv.outputs, 0)?;
        let (out, lse) = match place {
            Some(place) => (place.out, place.lse),
            None => (
                arena.take_view::<bf16>(products, tokens, shape.heads * shape.dim, self.o.rank)?,
                arena.take_view::<f32>(products, shape.heads, tokens, 0)?,
            ),
        };
        let keeps_product = products && self.o.keeps_products(pass.dropping);
        let product = keeps_product.then(|| arena.low(tokens, x.cols(), 0)).transpose()?;
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
        let keeps_normed = all && self.qkv.trains();
        let normed = self.normed(pass, arena, keeps_normed, x, self.input_norm, self.qkv.rank)?;
        self.project_heads(pass, arena, normed, qkv)?;
        arena.release_high(inner);
        ops::rope(context, &self.heads(pass.dropping), rotated, qkv, pass.positions, pass.table)?;
        context.kind(Kind::Attention);
        attention::forward(context, shape, pass.documents, attention::Kept { qkv: rotated, out, lse })?;
        let weight = self.ready(pass, arena, &self.o)?;
        self.o.lower(context, arena, weight, out, pass.dropping)?;
        self.o.forward(context, arena, weight, out, mid, (Some(x), product), pass.dropping)?;
        arena.release_high(inner);
        Ok(Attended {
            normed: keeps_normed.then_some(normed),
            qkv: place.is_none().then_some(qkv),
            rotated: (place.is_none() && (all || !products || in_place)).then_some(rotated),
            out,
            lse,
            product,
            mid,
            before_mid,
        })
    }
}

/// `(first, rows)` of pieces of at most `at_once` rows.
pub(super) fn chunks(rows: usize, at_once: usize) -> impl Iterator<Item = (usize, usize)> {
    let at_once = at_once.max(1);
    (0..rows).step_by(at_once).map(move |first| (first, at_once.min(rows - first)))
}
