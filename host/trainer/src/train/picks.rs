//! The picks of a run: between two steps the policy revises the plan, and the decoder follows it.
//!
//! In: the first plan and the policy that made it. Out: the plan as it stands, what ever trained, and the part of a
//! checkpoint that makes a resumed run draw what the uninterrupted one would have drawn.

use std::collections::BTreeMap;
use std::time::Instant;

use liftplan_engine::Decoder;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::build::{adapter, read as read_weight};
use super::card::check;
use super::{Stepper, build};
use crate::config::Config;
use crate::hash::hex;
use crate::model::BaseModel;
use crate::plan::{Plan, PlanBuilder, Storage, Treatment};
use crate::policy::{self, Moment, Norms, Policy, PolicyState};
use crate::report::{Observer, PickRecord};
use crate::stats::ModelStatistics;
use crate::{Error, Result};

/// The picks of a run whose plan asks for some.
pub(super) struct Picker {
    policy: Box<dyn Policy>,
    memory: Memory,
}

/// What lives on in checkpoints.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Memory {
    /// The plan as it stands.
    plan: Plan,
    /// The treatment of each tensor that trains or once did.
    treated: BTreeMap<String, Treatment>,
    /// What the policy keeps, in hexadecimal.
    state: BTreeMap<String, String>,
    /// Norms since the last pick.
    norms: Norms,
    /// The loss of each step.
    losses: Vec<f64>,
    /// The first step after the last pick.
    since: u64,
    /// Picks so far.
    picks: u64,
}

impl Memory {
    /// The plan as far as results go: what once trained counts as trained.
    fn result(&self) -> Plan {
        let mut plan = self.plan.clone();
        for entry in &mut plan.entries {
            if let Some(treatment) = self.treated.get(&entry.tensor) {
                entry.treatment = treatment.clone();
            }
        }
        plan
    }

    /// Notes what trains now; refuses what can't follow what trained before.
    fn treat(&mut self) -> Result<()> {
        for entry in self.plan.trained() {
            match (self.treated.get(&entry.tensor), &entry.treatment) {
                (Some(before), now) if before != now => {
                    return Err(Error::plan(format!(
                        "`{}` was {}, and is now to be {}: a tensor keeps its way of training for the whole run",
                        entry.tensor,
                        in_words(before),
                        in_words(now)
                    ))
                    .help("freeze it, or leave it as it was"));
                }
                _ => self.treated.insert(entry.tensor.clone(), entry.treatment.clone()),
            };
        }
        Ok(())
    }
}

fn in_words(treatment: &Treatment) -> String {
    match treatment {
        Treatment::Adapt(spec) => format!("adapted with rank {} and alpha {}", spec.rank, spec.alpha),
        other => other.in_words().to_string(),
    }
}

/// The plan whose result a checkpoint holds: `first`, or, if the run has picks, what they made of it.
///
/// # Errors
/// The checkpoint's record of the picks is damaged.
pub(crate) fn result_plan(first: Plan, kept: &Value) -> Result<Plan> {
    if kept.is_null() { Ok(first) } else { Ok(read(kept)?.result()) }
}

fn read(kept: &Value) -> Result<Memory> {
    serde_json::from_value(kept.clone())
        .map_err(|error| Error::output(format!("the checkpoint's record of the picks cannot be read: {error}")))
}

impl Picker {
    /// The picks of a run that begins with `plan`, or none if the plan stays as it is.
    pub fn new(policy: Box<dyn Policy>, plan: &Plan, state: &PolicyState) -> Result<Option<Self>> {
        if plan.picks.is_empty() {
            return Ok(None);
        }
        let mut memory = Memory {
            plan: plan.clone(),
            treated: BTreeMap::new(),
            state: to_hex(state),
            norms: Norms::default(),
            losses: Vec::new(),
            since: 1,
            picks: 0,
        };
        memory.treat()?;
        Ok(Some(Self { policy, memory }))
    }

    /// Goes on from what a checkpoint kept.
    ///
    /// # Errors
    /// It can't be read.
    pub fn restore(&mut self, kept: &Value) -> Result<()> {
        self.memory = read(kept)?;
        Ok(())
    }

