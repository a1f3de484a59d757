//! What each optimiser step trains on: a seeded order of the examples, cut into steps and into micro-batches.
//!
//! In: the examples' lengths, a seed, [`SamplerOptions`]. Out: one [`StepBatches`] a step, and a [`SamplerState`] that
//! goes into the checkpoint and resumes exactly.
//!
//! The examples are one endless sequence: the first epoch in a random order, then the second in another, and so on.
//! Step `k` takes the next `batch_size` of them, across the end of an epoch if need be, so that each step is as large
//! as the others. Where a number of epochs is asked for, the sequence ends there and the last step may be smaller.
//!
//! A step's examples are dealt into micro-batches. Since documents do not see each other in a batch and gradients are
//! summed by token count, how they are dealt changes speed and memory, and not the result:
//! * packed: first-fit decreasing. The examples of the step, longest first (ties in the order of the step), each go
//!   into the first micro-batch that still has room for it within `micro_batch_tokens` (and `micro_batch_examples`). An
//!   example longer than that is a micro-batch of its own.
//! * not packed: `micro_batch_examples` (one, if unset) at a time, in the order of the step, within the same limit.

use serde::{Deserialize, Serialize};

use super::rng::permutation;
use crate::hash::Hasher;
use crate::{Error, Result};

/// Stream of the seed that orders epoch `e` is `ORDER_STREAM + e`.
const ORDER_STREAM: u64 = 0x6f72_6465_7200_0000;

/// How steps and micro-batches are cut.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SamplerOptions {
    /// Orders the examples.
    pub seed: u64,
    /// Examples an optimiser step, at least 1.
    pub batch_size: usize,
    /// How a step's examples are dealt into micro-batches.
    pub dealing: Dealing,
    /// The sequence ends after so many epochs, fractions allowed; endless if none.
    pub epochs: Option<f64>,
}

/// How a step's examples are dealt into micro-batches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dealing {
    /// First-fit decreasing (true), or in order (false).
    pub packing: bool,
    /// Most tokens a micro-batch, at least 1; a single longer example still goes through.
    pub micro_batch_tokens: usize,
    /// Most examples a micro-batch, at least 1. None: no limit if packed, one if not.
    pub micro_batch_examples: Option<usize>,
}

/// Where the sampler stands. Together with the same examples and options it says all that will come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SamplerState {
    /// The format's version, 1.
    pub version: u32,
    /// The seed.
    pub seed: u64,
    /// Examples a step.
    pub batch_size: u64,
    /// Examples handed out so far, over all epochs.
    pub taken: u64,
    /// How many examples there are.
    pub examples: u64,
    /// Hash of the examples' lengths, which tells other data from the same.
    pub lengths_hash: String,
}

/// What one optimiser step trains on.
#[derive(Clone, Debug, PartialEq)]
pub struct StepBatches {
    /// Indices of examples, by micro-batch; none is empty.
    pub micro_batches: Vec<Vec<usize>>,
    /// Epochs done when this step is, 1.5 in the middle of the second.
    pub epoch: f64,
}

/// Hands out the examples, step by step.
#[derive(Clone, Debug)]
pub struct Sampler {
    options: SamplerOptions,
    /// Tokens of each example.
    lengths: Vec<usize>,
    lengths_hash: String,
    taken: u64,
    /// The order of one epoch, kept until another is needed.
    order: Vec<usize>,
    order_epoch: Option<u64>,
}

