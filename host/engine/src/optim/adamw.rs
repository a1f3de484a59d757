//! AdamW (arXiv 1711.05101), with `f32` moments whatever the weights' type.

use std::collections::BTreeMap;

use half::bf16;
use rayon::prelude::*;

use crate::error::{Result, expect_shape};
use crate::param::Param;
use crate::rng::Stream;
use crate::storage::Weight;

/// What AdamW is set to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamWOptions {
    /// Decay of the first and second moments.
    pub betas: (f64, f64),
    /// Added to the root of the second moment.
    pub eps: f64,
    /// How a bf16 weight takes up changes smaller than its precision.
    pub bf16_update: Bf16Update,
    /// Seed of stochastic rounding.
    pub seed: u64,
}

/// How bf16 weights are updated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bf16Update {
    /// The new weight is rounded up or down with probabilities that make it right on average. No memory.
    Stochastic,
    /// An `f32` copy of the weight is kept and changed; the weight is its rounding. 4 bytes a weight.
    Master,
}

/// The state of one parameter.
#[derive(Clone, Debug, PartialEq)]
pub struct State {
    /// First moment, as many elements as the parameter.
    pub first: Vec<f32>,
    /// Second moment.
    pub second: Vec<f32>,
    /// The `f32` copy of a bf16 weight, with [`Bf16Update::Master`].
    pub master: Option<Vec<f32>>,
    /// Updates so far.
    pub updates: u64,
}

/// AdamW and the states of the parameters it has updated, by name.
#[derive(Debug)]
pub struct AdamW {
    options: AdamWOptions,
    states: BTreeMap<String, State>,
}

/// Elements one core updates at a time.
const STRETCH: usize = 1 << 14;

impl AdamW {
    /// An optimiser without states; each parameter gets its own at its first update.
    pub fn new(options: AdamWOptions) -> Self {
        Self { options, states: BTreeMap::new() }
    }

    /// The states, by parameter name.
    pub fn states(&self) -> &BTreeMap<String, State> {
        &self.states
    }

    /// Replaces all states.
    pub fn set_states(&mut self, states: BTreeMap<String, State>) {
        self.states = states;
    }

    /// Bytes that the states take.
    pub fn state_bytes(&self) -> usize {
        let len = |state: &State| state.first.len() + state.second.len() + state.master.as_ref().map_or(0, Vec::len);
        self.states.values().map(len).sum::<usize>() * size_of::<f32>()
    }

    /// Changes a parameter that trains by its gradient times `grad_factor` (clipping); others stay as they are.
    /// `weight_decay` is decoupled: the weight shrinks by `lr · weight_decay`.
    ///
    /// # Errors
    /// When a loaded state does not fit the parameter.
    pub fn update(&mut self, param: &mut Param, lr: f64, weight_decay: f64, grad_factor: f32) -> Result<()> {
        let name = param.name().to_string();
        let Some((value, grad)) = param.value_and_grad_mut() else { return Ok(()) };
        let keeps_master = matches!(value, Weight::Bf16(_)) && self.options.bf16_update == Bf16Update::Master;
        // One purpose a parameter for the rounding's random numbers.
        let purpose =
            name.bytes().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
        let state = self.states.entry(name.clone()).or_insert_with(|| State {
            first: vec![0.0; grad.len()],
            second: vec![0.0; grad.len()],
            master: keeps_master.then(|| value.as_f32().into_owned()),
            updates: 0,
        });
        expect_shape(&format!("optimiser state of {name}"), grad.len(), state.first.len())?;
        state.updates += 1;
        let rule = Rule::new(&self.options, state.updates, lr, weight_decay, grad_factor);
        let stream = Stream::new(self.options.seed, state.updates, purpose);
        let moments = state.first.par_chunks_mut(STRETCH).zip(state.second.par_chunks_mut(STRETCH));
        let work = moments.zip(grad.par_chunks(STRETCH)).enumerate();
        match (value, &mut state.master) {
            (Weight::F32(values), _) => work.zip(values.par_chunks_mut(STRETCH)).for_each(|((_, ((m, v), g)), w)| {
                rule.apply(w, m, v, g);
            }),
            (Weight::Bf16(values), Some(master)) => {
                let weights = values.par_chunks_mut(STRETCH).zip(master.par_chunks_mut(STRETCH));
                work.zip(weights).for_each(|((_, ((m, v), g)), (values, master))| {
                    rule.apply(master, m, v, g);
                    for (value, master) in values.iter_mut().zip(master) {
                        *value = bf16::from_f32(*master);
                    }
                });
            }
            (Weight::Bf16(values), None) => {
                work.zip(values.par_chunks_mut(STRETCH)).for_each(|((stretch, ((m, v), g)), values)| {
                    let mut wide: Vec<f32> = values.iter().map(|value| value.to_f32()).collect();
                    rule.apply(&mut wide, m, v, g);
                    round_stochastically(values, &wide, stream, (stretch * STRETCH / 4) as u64);
                });
            }
        }
        Ok(())
    }
}

/// One step's constants, in the form of PyTorch's single-tensor AdamW.
#[derive(Clone, Copy)]
struct Rule {
    beta1: f32,
    beta2: f32,
    shrink: f32,
    step_size: f32,
    inverse_root_correction2: f32,
    eps: f32,
    grad_factor: f32,
}

impl Rule {
    fn new(options: &AdamWOptions, updates: u64, lr: f64, weight_decay: f64, grad_factor: f32) -> Self {
        let (beta1, beta2) = options.betas;
        let correction = |beta: f64| 1.0 - beta.powf(updates as f64);
        Self {
            beta1: beta1 as f32,
            beta2: beta2 as f32,
            shrink: (1.0 - lr * weight_decay) as f32,
            step_size: (lr / correction(beta1)) as f32,
            inverse_root_correction2: (1.0 / correction(beta2).sqrt()) as f32,
            eps: options.eps as f32,
            grad_factor,
        }
    }

    fn apply(&self, weights: &mut [f32], first: &mut [f32], second: &mut [f32], grad: &[f32]) {
        for (((w, m), v), g) in weights.iter_mut().zip(first).zip(second).zip(grad) {
            let g = g * self.grad_factor;
            *m += (1.0 - self.beta1) * (g - *m);
            *v = self.beta2 * *v + (1.0 - self.beta2) * g * g;
            *w = *w * self.shrink - self.step_size * *m / (v.sqrt() * self.inverse_root_correction2 + self.eps);
        }
    }
}

/// Adds 16 random bits below the last bit that bf16 keeps, and cuts: up with the probability of the distance.
fn round_stochastically(out: &mut [bf16], values: &[f32], stream: Stream, first_group: u64) {
    for (group, (out, values)) in out.chunks_mut(4).zip(values.chunks(4)).enumerate() {
        let words = stream.words(first_group + group as u64);
        for ((out, value), word) in out.iter_mut().zip(values).zip(words) {
            let finite = value.is_finite();
            let bits = value.to_bits();
            let rounded = if finite { bits.wrapping_add(word & 0xffff) } else { bits };
            let cut = bf16::from_bits((rounded >> 16) as u16);
            // At the very top of the range rounding up would give an infinity: stay at the largest number.
            *out = if finite && !cut.is_finite() { bf16::from_bits((bits >> 16) as u16) } else { cut };
        }
    }
}
