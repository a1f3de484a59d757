//! What a sitting starts with: the model on its device with what updates it, and the largest pass that it will see.

use liftplan_engine::Batch;
use liftplan_engine::cuda::Context;

use super::card::{Card, CardOptions};
use super::prepare::Prepared;
use super::{Stepper, build, forecast};
use crate::Result;
use crate::config::Config;
use crate::data::{self, Dataset, Dealing, Sampler};
use crate::plan::memory::Work;
use crate::report::{Event, Observer};

/// The model on the processor, with what updates it.
pub(super) fn on_processor(
    config: &Config,
    prepared: &Prepared,
    resumed: bool,
    observer: &mut dyn Observer,
) -> Result<Stepper> {
    let (base, plan) = (&prepared.base, &prepared.plan);
    let decoder = match &prepared.picker {
        Some(picker) if resumed => picker.build(base, config.seed, observer)?,
        _ => build(base, plan, config.seed, observer)?,
    };
    Ok(Stepper::new(decoder, plan, config))
}

/// The same on a GPU, once it is known to fit.
pub(super) fn on_card(
    context: &Context,
    config: &Config,
    prepared: &Prepared,
    largest: &Batch,
    observer: &mut dyn Observer,
) -> Result<Stepper> {
    let (base, plan, options) = (&prepared.base, &prepared.plan, CardOptions::of(config));
    forecast::check(
        &forecast::Place::of(context)?,
        &forecast::Run { base, plan: plan.clone(), options, batch: largest.clone() },
    )?;
    for note in notes(config) {
        observer.on(&Event::Note(note));
    }
    let card = match &prepared.picker {
        // All that ever trained has its place, so that a checkpoint's numbers find it.
        Some(picker) => Card::to_revise(context, base, &picker.result(), config.seed, options, observer)?,
        None => Card::build(context, base, plan, config.seed, options, observer)?,
    };
    Stepper::on_card(card, plan, config)
}

/// What settings that were made for the processor come to on a GPU.
fn notes(config: &Config) -> impl Iterator<Item = &'static str> {
    let recompute = config.train.recompute.then_some(
        "train.recompute: every block is computed again in the backward pass; without it as many are kept as fit into memory",
    );
    let paged = config.optimizer.name.is_paged().then_some(
        "optimizer.name: on a GPU the states stay in its memory, where the optimiser of the same name without \"paged_\" has them",
    );
    recompute.into_iter().chain(paged)
}

/// How a step's examples are cut into micro-batches.
pub(super) fn dealing(config: &Config) -> Dealing {
    Dealing {
        packing: config.data.packing,
        micro_batch_tokens: config.train.micro_batch_tokens,
        micro_batch_examples: config.train.micro_batch_examples,
    }
}

/// The largest pass of the run, and its batch: the steps are dealt once more, which costs next to nothing. Of a run of very many
/// steps the first ones tell.
pub(super) fn largest_pass(config: &Config, data: &Dataset, mut sampler: Sampler, total_steps: u64) -> (Work, Batch) {
    const MOST_STEPS: u64 = 10_000;
    let mut work = Work { tokens: 0, targets: 0, longest: 0, recompute: config.train.recompute };
    let mut largest = Vec::new();
    for _ in 0..total_steps.min(MOST_STEPS) {
        let Some(step) = sampler.next_step() else { break };
        for micro in &step.micro_batches {
            let examples = || micro.iter().map(|&i| &data.examples[i]);
            let tokens: usize = examples().map(|example| example.ids.len()).sum();
            if tokens > work.tokens {
                work.tokens = tokens;
                work.targets = examples().map(|example| example.is_target.iter().filter(|&&t| t).count()).sum();
                work.longest = examples().map(|example| example.ids.len()).max().unwrap_or(0);
                largest.clone_from(micro);
            }
        }
    }
    (work, data::collate(&largest.iter().map(|&i| &data.examples[i]).collect::<Vec<_>>()))
}
