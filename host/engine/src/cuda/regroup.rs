//! Adapters that begin between steps, and weights that are kept in another way from then on. In: weights that have no adapter, and
//! what is to stand beside them or in their place. Out: the same model with the adapters around the weights, and room for the others.
//!
//! A group gets the layout of a model that was built so: ranks in the order of the parts, padded together, and weights that stand in
//! one place if none of them is packed. So a run that goes on from a checkpoint, where it is laid out anew, computes the same numbers
//! with the same memory. Where the room around a weight is too small for that, the weight moves to a place with more.

use std::collections::BTreeMap;

use half::bf16;

use super::builder::{Place, unfit};
use super::context::Context;
use super::decoder::Decoder;
use super::group::{Group, Part, PartAdapter, Standing, padded};
use super::magnitudes::{Factors, Magnitude};
use super::memory::View;
use super::nf4;
use super::ops;
use super::packed::{Map, Packed};
use super::slab::Slab;
use super::spec::{AdapterSpec, Options, Role, Slot, Storage};
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
        let slots: Vec<Slot> = GROUPS[which].iter().map(|role| (Some(block), *role)).collect();
        // All memory is asked for before anything changes. What may move again has buffers of its own.
        let (mut fresh, before) = (Slab::apart(context), group.standing());
        let layout = Layout::take(context, [slab, &mut fresh], map, options, group, change)?;
        let mut left = layout.put_weights(context, group, &slots, change, (places, trainables))?;
        if layout.moves {
            left.narrow.extend([before.weight, before.a, before.b].into_iter().flatten());
        } else if !change.adapters.is_empty() {
            layout.standing.clear(context, [group.outputs, group.inputs, layout.rank])?;
        }
        layout.put_adapters(context, group, &slots, change, trainables)?;
        let Layout { standing, rank, ranks, factors, a_grad, .. } = layout;
        (group.weight, group.a, group.b) = (standing.weight, standing.a, standing.b);
        (group.rank, group.ranks, group.factors) = (rank, ranks.iter().sum(), factors);
        let grad_before = std::mem::replace(&mut group.a_grad, a_grad).filter(|_| !change.adapters.is_empty());
        slab.join(fresh);
        // What is given back was read by copies that are queued.
        context.synchronize()?;
        grad_before.into_iter().for_each(|view| slab.give_back(view));
        left.narrow.into_iter().for_each(|view| slab.give_back(view));
        left.packed.into_iter().for_each(|packed| packed.give_back(slab));
        Ok(())
    }

    pub(super) fn part_mut(&mut self, (block, role): Slot) -> Option<&mut Part> {
        let (group, at) = place_of(role)?;
        group_of(self.blocks.get_mut(block?)?, group).parts.get_mut(at)
    }
}

/// What a group left behind.
#[derive(Default)]
struct Left {
    narrow: Vec<View<bf16>>,
    packed: Vec<Packed>,
}

/// A group as it is to be, with all the memory that this takes.
struct Layout {
    /// Ranks of each part's adapter, and columns of all with padding.
    ranks: Vec<usize>,
    rank: usize,
    /// Where weights without packed neighbours and adapters stand, and whether that is another place than before.
    standing: Standing,
    moves: bool,
    /// Of each part.
    kept: Vec<Kept>,
    a_grad: Option<View<f32>>,
    /// A, B and B's gradient of each new adapter, by part; its magnitudes and their gradient, with DoRA.
    matrices: BTreeMap<usize, [View<f32>; 3]>,
    magnitudes: BTreeMap<usize, [View<f32>; 2]>,
    factors: Option<Factors>,
}

