//! The model that is measured, on the processor: its blocks are the groups, and all that lies outside them is the last one.

use liftplan_engine::decoder::LossSum;
use liftplan_engine::observe::Seen;
use liftplan_engine::{Batch, Decoder, EngineError, Keep, Param, StepOptions};

use super::super::build;
use super::super::prepare::untouched;
use super::Measurable;
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

impl Measurable for OnHost {
    fn blocks(&self) -> usize {
        self.0.blocks.len()
    }

    fn groups(&self) -> usize {
        self.0.blocks.len() + 1
    }

    fn set_trained(&mut self, group: usize, trained: bool) -> Result<(), EngineError> {
        let set = |param: &mut Param| param.set_trained(trained);
        let Decoder { blocks, embedding, norm, head, .. } = &mut self.0;
        match blocks.get_mut(group) {
            Some(block) => block.params_mut().for_each(set),
            None => [embedding, norm].into_iter().chain(head).for_each(set),
        }
        Ok(())
    }

    fn differentiate(&mut self, micro_batches: &[Batch], grad_scale: f32) -> Result<(), EngineError> {
        self.0.clear_grads();
        for batch in micro_batches {
            self.0.accumulate(batch, StepOptions { grad_scale, keep: Keep::Inputs, dropout: None })?;
        }
        Ok(())
    }

    fn gradients(&self, see: &mut dyn FnMut(&str, &[f32])) -> Result<(), EngineError> {
        for param in self.0.params() {
            if let Some(gradient) = param.grad() {
                see(param.name(), gradient);
            }
        }
        Ok(())
    }

    fn values(&self, see: &mut dyn FnMut(&str, &[f32])) -> Result<(), EngineError> {
        for param in self.0.params().filter(|param| param.trains()) {
            see(param.name(), &param.value.as_f32());
        }
        Ok(())
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
