//! AdamW (arXiv 1711.05101), with `f32` moments whatever the weights' type, or with 8-bit ones (arXiv 2110.02861).

use std::collections::BTreeMap;

use half::bf16;
use rayon::prelude::*;

use crate::error::{EngineError, Result, expect_shape};
use crate::param::Param;
use crate::rng::Stream;
use crate::storage::Weight;
use crate::storage::dynamic8::{self, Map, SIGNED, UNSIGNED};

use super::state::{BLOCK, Buffer, LEAST_FOR_BITS8, MakePages, Moment, State};

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

/// AdamW and the states of the parameters it has updated, by name.
pub struct AdamW {
    options: AdamWOptions,
    bits8: bool,
    pages: Option<MakePages>,
    states: BTreeMap<String, State>,
}

/// Elements one core updates at a time: whole blocks of 8-bit moments.
const STRETCH: usize = 1 << 14;

impl AdamW {
    /// An optimiser without states; each parameter gets its own at its first update.
    pub fn new(options: AdamWOptions) -> Self {
        Self { options, bits8: false, pages: None, states: BTreeMap::new() }
    }

    /// Keeps moments in 8 bits (arXiv 2110.02861), as bitsandbytes' `AdamW8bit` does: by dynamic maps, in blocks of
    /// [`BLOCK`] elements, those of small parameters in `f32`.
    pub fn with_bits8(self) -> Self {
        Self { bits8: true, ..self }
    }

    /// From now on keeps the states of large parameters in pages from `make`.
    pub fn set_pages(&mut self, make: MakePages) {
        self.pages = Some(make);
    }

    /// The states, by parameter name.
    pub fn states(&self) -> &BTreeMap<String, State> {
        &self.states
    }

    /// Replaces the state of the parameter `name`; a large one moves into pages, if the optimiser keeps them there.
    ///
    /// # Errors
    /// When there is no room for the pages.
    pub fn set_state(&mut self, name: String, mut state: State) -> Result<()> {
        if self.pages.is_some() {
            let pages = self.pages.as_ref();
            for moment in [&mut state.first, &mut state.second] {
                match moment {
                    Moment::F32(values) => values.move_into(pages)?,
                    Moment::Bits8 { codes, .. } => codes.move_into(pages)?,
                }
            }
            if let Some(master) = &mut state.master {
                master.move_into(pages)?;
            }
        }
        self.states.insert(name, state);
        Ok(())
    }

    /// Lets go of the states of parameters whose names `keep` refuses; they begin anew if they train again.
    pub fn retain(&mut self, keep: impl Fn(&str) -> bool) {
        self.states.retain(|name, _| keep(name));
    }

    /// Bytes that the states take, wherever they are.
    pub fn state_bytes(&self) -> usize {
        let master = |state: &State| state.master.as_ref().map_or(0, |master| size_of_val::<[f32]>(master));
        self.states.values().map(|state| state.first.bytes() + state.second.bytes() + master(state)).sum()
    }

    /// Changes a parameter that trains by its gradient times `grad_factor` (clipping); others stay as they are.
    /// `weight_decay` is decoupled: the weight shrinks by `lr · weight_decay`.
    ///
    /// # Errors
    /// When a loaded state does not fit the parameter or the optimiser, or there is no room for a new one.
    pub fn update(&mut self, param: &mut Param, lr: f64, weight_decay: f64, grad_factor: f32) -> Result<()> {
        let name = param.name().to_string();
        let Some((value, grad)) = param.value_and_grad_mut() else { return Ok(()) };
        if !self.states.contains_key(&name) {
            let state = self.start(value)?;
            self.states.insert(name.clone(), state);
        }
        let Some(state) = self.states.get_mut(&name) else { return Ok(()) };
        for moment in [&state.first, &state.second] {
            expect_shape(&format!("optimiser state of {name}"), grad.len(), moment.len())?;
        }
        state.updates += 1;
        // One purpose a parameter for the rounding's random numbers.
        let purpose =
            name.bytes().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
        let stream = Stream::new(self.options.seed, state.updates, purpose);
        let rule = Rule::new(&self.options, state.updates, lr, weight_decay, grad_factor);
        let mut work = stretches(&mut state.first, &mut state.second, grad)
            .ok_or_else(|| unfit(&name, "both moments in one format", "one in 8 bits and one in f32"))?;
        match (value, &mut state.master) {
            (Weight::F32(values), _) => {
                let weights = values.par_chunks_mut(STRETCH);
                work.par_iter_mut().zip(weights).for_each(|(part, w)| part.update(&rule, w));
            }
            (Weight::Bf16(values), Some(master)) => {
                let weights = values.par_chunks_mut(STRETCH).zip(master.par_chunks_mut(STRETCH));
                work.par_iter_mut().zip(weights).for_each(|(part, (values, master))| {
                    part.update(&rule, master);
                    for (value, master) in values.iter_mut().zip(master) {
                        *value = bf16::from_f32(*master);
                    }
                });
            }
            (Weight::Bf16(values), None) => {
                let weights = values.par_chunks_mut(STRETCH).enumerate();
                work.par_iter_mut().zip(weights).for_each(|(part, (stretch, values))| {
                    let mut wide: Vec<f32> = values.iter().map(|value| value.to_f32()).collect();
                    part.update(&rule, &mut wide);
                    round_stochastically(values, &wide, stream, (stretch * STRETCH / 4) as u64);
                });
            }
            (packed @ (Weight::Nf4(_) | Weight::Int8(_)), _) => {
                return Err(unfit(&name, "a weight in f32 or bf16", packed.format()));
            }
        }
        drop(work);
        for moment in [&state.first, &state.second] {
            moment.release();
        }
        state.master.iter().for_each(Buffer::release);
        Ok(())
    }

