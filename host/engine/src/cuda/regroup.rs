//! Adapters that begin between steps, and weights that are kept in another way from then on. In: weights that have no adapter, and
//! what is to stand beside them or in their place. Out: the same model with the adapters around the weights, and room for the others.
//!
//! A group gets the layout of a model that was built so: ranks in the order of the parts, padded together, and weights that stand in
//! one place if none of them is packed. So a run that goes on from a checkpoint, where it is laid out anew, computes the same numbers
//! with the same memory. Where the room around a weight is too small for that, the weight moves to a place with more.

use std::collections::BTreeMap;

use half::bf16;

use super::builder::{Place, unfit};
use super::decoder::Decoder;
use super::group::{Group, Part, PartAdapter, Standing, padded};
use super::magnitudes::{Factors, Magnitude};
use super::memory::View;
use super::nf4;
use super::ops;
use super::packed::Packed;
use super::slab::Slab;
use super::spec::{AdapterSpec, Role, Slot, Storage};
use super::trainable::{Grad, Trainable};
use crate::error::Result;

/// The linear layers of a block by their groups, in the order of the parts.
const GROUPS: [&[Role]; 4] = [&[Role::Q, Role::K, Role::V], &[Role::O], &[Role::Gate, Role::Up], &[Role::Down]];

/// What becomes of a group, by part.
#[derive(Debug, Default)]
struct Change<'a> {
    /// New adapters.
    adapters: BTreeMap<usize, (Slot, &'a AdapterSpec)>,
    /// How weights are kept from now on.
    storage: BTreeMap<usize, Storage>,
}

/// What changes, by block and group.
type Changes<'a> = BTreeMap<(usize, usize), Change<'a>>;

/// Where a part's numbers lie from now on.
#[derive(Clone, Copy, Debug)]
enum Kept {
    /// In the group's weights.
    Standing(View<bf16>),
    /// Alone, because a neighbour is packed.
    Own(View<bf16>),
    Packed(Packed),
}

impl Decoder {
    /// Puts adapters beside weights that have none. Their matrices are zero until they are set, and train once
    /// [`Decoder::set_active`] says so; magnitudes wait for [`Decoder::begin_magnitudes`] or their numbers.
    ///
    /// # Errors
    /// When a weight is no linear layer's, has an adapter or trains itself; nothing has changed then. When there is no memory: the
    /// layers that came before have their adapters by then, without numbers, so that the model is of no more use.
    pub fn adapt(&mut self, adapters: &[(Slot, AdapterSpec)]) -> Result<()> {
        self.expect_own_gradients()?;
        let mut changes = Changes::new();
        for (slot, spec) in adapters {
            let place = (slot.0).zip(place_of(slot.1));
            let (block, (group, at)) = place.ok_or_else(|| unfit(*slot, "a linear layer, to be adapted", "another"))?;
            let part = self.part_mut(*slot).ok_or_else(|| unfit(*slot, "a weight of this model", "none"))?;
            if part.adapter.is_some() || part.trained.is_some() {
                return Err(unfit(*slot, "a frozen weight without an adapter", "another"));
            }
            changes.entry((block, group)).or_default().adapters.insert(at, (*slot, spec));
        }
        self.context.bind()?;
        // Activations' memory first, so that weights have room to move.
        self.forget_plans()?;
        changes.into_iter().try_for_each(|((block, group), change)| self.regroup(block, group, &change))
    }

    /// Keeps frozen weights in another way from now on: a linear layer's that is packed, or is packed no more or otherwise, has no
    /// numbers until it is loaded ([`super::Loader`]). The rest stands where it stood, in 16 bits (vectors in 32) however it is
    /// called.
    ///
    /// # Errors
    /// When a weight has an adapter or trains, or cannot be kept so; nothing has changed then. When there is no memory: other layers
    /// have changed by then, so that the model is of no more use.
    pub fn store(&mut self, storages: &[(Slot, Storage)]) -> Result<()> {
        self.expect_own_gradients()?;
        let mut changes = Changes::new();
        for &(slot, storage) in storages {
            let trained = match self.places.get(&slot) {
                Some(Place::Matrix { trained, .. } | Place::Vector { trained, .. }) => trained.is_some(),
                Some(Place::Packed(_)) => false,
                None => return Err(unfit(slot, "a weight of this model", "none")),
            };
            let which = (slot.0).zip(place_of(slot.1));
            let part = self.part_mut(slot).map(|part| (part.packed, part.adapter.is_some()));
            if trained || part.is_some_and(|(_, adapted)| adapted) {
                return Err(unfit(slot, "a weight that never trained, to be kept otherwise", "another"));
            }
            let (Some((block, (group, at))), Some((packed, _))) = (which, part) else { continue };
            if let Storage::Nf4 { block: elements, .. } = storage {
                nf4::check(elements, self.shape.shape_of(slot.1)[1])?;
            }
            let stays = packed.map_or(!storage.is_packed(), |packed| packed.is(storage));
            if !stays {
                changes.entry((block, group)).or_default().storage.insert(at, storage);
            }
        }
        if changes.is_empty() {
            return Ok(());
        }
        self.context.bind()?;
        self.forget_plans()?;
        // What shrinks goes first, so that the rest has room.
        let mut changes: Vec<_> =
            changes.into_iter().map(|(which, change)| (self.growth(which, &change), which, change)).collect();
        changes.sort_by_key(|(growth, which, _)| (*growth, *which));
        changes.into_iter().try_for_each(|(_, (block, group), change)| self.regroup(block, group, &change))
    }