impl Sampler {
    /// A sampler at the beginning. `lengths` are the examples' token counts.
    ///
    /// # Errors
    /// If there is no example, or an option is 0.
    pub fn new(lengths: Vec<usize>, options: SamplerOptions) -> Result<Self> {
        if lengths.is_empty() {
            return Err(Error::data("there is no example to train on"));
        }
        let Dealing { micro_batch_tokens, micro_batch_examples, .. } = options.dealing;
        let too_small = [
            ("train.batch_size", options.batch_size == 0),
            ("train.micro_batch_tokens", micro_batch_tokens == 0),
            ("train.micro_batch_examples", micro_batch_examples == Some(0)),
            ("train.epochs", options.epochs.is_some_and(|epochs| epochs.is_nan() || epochs <= 0.0)),
        ];
        if let Some((name, _)) = too_small.iter().find(|(_, too_small)| *too_small) {
            return Err(Error::config(format!("`{name}` must be above 0")));
        }
        let mut hash = Hasher::default();
        for &length in &lengths {
            hash.update((length as u64).to_le_bytes());
        }
        let lengths_hash = hash.finish();
        Ok(Self { options, lengths, lengths_hash, taken: 0, order: Vec::new(), order_epoch: None })
    }

    /// A sampler that goes on where `state` was taken.
    ///
    /// # Errors
    /// If the state belongs to other examples, another seed, or another batch size.
    pub fn resume(lengths: Vec<usize>, options: SamplerOptions, state: &SamplerState) -> Result<Self> {
        let mut sampler = Self::new(lengths, options)?;
        let now = sampler.state();
        let differing = [
            ("version of the sampler's state", u64::from(state.version), u64::from(now.version)),
            ("number of training examples", state.examples, now.examples),
            ("seed", state.seed, now.seed),
            ("batch size", state.batch_size, now.batch_size),
        ];
        for (what, then, now) in differing {
            if then != now {
                return Err(Error::data(format!(
                    "the {what} was {then} when the checkpoint was written and is {now} now"
                ))
                .help("resume with the data and the configuration that the run was started with"));
            }
        }
        if state.lengths_hash != now.lengths_hash {
            return Err(Error::data("the training examples are not those that the checkpoint was written with")
                .help("resume with the same data files, chat template and data settings, or start a new run"));
        }
        sampler.taken = state.taken;
        Ok(sampler)
    }

    /// Where the sampler stands, for the checkpoint.
    pub fn state(&self) -> SamplerState {
        SamplerState {
            version: 1,
            seed: self.options.seed,
            batch_size: self.options.batch_size as u64,
            taken: self.taken,
            examples: self.lengths.len() as u64,
            lengths_hash: self.lengths_hash.clone(),
        }
    }

    /// How many steps there are in all, if a number of epochs was asked for.
    pub fn total_steps(&self) -> Option<u64> {
        self.end().map(|end| end.div_ceil(self.options.batch_size as u64))
    }

    /// What the next step trains on; none when the epochs that were asked for are done.
    pub fn next_step(&mut self) -> Option<StepBatches> {
        let left = self.end().map_or(u64::MAX, |end| end.saturating_sub(self.taken));
        let count = (self.options.batch_size as u64).min(left);
        if count == 0 {
            return None;
        }
        let examples: Vec<usize> = (0..count).map(|i| self.example_at(self.taken + i)).collect();
        self.taken += count;
        let micro_batches = self.options.dealing.deal(&examples, &self.lengths);
        Some(StepBatches { micro_batches, epoch: self.taken as f64 / self.lengths.len() as f64 })
    }

    fn end(&self) -> Option<u64> {
        self.options.epochs.map(|epochs| (epochs * self.lengths.len() as f64).round().max(1.0) as u64)
    }

    fn example_at(&mut self, position: u64) -> usize {
        let n = self.lengths.len() as u64;
        let epoch = position / n;
        if self.order_epoch != Some(epoch) {
            self.order = permutation(n as usize, self.options.seed, ORDER_STREAM.wrapping_add(epoch));
            self.order_epoch = Some(epoch);
        }
        self.order[(position % n) as usize]
    }
}

