//! Where policies get statistics from: a model's weights, streamed tensor by tensor through the cache.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;

use faer::Par;
use rayon::prelude::*;

use super::{Cache, Calibration, ElementStatistics, quantiles, singular_values};
use crate::model::BaseModel;
use crate::model::inventory::TensorInfo;
use crate::report::{Event, Observer};
use crate::{Error, Result};

/// Statistics of a model's tensors, computed when they are asked for.
pub trait Statistics {
    /// The singular values of each of these two-dimensional weights, descending, in the order of `tensors`. Asking for
    /// all at once is faster than one by one.
    ///
    /// # Errors
    /// A tensor has not two dimensions, can't be read, or holds a number that is not finite.
    fn singular_values(&self, tensors: &[&TensorInfo]) -> Result<Vec<Arc<[f64]>>>;

    /// Norms and moments of the elements of each of these weights, in the order of `tensors`.
    ///
    /// # Errors
    /// A tensor can't be read, or holds a number that is not finite.
    fn elements(&self, tensors: &[&TensorInfo]) -> Result<Vec<ElementStatistics>> {
        let _ = tensors;
        Err(not_at_hand())
    }

    /// Quantiles of a weight's elements, or of their magnitudes, at these parts (0 to 1).
    ///
    /// # Errors
    /// As [`Statistics::elements`].
    fn quantiles(&self, tensor: &TensorInfo, parts: &[f64], of_magnitudes: bool) -> Result<Vec<f64>> {
        let _ = (tensor, parts, of_magnitudes);
        Err(not_at_hand())
    }

    /// Measurements of the untrained model on so many batches of the training data.
    ///
    /// # Errors
    /// There is no data here.
    fn calibration(&self, batches: usize) -> Result<Rc<dyn Calibration>> {
        let _ = batches;
        Err(Error::plan("this policy measures the model on data, and there is no data here")
            .help("plan with a configuration that names data: liftplan train CONFIG"))
    }
}

fn not_at_hand() -> Error {
    Error::plan("this policy ranks by statistics of the weights, and only the model's inventory is at hand")
        .help("plan with the model itself: liftplan plan CONFIG")
}

/// No statistics: for plans made from an inventory alone.
pub struct NoStatistics;

impl Statistics for NoStatistics {
    fn singular_values(&self, _: &[&TensorInfo]) -> Result<Vec<Arc<[f64]>>> {
        Err(not_at_hand())
    }
}

const UNWRITTEN: &str = "the cache of singular values cannot be written, so they will be computed anew next time; \
                         set LIFTPLAN_CACHE to a directory that can";

/// The statistics of an opened model.
///
/// Several matrices are worked on at once as long as all their work together stays below three times the largest
/// matrix of the model; a larger one is alone, with all cores on it.
pub struct ModelStatistics<'a> {
    model: &'a BaseModel,
    cache: Option<Cache>,
    observer: RefCell<&'a mut dyn Observer>,
    known: RefCell<BTreeMap<String, Arc<[f64]>>>,
    elements: RefCell<BTreeMap<String, ElementStatistics>>,
}

impl<'a> ModelStatistics<'a> {
    /// The statistics of `model`, through the user's cache. Progress goes to `observer`.
    pub fn new(model: &'a BaseModel, observer: &'a mut dyn Observer) -> Self {
        Self::with_cache(model, Cache::of_user(), observer)
    }

    /// The same through `cache`, or without any.
    pub fn with_cache(model: &'a BaseModel, cache: Option<Cache>, observer: &'a mut dyn Observer) -> Self {
        Self { model, cache, observer: RefCell::new(observer), known: RefCell::default(), elements: RefCell::default() }
    }

    /// Tells the observer of other work on the same model.
    pub(crate) fn tell(&self, event: &Event<'_>) {
        self.observer.borrow_mut().on(event);
    }

    /// So many numbers made of a weight's elements, from the cache or computed and put there.
    fn numbers(
        &self,
        info: &TensorInfo,
        what: &[u8],
        count: usize,
        compute: impl FnOnce(Vec<f32>) -> Result<Vec<f64>>,
    ) -> Result<Vec<f64>> {
        let elements = self.model.read_f32(&info.name)?;
        let key = self.cache.as_ref().map(|cache| (cache, Cache::key_of(what, &elements, info.len(), 1)));
        if let Some(numbers) = key.as_ref().and_then(|(cache, key)| cache.get(key, count)) {
            return Ok(numbers);
        }
        let numbers = compute(elements).map_err(|error| error.at(format!("tensor `{}`", info.name)))?;
        if let Some((cache, key)) = &key
            && cache.put(key, &numbers).is_err()
        {
            self.observer.borrow_mut().on(&Event::Warning(UNWRITTEN));
        }
        Ok(numbers)
    }

