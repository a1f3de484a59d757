//! DoRA's magnitudes and what they are divided by, the norms of the rows of `W + s·B·A`. In: weights and adapters as they lie. Out:
//! [`Factors`], with which `group_dora.rs` makes outputs.
//!
//! ```text
//! ‖W + s·B·A‖² = ‖W‖² + 2·s·B·(W·Aᵀ) + s²·B·(A·Aᵀ)·Bᵀ        row by row, in f32
//! ```
//!
//! What of this does not hold ([`Holds`]) is made before a group's first product in a pass: evaluated batches, prompts and the passes
//! of one step share what the first of them made. Whatever writes a weight or what trains lowers what holds: an update to the squares
//! of frozen weights, in the groups that it changes ([`Decoder::lower_updated`]); weights that are loaded, numbers that are set, a pick,
//! what begins and what stops to nothing ([`Decoder::lower`]).

use half::bf16;

use super::arena::Arena;
use super::block::Block;
use super::context::Context;
use super::decoder::Decoder;
use super::dora::{self, Around};
use super::gemm::{Layout, multiply_own};
use super::group::{Group, Part, PartAdapter};
use super::memory::View;
use super::optim::Update;
use super::profile::Kind;
use super::regroup::place_of;
use super::slab::Slab;
use crate::error::Result;

/// What a group's magnitudes make of its products, one number an output.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Factors {
    /// `m / norm`; 1 where there is no magnitude.
    pub factor: View<f32>,
    /// The norms of rows.
    pub norm: View<f32>,
    /// `‖W‖²` of rows, which lasts while a weight is frozen.
    pub square: View<f32>,
}

impl Factors {
    /// Memory for the factors of so many outputs, all of them 1.
    pub fn take(context: &Context, slab: &mut Slab, outputs: usize) -> Result<Self> {
        let factor = slab.take::<f32>(1, outputs, 0)?;
        context.upload(factor, &vec![1.0; outputs])?;
        Ok(Self { factor, norm: slab.zeros(1, outputs, 0)?, square: slab.zeros(1, outputs, 0)? })
    }
}

/// An adapter's magnitudes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Magnitude {
    /// Which trainable they are.
    pub trained: usize,
    pub values: View<f32>,
}

/// How much of a group's [`Factors`] is that of its weights and adapters as they are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Holds {
    /// Nothing.
    #[default]
    Nothing,
    /// The squares of weights that do not train.
    Squares,
    /// All.
    Factors,
}

impl Decoder {
    fn groups(&self) -> impl Iterator<Item = &Group> {
        self.blocks.iter().flat_map(Block::groups)
    }

    /// Says that nothing holds, since other numbers come.
    pub(super) fn lower(&self) {
        self.groups().for_each(|group| group.holds.set(Holds::Nothing));
    }

    /// Says that factors of what these change do not hold.
    pub(super) fn lower_updated(&self, updates: &[Update]) {
        for update in updates {
            let (block, role) = self.trainables[update.index].key.0;
            let (Some(block), Some((group, part))) = (block, place_of(role)) else { continue };
            let Some(group) = self.blocks.get(block).and_then(|block| block.groups().get(group).copied()) else {
                continue;
            };
            let adapter = group.parts.get(part).and_then(|part| part.adapter.as_ref());
            if adapter.is_some_and(|adapter| adapter.magnitude.is_some()) {
                group.holds.set(group.holds.get().min(Holds::Squares));
            }
        }
    }

    /// Sets DoRA's magnitudes, those whose name `begins`, to the norms of the rows of weights and adapters as they are.
    ///
    /// # Errors
    /// When there is no memory, or the device fails.
    pub fn begin_magnitudes(&mut self, begins: impl Fn(&str) -> bool) -> Result<()> {
        self.lower();
        self.within(|this, arena| {
            let begins = |magnitude: &Magnitude| begins(&this.trainables[magnitude.trained].name);
            this.groups().try_for_each(|group| group.begin_magnitudes(&this.context, arena, begins))
        })?;
        self.release_arena()
    }
}

impl Group {
    pub(super) fn magnitudes(&self) -> impl Iterator<Item = (&Part, &PartAdapter, Magnitude)> {
        self.parts.iter().filter_map(|part| {
            let adapter = part.adapter.as_ref()?;
            Some((part, adapter, adapter.magnitude?))
        })
    }

