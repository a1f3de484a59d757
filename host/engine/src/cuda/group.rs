//! Linear layers with a common input as one product: queries, keys and values; gate and up; or a single one.
//!
//! An adapter's matrices stand around the weight, so that both products of a pass take them along:
//!
//! ```text
//!            inputs   rank
//!   outputs [  W      s·B ]     y  = [x | low] · [W | s·B]ᵀ            with low = x·Aᵀ
//!   rank    [  A       0  ]     dx = [dy | d_low] · [W ; A]            with d_low = dy·(s·B)
//! ```
//!
//! With dropout an adapter's input is another than the weight's, so that its `low` and its part of `dx` are products of their own.
//!
//! With DoRA the outputs are these products times factors; `group_dora.rs` says how.
//!
//! `low` is written beside `x`, into room that every buffer of activations has behind its columns; so is `d_low` beside
//! `dy`. Ranks of the parts stand beside each other, B's blocks on the diagonal.

use std::cell::Cell;

use half::bf16;

use super::arena::Arena;
use super::context::Context;
use super::gemm::{Layout, multiply};
use super::in_backward::Grads;
use super::magnitudes::{Factors, Holds, Magnitude};
use super::memory::View;
use super::nf4;
use super::ops::{self, Mask};
use super::packed::Packed;
use super::profile::Kind;
use super::slab::Slab;
use super::spec::{AdapterSpec, Options};
use super::trainable::Grad;
use crate::error::Result;

/// One linear layer of a group.
#[derive(Debug)]
pub(crate) struct Part {
    /// First row, and number of rows.
    pub at: usize,
    pub outputs: usize,
    /// Which trainable it is, if it trains.
    pub trained: Option<usize>,
    pub adapter: Option<PartAdapter>,
    pub packed: Option<Packed>,
    /// Its numbers, when they stand alone because a neighbour is packed.
    pub own: Option<View<bf16>>,
    /// The trainable of its bias, if that trains.
    pub bias: Option<usize>,
}

#[derive(Debug)]
pub(crate) struct PartAdapter {
    pub rank: usize,
    /// First column among the group's ranks.
    pub at: usize,
    pub scale: f32,
    /// Probability and stream of its dropout.
    pub dropout: (f32, u32),
    pub b: usize,
    /// With DoRA.
    pub magnitude: Option<Magnitude>,
    /// Whether any of its matrices trains now. One that rests adds to outputs and to the inputs' gradients as before, and has no
    /// gradients made.
    pub trains: bool,
}

/// The dropout of a pass over some of a batch's rows: seed and count, and the first row's place in the batch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Dropping {
    pub pass: (u64, u64),
    pub first_row: usize,
}

/// Ranks of a group are padded to a multiple of this, a tile of the products.
const RANK_PAD: usize = 64;

/// The columns that so many ranks of a group take.
pub(crate) fn padded(ranks: usize, options: &Options) -> usize {
    // None stay none.
    ranks.next_multiple_of(match options.rank_multiple {
        0 => RANK_PAD,
        multiple => multiple.next_multiple_of(8),
    })
}

/// Where a group's weights stand with the adapters around them; the fields are those of [`Group`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Standing {
    pub weight: Option<View<bf16>>,
    pub a: Option<View<bf16>>,
    pub b: Option<View<bf16>>,
}

impl Standing {
    /// Memory for it: weights if they are not `assembled` for each product, and zeros around them.
    pub fn take(slab: &mut Slab, [outputs, inputs, rank]: [usize; 3], assembled: bool) -> Result<Self> {
        let none = Self { weight: None, a: None, b: None };
        Ok(match (assembled, rank) {
            (false, 0) => Self { weight: Some(slab.take(outputs, inputs, 0)?), ..none },
            (false, _) => Self { weight: Some(slab.zeros(outputs + rank, inputs, rank)?), ..none },
            (true, 0) => none,
            (true, _) => {
                let a = slab.zeros::<bf16>(rank, inputs, rank)?;
                let a = View::at(a.ptr(), rank, inputs + rank, inputs + rank);
                Self { a: Some(a), b: Some(slab.zeros(outputs, rank, 0)?), ..none }
            }
        })
    }