    /// Computes or finds what `known` lacks, `windows` one after another, the tensors of each at the same time.
    fn compute(&self, windows: &[Vec<(&TensorInfo, usize, usize)>], total: u64) -> Result<()> {
        let (done, arrived) = mpsc::channel();
        let (model, cache) = (self.model, self.cache.as_ref());
        let unwritten = AtomicBool::new(false);
        let mut observer = self.observer.borrow_mut();
        let mut known = self.known.borrow_mut();
        observer.on(&Event::Phase("computing singular values"));
        observer.on(&Event::Progress { unit: "matrices", done: 0, total });
        let result = thread::scope(|scope| {
            let unwritten = &unwritten;
            let worker = scope.spawn(move || {
                for window in windows {
                    let par = if window.len() >= rayon::current_num_threads() { Par::Seq } else { Par::rayon(0) };
                    window.par_iter().try_for_each_with(done.clone(), |done, (info, rows, cols)| {
                        let values = one(model, cache, info, *rows, *cols, par, unwritten)?;
                        // Nobody listens any more only if the scan was given up.
                        let _ = done.send((info.name.clone(), values));
                        Ok(())
                    })?;
                }
                Ok(())
            });
            for (count, (name, values)) in (1..).zip(arrived) {
                known.insert(name, values.into());
                observer.on(&Event::Progress { unit: "matrices", done: count, total });
            }
            worker.join().unwrap_or_else(|_| Err(Error::internal("the computation of singular values broke off")))
        });
        if unwritten.into_inner() {
            observer.on(&Event::Warning(UNWRITTEN));
        }
        result
    }
}

impl Statistics for ModelStatistics<'_> {
    fn singular_values(&self, tensors: &[&TensorInfo]) -> Result<Vec<Arc<[f64]>>> {
        // In f32; the work on one matrix takes at most three times its own size, see `singular_values`.
        let budget = 3 * self.model.inventory.tensors.iter().map(|info| 4 * info.len()).max().unwrap_or(0);
        let mut windows: Vec<Vec<_>> = Vec::new();
        let (mut used, mut total) = (budget, 0);
        for info in tensors {
            let [rows, cols] = info.shape[..] else {
                return Err(Error::plan(format!(
                    "tensor `{}` of shape {:?} has no singular values: it must have two dimensions",
                    info.name, info.shape
                )));
            };
            if self.known.borrow().contains_key(&info.name) {
                continue;
            }
            let work = 12 * info.len();
            match windows.last_mut() {
                Some(window) if used + work <= budget => window.push((*info, rows, cols)),
                _ => {
                    windows.push(vec![(*info, rows, cols)]);
                    used = 0;
                }
            }
            used += work;
            total += 1;
        }
        if total > 0 {
            self.compute(&windows, total)?;
        }
        let known = self.known.borrow();
        let lost = |info: &TensorInfo| Error::internal(format!("the singular values of `{}` got lost", info.name));
        tensors.iter().map(|info| known.get(&info.name).cloned().ok_or_else(|| lost(info))).collect()
    }

    fn elements(&self, tensors: &[&TensorInfo]) -> Result<Vec<ElementStatistics>> {
        let mut found = Vec::with_capacity(tensors.len());
        for info in tensors {
            let known = self.elements.borrow().get(&info.name).copied();
            let statistics = match known {
                Some(statistics) => statistics,
                None => {
                    let numbers = self.numbers(info, b"liftplan elements 1\0", ElementStatistics::LEN, |elements| {
                        Ok(ElementStatistics::of(&elements)?.to_numbers().to_vec())
                    })?;
                    ElementStatistics::from_numbers(&numbers)
                        .ok_or_else(|| Error::internal("element statistics of the wrong number"))?
                }
            };
            self.elements.borrow_mut().insert(info.name.clone(), statistics);
            found.push(statistics);
        }
        Ok(found)
    }

    fn quantiles(&self, tensor: &TensorInfo, parts: &[f64], of_magnitudes: bool) -> Result<Vec<f64>> {
        let mut what = format!("liftplan quantiles 1 {of_magnitudes}\0").into_bytes();
        what.extend(parts.iter().flat_map(|part| part.to_le_bytes()));
        self.numbers(tensor, &what, parts.len(), |elements| quantiles(elements, parts, of_magnitudes))
    }
}

/// The singular values of one tensor, from the cache or computed and put there.
fn one(
    model: &BaseModel,
    cache: Option<&Cache>,
    info: &TensorInfo,
    rows: usize,
    cols: usize,
    par: Par,
    unwritten: &AtomicBool,
) -> Result<Vec<f64>> {
    let elements = model.read_f32(&info.name)?;
    let Some(cache) = cache else {
        return singular_values(elements, rows, cols, par).map_err(|error| error.at(format!("tensor `{}`", info.name)));
    };
    let key = Cache::key(&elements, rows, cols);
    if let Some(values) = cache.get(&key, rows.min(cols)) {
        return Ok(values);
    }
    let values =
        singular_values(elements, rows, cols, par).map_err(|error| error.at(format!("tensor `{}`", info.name)))?;
    if cache.put(&key, &values).is_err() {
        unwritten.store(true, Ordering::Relaxed);
    }
    Ok(values)
}
