//! Magnitudes of a group's outputs (DoRA, arXiv 2402.09353, in PEFT's form): a layer's output is `f · p + bias` with
//! `p = x·Wᵀ + s·(x·Aᵀ)·Bᵀ` and `f = m / ‖W + s·B·A‖` of each output's row (`magnitudes.rs`), the norm held constant in the
//! backward pass.
//!
//! Without dropout what a product wrote is `p`, and whoever reads it multiplies ([`Group::reading`]); it is what a magnitude's
//! gradient reads as well, `Σ dy · p / norm`. With dropout the adapter's input `x'` is another, and the output is made at once:
//!
//! ```text
//! y  = x·Wᵀ + s·low·Bᵀ + (f - 1) · p'        with p' = x'·Wᵀ + s·low·Bᵀ and low = x'·Aᵀ
//! dx = dy·W + mask((f - 1)·dy·W + d_low·A)   with d_low = f·dy·(s·B)
//! ```
//!
//! so that `p'` is made once more in the backward pass.

use half::bf16;

use super::arena::Arena;
use super::context::Context;
use super::dora::{self, Reading};
use super::gemm::{Layout, multiply};
use super::group::{Dropping, Group, Part, PartAdapter};
use super::in_backward::Grads;
use super::magnitudes::Magnitude;
use super::memory::View;
use super::ops::{self, Mask};
use super::profile::Kind;
use super::trainable::Grad;
use crate::error::Result;

/// Rows of a batch whose outputs are made in `f32` at once, with dropout.
const ROWS: usize = 2048;

impl Group {
    /// Those that train now.
    fn magnitudes_in_training(&self) -> impl Iterator<Item = (&Part, &PartAdapter, Magnitude)> {
        self.magnitudes().filter(|(_, adapter, _)| adapter.trains)
    }

    /// Whether gradients of magnitudes read the group's products.
    pub fn keeps_products(&self, dropping: Option<Dropping>) -> bool {
        self.reading(dropping).is_some() && self.magnitudes_in_training().next().is_some()
    }

    /// What turns the group's products into outputs, for whoever reads them; `None` if they are outputs already.
    pub fn reading(&self, dropping: Option<Dropping>) -> Option<Reading> {
        let factors = self.factors.filter(|_| !self.drops(dropping))?;
        Some(Reading { factor: factors.factor, bias: self.bias })
    }