    /// What a checkpoint keeps.
    ///
    /// # Errors
    /// None that can happen: all of it is JSON.
    pub fn keep(&self, stepper: &Stepper) -> Result<Value> {
        let norms = stepper.norms.clone().unwrap_or_default();
        serde_json::to_value(Memory { norms, ..self.memory.clone() })
            .map_err(|error| Error::internal(format!("the picks as JSON: {error}")))
    }

    /// The decoder that the run goes on with: what once trained can train again.
    ///
    /// # Errors
    /// As [`build`].
    pub fn build(&self, base: &BaseModel, seed: u64, observer: &mut dyn Observer) -> Result<Decoder> {
        build(base, &self.memory.result(), seed, observer)
    }

    /// Makes the stepper train what the plan says now.
    ///
    /// # Errors
    /// As [`Stepper::follow`].
    pub fn follow(&self, base: &BaseModel, stepper: &mut Stepper) -> Result<()> {
        stepper.follow(base, &self.memory.plan)?;
        stepper.norms = Some(self.memory.norms.clone());
        Ok(())
    }

    /// The plan as it stands.
    pub fn plan(&self) -> &Plan {
        &self.memory.plan
    }

    /// The plan as far as results go.
    pub fn result(&self) -> Plan {
        self.memory.result()
    }

    /// Picks so far, and seconds spent in the plugin.
    pub fn totals(&self) -> (u64, f64) {
        (self.memory.picks, self.policy.seconds())
    }

    /// Notes a step's loss.
    pub fn stepped(&mut self, loss: f64) {
        self.memory.losses.push(loss);
    }

    /// Whether the policy is asked before `step`, from 1.
    pub fn due(&self, step: u64) -> bool {
        self.memory.plan.picks.includes(step)
    }

    /// Asks the policy before `step`, and lets the stepper follow its plan.
    ///
    /// # Errors
    /// Those of the policy; nothing has changed then.
    pub fn pick(
        &mut self,
        step: u64,
        total_steps: u64,
        base: &BaseModel,
        config: &Config,
        stepper: &mut Stepper,
        observer: &mut dyn Observer,
    ) -> Result<PickRecord> {
        let started = Instant::now();
        let in_plugin = self.policy.seconds();
        let before = format!("before step {step}");
        let (revised, state, notes) = {
            let statistics = ModelStatistics::new(base, observer);
            let view = policy::view(config, &base.inventory)
                .with_statistics(&statistics)
                .with_state(from_hex(&self.memory.state)?);
            let plan = &self.memory.plan;
            let mut builder = PlanBuilder::revising(&base.inventory, plan, policy::storage_rule(config, &view)?);
            let norms = stepper.norms.clone().unwrap_or_default();
            let moment = Moment {
                step,
                total_steps,
                since: self.memory.since,
                losses: &self.memory.losses,
                norms: &norms,
                settings: &plan.origin.settings,
                view: &view,
            };
            self.policy.revise(&moment, &mut builder).map_err(|error| error.at(&before))?;
            let revised = builder.build(plan.origin.clone()).map_err(|error| error.at(&before))?;
            let (state, notes) = view.into_parts();
            (revised, state, notes)
        };
        policy::tell(&notes, &revised.origin.policy, observer);
        let mut memory = Memory {
            plan: revised,
            state: to_hex(&state),
            norms: Norms::default(),
            since: step,
            picks: self.memory.picks + 1,
            ..self.memory.clone()
        };
        let anew = stored_anew(&self.memory, &memory.plan).map_err(|error| error.at(&before))?;
        memory.treat().map_err(|error| error.at(&before))?;
        if let Some(card) = stepper.card() {
            check(base, &memory.plan).map_err(|error| error.at(&before))?;
            card.borrow_mut().adopt(base, &memory.plan, &anew, config.seed).map_err(|error| error.at(&before))?;
            self.memory = memory;
        } else {
            self.memory = memory;
            store_anew(&mut stepper.decoder, &self.memory.plan, base, &anew)?;
            add_adapters(&mut stepper.decoder, &self.memory.plan, base, config.seed)?;
        }
        self.follow(base, stepper)?;
        let count = |wanted: fn(&Treatment) -> bool| {
            self.memory.plan.entries.iter().filter(|entry| wanted(&entry.treatment)).count()
        };
        Ok(PickRecord {
            step,
            pick: self.memory.picks,
            plan: self.memory.plan.hash(),
            trainable_parameters: stepper.parameters_now(),
            trained_tensors: count(|treatment| *treatment == Treatment::Train),
            adapted_tensors: count(|treatment| matches!(treatment, Treatment::Adapt(_))),
            plugin_s: self.policy.seconds() - in_plugin,
            seconds: started.elapsed().as_secs_f64(),
        })
    }
}

