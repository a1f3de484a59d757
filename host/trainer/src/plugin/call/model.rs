//! What a plugin asks of the model: the inventory, and statistics, which are charged.

use std::rc::Rc;
use std::sync::Arc;

use super::{Answer, Call, Fault, Refusal, UNAVAILABLE, refused};
use crate::model::inventory::{Kind, TensorInfo};
use crate::plan::Storage;
use crate::policy::select::{self, Eligible, Patterns};
use crate::stats::{ElementStatistics, Statistic, spectral_threshold};
use crate::{Error, Result};

/// Statistics are paid by these names.
const SINGULAR_VALUES: &str = "singular-values";
const ELEMENTS: &str = "elements";
/// Most quantiles asked for at once.
const MOST_QUANTILES: usize = 10_000;

impl<'c> Call<'c, '_> {
    /// The tensor with this number.
    ///
    /// # Errors
    /// There is none.
    pub fn tensor(&self, id: u32) -> Answer<&'c TensorInfo> {
        self.info(id).map_err(Fault::Refused)
    }

    /// The number of tensors.
    pub fn tensor_count(&self) -> u32 {
        self.view.tensors().len() as u32
    }

    /// The number of the tensor called `name`.
    ///
    /// # Errors
    /// There is none; the nearest name is said.
    pub fn find(&self, name: &str) -> Answer<u32> {
        let position = self.view.tensors().iter().position(|info| info.name == name);
        match position {
            Some(position) => Ok(position as u32),
            None => Err(self.builder.unknown(&crate::plugin::escaped(name, 200)).into()),
        }
    }

    /// The family's name.
    pub fn architecture(&self) -> &'c str {
        self.view.architecture()
    }

    /// The number of decoder blocks.
    pub fn blocks(&self) -> u32 {
        self.view.blocks() as u32
    }

    /// Whether the output head is the embedding.
    pub fn tied(&self) -> bool {
        self.view.tied()
    }

    /// Whether this tensor is the embedding and the head at once.
    pub fn tensor_tied(&self, id: u32) -> Answer<bool> {
        Ok(self.tensor(id)?.kind == Kind::Embedding && self.view.tied())
    }

    /// The run's seed.
    pub fn seed(&self) -> u64 {
        self.view.seed()
    }

    /// The `draw`-th random number of the first plan.
    pub fn view_random(&self, draw: u64) -> u64 {
        self.view.random(0, draw)
    }

    /// Bytes that the run may use, if the user set a limit.
    pub fn memory_budget(&self) -> Option<u64> {
        self.view.memory_budget()
    }

    /// How a tensor is kept as things stand: `f32`, `bf16`, …
    pub fn storage_of(&self, id: u32) -> Answer<String> {
        Ok(storage_name(self.builder.storage_now(&self.tensor(id)?.name)?))
    }

    /// The tensors that patterns choose, as the setting at path `setting` of built-in policies does.
    ///
    /// # Errors
    /// A pattern makes no sense or matches nothing; `kinds` has an unknown name.
    pub fn choose(&self, setting: &str, patterns: Vec<String>, kinds: &[String]) -> Answer<Vec<u32>> {
        let mut wanted = Vec::new();
        for kind in kinds {
            wanted.push(kind_named(kind)?);
        }
        let test = |info: &TensorInfo| wanted.is_empty() || wanted.contains(&info.kind);
        let what = match wanted[..] {
            [Kind::Linear] => "linear layer's weight",
            _ => "tensor that is asked for",
        };
        let flags = select::choose(setting, &Patterns(patterns), self.view, &Eligible { test: &test, what })?;
        Ok(ids(&flags))
    }

    /// Those of `among` that patterns match. Each pattern must match one.
    ///
    /// # Errors
    /// A pattern makes no sense or matches none of them.
    pub fn matching(&self, setting: &str, patterns: Vec<String>, among: &[u32]) -> Answer<Vec<u32>> {
        let mut flags = vec![false; self.view.tensors().len()];
        for id in among {
            self.tensor(*id)?;
            flags[*id as usize] = true;
        }
        let mut left = flags.clone();
        select::exclude(setting, &Patterns(patterns), self.view, &mut left)?;
        Ok(ids(&flags).into_iter().filter(|id| !left[*id as usize]).collect())
    }

    /// Computes a statistic of many tensors at once.
    ///
    /// # Errors
    /// The statistic is unknown, or can't be computed.
    pub fn prepare(&mut self, statistic: &str, tensors: &[u32]) -> Answer<()> {
        let known = [SINGULAR_VALUES, ELEMENTS];
        if !known.contains(&statistic) {
            let shown = crate::plugin::escaped(statistic, 80);
            return refused(format!(
                "there is no statistic `{shown}` to prepare: there are `{}`",
                known.join("` and `")
            ));
        }
        let infos = tensors.iter().map(|id| self.pay(*id, statistic)).collect::<Answer<Vec<_>>>()?;
        self.compute(|view| match statistic {
            ELEMENTS => view.elements(&infos).map(|_| ()),
            _ => view.singular_values(&infos).map(|_| ()),
        })
    }

    /// The singular values of a weight, descending.
    ///
    /// # Errors
    /// It has not two dimensions, or can't be read.
    pub fn singular_values(&mut self, id: u32) -> Answer<Arc<[f64]>> {
        let info = self.pay(id, SINGULAR_VALUES)?;
        self.compute(|view| one(view.singular_values(&[info])?))
    }

    /// A number made of the singular values.
    ///
    /// # Errors
    /// The name is unknown, or as [`Call::singular_values`].
    pub fn spectral(&mut self, id: u32, name: &str) -> Answer<f64> {
        let statistic: Statistic = name.parse().map_err(|known: String| {
            Error::plan(format!("there is no statistic `{}`", crate::plugin::escaped(name, 80))).help(known)
        })?;
        let (values, [rows, cols]) = self.matrix(id)?;
        Ok(statistic.of(&values, rows, cols)?)
    }

    /// Spectrum's threshold between noise and signal.
    ///
    /// # Errors
    /// As [`Call::singular_values`].
    pub fn spectral_threshold(&mut self, id: u32) -> Answer<f64> {
        let (values, [rows, cols]) = self.matrix(id)?;
        Ok(crate::stats::round_score(spectral_threshold(&values, rows, cols)))
    }

    fn matrix(&mut self, id: u32) -> Answer<(Arc<[f64]>, [usize; 2])> {
        let values = self.singular_values(id)?;
        match self.tensor(id)?.shape[..] {
            [rows, cols] => Ok((values, [rows, cols])),
            _ => refused(format!("tensor {id} has not two dimensions")),
        }
    }

    /// Norms and moments of a weight's elements.
    ///
    /// # Errors
    /// It can't be read.
    pub fn elements(&mut self, id: u32) -> Answer<ElementStatistics> {
        let info = self.pay(id, ELEMENTS)?;
        self.compute(|view| one(view.elements(&[info])?))
    }

    /// A norm of a weight's elements: `l1`, `l2` or `max`.
    ///
    /// # Errors
    /// The name is unknown, or as [`Call::elements`].
    pub fn norm(&mut self, id: u32, name: &str) -> Answer<f64> {
        let elements = self.elements(id)?;
        match name {
            "l1" => Ok(elements.l1),
            "l2" => Ok(elements.l2),
            "max" => Ok(elements.max),
            _ => refused(format!(
                "there is no norm `{}`: there are `l1`, `l2` and `max`",
                crate::plugin::escaped(name, 80)
            )),
        }
    }

    /// Quantiles of a weight's elements, or of their magnitudes.
    ///
    /// # Errors
    /// A part is not between 0 and 1, or there are too many, or the weight can't be read.
    pub fn quantiles(&mut self, id: u32, parts: &[f64], of_magnitudes: bool) -> Answer<Vec<f64>> {
        if let Some(part) = parts.iter().find(|part| !(0.0..=1.0).contains(*part)) {
            return refused(format!("a quantile's part must be between 0 and 1, not {part}"));
        }
        if parts.len() > MOST_QUANTILES {
            return refused(format!("{} quantiles are too many at once: at most {MOST_QUANTILES}", parts.len()));
        }
        let info = self.pay(id, if of_magnitudes { "magnitudes sorted" } else { "elements sorted" })?;
        // A repeated question is another pass over the weight, since the host keeps answers and not sorted weights.
        self.meter.statistic(info.len() as u64 / 4)?;
        self.compute(|view| view.quantiles(info, parts, of_magnitudes))
    }

    /// Opens the measurements on data.
    ///
    /// # Errors
    /// The plugin did not say that it needs them, asks for too many batches, or there is no data here.
    pub fn calibrate(&mut self, batches: u32) -> Answer<()> {
        if !self.may_calibrate {
            return Err(Fault::Refused(Refusal {
                code: UNAVAILABLE,
                message: "the plugin's metadata does not name the capability `calibration`".into(),
                help: "add it to `capabilities`".into(),
            }));
        }
        let most = self.meter.limits().calibration_batches;
        if batches == 0 || batches > most {
            return refused(format!(
                "calibration takes 1 to {most} batches (`plugins.calibration_batches`), not {batches}"
            ));
        }
        let calibration = self.compute(|view| view.calibration(batches as usize))?;
        self.calibration = Some(calibration);
        Ok(())
    }

    /// A measurement on data, by the host.
    ///
    /// # Errors
    /// It can't be made.
    pub fn measure<T>(&mut self, work: impl FnOnce(&dyn crate::stats::Calibration) -> Result<T>) -> Answer<T> {
        let calibration = self.calibration()?;
        self.compute(|_| work(calibration.as_ref()))
    }

    /// The measurements that were opened.
    ///
    /// # Errors
    /// None were.
    pub fn calibration(&self) -> Answer<Rc<dyn crate::stats::Calibration>> {
        match &self.calibration {
            Some(calibration) => Ok(calibration.clone()),
            None => refused("calibration was not opened".into()),
        }
    }
}