    /// Queues zeros in the place of all adapters.
    pub fn clear(&self, context: &Context, [outputs, inputs, rank]: [usize; 3]) -> Result<()> {
        if let Some(weight) = self.weight {
            context.fill_bytes(weight.slice_rows(0, outputs).slice_cols(inputs, rank), 0)?;
            context.fill_bytes(weight.slice_rows(outputs, rank).slice_cols(0, inputs + rank), 0)?;
        }
        [self.a, self.b].into_iter().flatten().try_for_each(|view| context.fill_bytes(view, 0))
    }

    /// What products read of an adapter's A and B: its part's first row and rows, its own first rank and ranks.
    pub fn adapter(
        &self,
        [outputs, inputs]: [usize; 2],
        (row, rows): (usize, usize),
        (at, rank): (usize, usize),
    ) -> Option<[View<bf16>; 2]> {
        let (a, b) = match (self.weight, self.a, self.b) {
            (Some(weight), ..) => {
                (weight.slice_rows(outputs + at, rank), weight.slice_rows(row, rows).slice_cols(inputs + at, rank))
            }
            (None, Some(a), Some(b)) => (a.slice_rows(at, rank), b.slice_rows(row, rows).slice_cols(at, rank)),
            _ => return None,
        };
        Some([a.slice_cols(0, inputs), b])
    }
}

impl PartAdapter {
    /// The adapter of `spec` whose ranks begin at `at`, and whose B is the trainable `b`; with its magnitudes.
    pub fn new(spec: &AdapterSpec, at: usize, b: usize, magnitude: Option<Magnitude>) -> Self {
        let dropout = (spec.dropout, spec.dropout_stream);
        Self { rank: spec.rank, at, scale: spec.scale, dropout, b, magnitude, trains: true }
    }

    pub(super) fn mask(&self, dropping: Option<Dropping>) -> Option<Mask> {
        let (p, stream) = self.dropout;
        let Dropping { pass, first_row } = dropping.filter(|_| p > 0.0)?;
        Some(Mask { p, pass, stream, first_row })
    }
}

/// Linear layers with a common input.
#[derive(Debug)]
pub(crate) struct Group {
    pub inputs: usize,
    pub outputs: usize,
    /// Columns of all ranks with padding; 0 without adapters.
    pub rank: usize,
    /// Ranks in use.
    pub ranks: usize,
    /// `[outputs + rank, inputs]` with `rank` more columns behind; `None` if any part is packed.
    pub weight: Option<View<bf16>>,
    /// A's rows when the weights are packed: `[rank, inputs]` with the same stride.
    pub a: Option<View<bf16>>,
    /// B's columns when the weights are packed: `[outputs, rank]`.
    pub b: Option<View<bf16>>,
    /// The gradient of all A, or how far from the block's place it lies: `[ranks, inputs]`.
    pub a_grad: Option<View<f32>>,
    /// `[outputs]`.
    pub bias: Option<View<f32>>,
    /// Whether another kernel adds the bias: the rotation of queries, keys and values.
    pub bias_elsewhere: bool,
    /// With DoRA in any part.
    pub factors: Option<Factors>,
    /// How much of them is that of the weights and adapters as they are.
    pub holds: Cell<Holds>,
    pub parts: Vec<Part>,
}

impl Group {
    pub fn standing(&self) -> Standing {
        Standing { weight: self.weight, a: self.a, b: self.b }
    }

    /// Whether anything in it trains now.
    pub fn trains(&self) -> bool {
        self.adapters_train() || self.parts.iter().any(|part| part.trained.is_some() || part.bias.is_some())
    }

    /// Whether any of its adapters does.
    pub fn adapters_train(&self) -> bool {
        self.adapters().any(|adapter| adapter.trains)
    }

    /// The weights with the adapters around them: where they stand, or unpacked into the arena's high end.
    pub fn weights(&self, context: &Context, arena: &mut Arena) -> Result<View<bf16>> {
        if let Some(weight) = self.weight {
            return Ok(weight);
        }
        let weight = arena.high::<bf16>(self.outputs + self.rank, self.inputs, self.rank)?;
        for part in &self.parts {
            if let Some(packed) = &part.packed {
                packed.unpack(context, weight.slice_rows(part.at, part.outputs))?;
            }
            if let Some(own) = part.own {
                context.copy(weight.slice_rows(part.at, part.outputs).slice_cols(0, self.inputs), own)?;
            }
        }
        if let (Some(a), Some(b)) = (self.a, self.b) {
            nf4::surround(context, weight, a, b)?;
        }
        Ok(weight)
    }