impl Dealing {
    /// Deals `examples` (indices into `lengths`) into micro-batches, none of them empty.
    pub fn deal(&self, examples: &[usize], lengths: &[usize]) -> Vec<Vec<usize>> {
        let length = |example: usize| lengths.get(example).copied().unwrap_or(0);
        let most = self.micro_batch_examples.unwrap_or(if self.packing { usize::MAX } else { 1 });
        let mut in_order = examples.to_vec();
        if self.packing {
            in_order.sort_by_key(|&example| std::cmp::Reverse(length(example)));
        }
        let mut groups: Vec<(usize, Vec<usize>)> = Vec::new();
        // Where an example may go: any group that is open if packed, the last one if in order.
        let mut open_from = 0;
        for example in in_order {
            let tokens = length(example);
            let has_room = |(used, group): &&mut (usize, Vec<usize>)| {
                used.saturating_add(tokens) <= self.micro_batch_tokens && group.len() < most
            };
            match groups.get_mut(open_from..).unwrap_or_default().iter_mut().find(has_room) {
                Some((used, group)) => {
                    *used += tokens;
                    group.push(example);
                }
                None => {
                    groups.push((tokens, vec![example]));
                    open_from = if self.packing { 0 } else { groups.len() - 1 };
                }
            }
        }
        groups.into_iter().map(|(_, group)| group).collect()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const TWO: Dealing = Dealing { packing: false, micro_batch_tokens: 100, micro_batch_examples: Some(2) };
    const PACKED: Dealing = Dealing { packing: true, micro_batch_tokens: 18, micro_batch_examples: None };

    fn options(batch_size: usize, epochs: Option<f64>) -> SamplerOptions {
        SamplerOptions { seed: 3, batch_size, dealing: TWO, epochs }
    }

    fn lengths() -> Vec<usize> {
        (0..11).map(|i| 5 + i * 3 % 7).collect()
    }

    fn all(sampler: &mut Sampler, steps: usize) -> Vec<StepBatches> {
        std::iter::from_fn(|| sampler.next_step()).take(steps).collect()
    }

    #[test]
    fn each_epoch_holds_each_example_once_in_another_order() {
        let mut sampler = Sampler::new(lengths(), options(4, Some(3.0))).unwrap();
        assert_eq!(sampler.total_steps(), Some(9));
        let steps = all(&mut sampler, 100);
        assert_eq!(steps.len(), 9);
        assert_eq!(steps.last().unwrap().epoch, 3.0);
        let flat: Vec<usize> = steps.iter().flat_map(|s| s.micro_batches.concat()).collect();
        assert_eq!(flat.len(), 33);
        assert_eq!(steps.last().unwrap().micro_batches.concat().len(), 1);
        let epochs: Vec<&[usize]> = flat.chunks(11).collect();
        for epoch in &epochs {
            let mut sorted = epoch.to_vec();
            sorted.sort_unstable();
            assert_eq!(sorted, (0..11).collect::<Vec<_>>());
        }
        assert_ne!(epochs[0], epochs[1]);
        assert_ne!(epochs[1], epochs[2]);
    }

    #[test]
    fn it_resumes_exactly_at_every_step() {
        for dealing in [TWO, PACKED] {
            let options = SamplerOptions { dealing, ..options(4, None) };
            let whole = all(&mut Sampler::new(lengths(), options).unwrap(), 12);
            for stop in 0..=12 {
                let mut sampler = Sampler::new(lengths(), options).unwrap();
                let mut steps = all(&mut sampler, stop);
                let json = serde_json::to_string(&sampler.state()).unwrap();
                let state: SamplerState = serde_json::from_str(&json).unwrap();
                let mut resumed = Sampler::resume(lengths(), options, &state).unwrap();
                steps.extend(all(&mut resumed, 12 - stop));
                assert_eq!(steps, whole, "stopped after {stop} steps");
            }
        }
    }

    #[test]
    fn another_seed_another_order_the_same_seed_the_same() {
        let first = |seed| all(&mut Sampler::new(lengths(), SamplerOptions { seed, ..options(4, None) }).unwrap(), 6);
        assert_eq!(first(1), first(1));
        assert_ne!(first(1), first(2));
    }

    #[test]
    fn the_order_stays_what_it_was_in_earlier_versions() {
        // A change here breaks resuming of runs that are under way, and published results.
        let mut sampler = Sampler::new(vec![1; 10], SamplerOptions { seed: 42, ..options(10, None) }).unwrap();
        assert_eq!(sampler.next_step().unwrap().micro_batches.concat(), GOLDEN_ORDER_SEED_42);
    }
    const GOLDEN_ORDER_SEED_42: [usize; 10] = [1, 8, 3, 4, 2, 5, 7, 9, 0, 6];

    #[test]
    fn packing_fills_the_budget_and_loses_nothing() {
        let small = Dealing { micro_batch_tokens: 9, ..PACKED };
        assert_eq!(small.deal(&[0, 1, 2, 3, 4], &[6, 3, 5, 4, 20]), vec![vec![4], vec![0, 1], vec![2, 3]]);
        let lengths: Vec<usize> = (0..500).map(|i| 1 + (i * 7919) % 97).collect();
        let examples: Vec<usize> = (0..500).collect();
        let groups = Dealing { micro_batch_tokens: 128, ..PACKED }.deal(&examples, &lengths);
        let mut flat = groups.concat();
        flat.sort_unstable();
        assert_eq!(flat, examples);
        assert!(groups.iter().all(|g| g.iter().map(|&e| lengths[e]).sum::<usize>() <= 128));
        let total: usize = lengths.iter().sum();
        assert!(groups.len() <= total.div_ceil(128) * 11 / 9 + 1, "{} groups for {total} tokens", groups.len());
    }

    #[test]
    fn in_order_micro_batches_hold_a_number_of_examples_within_the_token_limit() {
        let one = Dealing { packing: false, micro_batch_tokens: 9, micro_batch_examples: None };
        assert_eq!(one.deal(&[3, 1, 2], &[1, 1, 1, 1]), vec![vec![3], vec![1], vec![2]]);
        let three = Dealing { micro_batch_examples: Some(3), ..one };
        assert_eq!(three.deal(&[0, 1, 2, 3, 4], &[4, 4, 4, 1, 1]), vec![vec![0, 1], vec![2, 3, 4]]);
        let packed = Dealing { packing: true, ..three };
        assert_eq!(packed.deal(&[0, 1, 2, 3, 4], &[1; 5]), vec![vec![0, 1, 2], vec![3, 4]]);
    }

    #[test]
    fn a_state_of_other_data_or_settings_is_refused() {
        let state = Sampler::new(lengths(), options(4, None)).unwrap().state();
        let refuse = |lengths, options| Sampler::resume(lengths, options, &state).unwrap_err().message().to_string();
        assert!(refuse(vec![5; 10], options(4, None)).contains("number of training examples was 11"));
        assert!(refuse(vec![5; 11], options(4, None)).contains("are not those"));
        assert!(refuse(lengths(), options(5, None)).contains("batch size was 4 when"));
        assert!(refuse(lengths(), SamplerOptions { seed: 4, ..options(4, None) }).contains("seed was 3"));
        let other = SamplerState { version: 2, ..state.clone() };
        assert!(Sampler::resume(lengths(), options(4, None), &other).is_err());
    }

    #[test]
    fn nothing_to_sample_or_sizes_of_zero_are_errors() {
        assert!(Sampler::new(vec![], options(4, None)).is_err());
        let refuse = |options| Sampler::new(lengths(), options).unwrap_err().message().to_string();
        assert_eq!(refuse(options(0, None)), "`train.batch_size` must be above 0");
        assert_eq!(refuse(options(4, Some(0.0))), "`train.epochs` must be above 0");
        let dealing = Dealing { micro_batch_tokens: 0, ..PACKED };
        assert_eq!(
            refuse(SamplerOptions { dealing, ..options(4, None) }),
            "`train.micro_batch_tokens` must be above 0"
        );
    }
}