fn one<T: Clone>(values: Vec<T>) -> Result<T> {
    values.into_iter().next().ok_or_else(|| Error::internal("a statistic got lost"))
}

fn ids(flags: &[bool]) -> Vec<u32> {
    (0..flags.len() as u32).filter(|id| flags[*id as usize]).collect()
}

/// A kind's name in the plugin API.
pub(crate) fn kind_name(kind: Kind) -> &'static str {
    match kind {
        Kind::Embedding => "embedding",
        Kind::Linear => "linear",
        Kind::Bias => "bias",
        Kind::Norm => "norm",
        Kind::Head => "head",
    }
}

fn kind_named(name: &str) -> Result<Kind> {
    let kinds = [Kind::Embedding, Kind::Linear, Kind::Bias, Kind::Norm, Kind::Head];
    kinds.into_iter().find(|kind| kind_name(*kind) == name).ok_or_else(|| {
        let names: Vec<&str> = kinds.iter().map(|kind| kind_name(*kind)).collect();
        Error::plan(format!("there is no kind of tensor `{}`", crate::plugin::escaped(name, 80)))
            .help(format!("there are {}", crate::config::suggest::list(&names)))
    })
}

/// A storage's name in configurations and in the plugin API.
pub(crate) fn storage_name(storage: Storage) -> String {
    match storage {
        Storage::F32 => "f32",
        Storage::Bf16 => "bf16",
        Storage::Nf4 { .. } => "nf4",
        Storage::Int8 => "int8",
    }
    .to_string()
}