impl Layout {
    /// What may move again is taken from the second of the `slabs`.
    fn take(
        context: &Context,
        [slab, fresh]: [&mut Slab; 2],
        map: &mut Map,
        options: &Options,
        group: &Group,
        change: &Change<'_>,
    ) -> Result<Self> {
        let (inputs, outputs) = (group.inputs, group.outputs);
        let rank_of = |(at, part): (usize, &Part)| match &part.adapter {
            Some(adapter) => adapter.rank,
            None => change.adapters.get(&at).map_or(0, |(_, spec)| spec.rank),
        };
        let ranks: Vec<usize> = group.parts.iter().enumerate().map(rank_of).collect();
        let rank = padded(ranks.iter().sum(), options);
        let is_packed = |(at, part): (usize, &Part)| match change.storage.get(&at) {
            Some(storage) => storage.is_packed(),
            None => part.packed.is_some(),
        };
        let assembled = group.parts.iter().enumerate().any(is_packed);
        let moves = rank != group.rank || assembled != group.weight.is_none();
        let standing = match moves {
            true => Standing::take(fresh, [outputs, inputs, rank], assembled)?,
            false => group.standing(),
        };
        let mut kept = Vec::with_capacity(group.parts.len());
        for (at, part) in group.parts.iter().enumerate() {
            let packed = match change.storage.get(&at) {
                None => part.packed,
                Some(&storage) => {
                    let map = map.wanted(context, slab, storage)?;
                    Packed::take(fresh, [part.outputs, inputs], storage, map)?
                }
            };
            kept.push(match (packed, standing.weight, part.own) {
                (Some(packed), ..) => Kept::Packed(packed),
                (None, Some(weight), _) => Kept::Standing(group.numbers(weight, part)),
                (None, None, Some(own)) => Kept::Own(own),
                (None, None, None) => Kept::Own(fresh.take(part.outputs, inputs, 0)?),
            });
        }
        let a_grad = match change.adapters.is_empty() {
            true => group.a_grad,
            false => Some(fresh.take::<f32>(ranks.iter().sum(), inputs, 0)?),
        };
        let (mut matrices, mut magnitudes) = (BTreeMap::new(), BTreeMap::new());
        for (&at, (_, spec)) in &change.adapters {
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
        Ok(Self { ranks, rank, standing, moves, kept, a_grad, matrices, magnitudes, factors })
    }

    /// Queues the parts' numbers into their places, and notes those; gives what they left.
    fn put_weights(
        &self,
        context: &Context,
        group: &mut Group,
        slots: &[Slot],
        change: &Change<'_>,
        (places, trainables): (&mut BTreeMap<Slot, Place>, &mut [Trainable]),
    ) -> Result<Left> {
        let mut left = Left::default();
        let stood: Vec<_> =
            group.parts.iter().map(|part| group.weight.map(|weight| group.numbers(weight, part))).collect();
        for (((part, stood), (slot, kept)), at) in
            group.parts.iter_mut().zip(stood).zip(slots.iter().zip(&self.kept)).zip(0..)
        {
            let from = part.own.or(stood);
            if change.storage.contains_key(&at) {
                left.packed.extend(part.packed);
            }
            part.packed = None;
            let own = part.own.take();
            let to = match *kept {
                Kept::Packed(packed) => {
                    part.packed = Some(packed);
                    places.insert(*slot, Place::Packed(packed));
                    left.narrow.extend(own);
                    continue;
                }
                Kept::Own(view) => {
                    part.own = Some(view);
                    view
                }
                Kept::Standing(view) => {
                    left.narrow.extend(own);
                    view
                }
            };
            let moved = from.filter(|from| from.ptr() != to.ptr());
            moved.map_or(Ok(()), |from| context.copy(to, from))?;
            let place = places.entry(*slot).or_insert(Place::Matrix { view: to, trained: None });
            let trained = if let Place::Matrix { trained, .. } = place { *trained } else { None };
            *place = Place::Matrix { view: to, trained };
            if let Some(index) = trained {
                trainables[index].copy = Some(to);
            }
        }
        Ok(left)
    }

    /// Puts adapters around the weights: those that are there, with their numbers, and new ones, which do not train yet.
    fn put_adapters(
        &self,
        context: &Context,
        group: &mut Group,
        slots: &[Slot],
        change: &Change<'_>,
        trainables: &mut Vec<Trainable>,
    ) -> Result<()> {
        let shape = [group.outputs, group.inputs];
        let mut at = 0;
        for (i, ((part, &slot), &rank)) in group.parts.iter_mut().zip(slots).zip(&self.ranks).enumerate() {
            let Some(a_grad) = self.a_grad.filter(|_| rank > 0) else { continue };
            let a_grad = a_grad.slice_rows(at, rank);
            let [a_copy, b_copy] = (self.standing)
                .adapter(shape, (part.at, part.outputs), (at, rank))
                .ok_or_else(|| unfit(slot, "room for an adapter", "none"))?;
            match (&mut part.adapter, change.adapters.get(&i), self.matrices.get(&i)) {
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
                    let magnitude = spec.magnitude.as_ref().zip(self.magnitudes.get(&i)).map(|(name, &numbers)| {
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
        Ok(())
    }
}

impl Group {
    /// A part's numbers in the group's weights.
    fn numbers(&self, weight: View<bf16>, part: &Part) -> View<bf16> {
        weight.slice_rows(part.at, part.outputs).slice_cols(0, self.inputs)
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