    /// `low` beside `x`, if there are adapters: `x` has room for `rank` more columns.
    pub fn lower(
        &self,
        context: &Context,
        arena: &mut Arena,
        weight: View<bf16>,
        x: View<bf16>,
        dropping: Option<Dropping>,
    ) -> Result<()> {
        if self.rank == 0 {
            return Ok(());
        }
        context.kind(Kind::Adapter);
        let a = weight.slice_rows(self.outputs, self.rank).slice_cols(0, self.inputs);
        multiply(context, Layout::Nt, x.slice_cols(self.inputs, self.rank), 1.0, x, a, None)?;
        for adapter in self.adapters() {
            let Some(mask) = adapter.mask(dropping) else { continue };
            let mark = arena.mark();
            let dropped = arena.high::<bf16>(x.rows(), self.inputs, 0)?;
            ops::dropout(context, dropped, x.slice_cols(0, self.inputs), mask, false)?;
            let low = x.slice_cols(self.inputs + adapter.at, adapter.rank);
            multiply(context, Layout::Nt, low, 1.0, dropped, a.slice_rows(adapter.at, adapter.rank), None)?;
            arena.release_high(mark);
        }
        Ok(())
    }

    fn adapters(&self) -> impl Iterator<Item = &PartAdapter> {
        self.parts.iter().filter_map(|part| part.adapter.as_ref())
    }

    pub(super) fn drops(&self, dropping: Option<Dropping>) -> bool {
        self.adapters().any(|adapter| adapter.mask(dropping).is_some())
    }

    /// `y = x · Wᵀ` and what the adapters add, plus `add`. `x` with [`Group::lower`] beside it. With magnitudes `y` or, where
    /// something is added, `product` takes what [`Group::reading`] turns into the outputs.
    #[allow(clippy::too_many_arguments)]
    pub fn forward(
        &self,
        context: &Context,
        arena: &mut Arena,
        weight: View<bf16>,
        x: View<bf16>,
        y: View<bf16>,
        (add, product): (Option<View<bf16>>, Option<View<bf16>>),
        dropping: Option<Dropping>,
    ) -> Result<()> {
        if self.factors.is_some() {
            return self.forward_with_factors(context, arena, weight, x, y, (add, product), dropping);
        }
        self.products(context, weight, x, y, add)?;
        match self.bias.filter(|_| !self.bias_elsewhere) {
            Some(bias) => ops::add_bias(context, y, bias),
            None => Ok(()),
        }
    }

    /// The products of inputs with [`Group::lower`] beside them, plus `add`, without biases.
    pub(super) fn products(
        &self,
        context: &Context,
        weight: View<bf16>,
        x: View<bf16>,
        p: View<bf16>,
        add: Option<View<bf16>>,
    ) -> Result<()> {
        context.kind(Kind::Base);
        let inner = self.inputs + self.rank;
        let w = weight.slice_rows(0, self.outputs).slice_cols(0, inner);
        multiply(context, Layout::Nt, p, 1.0, x.slice_cols(0, inner), w, add.map(|add| (1.0, add)))
    }

    /// `d_low` beside `dy`, which has room for it.
    pub fn lower_gradient(&self, context: &Context, weight: View<bf16>, dy: View<bf16>) -> Result<()> {
        if self.rank == 0 {
            return Ok(());
        }
        context.kind(Kind::Adapter);
        let b = weight.slice_rows(0, self.outputs).slice_cols(self.inputs, self.rank);
        multiply(context, Layout::Nn, dy.slice_cols(self.outputs, self.rank), 1.0, dy, b, None)
    }

    /// `dx`, given the gradients of the outputs and, with [`Group::lower_gradient`] beside them, of the products: the same without
    /// magnitudes.
    #[allow(clippy::too_many_arguments)]
    pub fn input_gradient(
        &self,
        context: &Context,
        arena: &mut Arena,
        weight: View<bf16>,
        [dy, d_product]: [View<bf16>; 2],
        dx: View<bf16>,
        dropping: Option<Dropping>,
    ) -> Result<()> {
        context.kind(Kind::Base);
        let drops = self.drops(dropping);
        let (base, inner) = if drops { (dy, self.outputs) } else { (d_product, self.outputs + self.rank) };
        let w = weight.slice_rows(0, inner).slice_cols(0, self.inputs);
        multiply(context, Layout::Nn, dx, 1.0, base.slice_cols(0, inner), w, None)?;
        for part in self.parts.iter().filter(|_| drops) {
            let Some(adapter) = &part.adapter else { continue };
            context.kind(Kind::Adapter);
            let a = weight.slice_rows(self.outputs + adapter.at, adapter.rank).slice_cols(0, self.inputs);
            let d_low = d_product.slice_cols(self.outputs + adapter.at, adapter.rank);
            let (mark, mask) = (arena.mark(), adapter.mask(dropping));
            // What goes through a mask is made beside `dx` first.
            let (through, add) = match mask {
                None => (dx, Some((1.0, dx))),
                Some(_) => (arena.high::<bf16>(dy.rows(), self.inputs, 0)?, None),
            };
            multiply(context, Layout::Nn, through, 1.0, d_low, a, add)?;
            if adapter.magnitude.is_some() {
                self.beyond(context, arena, weight, part, dy, through)?;
            }
            if let Some(mask) = mask {
                ops::dropout(context, dx, through, mask, true)?;
            }
            arena.release_high(mark);
        }
        Ok(())
    }

