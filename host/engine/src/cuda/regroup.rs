//! Adapters that begin between steps. In: weights that have none, and what is to stand beside them. Out: the same model with the
//! adapters around the weights.
//!
//! A group gets the layout of a model that had all of its adapters from the start: ranks in the order of the parts, padded together.
//! So a run that goes on from a checkpoint, where it is laid out anew, computes the same numbers. Where the room around a weight is
//! too small for that, the weight moves to a place with more.

use std::collections::BTreeMap;

use half::bf16;

use super::builder::{Place, unfit};
use super::decoder::Decoder;
use super::group::{Group, Part, PartAdapter, Standing, padded};
use super::magnitudes::{Factors, Magnitude};
use super::memory::View;
use super::ops;
use super::slab::Slab;
use super::spec::{AdapterSpec, Role, Slot};
use super::trainable::{Grad, Trainable};
use crate::error::Result;

/// The linear layers of a block by their groups, in the order of the parts.
const GROUPS: [&[Role]; 4] = [&[Role::Q, Role::K, Role::V], &[Role::O], &[Role::Gate, Role::Up], &[Role::Down]];

/// New adapters of a group, by part.
type Wanted<'a> = BTreeMap<usize, (Slot, &'a AdapterSpec)>;

impl Decoder {
    /// Puts adapters beside weights that have none. Their matrices are zero until they are set, and train once
    /// [`Decoder::set_active`] says so; magnitudes wait for [`Decoder::begin_magnitudes`] or their numbers.
    ///
    /// # Errors
    /// When a weight is no linear layer's, has an adapter or trains itself; nothing has changed then. When there is no memory: the
    /// layers that came before have their adapters by then, without numbers, so that the model is of no more use.
    pub fn adapt(&mut self, adapters: &[(Slot, AdapterSpec)]) -> Result<()> {
        self.expect_own_gradients()?;
        let mut groups: BTreeMap<(usize, usize), Wanted<'_>> = BTreeMap::new();
        for (slot, spec) in adapters {
            let place = (slot.0).zip(place_of(slot.1));
            let (block, (group, at)) = place.ok_or_else(|| unfit(*slot, "a linear layer, to be adapted", "another"))?;
            let part = self.part_mut(*slot).ok_or_else(|| unfit(*slot, "a weight of this model", "none"))?;
            if part.adapter.is_some() || part.trained.is_some() {
                return Err(unfit(*slot, "a frozen weight without an adapter", "another"));
            }
            groups.entry((block, group)).or_default().insert(at, (*slot, spec));
        }
        self.context.bind()?;
        // Activations' memory first, so that weights have room to move.
        self.forget_plans()?;
        groups.into_iter().try_for_each(|((block, group), wanted)| self.regroup(block, group, &wanted))
    }