    /// Makes what does not hold of the factors, from the group's weights with the adapters around them. A dry pass counts what the
    /// whole of it takes, so that no plan depends on the passes before.
    pub fn make_factors(&self, context: &Context, arena: &mut Arena, weight: View<bf16>) -> Result<()> {
        let holds = if context.is_dry() { Holds::Nothing } else { self.holds.get() };
        if holds == Holds::Factors {
            return Ok(());
        }
        self.make_norms(context, arena, weight, holds, |magnitude| Some(magnitude.values))?;
        if !context.is_dry() {
            self.holds.set(Holds::Factors);
        }
        Ok(())
    }

    /// Sets the magnitudes that begin to the norms of the rows as they are, so that their factors are 1.
    fn begin_magnitudes(
        &self,
        context: &Context,
        arena: &mut Arena,
        begins: impl Fn(&Magnitude) -> bool,
    ) -> Result<()> {
        let Some(factors) = self.factors else { return Ok(()) };
        let mark = arena.mark();
        let weight = self.weights(context, arena)?;
        self.make_norms(context, arena, weight, Holds::Nothing, |_| None)?;
        for (part, _, magnitude) in self.magnitudes().filter(|(.., magnitude)| begins(magnitude)) {
            context.copy(magnitude.values, factors.norm.slice_cols(part.at, part.outputs))?;
        }
        arena.release_high(mark);
        Ok(())
    }