    /// Bits that a group's weights take more than before, about.
    fn growth(&mut self, (block, which): (usize, usize), change: &Change<'_>) -> i64 {
        let Some(group) = self.blocks.get_mut(block).map(|block| group_of(block, which)) else { return 0 };
        let bits = |packed: Option<&Packed>| match packed {
            None => 16,
            Some(Packed::Int8(_)) => 8,
            Some(Packed::Nf4(_)) => 4,
        };
        let bits_then = |storage: &Storage| match storage {
            Storage::F32 | Storage::Bf16 => 16,
            Storage::Int8 => 8,
            Storage::Nf4 { .. } => 4,
        };
        let parts = change.storage.iter().filter_map(|(&at, storage)| Some((group.parts.get(at)?, storage)));
        parts
            .map(|(part, storage)| {
                (part.outputs * group.inputs) as i64 * (bits_then(storage) - bits(part.packed.as_ref()))
            })
            .sum()
    }

    /// Lays a group out as a model has it that was built so.
    fn regroup(&mut self, block: usize, which: usize, change: &Change<'_>) -> Result<()> {
        let Self { context, blocks, trainables, places, map, slab, options, .. } = self;
        let Some(group) = blocks.get_mut(block).map(|block| group_of(block, which)) else { return Ok(()) };
        let (inputs, outputs) = (group.inputs, group.outputs);
        let wanted = &change.adapters;
        let rank_of = |(at, part): (usize, &Part)| match &part.adapter {
            Some(adapter) => adapter.rank,
            None => wanted.get(&at).map_or(0, |(_, spec)| spec.rank),
        };
        let of_parts: Vec<usize> = group.parts.iter().enumerate().map(rank_of).collect();
        let ranks = of_parts.iter().sum();
        let rank = padded(ranks, options);
        let is_packed = |(at, part): (usize, &Part)| match change.storage.get(&at) {
            Some(storage) => storage.is_packed(),
            None => part.packed.is_some(),
        };
        let assembled = group.parts.iter().enumerate().any(is_packed);

        // All memory is asked for before anything changes. What may move again has buffers of its own.
        let (mut fresh, before) = (Slab::apart(context), group.standing());
        let moves = rank != group.rank || assembled != before.weight.is_none();
        let standing = match moves {
            true => Standing::take(&mut fresh, [outputs, inputs, rank], assembled)?,
            false => before,
        };
        let numbers = |weight: View<bf16>, part: &Part| weight.slice_rows(part.at, part.outputs).slice_cols(0, inputs);
        let mut kept = Vec::with_capacity(group.parts.len());
        for (at, part) in group.parts.iter().enumerate() {
            let packed = match change.storage.get(&at) {
                None => part.packed,
                Some(&storage) => {
                    let map = map.wanted(context, slab, storage)?;
                    Packed::take(&mut fresh, [part.outputs, inputs], storage, map)?
                }
            };
            kept.push(match (packed, standing.weight, part.own) {
                (Some(packed), ..) => Kept::Packed(packed),
                (None, Some(weight), _) => Kept::Standing(numbers(weight, part)),
                (None, None, Some(own)) => Kept::Own(own),
                (None, None, None) => Kept::Own(fresh.take(part.outputs, inputs, 0)?),
            });
        }
        let a_grad = match wanted.is_empty() {
            true => group.a_grad,
            false => Some(fresh.take::<f32>(ranks, inputs, 0)?),
        };
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

        let mut left: (Vec<View<bf16>>, Vec<Packed>) = Default::default();
        for (((part, role), kept), at) in group.parts.iter_mut().zip(GROUPS[which]).zip(kept).zip(0..) {
            let from = part.own.or_else(|| before.weight.map(|weight| numbers(weight, part)));
            if change.storage.contains_key(&at) {
                left.1.extend(part.packed);
            }
            part.packed = None;
            let own = part.own.take();
            let to = match kept {
                Kept::Packed(packed) => {
                    part.packed = Some(packed);
                    places.insert((Some(block), *role), Place::Packed(packed));
                    left.0.extend(own);
                    continue;
                }
                Kept::Own(view) => {
                    part.own = Some(view);
                    view
                }
                Kept::Standing(view) => {
                    left.0.extend(own);
                    view
                }
            };
            let moved = from.filter(|from| from.ptr() != to.ptr());
            moved.map_or(Ok(()), |from| context.copy(to, from))?;
            let place = places.entry((Some(block), *role)).or_insert(Place::Matrix { view: to, trained: None });
            let trained = if let Place::Matrix { trained, .. } = place { *trained } else { None };
            *place = Place::Matrix { view: to, trained };
            if let Some(index) = trained {
                trainables[index].copy = Some(to);
            }
        }
        if !moves && !wanted.is_empty() {
            standing.clear(context, [outputs, inputs, rank])?;
        }
        let mut at = 0;
        for (i, ((part, role), rank)) in group.parts.iter_mut().zip(GROUPS[which]).zip(of_parts).enumerate() {
            let slot = (Some(block), *role);
            let Some(a_grad) = a_grad.filter(|_| rank > 0) else { continue };
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
        let grad_before = std::mem::replace(&mut group.a_grad, a_grad);
        slab.join(fresh);
        // What is given back was read by copies that are queued.
        context.synchronize()?;
        if !wanted.is_empty() {
            grad_before.into_iter().for_each(|view| slab.give_back(view));
        }
        if moves {
            [before.weight, before.a, before.b].into_iter().flatten().for_each(|view| slab.give_back(view));
        }
        left.0.into_iter().for_each(|view| slab.give_back(view));
        left.1.into_iter().for_each(|packed| packed.give_back(slab));
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
