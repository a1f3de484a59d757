//! Measurements for policies: the model as it was before training, on the batches that a run would begin with.
//!
//! In: the base model, the training data, the weights' own statistics. Out: a [`Statistics`] that answers for data too.
//! The model is built when the first measurement is asked for, with nothing that trains, on the run's device ([`host`],
//! [`card`]). Gradients of frozen weights are computed one block at a time, so that no more memory is needed than for one
//! block that trains.

mod card;
mod host;

use std::cell::{OnceCell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use liftplan_engine::decoder::LossSum;
use liftplan_engine::mat::Mat;
use liftplan_engine::observe::Seen;
use liftplan_engine::{Batch, EngineError};

use super::setup::dealing;
use crate::config::Config;
use crate::data::{self, Dataset, Sampler, SamplerOptions};
use crate::model::BaseModel;
use crate::model::inventory::TensorInfo;
use crate::report::{Event, Observer};
use crate::stats::{Calibration, ElementStatistics, ModelStatistics, Statistics, round_score};
use crate::{Error, Result, device};

/// The statistics of a model, on `data` too.
pub struct Measured<'a> {
    weights: ModelStatistics<'a>,
    base: &'a BaseModel,
    config: &'a Config,
    data: &'a Dataset,
    known: RefCell<BTreeMap<usize, Rc<dyn Calibration>>>,
}

impl<'a> Measured<'a> {
    /// The statistics of `base` and of `data`, which a run by `config` would train on.
    pub fn new(base: &'a BaseModel, config: &'a Config, data: &'a Dataset, observer: &'a mut dyn Observer) -> Self {
        Self {
            weights: ModelStatistics::new(base, observer).on_if_there(config.device),
            base,
            config,
            data,
            known: RefCell::default(),
        }
    }
}

impl Statistics for Measured<'_> {
    fn singular_values(&self, tensors: &[&TensorInfo]) -> Result<Vec<Arc<[f64]>>> {
        self.weights.singular_values(tensors)
    }

    fn elements(&self, tensors: &[&TensorInfo]) -> Result<Vec<ElementStatistics>> {
        self.weights.elements(tensors)
    }

    fn quantiles(&self, tensor: &TensorInfo, parts: &[f64], of_magnitudes: bool) -> Result<Vec<f64>> {
        self.weights.quantiles(tensor, parts, of_magnitudes)
    }

    fn calibration(&self, batches: usize) -> Result<Rc<dyn Calibration>> {
        if let Some(known) = self.known.borrow().get(&batches) {
            return Ok(known.clone());
        }
        self.weights.tell(&Event::Phase("measuring the model on data"));
        let lengths = self.data.examples.iter().map(|example| example.ids.len()).collect();
        let options = SamplerOptions {
            seed: self.config.seed,
            batch_size: self.config.train.batch_size,
            dealing: dealing(self.config),
            epochs: None,
        };
        let mut sampler = Sampler::new(lengths, options)?;
        let mut all: Vec<Vec<Batch>> = Vec::with_capacity(batches);
        for _ in 0..batches {
            let Some(step) = sampler.next_step() else { break };
            let collate =
                |micro: &Vec<usize>| data::collate(&micro.iter().map(|&i| &self.data.examples[i]).collect::<Vec<_>>());
            all.push(step.micro_batches.iter().map(collate).collect());
        }
        let model = RefCell::new(self.model(&all)?);
        let measurements: Rc<dyn Calibration> =
            Rc::new(Measurements { model, batches: all, forward: OnceCell::new(), gradients: OnceCell::new() });
        self.known.borrow_mut().insert(batches, measurements.clone());
        Ok(measurements)
    }
}

