//! What happens in the steps of a run with picks: adapters that begin, rest and begin again, and weights that are kept in another way
//! from a step on. In: a step. Out: the card's model as it is laid out then, or changed by the pick before it.

use liftplan_engine::cuda::{AdapterSpec, Context, Decoder as CudaDecoder, Loader, Role, Slot, Storage, Treatment};

use crate::picks::put;
use crate::tiny::{self, Case, Values, on_card_with, slots, treatment};

/// What happens in the steps, from 0; picks are before those of [`PICKS`], and may be before others.
#[derive(Clone, Copy)]
pub(super) struct Script {
    /// Whether a weight's adapter trains in a step.
    pub trains: fn(u32, Slot) -> bool,
    /// How a weight is kept in a step.
    pub kept: fn(&Case, u32, Slot) -> Storage,
    /// The steps from which other runs go on.
    pub resumed: [u32; 2],
}

pub(super) const PICKS: [u32; 2] = [6, 12];

/// Other runs go on where one adapter rests, and others are still to begin; and where all of the lower blocks' rest.
pub(super) const ADAPTERS: Script =
    Script { trains, kept: |case, _, slot| tiny::storage(case, slot), resumed: [11, 16] };

/// Few adapters, beside which weights are packed, unpacked and packed otherwise; other runs go on behind the first such pick and
/// the last.
pub(super) const STORED: Script = Script {
    trains: |step, slot| match slot {
        (Some(0), Role::K | Role::O | Role::Down) => step >= 6,
        (Some(1), Role::K | Role::Gate) | (Some(2), Role::V) => true,
        _ => false,
    },
    kept: |_, step, slot| {
        let (plain, int8) = (Storage::F32, Storage::Int8);
        let (nf4, finer) = (Storage::Nf4 { block: 64, double: true }, Storage::Nf4 { block: 32, double: false });
        let storages = match slot {
            // None is packed at first, and all are then; an adapter begins over what is packed or unpacked in that moment.
            (Some(0), Role::Q) => [plain, plain, nf4],
            (Some(0), Role::K) => [plain, nf4, nf4],
            (Some(0), Role::V) => [plain, int8, plain],
            (Some(0), Role::O) => [plain, finer, finer],
            (Some(0), Role::Gate) => [plain, nf4, finer],
            (Some(0), Role::Up) => [plain, nf4, plain],
            (Some(0), Role::Down) => [nf4, plain, plain],
            // Beside an adapter and, where the method has them, weights that train whole.
            (Some(1), Role::V) => [plain, nf4, plain],
            (Some(1), Role::O) => [nf4, plain, int8],
            (Some(1), Role::Down) => [nf4, finer, plain],
            (Some(2), Role::V) => [nf4; 3],
            (Some(2), Role::K) => [nf4, plain, nf4],
            (Some(2), Role::O) => [plain, nf4, plain],
            (Some(2), Role::Gate) => [int8, nf4, plain],
            (Some(2), Role::Down) => [int8, plain, nf4],
            _ => [plain; 3],
        };
        storages[PICKS.iter().filter(|&&pick| step >= pick).count()]
    },
    resumed: [8, 15],
};

/// Whether a weight's adapter trains in a step, from 0: two in a block from the start, those between and behind them later, those of
/// the first block, which had none, last; one rests for a while, and then all but those of the last block's feed-forward half.
fn trains(step: u32, slot: Slot) -> bool {
    let Some(block) = slot.0 else { return false };
    let from = match slot.1 {
        _ if block == 0 => 12,
        Role::K | Role::Gate => 0,
        _ => 6,
    };
    let rests = match step {
        9..13 => block == 1 && slot.1 == Role::Gate,
        15..18 => block < 2 || !matches!(slot.1, Role::Gate | Role::Up | Role::Down),
        _ => false,
    };
    step >= from && !rests
}

impl Script {
    /// Whether an adapter ever trained.
    pub fn began(&self, step: u32, slot: Slot) -> bool {
        (0..=step).any(|step| (self.trains)(step, slot))
    }

    /// Adapters that begin in a step.
    pub fn begins(&self, case: &Case, step: u32) -> Vec<(Slot, AdapterSpec)> {
        adapters(case, |slot| step > 0 && self.began(step, slot) && !self.began(step - 1, slot))
    }

    /// Weights that are kept otherwise than in the step before.
    pub fn stored(&self, case: &Case, step: u32) -> Vec<(Slot, String, Storage)> {
        let all = slots(case).into_iter().map(|(slot, name)| (slot, name, (self.kept)(case, step, slot)));
        all.filter(|(slot, _, storage)| step > 0 && *storage != (self.kept)(case, step - 1, *slot)).collect()
    }

    /// The card's model as it is laid out by a plan of that step.
    pub fn on_card(&self, context: &Context, case: &Case, values: &Values, step: u32) -> CudaDecoder {
        let (adapted, kept) = (|slot| self.began(step, slot), |slot| (self.kept)(case, step, slot));
        on_card_with(context, case, values, adapted, kept)
    }

    /// What a pick before the step does to it, as the trainer does.
    pub fn pick(&self, decoder: &mut CudaDecoder, case: &Case, values: &Values, step: u32) {
        let stored = self.stored(case, step);
        let storages: Vec<_> = stored.iter().map(|(slot, _, storage)| (*slot, *storage)).collect();
        decoder.store(&storages).unwrap();
        let mut loader = Loader::default();
        for (slot, name, storage) in &stored {
            tiny::load(&mut loader, decoder, values, (*slot, name, *storage));
        }
        let begins = self.begins(case, step);
        if !begins.is_empty() {
            begin(decoder, values, &begins);
        }
    }
}

/// The adapters that a case has beside some weights.
pub(super) fn adapters(case: &Case, wanted: impl Fn(Slot) -> bool) -> Vec<(Slot, AdapterSpec)> {
    let all = slots(case).into_iter().filter(|(slot, _)| wanted(*slot));
    all.filter_map(|(slot, name)| match treatment(case, slot, &name) {
        Treatment::Adapt(spec) => Some((slot, spec)),
        _ => None,
    })
    .collect()
}

/// Puts adapters beside weights that have none, with their first numbers.
pub(super) fn begin(decoder: &mut CudaDecoder, values: &Values, adapters: &[(Slot, AdapterSpec)]) {
    decoder.adapt(adapters).unwrap();
    let names = adapters.iter().flat_map(|(_, spec)| [&spec.a, &spec.b].into_iter().chain(&spec.magnitude));
    let first = names.map(|name| (name.clone(), values[name].2.clone())).collect();
    put(decoder, &first);
}