    /// [`Group::forward`] where there are factors. Without dropout `y` takes the products if nothing is to be added, and
    /// `product` takes them if something is.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn forward_with_factors(
        &self,
        context: &Context,
        arena: &mut Arena,
        weight: View<bf16>,
        x: View<bf16>,
        y: View<bf16>,
        (add, product): (Option<View<bf16>>, Option<View<bf16>>),
        dropping: Option<Dropping>,
    ) -> Result<()> {
        match (self.reading(dropping), add) {
            (None, _) => self.forward_mixed(context, arena, weight, x, y, add, dropping),
            (Some(_), None) => self.products(context, weight, x, y, None),
            (Some(reading), Some(add)) => {
                let mark = arena.mark();
                let p = match product {
                    Some(product) => product,
                    None => arena.high(y.rows(), self.outputs, 0)?,
                };
                self.products(context, weight, x, p, None)?;
                dora::add(context, y, add, p, reading)?;
                arena.release_high(mark);
                Ok(())
            }
        }
    }

    /// The outputs with dropout, part by part.
    #[allow(clippy::too_many_arguments)]
    fn forward_mixed(
        &self,
        context: &Context,
        arena: &mut Arena,
        weight: View<bf16>,
        x: View<bf16>,
        y: View<bf16>,
        add: Option<View<bf16>>,
        dropping: Option<Dropping>,
    ) -> Result<()> {
        let Some(factors) = self.factors else { return Ok(()) };
        let inner = self.inputs + self.rank;
        let bias = self.bias.filter(|_| !self.bias_elsewhere);
        for part in &self.parts {
            let w = weight.slice_rows(part.at, part.outputs).slice_cols(0, inner);
            let of_part = |view: View<bf16>| view.slice_cols(part.at, part.outputs);
            let bias = bias.map(|bias| bias.slice_cols(part.at, part.outputs));
            let (y, add) = (of_part(y), add.map(of_part));
            let Some(adapter) = part.adapter.as_ref().filter(|adapter| adapter.magnitude.is_some()) else {
                context.kind(Kind::Base);
                multiply(context, Layout::Nt, y, 1.0, x.slice_cols(0, inner), w, add.map(|add| (1.0, add)))?;
                bias.map_or(Ok(()), |bias| ops::add_bias(context, y, bias))?;
                continue;
            };
            let reading = Reading { factor: factors.factor.slice_cols(part.at, part.outputs), bias };
            for first in (0..x.rows()).step_by(ROWS) {
                let rows = ROWS.min(x.rows() - first);
                let mark = arena.mark();
                let (x, of_rows) = (x.slice_rows(first, rows), |view: View<bf16>| view.slice_rows(first, rows));
                let r = arena.high::<f32>(rows, part.outputs, 0)?;
                context.kind(Kind::Base);
                multiply(context, Layout::Nt, r, 1.0, x.slice_cols(0, inner), w, None)?;
                let p = match adapter.mask(dropping) {
                    None => r,
                    Some(mask) => {
                        let p = arena.high::<f32>(rows, part.outputs, 0)?;
                        let mask = Mask { first_row: mask.first_row + first, ..mask };
                        let dropped = self.dropped(context, arena, x, mask)?;
                        context.kind(Kind::Base);
                        multiply(context, Layout::Nt, p, 1.0, dropped, w, None)?;
                        p
                    }
                };
                dora::mix(context, of_rows(y), [r, p], reading, add.map(of_rows))?;
                arena.release_high(mark);
            }
        }
        Ok(())
    }

    /// An adapter's inputs after dropout, with what [`Group::lower`] left beside `x`: `[rows, inputs + rank]`.
    fn dropped(&self, context: &Context, arena: &mut Arena, x: View<bf16>, mask: Mask) -> Result<View<bf16>> {
        let dropped = arena.high::<bf16>(x.rows(), self.inputs, self.rank)?;
        ops::dropout(context, dropped, x.slice_cols(0, self.inputs), mask, false)?;
        context.copy(dropped.slice_cols(self.inputs, self.rank), x.slice_cols(self.inputs, self.rank))?;
        Ok(dropped.slice_cols(0, self.inputs + self.rank))
    }

    /// Adds the gradients of magnitudes, given those of the outputs in `dy`: of the products in `product` if they were kept, and
    /// else made again from `x`, with [`Group::lower`] beside it.
    #[allow(clippy::too_many_arguments)]
    pub fn magnitude_gradients(
        &self,
        context: &Context,
        arena: &mut Arena,
        grads: Grads<'_>,
        weight: View<bf16>,
        dy: View<bf16>,
        product: Option<View<bf16>>,
        x: View<bf16>,
        dropping: Option<Dropping>,
    ) -> Result<()> {
        let Some(factors) = self.factors.filter(|_| self.magnitudes_in_training().next().is_some()) else {
            return Ok(());
        };
        let start = arena.mark();
        let product = match (self.reading(dropping), product) {
            // With dropout each adapter's is another.
            (None, _) => None,
            (Some(_), Some(product)) => Some(product),
            (Some(_), None) => {
                let p = arena.high(dy.rows(), self.outputs, 0)?;
                self.products(context, weight, x, p, None)?;
                Some(p)
            }
        };
        let inner = self.inputs + self.rank;
        for (part, adapter, magnitude) in self.magnitudes_in_training() {
            let Grad::Wide(grad) = grads.trainables[magnitude.trained].grad else { continue };
            let mark = arena.mark();
            let p = match product {
                Some(product) => product.slice_cols(part.at, part.outputs),
                None => {
                    let p = arena.high(dy.rows(), part.outputs, 0)?;
                    let input = match adapter.mask(dropping) {
                        Some(mask) => self.dropped(context, arena, x, mask)?,
                        None => x.slice_cols(0, inner),
                    };
                    let w = weight.slice_rows(part.at, part.outputs).slice_cols(0, inner);
                    context.kind(Kind::Base);
                    multiply(context, Layout::Nt, p, 1.0, input, w, None)?;
                    p
                }
            };
            let parts = arena.high::<f32>(1, dora::parts_len(dy.rows(), part.outputs), 0)?;
            let norm = factors.norm.slice_cols(part.at, part.outputs);
            dora::magnitude(context, grad, [dy.slice_cols(part.at, part.outputs), p], norm, parts)?;
            arena.release_high(mark);
        }
        arena.release_high(start);
        Ok(())
    }

    /// The gradients of the products, given those of the outputs: `dy` itself without magnitudes, in its place if it is not needed
    /// any more, or beside it.
    pub fn product_gradient(
        &self,
        context: &Context,
        arena: &mut Arena,
        dy: View<bf16>,
        in_place: bool,
        dropping: Option<Dropping>,
    ) -> Result<View<bf16>> {
        let Some(factors) = self.factors else { return Ok(dy) };
        let to = match in_place && !self.drops(dropping) {
            true => dy,
            false => arena.high(dy.rows(), self.outputs, self.rank)?,
        };
        dora::scale(context, to, dy, factors.factor, 0.0)?;
        Ok(to)
    }

    /// Adds what a magnitude adds to the gradient of an input with dropout, `(f - 1)·dy·W`, to `through`.
    pub(super) fn beyond(
        &self,
        context: &Context,
        arena: &mut Arena,
        weight: View<bf16>,
        part: &Part,
        dy: View<bf16>,
        through: View<bf16>,
    ) -> Result<()> {
        let Some(factors) = self.factors else { return Ok(()) };
        let mark = arena.mark();
        let beyond = arena.high::<bf16>(dy.rows(), part.outputs, 0)?;
        let factor = factors.factor.slice_cols(part.at, part.outputs);
        dora::scale(context, beyond, dy.slice_cols(part.at, part.outputs), factor, 1.0)?;
        let w = weight.slice_rows(part.at, part.outputs).slice_cols(0, self.inputs);
        context.kind(Kind::Base);
        multiply(context, Layout::Nn, through, 1.0, beyond, w, Some((1.0, through)))?;
        arena.release_high(mark);
        Ok(())
    }

    /// The gated activation's backward pass over the products of gate and up, which become their gradients; adds those of
    /// magnitudes and biases.
    pub fn swiglu_backward(
        &self,
        context: &Context,
        arena: &mut Arena,
        grads: Grads<'_>,
        reading: Reading,
        [products, dy]: [View<bf16>; 2],
        again: bool,
    ) -> Result<()> {
        let Some(factors) = self.factors else { return Ok(()) };
        let (mark, rows) = (arena.mark(), dy.rows());
        let len = dora::parts_len(rows, self.outputs);
        let parts = arena.high::<f32>(1, len, 0)?;
        let biased = self.parts.iter().any(|part| part.bias.is_some());
        let bias_parts = biased.then(|| arena.high::<f32>(1, len, 0)).transpose()?;
        dora::swiglu_backward(context, products, dy, reading, (parts, bias_parts), again)?;
        for (part, _, magnitude) in self.magnitudes_in_training() {
            if let Grad::Wide(grad) = grads.trainables[magnitude.trained].grad {
                let norm = factors.norm.slice_cols(part.at, part.outputs);
                dora::add_magnitude(context, grad, norm, parts.slice_cols(part.at, part.outputs), self.outputs, rows)?;
            }
        }
        for part in &self.parts {
            if let (Some(bias), Some(parts)) = (part.bias, bias_parts)
                && let Grad::Wide(grad) = grads.trainables[bias].grad
            {
                dora::add_bias(context, grad, parts, [part.at, self.outputs], rows)?;
            }
        }
        arena.release_high(mark);
        Ok(())
    }
}
