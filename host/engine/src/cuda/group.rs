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
//! `low` is written beside `x`, into room that every buffer of activations has behind its columns; so is `d_low` beside
//! `dy`. Ranks of the parts stand beside each other, B's blocks on the diagonal.

use half::bf16;

use super::arena::Arena;
use super::context::Context;
use super::gemm::{Layout, multiply};
use super::memory::View;
use super::nf4::Packed;
use super::ops;
use super::profile::Kind;
use super::trainable::{Grad, Trainable};
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
    pub b: usize,
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
    /// The gradient of all A: `[ranks, inputs]`.
    pub a_grad: Option<View<f32>>,
    /// `[outputs]`.
    pub bias: Option<View<f32>>,
    pub parts: Vec<Part>,
}

impl Group {
    pub fn trains(&self) -> bool {
        self.parts.iter().any(|part| part.trained.is_some() || part.adapter.is_some() || part.bias.is_some())
    }

    /// Whether the backward pass reads the input.
    pub fn needs_input(&self) -> bool {
        self.parts.iter().any(|part| part.trained.is_some() || part.adapter.is_some())
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
            let room = self.inputs + self.rank;
            context.copy(weight.slice_rows(self.outputs, self.rank).slice_cols(0, room), a)?;
            context.copy(weight.slice_rows(0, self.outputs).slice_cols(self.inputs, self.rank), b)?;
        }
        Ok(weight)
    }

    /// `low` beside `x`, if there are adapters: `x` has room for `rank` more columns.
    pub fn lower(&self, context: &Context, weight: View<bf16>, x: View<bf16>) -> Result<()> {
        if self.rank == 0 {
            return Ok(());
        }
        context.kind(Kind::Adapter);
        let a = weight.slice_rows(self.outputs, self.rank).slice_cols(0, self.inputs);
        multiply(context, Layout::Nt, x.slice_cols(self.inputs, self.rank), 1.0, x, a, None)
    }

    /// `y = x · Wᵀ` and what the adapters add, plus `add`. `x` with [`Group::lower`] beside it.
    pub fn forward(
        &self,
        context: &Context,
        weight: View<bf16>,
        x: View<bf16>,
        y: View<bf16>,
        add: Option<View<bf16>>,
    ) -> Result<()> {
        context.kind(Kind::Base);
        let inner = self.inputs + self.rank;
        let w = weight.slice_rows(0, self.outputs).slice_cols(0, inner);
        multiply(context, Layout::Nt, y, 1.0, x.slice_cols(0, inner), w, add.map(|add| (1.0, add)))
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

    /// `dx`, given `dy` with [`Group::lower_gradient`] beside it.
    pub fn input_gradient(&self, context: &Context, weight: View<bf16>, dy: View<bf16>, dx: View<bf16>) -> Result<()> {
        context.kind(Kind::Base);
        let inner = self.outputs + self.rank;
        let w = weight.slice_rows(0, inner).slice_cols(0, self.inputs);
        multiply(context, Layout::Nn, dx, 1.0, dy.slice_cols(0, inner), w, None)
    }

    /// Adds the gradients of what trains in the group. `low` stands beside `x` or elsewhere; `first` says that the
    /// gradients are to be replaced.
    #[allow(clippy::too_many_arguments)]
    pub fn weight_gradients(
        &self,
        context: &Context,
        arena: &mut Arena,
        trainables: &[Trainable],
        dy: View<bf16>,
        x: View<bf16>,
        low: Option<View<bf16>>,
        first: bool,
    ) -> Result<()> {
        if let Some(a_grad) = self.a_grad {
            context.kind(Kind::Adapter);
            let d_low = dy.slice_cols(self.outputs, self.ranks);
            multiply(context, Layout::Tn, a_grad, 1.0, d_low, x, (!first).then_some((1.0, a_grad)))?;
        }
        for part in &self.parts {
            let dy = dy.slice_cols(part.at, part.outputs);
            if let (Some(adapter), Some(low)) = (&part.adapter, low)
                && let Grad::Wide(grad) = trainables[adapter.b].grad
            {
                context.kind(Kind::Adapter);
                let low = low.slice_cols(adapter.at, adapter.rank);
                multiply(context, Layout::Tn, grad, adapter.scale, dy, low, (!first).then_some((1.0, grad)))?;
            }
            if let Some(trained) = part.trained {
                context.kind(Kind::WeightGradient);
                match trainables[trained].grad {
                    Grad::Wide(grad) => {
                        multiply(context, Layout::Tn, grad, 1.0, dy, x, (!first).then_some((1.0, grad)))?;
                    }
                    Grad::Narrow(grad) => {
                        multiply(context, Layout::Tn, grad, 1.0, dy, x, (!first).then_some((1.0, grad)))?;
                    }
                }
            }
            if let Some(bias) = part.bias
                && let Grad::Wide(grad) = trainables[bias].grad
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
