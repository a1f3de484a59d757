//! Singular values on a GPU. In: shapes, and a function that reads a matrix. Out: the values of each, and which ones
//! the processor must do because the card has no memory for them.
//!
//! ```text
//! reading, on all cores, ahead ─► batches of one size ─► squared on the card ─► exact enough: done
//!                                                                            └► whole on the card: done
//! ```
//!
//! The bound that says what is exact enough is the processor's own (`singular::from_squares`), so that both take the
//! same way and find the same scores.

use std::time::{Duration, Instant};

use liftplan_engine::EngineError;
use liftplan_engine::cuda::Context;
use liftplan_engine::cuda::singular::{Found, Matrix, Memory, Solver, Way};

use super::ahead::{Held, read_ahead};
use super::singular::{from_squares, in_order};
use crate::config::Device;
use crate::{Error, Result, device};

/// The most that is taken of the card: with the driver's own half a GiB it stays below 4.
const MOST_BYTES: usize = 3 << 30;
/// Left to the driver and other programs where memory is short.
const SPARED_BYTES: usize = 512 << 20;
/// Operations from which on `auto` takes a GPU: less is done before one is opened.
const WORTH_IT: f64 = 5e10;
/// Bytes of elements that are held at a time, with those being read: at least and at most. Less would leave cores idle,
/// and reading on few of them is slower than the card.
const AHEAD_BYTES: (usize, usize) = (2 << 30, 4 << 30);

/// What reading a matrix gives.
#[derive(Debug)]
pub enum Prepared {
    /// Its singular values: they were in the cache.
    Known(Vec<f64>),
    /// Its elements, finite and as many as the shape says.
    Elements(Vec<f32>),
}

/// A GPU that finds singular values.
#[derive(Debug)]
pub struct Card {
    context: Context,
}

/// What came of it.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Places of the matrices that are left to the processor, since the card has no memory for them.
    pub left: Vec<usize>,
    /// How many were not exact enough squared.
    pub whole: usize,
    /// Time that was spent waiting for matrices to be read, uploading them, and waiting for the card beyond that.
    pub waited: [Duration; 3],
}

/// A matrix that was read: its place in the list, what its values are kept under, and its elements.
struct Read {
    place: usize,
    key: String,
    elements: Vec<f32>,
    /// The room of its elements, until they are dropped.
    held: Option<Held>,
}

impl Card {
    /// The GPU for matrices of these shapes, or none if the processor is to do it, then with a warning if `auto` found
    /// a GPU that can't be used.
    ///
    /// # Errors
    /// When a GPU is asked for by name and can't be used.
    pub fn of_device(device: Device, shapes: &[[usize; 2]]) -> Result<(Option<Self>, Option<String>)> {
        if device == Device::Auto && shapes.iter().map(operations).sum::<f64>() < WORTH_IT {
            return Ok((None, None));
        }
        let chosen = device::choose(device)?;
        Ok((chosen.context.map(Self::new), chosen.warning))
    }

    /// A GPU that is open.
    pub fn new(context: Context) -> Self {
        Self { context }
    }

    /// Such as `cuda:0, NVIDIA H100 80GB HBM3`.
    pub fn name(&self) -> String {
        format!("cuda:{}, {}", self.context.ordinal(), self.context.name())
    }

    /// The singular values of the matrices of `shapes`, in no certain order: `prepare` reads the one at a place and
    /// says what its values are kept under, and `found` gets them, with that where they were computed. `largest` is the
    /// size in bytes of the model's largest tensor: about three of them may be held.
    ///
    /// # Errors
    /// A matrix can't be read, or the card fails.
    pub fn singular_values(
        &self,
        shapes: &[[usize; 2]],
        largest: usize,
        prepare: impl Fn(usize) -> Result<(String, Prepared)> + Sync,
        mut found: impl FnMut(usize, Option<&str>, Vec<f64>),
    ) -> Result<Outcome> {
        let mut outcome = Outcome::default();
        let mut inexact = Vec::new();
        let ahead = (3 * largest).clamp(AHEAD_BYTES.0, AHEAD_BYTES.1);
        let all = (0..shapes.len()).collect();
        self.pass(Way::Squared, shapes, all, ahead, &prepare, &mut outcome, |from, what| {
            let (place, [rows, cols]) = (from.place, shapes[from.place]);
            match what {
                Ok(what) => match from_squares(what.values, what.trace, rows, cols) {
                    Some(values) => found(place, Some(&from.key), values),
                    None => inexact.push(place),
                },
                Err(known) => found(place, None, known),
            }
        })?;
        outcome.whole = inexact.len();
        self.pass(Way::Whole, shapes, inexact, ahead, &prepare, &mut outcome, |from, what| {
            let (place, [rows, cols]) = (from.place, shapes[from.place]);
            match what {
                Ok(what) => {
                    let values = what.values.into_iter().map(|value| value.max(0.0)).collect();
                    found(place, Some(&from.key), in_order(values, rows, cols));
                }
                Err(known) => found(place, None, known),
            }
        })?;
        Ok(outcome)
    }

