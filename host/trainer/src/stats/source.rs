//! Where policies get statistics from: a model's weights, streamed tensor by tensor through the cache.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;

use faer::Par;
use rayon::prelude::*;

use super::card::{Card, Prepared};
use super::{Cache, Calibration, ElementStatistics, quantiles, singular};
use crate::config::Device;
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

/// A two-dimensional weight: its name and shape.
type Weight<'a> = (&'a TensorInfo, [usize; 2]);

/// The statistics of an opened model.
///
/// On the processor several matrices are worked on at once as long as all their work together stays below three times
/// the largest matrix of the model; a larger one is alone, with all cores on it.
pub struct ModelStatistics<'a> {
    model: &'a BaseModel,
    device: Device,
    /// Whether it is an error that the device is not there.
    needs_device: bool,
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
        let (known, elements) = (RefCell::default(), RefCell::default());
        Self {
            model,
            device: Device::Cpu,
            needs_device: true,
            cache,
            observer: RefCell::new(observer),
            known,
            elements,
        }
    }

    /// The same with singular values computed by `device`: `auto` takes a GPU where there is one that can be used and
    /// the work is worth it. Without this it is the processor.
    pub fn on(self, device: Device) -> Self {
        Self { device, needs_device: true, ..self }
    }

    /// The same, with a warning instead of an error where the device is not there: a plan for another machine can be
    /// made here.
    pub fn on_if_there(self, device: Device) -> Self {
        Self { device, needs_device: false, ..self }
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

    /// Computes or finds what `known` lacks.
    fn compute(&self, weights: &[Weight<'_>]) -> Result<()> {
        let (done, arrived) = mpsc::channel();
        let (model, cache) = (self.model, self.cache.as_ref());
        let (unwritten, total) = (AtomicBool::new(false), weights.len() as u64);
        let mut observer = self.observer.borrow_mut();
        let mut known = self.known.borrow_mut();
        let shapes: Vec<_> = weights.iter().map(|(_, shape)| *shape).collect();
        let (card, warning) = Card::of_device(self.device, &shapes).or_else(|error| match self.needs_device {
            true => Err(error),
            false => Ok((None, Some(error.message().to_string()))),
        })?;
        if let Some(warning) = warning {
            observer.on(&Event::Warning(&format!("singular values are computed on the processor: {warning}")));
        }
        match &card {
            Some(card) => observer.on(&Event::Phase(&format!("computing singular values on {}", card.name()))),
            None => observer.on(&Event::Phase("computing singular values")),
        }
        observer.on(&Event::Progress { unit: "matrices", done: 0, total });
        // In f32; the work on one matrix takes at most three times its own size, see `singular_values`.
        let largest = model.inventory.tensors.iter().map(|info| 4 * info.len()).max().unwrap_or(0);
        let on_card = card.is_some();
        let left = thread::scope(|scope| {
            let one = One { model, cache, unwritten: &unwritten };
            let worker = scope.spawn(move || {
                // Nobody listens any more only if the scan was given up.
                let tell = |place: usize, values: Vec<f64>| {
                    let _ = done.send((weights[place].0.name.clone(), values));
                };
                let prepare = |place: usize| one.prepare(&weights[place]);
                let rest = match card {
                    Some(card) => {
                        let found = |place, key: Option<&str>, values| {
                            tell(place, if let Some(key) = key { one.kept(key, values) } else { values });
                        };
                        card.singular_values(&shapes, largest, prepare, found)?.left
                    }
                    None => (0..weights.len()).collect(),
                };
                let left = rest.len();
                for window in windows(&shapes, rest, 3 * largest) {
                    let par = if window.len() >= rayon::current_num_threads() { Par::Seq } else { Par::rayon(0) };
                    window.par_iter().try_for_each(|place| {
                        tell(*place, one.values(&weights[*place], par)?);
                        Ok(())
                    })?;
                }
                Ok(left)
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
        match left? {
            left if on_card && left > 0 => observer.on(&Event::Warning(&format!(
                "{left} of {total} matrices were computed on the processor, since the GPU has no memory for them"
            ))),
            _ => {}
        }
        Ok(())
    }
}

/// These places in windows of matrices that are worked on at the same time, within `budget` bytes.
fn windows(shapes: &[[usize; 2]], places: Vec<usize>, budget: usize) -> Vec<Vec<usize>> {
    let mut windows: Vec<Vec<usize>> = Vec::new();
    let mut used = budget;
    for place in places {
        let work = 12 * shapes[place][0] * shapes[place][1];
        match windows.last_mut() {
            Some(window) if used + work <= budget => window.push(place),
            _ => {
                windows.push(vec![place]);
                used = 0;
            }
        }
        used += work;
    }
    windows
}

impl Statistics for ModelStatistics<'_> {
    fn singular_values(&self, tensors: &[&TensorInfo]) -> Result<Vec<Arc<[f64]>>> {
        let mut weights = Vec::new();
        for info in tensors {
            let [rows, cols] = info.shape[..] else {
                return Err(Error::plan(format!(
                    "tensor `{}` of shape {:?} has no singular values: it must have two dimensions",
                    info.name, info.shape
                )));
            };
            if !self.known.borrow().contains_key(&info.name) {
                weights.push((*info, [rows, cols]));
            }
        }
        if !weights.is_empty() {
            self.compute(&weights)?;
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

/// What the work on one weight needs.
#[derive(Clone, Copy)]
struct One<'a> {
    model: &'a BaseModel,
    cache: Option<&'a Cache>,
    unwritten: &'a AtomicBool,
}

impl One<'_> {
    /// Its values from the cache, or its elements, and what the values are to be kept under.
    fn prepare(&self, (info, [rows, cols]): &Weight<'_>) -> Result<(String, Prepared)> {
        let elements = self.model.read_f32(&info.name)?;
        let key = self.cache.map(|_| Cache::key(&elements, *rows, *cols)).unwrap_or_default();
        if let Some(values) = self.cache.and_then(|cache| cache.get(&key, *rows.min(cols))) {
            return Ok((key, Prepared::Known(values)));
        }
        singular::check(&elements, *rows, *cols).map_err(|error| error.at(format!("tensor `{}`", info.name)))?;
        Ok((key, Prepared::Elements(elements)))
    }

    /// Values that were computed, put into the cache.
    fn kept(&self, key: &str, values: Vec<f64>) -> Vec<f64> {
        if self.cache.is_some_and(|cache| cache.put(key, &values).is_err()) {
            self.unwritten.store(true, Ordering::Relaxed);
        }
        values
    }

    /// The singular values, from the cache or computed on the processor and put there.
    fn values(&self, weight: &Weight<'_>, par: Par) -> Result<Vec<f64>> {
        let (info, [rows, cols]) = weight;
        match self.prepare(weight)? {
            (_, Prepared::Known(values)) => Ok(values),
            (key, Prepared::Elements(elements)) => {
                let values = singular::of_checked(elements, *rows, *cols, par);
                Ok(self.kept(&key, values.map_err(|error| error.at(format!("tensor `{}`", info.name)))?))
            }
        }
    }
}
