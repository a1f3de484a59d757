//! The model that is measured, on the processor: its blocks are the groups, and all that lies outside them is the last one.

use std::collections::BTreeMap;

use liftplan_engine::decoder::LossSum;
use liftplan_engine::observe::Seen;
use liftplan_engine::{Batch, Decoder, EngineError, Keep, Param, StepOptions};

use super::super::build;
use super::super::prepare::untouched;
use super::{Gradient, Measurable, targets};
use crate::Result;
use crate::config::Config;
use crate::model::BaseModel;
use crate::policy::storage_of;
use crate::report::Silent;

pub(super) struct OnHost(Decoder);

impl OnHost {
    pub fn new(base: &BaseModel, config: &Config) -> Result<Self> {
        let plan = untouched(base, storage_of(config.train.weights));
        build(base, &plan, config.seed, &mut Silent).map(Self)
    }
}

impl OnHost {
    fn set_trained(&mut self, group: usize, trained: bool) {
        let set = |param: &mut Param| param.set_trained(trained);
        let Decoder { blocks, embedding, norm, head, .. } = &mut self.0;
        match blocks.get_mut(group) {
            Some(block) => block.params_mut().for_each(set),
            None => [embedding, norm].into_iter().chain(head).for_each(set),
        }
    }

    fn measure(&mut self, batches: &[Vec<Batch>]) -> Result<BTreeMap<String, Gradient>, EngineError> {
        let all: f32 = batches.iter().map(|batch| targets(batch)).sum();
        let mut gradients: BTreeMap<String, Gradient> = BTreeMap::new();
        let mut totals: BTreeMap<String, Vec<f32>> = BTreeMap::new();
        for batch in batches {
            let own = targets(batch);
            self.0.clear_grads();
            for micro in batch {
                let options = StepOptions { grad_scale: 1.0 / own, keep: Keep::Inputs, dropout: None };
                self.0.accumulate(micro, options)?;
            }
            for param in self.0.params() {
                let Some(gradient) = param.grad() else { continue };
                let squared: f64 = gradient.iter().map(|g| f64::from(*g).powi(2)).sum();
                gradients.entry(param.name().into()).or_default().squared += squared / batches.len() as f64;
                let total = totals.entry(param.name().into()).or_insert_with(|| vec![0.0; gradient.len()]);
                for (total, g) in total.iter_mut().zip(gradient) {
                    *total += g * (own / all);
                }
            }
        }
        for param in self.0.params().filter(|param| param.trains()) {
            let Some(total) = totals.get(param.name()) else { continue };
            let (mut norm, mut by_weight) = (0.0, 0.0);
            for (g, w) in total.iter().zip(param.value.as_f32().iter()) {
                norm += f64::from(*g).powi(2);
                by_weight += (f64::from(*g) * f64::from(*w)).abs();
            }
            let gradient = gradients.entry(param.name().into()).or_default();
            (gradient.norm, gradient.by_weight) = (norm.sqrt(), by_weight);
        }
        Ok(gradients)
    }
}

impl Measurable for OnHost {
    fn blocks(&self) -> usize {
        self.0.blocks.len()
    }

    fn groups(&self) -> usize {
        self.0.blocks.len() + 1
    }

    fn gradients(&mut self, group: usize, batches: &[Vec<Batch>]) -> Result<BTreeMap<String, Gradient>, EngineError> {
        self.set_trained(group, true);
        let measured = self.measure(batches);
        self.set_trained(group, false);
        measured
    }

    fn loss(&mut self, batch: &Batch, without: Option<usize>) -> Result<LossSum, EngineError> {
        let Some(block) = without else { return self.0.loss(batch) };
        let skipped = self.0.blocks.remove(block);
        let loss = self.0.loss(batch);
        self.0.blocks.insert(block, skipped);
        loss
    }

    fn observe(&mut self, batch: &Batch, see: &mut dyn FnMut(Seen<'_>)) -> Result<(), EngineError> {
        self.0.observe(batch, see)
    }
}