    /// Bytes that may be taken now.
    fn budget(&self) -> Result<usize> {
        let (free, _) = self.context.memory().map_err(card_failed)?;
        Ok(MOST_BYTES.min(free.saturating_sub(SPARED_BYTES)))
    }

    /// One way for the matrices at `places`; `found` gets what the card found, or the values that were known.
    #[allow(clippy::too_many_arguments)]
    fn pass(
        &self,
        way: Way,
        shapes: &[[usize; 2]],
        places: Vec<usize>,
        ahead: usize,
        prepare: &(impl Fn(usize) -> Result<(String, Prepared)> + Sync),
        outcome: &mut Outcome,
        mut found: impl FnMut(&Read, std::result::Result<Found, Vec<f64>>),
    ) -> Result<()> {
        if places.is_empty() {
            return Ok(());
        }
        let budget = self.budget()?;
        let (mut places, left): (Vec<_>, Vec<_>) =
            places.into_iter().partition(|place| Memory::plan(way, &[shapes[*place]], budget).is_some());
        outcome.left.extend(left);
        // Those of one size behind one another, so that a batch's matrices take equally long.
        places.sort_by_key(|place| std::cmp::Reverse(order(shapes[*place])));
        let sorted: Vec<_> = places.iter().map(|place| shapes[*place]).collect();
        let Some(memory) = Memory::plan(way, &sorted, budget) else { return Ok(()) };
        let sizes: Vec<_> = sorted.iter().map(|[rows, cols]| 4 * rows * cols).collect();
        let mut batches =
            Batches { card: self, way, memory, ahead, shapes, solver: None, computing: Vec::new(), outcome };
        let mut gathered: Vec<Read> = Vec::new();
        let mut since = Instant::now();
        let read = |number: usize| prepare(places[number]);
        read_ahead(&sizes, ahead, rayon::current_num_threads(), read, |number, prepared, held| {
            batches.outcome.waited[0] += since.elapsed();
            let place = places[number];
            let (key, prepared) = prepared?;
            match prepared {
                Prepared::Known(values) => {
                    found(&Read { place, key, elements: Vec::new(), held: None }, Err(values));
                }
                Prepared::Elements(elements) => {
                    if gathered.first().is_some_and(|first| order(shapes[first.place]).0 != order(shapes[place]).0) {
                        batches.push(std::mem::take(&mut gathered), &mut found)?;
                    }
                    gathered.push(Read { place, key, elements, held: Some(held) });
                    if gathered.len() == batches.lanes(shapes[gathered[0].place])? {
                        batches.push(std::mem::take(&mut gathered), &mut found)?;
                    }
                }
            }
            since = Instant::now();
            Ok(())
        })?;
        if !gathered.is_empty() {
            batches.push(gathered, &mut found)?;
        }
        batches.finish(&mut found)
    }
}

/// Operations that the fast way takes for a matrix.
fn operations([rows, cols]: &[usize; 2]) -> f64 {
    let (size, long) = ((*rows).min(*cols) as f64, (*rows).max(*cols) as f64);
    size * size * (long + 4.0 / 3.0 * size)
}

/// What a batch's matrices have in common: the size of the square, then that of the matrix.
fn order([rows, cols]: [usize; 2]) -> (usize, usize) {
    (rows.min(cols), rows * cols)
}