    fn regroup(&mut self, block: usize, which: usize, wanted: &Wanted<'_>) -> Result<()> {
        let Self { context, blocks, trainables, places, slab, options, .. } = self;
        let Some(group) = blocks.get_mut(block).map(|block| group_of(block, which)) else { return Ok(()) };
        let (inputs, outputs) = (group.inputs, group.outputs);
        let rank_of = |(at, part): (usize, &Part)| match &part.adapter {
            Some(adapter) => adapter.rank,
            None => wanted.get(&at).map_or(0, |(_, spec)| spec.rank),
        };
        let of_parts: Vec<usize> = group.parts.iter().enumerate().map(rank_of).collect();
        let ranks = of_parts.iter().sum();
        let rank = padded(ranks, options);

        // All memory is asked for before anything changes. What may move again has buffers of its own.
        let (mut fresh, before, moves) = (Slab::apart(context), group.standing(), rank != group.rank);
        let standing = match moves {
            true => Standing::take(&mut fresh, [outputs, inputs, rank], group.weight.is_none())?,
            false => before,
        };
        let a_grad = fresh.take::<f32>(ranks, inputs, 0)?;
        let mut matrices: BTreeMap<usize, [View<f32>; 3]> = BTreeMap::new();
        let mut magnitudes: BTreeMap<usize, [View<f32>; 2]> = BTreeMap::new();
        for (&at, (_, spec)) in wanted {
            let rows = group.parts.get(at).map_or(0, |part| part.outputs);
            let (a, b) = (slab.zeros(spec.rank, inputs, 0)?, slab.zeros(rows, spec.rank, 0)?);
            matrices.insert(at, [a, b, slab.take(rows, spec.rank, 0)?]);
            if spec.magnitude.is_some() {
                magnitudes.insert(at, [slab.zeros(1, rows, 0)?, slab.zeros(1, rows, 0)?]);
            }
        }
        let factors = match group.factors {
            None if !magnitudes.is_empty() => Some(Factors::take(context, slab, outputs)?),
            factors => factors,
        };

        let numbers = |view: View<bf16>| view.slice_rows(0, outputs).slice_cols(0, inputs);
        match (moves, standing.weight, before.weight) {
            (true, Some(to), Some(from)) => context.copy(numbers(to), numbers(from))?,
            (true, ..) => {}
            (false, ..) => standing.clear(context, [outputs, inputs, rank])?,
        }
        let mut at = 0;
        for (i, ((part, role), rank)) in group.parts.iter_mut().zip(GROUPS[which]).zip(of_parts).enumerate() {
            let slot = (Some(block), *role);
            if let Some(weight) = standing.weight.filter(|_| moves)
                && let Some(Place::Matrix { view, trained }) = places.get_mut(&slot)
            {
                *view = numbers(weight).slice_rows(part.at, part.outputs);
                if let Some(index) = *trained {
                    trainables[index].copy = Some(*view);
                }
            }
            if rank == 0 {
                continue;
            }
            let a_grad = a_grad.slice_rows(at, rank);
            let [a_copy, b_copy] = standing
                .adapter([outputs, inputs], (part.at, part.outputs), (at, rank))
                .ok_or_else(|| unfit(slot, "room for an adapter", "none"))?;
            match (&mut part.adapter, wanted.get(&i), matrices.get(&i)) {
                (Some(adapter), ..) => {
                    adapter.at = at;
                    for trainable in trainables.iter_mut().filter(|trainable| trainable.key.0 == slot) {
                        let copy = match trainable.key.1 {
                            1 => {
                                trainable.grad = Grad::Wide(a_grad);
                                a_copy
                            }
                            2 => b_copy,
                            _ => continue,
                        };
                        trainable.copy = Some(copy);
                        if let Some(master) = trainable.master {
                            ops::scaled_copy(context, copy, master, trainable.scale)?;
                        }
                    }
                }
                (None, Some((_, spec)), Some(&[a, b, b_grad])) => {
                    let of = |name: &str, key, copy, scale, numbers| Trainable {
                        trains: false,
                        ..Trainable::of_adapter(name, (slot, key), copy, scale, numbers)
                    };
                    trainables.push(of(&spec.a, 1, a_copy, 1.0, [a, a_grad]));
                    trainables.push(of(&spec.b, 2, b_copy, spec.scale, [b, b_grad]));
                    let b = trainables.len() - 1;
                    let magnitude = spec.magnitude.as_ref().zip(magnitudes.get(&i)).map(|(name, &numbers)| {
                        let trains = false;
                        trainables.push(Trainable { trains, ..Trainable::of_vector(name, (slot, 3), numbers) });
                        Magnitude { trained: b + 1, values: numbers[0] }
                    });
                    part.adapter = Some(PartAdapter { trains: false, ..PartAdapter::new(spec, at, b, magnitude) });
                }
                _ => {}
            }
            at += rank;
        }
        (group.weight, group.a, group.b) = (standing.weight, standing.a, standing.b);
        (group.rank, group.ranks, group.factors) = (rank, ranks, factors);
        let grad_before = group.a_grad.replace(a_grad);
        slab.join(fresh);
        // What is given back was read by copies that are queued.
        context.synchronize()?;
        grad_before.into_iter().for_each(|view| slab.give_back(view));
        if moves {
            [before.weight, before.a, before.b].into_iter().flatten().for_each(|view| slab.give_back(view));
        }
        Ok(())
    }

    pub(super) fn part_mut(&mut self, (block, role): Slot) -> Option<&mut Part> {
        let (group, at) = place_of(role)?;
        group_of(self.blocks.get_mut(block?)?, group).parts.get_mut(at)
    }
}

/// A linear layer's group in its block, and its part there.
pub(super) fn place_of(role: Role) -> Option<(usize, usize)> {
    let mut groups = GROUPS.iter().enumerate();
    groups.find_map(|(group, roles)| roles.iter().position(|of| *of == role).map(|at| (group, at)))
}

fn group_of(block: &mut super::block::Block, which: usize) -> &mut Group {
    match which {
        0 => &mut block.qkv,
        1 => &mut block.o,
        2 => &mut block.gate_up,
        _ => &mut block.down,
    }
}
