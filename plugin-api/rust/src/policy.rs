//! What an author writes: the trait, and the error that it answers with.

use serde::de::DeserializeOwned;

use crate::{Model, Moment, Plan, host};

/// A policy. The type itself is its settings, read from the configuration's `[policy]`.
pub trait Policy: DeserializeOwned {
    /// Makes the first plan. What is never named stays frozen.
    ///
    /// # Errors
    /// Whatever stands in the way of a plan; the user reads it.
    fn make_plan(&self, model: &Model, plan: &mut Plan) -> Result<()>;

    /// Revises the plan between two steps, at a pick that the plan asked for. What isn't named stays as it was.
    ///
    /// # Errors
    /// As [`Policy::make_plan`].
    fn revise(&self, model: &Model, moment: &Moment, plan: &mut Plan) -> Result<()> {
        let _ = (model, moment, plan);
        Ok(())
    }
}

/// What stood in the way, for the user to read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    /// 1: the settings are wrong. 2: no plan can be made. 3: not available here. 4: a defect.
    pub code: u32,
    /// What was wrong, where, and what was expected.
    pub message: String,
    /// What to do about it; may be empty.
    pub help: String,
}

/// The result of a policy, and of asking the host.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// A setting is wrong. `message` begins with its path in backquotes, `` `policy.rank` ``, so that the user is told
    /// file and line.
    pub fn settings(message: impl Into<String>) -> Self {
        Self { code: 1, message: message.into(), help: String::new() }
    }

    /// No plan can be made.
    pub fn plan(message: impl Into<String>) -> Self {
        Self { code: 2, message: message.into(), help: String::new() }
    }

    /// Adds what the user can do about it.
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = help.into();
        self
    }
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

impl From<host::Error> for Error {
    fn from(error: host::Error) -> Self {
        Self { code: error.code, message: error.message, help: error.help }
    }
}

impl From<Error> for host::Error {
    fn from(error: Error) -> Self {
        Self { code: error.code, message: error.message, help: error.help }
    }
}

/// Runs a policy's `make_plan`.
#[doc(hidden)]
pub fn make_plan<P: Policy>(settings: &str, view: &host::View, builder: &host::Builder) -> Result<(), host::Error> {
    read::<P>(settings)?.make_plan(&Model::new(view), &mut Plan::new(builder)).map_err(Into::into)
}

/// Runs a policy's `revise`.
#[doc(hidden)]
pub fn revise<P: Policy>(
    settings: &str,
    view: &host::View,
    moment: &host::Moment,
    builder: &host::Builder,
) -> Result<(), host::Error> {
    let policy = read::<P>(settings)?;
    policy.revise(&Model::new(view), &Moment::new(moment), &mut Plan::new(builder)).map_err(Into::into)
}

fn read<P: Policy>(settings: &str) -> Result<P> {
    serde_json::from_str(settings)
        .map_err(|error| Error::settings(format!("the settings do not fit the plugin: {error}")))
}