/// The batches of one way through the card.
struct Batches<'a> {
    card: &'a Card,
    way: Way,
    memory: Memory,
    /// Bytes of elements that may be held.
    ahead: usize,
    shapes: &'a [[usize; 2]],
    /// Made for the first batch: a scan that finds everything in the cache needs none.
    solver: Option<Solver>,
    /// What computes at present, without its elements.
    computing: Vec<Read>,
    outcome: &'a mut Outcome,
}

impl Batches<'_> {
    fn solver(&mut self) -> Result<&mut Solver> {
        let made = match self.solver.take() {
            Some(solver) => solver,
            None => Solver::new(&self.card.context, self.way, self.memory).map_err(card_failed)?,
        };
        Ok(self.solver.insert(made))
    }

    /// How many matrices a batch has whose first and largest has this shape.
    fn lanes(&mut self, first: [usize; 2]) -> Result<usize> {
        let held = self.ahead / (4 * first[0] * first[1]);
        Ok(self.solver()?.lanes(first).min(held.max(1)))
    }

    fn push(
        &mut self,
        mut batch: Vec<Read>,
        found: &mut impl FnMut(&Read, std::result::Result<Found, Vec<f64>>),
    ) -> Result<()> {
        let shapes = self.shapes;
        let matrices: Vec<_> = batch
            .iter()
            .map(|read| {
                let [rows, cols] = shapes[read.place];
                Matrix { elements: &read.elements, rows, cols }
            })
            .collect();
        let started = Instant::now();
        let uploaded = self.solver()?.upload(&matrices).map_err(card_failed)?;
        self.outcome.waited[1] += started.elapsed();
        drop(matrices);
        for read in &mut batch {
            read.elements = Vec::new();
            read.held = None;
        }
        let results = self.wait()?;
        self.solver()?.start(uploaded).map_err(card_failed)?;
        self.tell(results, batch, found);
        Ok(())
    }

    /// Waits for what computes.
    fn wait(&mut self) -> Result<Vec<Found>> {
        let started = Instant::now();
        let results = self.solver()?.finish().map_err(card_failed)?;
        self.outcome.waited[2] += started.elapsed();
        Ok(results)
    }

    fn finish(&mut self, found: &mut impl FnMut(&Read, std::result::Result<Found, Vec<f64>>)) -> Result<()> {
        if self.solver.is_some() {
            let results = self.wait()?;
            self.tell(results, Vec::new(), found);
        }
        Ok(())
    }

    fn tell(
        &mut self,
        results: Vec<Found>,
        next: Vec<Read>,
        found: &mut impl FnMut(&Read, std::result::Result<Found, Vec<f64>>),
    ) {
        for (read, result) in std::mem::replace(&mut self.computing, next).iter().zip(results) {
            found(read, Ok(result));
        }
    }
}

fn card_failed(error: EngineError) -> Error {
    Error::config(format!("singular values on the GPU: {error}"))
        .help("device = \"cpu\", or --device cpu, computes them on the processor")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_gpu_is_taken_where_it_is_asked_for_or_worth_it() {
        let none = |device, shapes: &[[usize; 2]]| matches!(Card::of_device(device, shapes).unwrap(), (None, None));
        assert!(none(Device::Cpu, &[[1 << 20, 1 << 20]]));
        // Tiny models never wait for a card to be opened, with or without one.
        assert!(none(Device::Auto, &[[64, 96]; 200]));
        let smol = [[576, 576], [192, 576], [192, 576], [576, 576], [1536, 576], [1536, 576], [576, 1536]];
        let operations: f64 = smol.iter().map(operations).sum();
        assert!(30.0 * operations > WORTH_IT, "the 30 blocks of SmolLM2-135M are worth it");
        if liftplan_engine::cuda::context::devices().is_err() {
            assert!(none(Device::Auto, &[[4096, 4096]; 200]));
            let error = Card::of_device(Device::Cuda(3), &[[2, 2]]).unwrap_err();
            assert!(error.message().starts_with("`device` is \"cuda:3\": lib"), "{error}");
        }
    }

    #[test]
    fn matrices_of_one_size_are_behind_one_another() {
        assert!(order([4096, 12288]) > order([4096, 4096]) && order([4096, 4096]) > order([1024, 65536]));
        assert_eq!(order([12288, 4096]), order([4096, 12288]));
    }
}
