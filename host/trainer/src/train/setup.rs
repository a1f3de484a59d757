//! What a sitting starts with: the model on its device with what updates it, and what is known of the passes to come.

use std::collections::BTreeSet;

use liftplan_engine::Batch;
use liftplan_engine::cuda::Context;

use super::card::{Card, CardOptions};
use super::prepare::Prepared;
use super::{Stepper, build, forecast};
use crate::config::Config;
use crate::data::{self, Dataset, Dealing, Sampler};
use crate::plan::memory::Work;
use crate::plan::{Entry, Plan, Treatment};
use crate::report::{Event, Observer};
use crate::{Error, Result};

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
    passes: &Passes,
    observer: &mut dyn Observer,
) -> Result<Stepper> {
    let (base, plan, options) = (&prepared.base, &prepared.plan, CardOptions::of(config));
    let offer_update = match passes.can_update(config, prepared.picker.is_some()) {
        Err(error) if options.update_in_backward => return Err(error),
        Err(_) => None,
        Ok(()) if config.train.max_grad_norm > 0.0 => {
            Some("train.update_in_backward = true with train.max_grad_norm = 0".to_string())
        }
        Ok(()) => Some("train.update_in_backward = true".to_string()),
    };
    let batch = passes.largest.clone();
    // All that ever trained has its place, so that a checkpoint's numbers find it.
    let revised = prepared.picker.as_ref().map(|picker| (picker.plan(), picker.result()));
    let plan_ever = revised.as_ref().map_or_else(|| plan.clone(), |(now, ever)| with_what_rests(now, ever));
    let resting = revised.as_ref().map(|(now, ever)| resting(now, ever));
    let run = forecast::Run { base, plan: plan_ever, options, batch, offer_update, resting };
    forecast::check(&forecast::Place::of(context)?, &run)?;
    for note in notes(config) {
        observer.on(&Event::Note(note));
    }
    let card = match &revised {
        Some((_, ever)) => Card::to_revise(context, base, ever, config.seed, options, observer)?,
        None => Card::build(context, base, plan, config.seed, options, observer)?,
    };
    Stepper::on_card(card, plan, config)
}

/// The plan with what once trained and rests: it keeps its place on the card, and adapters their gradients and states.
fn with_what_rests(plan: &Plan, ever: &Plan) -> Plan {
    let entries = plan.entries.iter().zip(&ever.entries).map(|(now, ever)| match (&now.treatment, &ever.treatment) {
        (Treatment::Frozen, Treatment::Adapt(_)) => ever.clone(),
        (Treatment::Frozen, Treatment::Train) => Entry { storage: ever.storage, ..now.clone() },
        _ => now.clone(),
    });
    Plan { entries: entries.collect(), ..plan.clone() }
}

