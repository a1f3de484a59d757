//! One call of a plugin: everything that it may ask of the host, metered, whatever kind of plugin it is.
//!
//! A WebAssembly component and a native library reach the same functions here, in the words of the plugin API
//! (`plugin-api/wit`), so that the same policy gets the same answers as either. [`model`] answers what it asks of the
//! model, [`plan`] takes what it plans, and [`run`] tells it of the training.

use std::collections::BTreeSet;
use std::time::Instant;

use super::limits::{Exceeded, Limits, Meter};
use super::metadata::Capability;
use crate::model::inventory::TensorInfo;
use crate::plan::PlanBuilder;
use crate::policy::{Level, ModelView, Moment};
use crate::{Error, ErrorKind};

mod model;
mod plan;
mod run;

pub(super) use model::kind_name;

/// An answer that says what was wrong with a call. The plugin can go on from it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// 1: the settings are wrong. 2: no plan can be made. 3: not available here. 4: a defect.
    pub code: u32,
    /// What was wrong.
    pub message: String,
    /// What to do about it; may be empty.
    pub help: String,
}

/// The settings are wrong.
pub const SETTINGS: u32 = 1;
/// No plan can be made so.
pub const PLAN: u32 = 2;
/// Not available here.
pub const UNAVAILABLE: u32 = 3;
/// A defect.
pub const DEFECT: u32 = 4;

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        let code = match error.kind() {
            ErrorKind::Config => SETTINGS,
            ErrorKind::Internal => DEFECT,
            _ => PLAN,
        };
        Self { code, message: error.message().to_string(), help: error.help_text().unwrap_or_default().to_string() }
    }
}

impl Refusal {
    /// The error of a policy that ended with this refusal, whose text is a stranger's.
    pub fn into_error(self, shown: &str) -> Error {
        let message = super::escaped(&self.message, 2000);
        let error = if self.code == SETTINGS && message.starts_with('`') {
            // Begins with the setting's path, which becomes file and line.
            Error::config(message)
        } else {
            Error::plan(format!("plugin {shown}: {message}"))
        };
        if self.help.is_empty() { error } else { error.help(super::escaped(&self.help, 1000)) }
    }
}

/// Why a call gives no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The plugin is told, and can go on.
    Refused(Refusal),
    /// A limit was exceeded: the plugin is stopped.
    Stopped(Exceeded),
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        Fault::Refused(error.into())
    }
}

impl From<Exceeded> for Fault {
    fn from(exceeded: Exceeded) -> Self {
        Fault::Stopped(exceeded)
    }
}

/// The result of a call to the host.
pub type Answer<T> = Result<T, Fault>;

/// What one call of a plugin works with.
pub struct Call<'c, 'p> {
    view: &'c ModelView<'c>,
    builder: &'c mut PlanBuilder<'p>,
    moment: Option<&'c Moment<'c>>,
    /// What it has used.
    pub meter: Meter,
    /// Statistics that were paid for.
    paid: BTreeSet<(u32, String)>,
    calibration: Option<std::rc::Rc<dyn crate::stats::Calibration>>,
    may_calibrate: bool,
    may_revise: bool,
}

impl<'c, 'p> Call<'c, 'p> {
    /// A call that makes a plan, or with a `moment` revises one, of a plugin that said to need `capabilities`.
    pub fn new(
        view: &'c ModelView<'c>,
        moment: Option<&'c Moment<'c>>,
        builder: &'c mut PlanBuilder<'p>,
        limits: &Limits,
        capabilities: &[Capability],
    ) -> Self {
        let elements = view.tensors().iter().map(|info| info.len() as u64).sum();
        Self {
            view,
            builder,
            moment,
            meter: Meter::new(limits, elements),
            paid: BTreeSet::new(),
            calibration: None,
            may_calibrate: capabilities.contains(&Capability::Calibration),
            may_revise: capabilities.contains(&Capability::Revise),
        }
    }

    /// Counts one call to the host, which passes so many bytes of text and numbers.
    ///
    /// # Errors
    /// When it was one too many.
    pub fn count(&mut self, bytes: usize) -> Result<(), Exceeded> {
        self.meter.call(bytes)
    }

    /// A message to the user, shown after the call.
    ///
    /// # Errors
    /// When it was too much.
    pub fn log(&mut self, level: Level, message: &str) -> Result<(), Exceeded> {
        self.meter.log(message.len())?;
        self.view.note(level, super::escaped(message, 4000));
        Ok(())
    }

    fn info(&self, tensor: u32) -> Result<&'c TensorInfo, Refusal> {
        let tensors = self.view.tensors();
        tensors.get(tensor as usize).ok_or_else(|| Refusal {
            code: PLAN,
            message: format!(
                "the model has no tensor {tensor}: its tensors are 0 to {}",
                tensors.len().saturating_sub(1)
            ),
            help: String::new(),
        })
    }

    /// Runs what the host computes for the plugin, and keeps its time apart.
    fn compute<T>(&mut self, work: impl FnOnce(&ModelView<'c>) -> crate::Result<T>) -> Answer<T> {
        let started = Instant::now();
        let result = work(self.view);
        self.meter.host_time += started.elapsed();
        Ok(result?)
    }

    /// Charges a statistic of a tensor once.
    fn pay(&mut self, tensor: u32, what: &str) -> Answer<&'c TensorInfo> {
        let info = self.info(tensor).map_err(Fault::Refused)?;
        if self.paid.insert((tensor, what.to_string())) {
            self.meter.statistic(info.len() as u64)?;
        }
        Ok(info)
    }
}

/// A refusal for a number that makes no sense.
fn refused<T>(message: String) -> Answer<T> {
    Err(Fault::Refused(Refusal { code: PLAN, message, help: String::new() }))
}