/// The tensors that are to be kept in another way than before, as positions in the plan: only those can that never
/// trained, since they are read anew.
fn stored_anew(before: &Memory, after: &Plan) -> Result<Vec<usize>> {
    let mut anew = Vec::new();
    for (position, (old, new)) in before.plan.entries.iter().zip(&after.entries).enumerate() {
        if new.treatment == Treatment::Train && !matches!(new.storage, Storage::F32 | Storage::Bf16) {
            return Err(Error::plan(format!("`{}` cannot train: it is kept as {}", new.tensor, new.storage))
                .help("adapt it, or keep it in bf16"));
        }
        if old.storage == new.storage {
            continue;
        }
        if before.treated.contains_key(&new.tensor) {
            return Err(Error::plan(format!(
                "`{}` has trained, so that it cannot be kept as {} instead of {} from now on",
                new.tensor, new.storage, old.storage
            ))
            .help("leave its storage as it is"));
        }
        anew.push(position);
    }
    Ok(anew)
}

/// Reads these tensors again, as the plan keeps them now.
fn store_anew(decoder: &mut Decoder, plan: &Plan, base: &BaseModel, positions: &[usize]) -> Result<()> {
    for position in positions {
        let (Some(entry), Some(info)) = (plan.entries.get(*position), base.inventory.tensors.get(*position)) else {
            continue;
        };
        let value = read_weight(base, info, entry.storage)?;
        match decoder.params_mut().find(|param| param.name() == entry.tensor) {
            Some(param) => param.value = value,
            None => return Err(Error::internal(format!("there is no weight `{}`", entry.tensor))),
        }
    }
    Ok(())
}

/// Puts adapters where the plan has some and the decoder has none.
fn add_adapters(decoder: &mut Decoder, plan: &Plan, base: &BaseModel, seed: u64) -> Result<()> {
    for (index, (entry, info)) in plan.entries.iter().zip(&base.inventory.tensors).enumerate() {
        let Treatment::Adapt(spec) = &entry.treatment else { continue };
        let mut linears = decoder.blocks.iter_mut().flat_map(liftplan_engine::Block::linears_mut);
        let Some(linear) = linears.find(|linear| linear.weight.name() == entry.tensor) else {
            return Err(Error::internal(format!("there is no linear layer `{}`", entry.tensor)));
        };
        if linear.adapter.is_none() {
            let shape = [linear.outputs(), linear.inputs()];
            linear.adapter = Some(adapter(shape, info, spec, &linear.weight.value, (seed, index as u32))?);
        }
    }
    Ok(())
}

fn to_hex(state: &PolicyState) -> BTreeMap<String, String> {
    state.iter().map(|(key, value)| (key.clone(), hex(value))).collect()
}

fn from_hex(kept: &BTreeMap<String, String>) -> Result<PolicyState> {
    let damaged = || Error::output("the checkpoint's record of the policy's state is damaged");
    let bytes = |text: &String| -> Option<Vec<u8>> {
        let pairs = text.as_bytes().as_chunks::<2>();
        if !pairs.1.is_empty() {
            return None;
        }
        pairs.0.iter().map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()).collect()
    };
    kept.iter().map(|(key, text)| Ok((key.clone(), bytes(text).ok_or_else(damaged)?))).collect()
}