/// The weights whose adapters once trained and rest.
fn resting(plan: &Plan, ever: &Plan) -> BTreeSet<String> {
    let pairs = plan.entries.iter().zip(&ever.entries);
    let rests =
        pairs.filter(|(now, ever)| now.treatment == Treatment::Frozen && matches!(ever.treatment, Treatment::Adapt(_)));
    rests.map(|(now, _)| now.tensor.clone()).collect()
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

/// What is known of a run's passes before the first.
pub(super) struct Passes {
    /// The largest one's size.
    pub work: Work,
    /// Its batch.
    pub largest: Batch,
    /// The first step, from 1, of more than one micro-batch: how many, and the tokens of all of them.
    cut: Option<(u64, usize, usize)>,
}

impl Passes {
    /// Deals the steps once more, which costs next to nothing. Of a run of very many steps the first ones tell.
    pub fn of(config: &Config, data: &Dataset, mut sampler: Sampler, total_steps: u64) -> Self {
        const MOST_STEPS: u64 = 10_000;
        let mut work = Work { tokens: 0, targets: 0, longest: 0, recompute: config.train.recompute };
        let (mut largest, mut cut) = (Vec::new(), None);
        for number in 1..=total_steps.min(MOST_STEPS) {
            let Some(step) = sampler.next_step() else { break };
            let mut in_all = 0;
            for micro in &step.micro_batches {
                let examples = || micro.iter().map(|&i| &data.examples[i]);
                let tokens: usize = examples().map(|example| example.ids.len()).sum();
                in_all += tokens;
                if tokens > work.tokens {
                    work.tokens = tokens;
                    work.targets = examples().map(|example| example.is_target.iter().filter(|&&t| t).count()).sum();
                    work.longest = examples().map(|example| example.ids.len()).max().unwrap_or(0);
                    largest.clone_from(micro);
                }
            }
            if step.micro_batches.len() > 1 && cut.is_none() {
                cut = Some((number, step.micro_batches.len(), in_all));
            }
        }
        let largest = data::collate(&largest.iter().map(|&i| &data.examples[i]).collect::<Vec<_>>());
        Self { work, largest, cut }
    }

    /// Whether blocks can be updated inside the backward pass.
    ///
    /// # Errors
    /// Says why not.
    fn can_update(&self, config: &Config, revised: bool) -> Result<()> {
        if revised {
            return Err(Error::plan(
                "`train.update_in_backward`: the policy revises its plan by what is measured after a pass, and weights have \
                 changed by then",
            )
            .help("leave train.update_in_backward out"));
        }
        let Some((step, count, tokens)) = self.cut else { return Ok(()) };
        let examples = match config.train.micro_batch_examples {
            Some(_) => "leave train.micro_batch_examples out, ",
            None => "",
        };
        Err(Error::config(format!(
            "`train.update_in_backward`: step {step} is cut into {count} micro-batches, whose gradients would have to be added \
             before an update"
        ))
        .help(format!(
            "{examples}set train.micro_batch_tokens to {} or more, or lower train.batch_size",
            tokens.next_multiple_of(256)
        )))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::plan::{AdapterSpec, Origin, Picks, Storage};

    #[test]
    fn an_update_inside_the_backward_pass_needs_steps_of_one_pass_and_a_plan_that_stays() {
        let config = |more: &str| {
            let text =
                format!("model = \"/m\"\n[data]\ntrain = \"d.jsonl\"\n[policy]\nname = \"full\"\n[train]\n{more}");
            Config::parse(&text, std::path::Path::new("/nowhere/c.toml"), "c.toml", &[]).unwrap()
        };
        let work = Work { tokens: 2048, targets: 9, longest: 512, recompute: false };
        let passes = |cut| Passes { work, largest: Batch::default(), cut };
        passes(None).can_update(&config("steps = 5\n"), false).unwrap();
        for (cut, revised, more, message) in [
            (
                Some((3, 2, 5000)),
                false,
                "steps = 5\n",
                "`train.update_in_backward`: step 3 is cut into 2 micro-batches, whose gradients would have to be added before an \
                 update\n  help: set train.micro_batch_tokens to 5120 or more, or lower train.batch_size",
            ),
            (
                Some((1, 4, 900)),
                false,
                "micro_batch_examples = 2\n",
                "`train.update_in_backward`: step 1 is cut into 4 micro-batches, whose gradients would have to be added before an \
                 update\n  help: leave train.micro_batch_examples out, set train.micro_batch_tokens to 1024 or more, or lower \
                 train.batch_size",
            ),
            (
                None,
                true,
                "",
                "`train.update_in_backward`: the policy revises its plan by what is measured after a pass, and weights have changed \
                 by then\n  help: leave train.update_in_backward out",
            ),
        ] {
            assert_eq!(passes(cut).can_update(&config(more), revised).unwrap_err().to_string(), message);
        }
    }

    #[test]
    fn what_rests_takes_its_place_still() {
        let nf4 = Storage::Nf4 { block_size: 64, double_quantization: true };
        let adapter = Treatment::Adapt(AdapterSpec { rank: 4, alpha: 8.0, dropout: 0.0, rslora: false, dora: false });
        let plan = |entries: [(&Treatment, Storage); 4]| Plan {
            version: 1,
            origin: Origin { policy: "random".into(), version: "1".into(), settings: serde_json::Value::Null },
            entries: entries
                .into_iter()
                .zip(["w", "x", "y", "z"])
                .map(|((treatment, storage), name)| Entry {
                    tensor: name.into(),
                    treatment: treatment.clone(),
                    storage,
                    lr_scale: 1.0,
                    lr_scale_b: 1.0,
                })
                .collect(),
            picks: Picks::default(),
            scores: Default::default(),
        };
        let (frozen, whole) = (Treatment::Frozen, Treatment::Train);
        let now = plan([(&frozen, nf4), (&frozen, nf4), (&frozen, nf4), (&whole, Storage::Bf16)]);
        let ever = plan([(&frozen, nf4), (&adapter, nf4), (&whole, Storage::Bf16), (&whole, Storage::Bf16)]);
        let expected = plan([(&frozen, nf4), (&adapter, nf4), (&frozen, Storage::Bf16), (&whole, Storage::Bf16)]);
        assert_eq!(with_what_rests(&now, &ever).entries, expected.entries);
        assert_eq!(resting(&now, &ever), BTreeSet::from(["x".to_string()]));
    }
}