    /// Adds the gradients of the matrices that train in the group, given those of the products in `dy`. `low` stands beside `x` or
    /// elsewhere; `first` says that the gradients are to be replaced.
    #[allow(clippy::too_many_arguments)]
    pub fn weight_gradients(
        &self,
        context: &Context,
        arena: &mut Arena,
        grads: Grads<'_>,
        dy: View<bf16>,
        x: View<bf16>,
        low: Option<View<bf16>>,
        first: bool,
        dropping: Option<Dropping>,
    ) -> Result<()> {
        let drops = self.drops(dropping);
        for adapter in self.adapters().filter(|adapter| drops && adapter.trains) {
            let Some(a_grad) = self.a_grad else { continue };
            context.kind(Kind::Adapter);
            let grad = grads.placed(a_grad).slice_rows(adapter.at, adapter.rank);
            let d_low = dy.slice_cols(self.outputs + adapter.at, adapter.rank);
            let mark = arena.mark();
            let mut input = x.slice_cols(0, self.inputs);
            if let Some(mask) = adapter.mask(dropping) {
                input = arena.high::<bf16>(x.rows(), self.inputs, 0)?;
                ops::dropout(context, input, x.slice_cols(0, self.inputs), mask, false)?;
            }
            multiply(context, Layout::Tn, grad, 1.0, d_low, input, (!first).then_some((1.0, grad)))?;
            arena.release_high(mark);
        }
        // One product for all ranks, those of adapters that rest among them: nobody reads their part.
        if let Some(a_grad) = self.a_grad.filter(|_| !drops && self.adapters_train()) {
            let a_grad = grads.placed(a_grad);
            context.kind(Kind::Adapter);
            let d_low = dy.slice_cols(self.outputs, self.ranks);
            multiply(context, Layout::Tn, a_grad, 1.0, d_low, x, (!first).then_some((1.0, a_grad)))?;
        }
        for part in &self.parts {
            let dy = dy.slice_cols(part.at, part.outputs);
            if let (Some(adapter), Some(low)) = (part.adapter.as_ref().filter(|adapter| adapter.trains), low)
                && let Grad::Wide(grad) = grads.matrix(adapter.b)
            {
                context.kind(Kind::Adapter);
                let low = low.slice_cols(adapter.at, adapter.rank);
                multiply(context, Layout::Tn, grad, adapter.scale, dy, low, (!first).then_some((1.0, grad)))?;
            }
            if let Some(trained) = part.trained {
                context.kind(Kind::WeightGradient);
                match grads.matrix(trained) {
                    Grad::Wide(grad) => {
                        multiply(context, Layout::Tn, grad, 1.0, dy, x, (!first).then_some((1.0, grad)))?;
                    }
                    Grad::Narrow(grad) => {
                        multiply(context, Layout::Tn, grad, 1.0, dy, x, (!first).then_some((1.0, grad)))?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Adds the gradients of the biases that train, given those of the outputs.
    pub fn bias_gradients(&self, context: &Context, arena: &mut Arena, grads: Grads<'_>, dy: View<bf16>) -> Result<()> {
        for part in &self.parts {
            let dy = dy.slice_cols(part.at, part.outputs);
            if let Some(bias) = part.bias
                && let Grad::Wide(grad) = grads.trainables[bias].grad
            {
                let mark = arena.mark();
                let parts = arena.high::<f32>(1, ops::parts_len(dy.rows(), dy.cols()), 0)?;
                ops::column_sums(context, grad, dy, parts)?;
                arena.release_high(mark);
            }
        }
        Ok(())
    }
}