    fn make_norms(
        &self,
        context: &Context,
        arena: &mut Arena,
        weight: View<bf16>,
        holds: Holds,
        values: impl Fn(Magnitude) -> Option<View<f32>>,
    ) -> Result<()> {
        let Some(factors) = self.factors else { return Ok(()) };
        let mark = arena.mark();
        // A's rows lie below W's: one product gives W·Aᵀ and, in its last rows, A·Aᵀ.
        let rows = self.outputs + self.rank;
        let products = arena.high::<f32>(rows, self.rank, 0)?;
        let both = weight.slice_rows(0, rows).slice_cols(0, self.inputs);
        context.kind(Kind::Adapter);
        multiply_own(context, Layout::Nt, products, both, both.slice_rows(self.outputs, self.rank))?;
        for (part, adapter, magnitude) in self.magnitudes() {
            let of_part = |view: View<f32>| view.slice_cols(part.at, part.outputs);
            let w = weight.slice_rows(part.at, part.outputs);
            let square = of_part(factors.square);
            // A weight that trains below its adapter changes with every update.
            if holds == Holds::Nothing || part.trained.is_some() {
                dora::squares(context, square, w.slice_cols(0, self.inputs))?;
            }
            let with =
                |first: usize, rows: usize| products.slice_rows(first, rows).slice_cols(adapter.at, adapter.rank);
            let around = Around {
                square,
                b: w.slice_cols(self.inputs + adapter.at, adapter.rank),
                cross: with(part.at, part.outputs),
                gram: with(self.outputs + adapter.at, adapter.rank),
            };
            dora::norms(context, [of_part(factors.norm), of_part(factors.factor)], values(magnitude), around)?;
        }
        arena.release_high(mark);
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::batch::Batch;
    use crate::cuda::{
        AdapterSpec, Builder, Data, Loader, ModelShape, Options, Role, Slot, Storage, TensorSpec, Treatment,
    };
    use crate::optim::{AdamWOptions, Bf16Update};

    const QUERIES: Slot = (Some(0), Role::Q);

    fn adapter(name: &str) -> AdapterSpec {
        let [a, b, m] = ["A", "B", "M"].map(|kind| format!("{name}.{kind}"));
        AdapterSpec { rank: 8, scale: 1.0, dropout: 0.0, dropout_stream: 0, a, b, magnitude: Some(m) }
    }

    /// A block whose queries and last layer have magnitudes, on a card that is not there.
    fn decoder(options: Options) -> Decoder {
        use Role::{Down, Embedding, FinalNorm, Gate, InputNorm, K, O, PostNorm, Q, Up, V};
        let shape = ModelShape {
            vocab: 64,
            hidden: 64,
            intermediate: 128,
            blocks: 1,
            heads: 4,
            kv_heads: 4,
            dim: 16,
            windows: vec![None],
            rms_eps: 1e-6,
            tied: true,
            inverse_frequencies: vec![1.0; 8],
        };
        let in_block = [InputNorm, Q, K, V, O, PostNorm, Gate, Up, Down].map(|role| (Some(0), role));
        let specs = [(None, Embedding), (None, FinalNorm)].into_iter().chain(in_block).map(|slot| TensorSpec {
            slot,
            name: format!("{:?}", slot.1),
            treatment: match slot.1 {
                Q | Down => Treatment::Adapt(adapter(&format!("{:?}", slot.1))),
                _ => Treatment::Frozen,
            },
            storage: Storage::Bf16,
        });
        Builder::new(&Context::dry((9, 0)), &shape, &specs.collect::<Vec<_>>(), options).unwrap().finish()
    }

    fn holding(decoder: &Decoder) -> Vec<Holds> {
        decoder.groups().map(|group| group.holds.get()).collect()
    }

    /// What holds after something was done to a model of which everything held.
    fn after<T>(mut decoder: Decoder, done: impl FnOnce(&mut Decoder) -> Result<T>) -> Vec<Holds> {
        decoder.groups().for_each(|group| group.holds.set(Holds::Factors));
        done(&mut decoder).unwrap();
        holding(&decoder)
    }

    #[test]
    fn whatever_writes_a_number_lowers_what_holds() {
        let plain = || decoder(Options::default());
        let batch = Batch::pack([(&[1_u32, 2, 3, 4][..], &[true; 4][..])]);
        let adamw = AdamWOptions { betas: (0.9, 0.99), eps: 1e-8, bf16_update: Bf16Update::Stochastic, seed: 0 };
        let updates = [Update { index: 0, lr: 1e-3, weight_decay: 0.0 }];
        let [nothing, factors] = [Holds::Nothing, Holds::Factors].map(|holds| vec![holds; 4]);
        // The first of what trains is an adapter's matrix of the queries.
        let of_queries = [vec![Holds::Squares], vec![Holds::Factors; 3]].concat();

        assert_eq!(after(plain(), |decoder| decoder.losses(&batch)), factors);
        assert_eq!(after(plain(), |decoder| decoder.accumulate(&batch, 1.0)), factors);
        assert_eq!(after(plain(), Decoder::grad_norm), factors);
        assert_eq!(after(plain(), |decoder| decoder.update(&adamw, &updates, 1.0)), of_queries);
        let inside = decoder(Options { update_in_backward: true, ..Options::default() });
        let pass = |decoder: &mut Decoder| decoder.accumulate_and_update(&batch, 1.0, &adamw, &updates);
        assert_eq!(after(inside, pass), of_queries);

        assert_eq!(after(plain(), |decoder| decoder.set_value(0, &[0.5; 8 * 64])), nothing);
        assert_eq!(after(plain(), |decoder| decoder.set_states(decoder.states()?)), nothing);
        assert_eq!(after(plain(), |decoder| decoder.begin_magnitudes(|_| true)), nothing);
        assert_eq!(after(plain(), |decoder| decoder.adapt(&[((Some(0), Role::V), adapter("V"))])), nothing);
        assert_eq!(after(plain(), |decoder| decoder.set_active(|_| false)), nothing);
        assert_eq!(after(plain(), |decoder| decoder.adopt(QUERIES, "q", Storage::Bf16)), nothing);
        let mut adopted = plain();
        adopted.adopt(QUERIES, "q", Storage::Bf16).unwrap();
        assert_eq!(after(adopted, |decoder| decoder.begin(QUERIES)), nothing);
        let mut begun = plain();
        begun.adopt(QUERIES, "q", Storage::Bf16).unwrap();
        begun.begin(QUERIES).unwrap();
        assert_eq!(after(begun, |decoder| decoder.cease(QUERIES)), nothing);
        // A weight below an adapter, and one beside.
        for (slot, expected) in [(QUERIES, of_queries), ((Some(0), Role::V), factors)] {
            let mut begun = plain();
            let (index, _) = begun.adopt(slot, "weight", Storage::Bf16).unwrap();
            begun.begin(slot).unwrap();
            let updates = [Update { index, lr: 1e-3, weight_decay: 0.0 }];
            assert_eq!(after(begun, |decoder| decoder.update(&adamw, &updates, 1.0)), expected);
        }

        // A weight that is kept in another way, and one that is loaded.
        let values = [((Some(0), Role::V), Storage::Int8)];
        assert_eq!(after(plain(), |decoder| decoder.store(&values)), nothing);
        let load = |decoder: &mut Decoder| Loader::default().load(decoder, QUERIES, Data::F32(&[0.5; 64 * 64]));
        assert_eq!(after(plain(), load), nothing);
        assert_eq!(after(plain(), |decoder| Loader::default().upload(decoder, QUERIES).map(|_| ())), nothing);
    }
}