impl Measured<'_> {
    /// The model with nothing that trains: on the run's device, where that is there and holds it, else on the processor.
    fn model(&self, batches: &[Vec<Batch>]) -> Result<Box<dyn Measurable>> {
        let warn = |why: &str| {
            self.weights.tell(&Event::Warning(&format!("measuring the model on data on the processor: {why}")));
        };
        match device::choose(self.config.device) {
            Ok(chosen) => {
                if let Some(context) = &chosen.context {
                    let longest = batches.iter().flatten().max_by_key(|batch| batch.tokens());
                    match card::OnCard::fits(context, self.base, self.config, longest)? {
                        Ok(()) => return Ok(Box::new(card::OnCard::new(context, self.base, self.config)?)),
                        Err(why) => warn(&why),
                    }
                }
            }
            Err(error) => warn(error.message()),
        }
        Ok(Box::new(host::OnHost::new(self.base, self.config)?))
    }
}

/// A model in which groups of weights can be given gradients, one group at a time.
trait Measurable {
    /// How many blocks it has.
    fn blocks(&self) -> usize;
    /// How many groups: together they are all of its weights.
    fn groups(&self) -> usize;
    /// The gradients of a group's weights on these batches, each of its micro-batches. Nothing has a gradient afterwards.
    fn gradients(&mut self, group: usize, batches: &[Vec<Batch>]) -> Result<BTreeMap<String, Gradient>, EngineError>;
    /// The losses of the target tokens, with all blocks or without one.
    fn loss(&mut self, batch: &Batch, without: Option<usize>) -> Result<LossSum, EngineError>;
    /// Shows what flows through the blocks.
    fn observe(&mut self, batch: &Batch, see: &mut dyn FnMut(Seen<'_>)) -> Result<(), EngineError>;
}

/// The model and the batches, each batch as its micro-batches; what was measured so far.
struct Measurements {
    model: RefCell<Box<dyn Measurable>>,
    batches: Vec<Vec<Batch>>,
    forward: OnceCell<Forward>,
    gradients: OnceCell<BTreeMap<String, Gradient>>,
}

/// What a forward pass shows.
#[derive(Default)]
struct Forward {
    cosines: Vec<f64>,
    inputs: BTreeMap<String, [f64; 4]>,
}

/// Numbers made of one tensor's gradient.
#[derive(Clone, Copy, Default)]
struct Gradient {
    /// The norm of the gradient of the mean loss over all batches.
    norm: f64,
    /// The mean over the batches of the sum of its squares.
    squared: f64,
    /// The sum of |gradient · weight|, over all batches.
    by_weight: f64,
}

/// Targets of a batch, or 1 where it has none.
fn targets(batch: &[Batch]) -> f32 {
    batch.iter().map(Batch::target_count).sum::<usize>().max(1) as f32
}

impl Measurements {
    fn micro_batches(&self) -> impl Iterator<Item = &Batch> {
        self.batches.iter().flatten()
    }

    fn mean_loss(&self, without: Option<usize>) -> Result<f64> {
        let (mut sum, mut targets) = (0.0, 0);
        let mut model = self.model.borrow_mut();
        for batch in self.micro_batches() {
            let loss = model.loss(batch, without).map_err(broken)?;
            sum += loss.sum;
            targets += loss.targets;
        }
        Ok(round_score(sum / targets.max(1) as f64))
    }

    fn forward(&self) -> Result<&Forward> {
        if let Some(forward) = self.forward.get() {
            return Ok(forward);
        }
        let mut model = self.model.borrow_mut();
        let mut cosines = vec![0.0; model.blocks()];
        let mut inputs: BTreeMap<String, [f64; 4]> = BTreeMap::new();
        let mut tokens = 0;
        let mut counts: BTreeMap<String, usize> = BTreeMap::new();
        for batch in self.micro_batches() {
            tokens += batch.tokens();
            let mut see = |seen: Seen<'_>| match seen {
                Seen::Block { block, input, output } => cosines[block] += cosine_sum(input, output),
                Seen::Input { weight, x } => {
                    let sums = inputs.entry(weight.to_string()).or_default();
                    for value in x.iter().map(|value| f64::from(*value)) {
                        sums[0] += value;
                        sums[1] += value * value;
                        sums[2] += value.abs();
                        sums[3] = sums[3].max(value.abs());
                    }
                    *counts.entry(weight.to_string()).or_default() += x.len();
                }
            };
            model.observe(batch, &mut see).map_err(broken)?;
        }
        cosines.iter_mut().for_each(|sum| *sum = round_score(*sum / tokens.max(1) as f64));
        for (weight, sums) in &mut inputs {
            let count = counts.get(weight).copied().unwrap_or(1) as f64;
            *sums = [sums[0] / count, sums[1] / count, sums[2] / count, sums[3]].map(round_score);
        }
        Ok(self.forward.get_or_init(|| Forward { cosines, inputs }))
    }

    fn gradient(&self, tensor: &str) -> Result<Gradient> {
        let gradients = match self.gradients.get() {
            Some(gradients) => gradients,
            None => {
                let measured = self.measure_gradients()?;
                self.gradients.get_or_init(|| measured)
            }
        };
        gradients.get(tensor).copied().ok_or_else(|| Error::plan(format!("the model has no tensor `{tensor}`")))
    }

    /// The gradients of everything, one group at a time.
    fn measure_gradients(&self) -> Result<BTreeMap<String, Gradient>> {
        let mut model = self.model.borrow_mut();
        let mut gradients = BTreeMap::new();
        for group in 0..model.groups() {
            for (name, Gradient { norm, squared, by_weight }) in
                model.gradients(group, &self.batches).map_err(broken)?
            {
                let [norm, squared, by_weight] = [norm, squared, by_weight].map(round_score);
                gradients.insert(name, Gradient { norm, squared, by_weight });
            }
        }
        Ok(gradients)
    }

    fn check_block(&self, block: usize) -> Result<()> {
        let blocks = self.model.borrow().blocks();
        if block < blocks {
            return Ok(());
        }
        let last = blocks.saturating_sub(1);
        Err(Error::plan(format!("the model has no block {block}: its blocks are 0 to {last}")))
    }
}

/// The sum over the rows of the cosines between two matrices' rows; that of a zero row is 0.
fn cosine_sum(a: &Mat, b: &Mat) -> f64 {
    let row = |i: usize| {
        let (mut dot, mut aa, mut bb) = (0.0, 0.0, 0.0);
        for (a, b) in a.row(i).iter().zip(b.row(i)) {
            let (a, b) = (f64::from(*a), f64::from(*b));
            dot += a * b;
            aa += a * a;
            bb += b * b;
        }
        if aa * bb > 0.0 { dot / (aa * bb).sqrt() } else { 0.0 }
    };
    (0..a.rows()).map(row).sum()
}

fn broken(error: EngineError) -> Error {
    Error::train(format!("measuring the model on data: {error}"))
}

impl Calibration for Measurements {
    fn tokens(&self) -> u64 {
        self.micro_batches().map(|batch| batch.target_count() as u64).sum()
    }

    fn loss(&self) -> Result<f64> {
        self.mean_loss(None)
    }

    fn loss_without_block(&self, block: usize) -> Result<f64> {
        self.check_block(block)?;
        self.mean_loss(Some(block))
    }

    fn block_cosine(&self, block: usize) -> Result<f64> {
        self.check_block(block)?;
        Ok(self.forward()?.cosines[block])
    }

    fn gradient_norm(&self, tensor: &str) -> Result<f64> {
        Ok(self.gradient(tensor)?.norm)
    }

    fn squared_gradient(&self, tensor: &str) -> Result<f64> {
        Ok(self.gradient(tensor)?.squared)
    }

    fn weight_gradient(&self, tensor: &str) -> Result<f64> {
        Ok(self.gradient(tensor)?.by_weight)
    }

    fn input_moments(&self, tensor: &str) -> Result<[f64; 4]> {
        let moments = self.forward()?.inputs.get(tensor).copied();
        moments.ok_or_else(|| Error::plan(format!("`{tensor}` is no linear layer's weight, which alone has an input")))
    }
}
