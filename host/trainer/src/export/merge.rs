//! The weights that a run ends with, one tensor at a time: the base's, what trained whole, and adapters merged in.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor};

use super::{BaseWeights, Made};
use crate::checkpoint::{NamedTensor, TensorFile};
use crate::model::BaseModel;
use crate::model::inventory::TensorInfo;
use crate::plan::{AdapterSpec, Entry, Storage, Treatment};
use crate::train::build;
use crate::{Error, Result};

/// Reads merged weights.
pub struct Merger<'a> {
    base: &'a BaseModel,
    entries: BTreeMap<&'a str, &'a Entry>,
    trained: &'a TensorFile,
    base_weights: BaseWeights,
}

/// The trained parts of an adapter.
pub(super) struct Adapter {
    /// `[rank, in]`, row-major.
    pub a: NamedTensor,
    /// `[out, rank]`, row-major.
    pub b: NamedTensor,
    /// `[out]`, with DoRA.
    pub magnitude: Option<NamedTensor>,
}

impl<'a> Merger<'a> {
    /// Checks that plan, base and trained tensors belong together: each planned tensor is there, in its shape.
    ///
    /// # Errors
    /// When one isn't; the error names it.
    pub fn new(made: &Made<'a>) -> Result<Self> {
        let Made { base, plan, trained, .. } = *made;
        let entries = plan.entries.iter().map(|e| (e.tensor.as_str(), e)).collect();
        let this = Self { base, entries, trained, base_weights: BaseWeights::Original };
        let there = trained.names()?;
        let mut wanted = 0;
        for entry in &plan.entries {
            let info = base.inventory.get(&entry.tensor).ok_or_else(|| {
                Error::plan(format!("the plan speaks of {}, which the model {} hasn't", entry.tensor, base.origin))
            })?;
            for (name, shape) in trained_parts(info, &entry.treatment) {
                wanted += 1;
                let found = trained.get(&name)?;
                if found.shape != shape {
                    return Err(Error::output(format!(
                        "{}: {name} has the shape {:?}, and the plan needs {shape:?}",
                        trained.path().display(),
                        found.shape
                    )));
                }
            }
        }
        if wanted != there.len() {
            return Err(Error::output(format!(
                "{}: it has {} tensors, and the plan trains {wanted}",
                trained.path().display(),
                there.len()
            )));
        }
        Ok(this)
    }

    /// The same, with other weights of the base model.
    pub(super) fn over(self, base_weights: BaseWeights) -> Self {
        Self { base_weights, ..self }
    }

    /// What the plan did with a tensor.
    pub(super) fn treatment(&self, name: &str) -> &Treatment {
        self.entries.get(name).map_or(&Treatment::Frozen, |entry| &entry.treatment)
    }

    /// How the run kept a tensor.
    pub(super) fn storage(&self, name: &str) -> Storage {
        self.entries.get(name).map_or(Storage::F32, |entry| entry.storage)
    }

    /// The base's own tensor, in f32.
    fn base_f32(&self, info: &TensorInfo) -> Result<Vec<f32>> {
        match self.base_weights {
            BaseWeights::Original => self.base.read_f32(&info.name),
            BaseWeights::Dequantised | BaseWeights::Packed => {
                Ok(build::read(self.base, info, self.storage(&info.name))?.as_f32().into_owned())
            }
        }
    }

    /// Whether a tensor is the base's own.
    pub fn is_untouched(&self, name: &str) -> bool {
        matches!(self.treatment(name), Treatment::Frozen)
    }

    /// The tensor as trained, in f32, row-major, adapters merged.
    ///
    /// # Errors
    /// When it can't be read.
    pub fn merged_f32(&self, info: &TensorInfo) -> Result<Vec<f32>> {
        match self.treatment(&info.name) {
            Treatment::Frozen => self.base_f32(info),
            Treatment::Train => self.trained.get(&info.name)?.data.to_f32(),
            Treatment::Adapt(spec) => {
                let weight = self.base_f32(info)?;
                let adapter = self.adapter(&info.name, spec)?;
                let (a, b) = (adapter.a.data.to_f32()?, adapter.b.data.to_f32()?);
                let magnitude = adapter.magnitude.map(|m| m.data.to_f32()).transpose()?;
                merge(weight, &info.shape, a, b, spec, magnitude.as_deref())
                    .map_err(|e| Error::internal(format!("cannot merge the adapter of {}: {e}", info.name)))
            }
        }
    }