    /// The state of a parameter before its first update.
    fn start(&self, value: &Weight) -> Result<State> {
        let (len, pages) = (value.len(), self.pages.as_ref());
        let moment = || {
            if self.bits8 && len >= LEAST_FOR_BITS8 {
                // The codes don't matter: their scale is zero.
                Ok(Moment::Bits8 { codes: Buffer::zeros(len, pages)?, absmax: vec![0.0; len.div_ceil(BLOCK)] })
            } else {
                Buffer::zeros(len, pages).map(Moment::F32)
            }
        };
        let keeps_master = matches!(value, Weight::Bf16(_)) && self.options.bf16_update == Bf16Update::Master;
        let master = keeps_master.then(|| Buffer::copy(&value.as_f32(), pages)).transpose()?;
        Ok(State { first: moment()?, second: moment()?, master, updates: 0 })
    }
}

impl std::fmt::Debug for AdamW {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AdamW").field("options", &self.options).field("states", &self.states).finish_non_exhaustive()
    }
}

fn unfit(name: &str, expected: &str, found: &str) -> EngineError {
    EngineError::Shape { what: format!("optimiser state of {name}"), expected: expected.into(), found: found.into() }
}

/// A piece of a parameter's moments, with its gradient.
enum Stretch<'a> {
    F32 { first: &'a mut [f32], second: &'a mut [f32], grad: &'a [f32] },
    Bits8 { first: Bits8<'a>, second: Bits8<'a>, grad: &'a [f32] },
}

/// A piece of an 8-bit moment.
struct Bits8<'a> {
    map: &'static Map,
    codes: &'a mut [u8],
    absmax: &'a mut [f32],
}

/// The pieces that cores take, or nothing when the moments are not of one format.
fn stretches<'a>(first: &'a mut Moment, second: &'a mut Moment, grad: &'a [f32]) -> Option<Vec<Stretch<'a>>> {
    let grads = grad.chunks(STRETCH);
    match (first, second) {
        (Moment::F32(first), Moment::F32(second)) => {
            let moments = first.chunks_mut(STRETCH).zip(second.chunks_mut(STRETCH));
            Some(moments.zip(grads).map(|((first, second), grad)| Stretch::F32 { first, second, grad }).collect())
        }
        (Moment::Bits8 { codes: c1, absmax: a1 }, Moment::Bits8 { codes: c2, absmax: a2 }) => {
            let firsts = c1.chunks_mut(STRETCH).zip(a1.chunks_mut(STRETCH / BLOCK));
            let seconds = c2.chunks_mut(STRETCH).zip(a2.chunks_mut(STRETCH / BLOCK));
            let piece = |(((c1, a1), (c2, a2)), grad)| Stretch::Bits8 {
                first: Bits8 { map: &SIGNED, codes: c1, absmax: a1 },
                second: Bits8 { map: &UNSIGNED, codes: c2, absmax: a2 },
                grad,
            };
            Some(firsts.zip(seconds).zip(grads).map(piece).collect())
        }
        _ => None,
    }
}

impl Stretch<'_> {
    fn update(&mut self, rule: &Rule, weights: &mut [f32]) {
        match self {
            Self::F32 { first, second, grad } => rule.apply(weights, first, second, grad),
            Self::Bits8 { first, second, grad } => {
                let (mut m, mut v) = (first.read(), second.read());
                rule.apply(weights, &mut m, &mut v, grad);
                first.write(&m);
                second.write(&v);
            }
        }
    }
}

impl Bits8<'_> {
    fn read(&self) -> Vec<f32> {
        let mut values = vec![0.0; self.codes.len()];
        dynamic8::dequantise(self.map, self.codes, BLOCK, self.absmax, &mut values);
        values
    }

    fn write(&mut self, values: &[f32]) {
        dynamic8::quantise(self.map, values, BLOCK, self.codes, self.absmax);
    }
}

/// One step's constants, in the form of PyTorch's single-tensor AdamW.
#[derive(Clone, Copy)]
struct Rule {
    /// `1 - beta1` and `1 - beta2` as PyTorch has them, rounded once: in `f32`, 1 - 0.999 is off by 5e-5 of itself.
    rest1: f32,
    rest2: f32,
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
            rest1: (1.0 - beta1) as f32,
            rest2: (1.0 - beta2) as f32,
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
            *m += self.rest1 * (g - *m);
            *v = self.beta2 * *v + self.rest2 * g * g;
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