    /// The adapter of the weight called `name`.
    pub(super) fn adapter(&self, name: &str, spec: &AdapterSpec) -> Result<Adapter> {
        let [a, b, magnitude] = adapter_names(name);
        Ok(Adapter {
            a: self.trained.get(&a)?,
            b: self.trained.get(&b)?,
            magnitude: if spec.dora { Some(self.trained.get(&magnitude)?) } else { None },
        })
    }
}

/// Keys of the adapter of the weight `X.weight` in a checkpoint: A, B and DoRA's magnitude.
pub(super) fn adapter_names(weight: &str) -> [String; 3] {
    let module = weight.strip_suffix(".weight").unwrap_or(weight);
    ["lora_A.weight", "lora_B.weight", "lora_magnitude_vector"].map(|part| format!("{module}.{part}"))
}

fn trained_parts(info: &TensorInfo, treatment: &Treatment) -> Vec<(String, Vec<usize>)> {
    match treatment {
        Treatment::Frozen => Vec::new(),
        Treatment::Train => vec![(info.name.clone(), info.shape.clone())],
        Treatment::Adapt(spec) => {
            let [a, b, magnitude] = adapter_names(&info.name);
            let (out, into) = match info.shape[..] {
                [out, into] => (out, into),
                _ => (info.len(), 1),
            };
            let mut parts = vec![(a, vec![spec.rank, into]), (b, vec![out, spec.rank])];
            if spec.dora {
                parts.push((magnitude, vec![out]));
            }
            parts
        }
    }
}

/// `W + s·B·A`, and with DoRA (arXiv 2402.09353, eq. 5) `m · (W + s·B·A) / ‖W + s·B·A‖`, the norm over each output's
/// row. `weight` is `[out, in]`, `a` `[rank, in]`, `b` `[out, rank]`, `magnitude` `[out]`.
fn merge(
    weight: Vec<f32>,
    shape: &[usize],
    a: Vec<f32>,
    b: Vec<f32>,
    spec: &AdapterSpec,
    magnitude: Option<&[f32]>,
) -> candle_core::Result<Vec<f32>> {
    let (into, cpu) = (shape.last().copied().unwrap_or(1), &Device::Cpu);
    let a = Tensor::from_vec(a, (spec.rank, into), cpu)?;
    let b = Tensor::from_vec(b, (weight.len() / into.max(1), spec.rank), cpu)?;
    let product = b.matmul(&a)?.flatten_all()?.to_vec1::<f32>()?;
    let mut merged = weight;
    let scale = spec.scale() as f32;
    for (w, p) in merged.iter_mut().zip(&product) {
        *w += scale * p;
    }
    if let Some(magnitude) = magnitude {
        for (row, m) in merged.chunks_exact_mut(into.max(1)).zip(magnitude) {
            let norm = row.iter().map(|w| f64::from(*w).powi(2)).sum::<f64>().sqrt();
            // A row of zeros has no direction to give the magnitude to.
            if norm > 0.0 {
                let factor = f64::from(*m) / norm;
                row.iter_mut().for_each(|w| *w = (f64::from(*w) * factor) as f32);
            }
        }
    }
    Ok(merged)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn spec(rslora: bool, dora: bool) -> AdapterSpec {
        AdapterSpec { rank: 1, alpha: 2.0, dropout: 0.0, rslora, dora }
    }

    #[test]
    fn an_adapter_is_added_with_its_scale() {
        // [out 2, in 3], B·A = [[1], [-1]]·[[1, 2, 3]].
        let merged =
            merge(vec![1.0; 6], &[2, 3], vec![1.0, 2.0, 3.0], vec![1.0, -1.0], &spec(false, false), None).unwrap();
        assert_eq!(merged, [3.0, 5.0, 7.0, -1.0, -3.0, -5.0]);
    }

    #[test]
    fn dora_gives_each_row_its_magnitude() {
        let m = [10.0, 1.0];
        let merged = merge(vec![3.0, 4.0, 0.0, 2.0], &[2, 2], vec![0.0; 2], vec![0.0; 2], &spec(true, true), Some(&m));
        assert_eq!(merged.unwrap(), [6.0, 8.0, 0.0, 1.0]);
    }
}
