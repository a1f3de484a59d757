//! Training: a base model, a plan and data in; checkpoints, records and a summary out.
//!
//! [`run`] tells the story of a run; [`session`] has the loop, [`build`] makes the decoder, or [`card`] does on a GPU;
//! [`trainable`] carries weights and optimiser states to checkpoints and back.

pub mod build;
pub mod calibrate;
pub mod card;
pub mod card_fit;
pub mod forecast;
pub mod model;
mod not_finite;
pub mod schedule;
pub mod trainable;
mod card_load;
mod card_picks;
mod card_specs;
mod directory;
mod pages;
pub(crate) mod picks;
mod prepare;
mod session;
mod setup;
mod step;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

pub use build::{AdapterNames, build};
pub use card_fit::fit_on_card;
pub use model::Model;
pub use prepare::{Reopened, open_model, plan, reopen, reopen_over_original};
pub use schedule::Schedule;
pub use step::{StepOutcome, Stepper};

use crate::config::{Config, Device};
use crate::device::Chosen;
use crate::report::{Event, Observer, Summary};
use crate::{Error, Result, device, export};

/// How to run, beside the configuration.
#[derive(Clone, Debug, Default)]
pub struct RunOptions {
    /// The run's directory, instead of the configuration's.
    pub out: Option<PathBuf>,
    /// Go on from the newest checkpoint of the directory.
    pub resume: bool,
    /// Set by another thread to stop after the current step, with a checkpoint.
    pub stop: Arc<AtomicBool>,
}

/// Carries out a run: reads what the configuration names, plans, trains, and writes the run's directory.
///
/// Nothing is written before model, data and plan are known to be good.
///
/// # Errors
/// Of the kinds of the parts that fail; [`crate::ErrorKind::Interrupted`] when it was stopped, after its checkpoint was
/// written. The directory keeps what was written up to then.
pub fn run(config: &Config, options: &RunOptions, observer: &mut dyn Observer) -> Result<Summary> {
    let place = options.out.as_deref().unwrap_or(&config.out);
    let directory = directory::Directory::inspect(place, options.resume)?;
    let wanted = if options.resume { directory.device(config.device)? } else { config.device };
    // A GPU that is not there is found before anything is read.
    let mut chosen = device::choose(wanted)?;
    let mut prepared = prepare::prepare(config, observer)?;
    if chosen.context.is_some()
        && let Err(error) = card::check(&prepared.base, &prepared.plan)
    {
        if wanted != Device::Auto {
            return Err(error);
        }
        chosen = Chosen::processor(&format!("the GPU cannot carry out this plan: {}", error.message()));
    }
    chosen.tell(observer);
    if chosen.context.is_none() {
        for (setting, is_set) in [
            ("vram", config.vram.is_some()),
            ("storage.offload_embedding", config.storage.offload_embedding),
            ("train.update_in_backward", config.train.update_in_backward),
        ] {
            if is_set {
                observer.on(&Event::Warning(&format!("`{setting}` has no effect on the processor")));
            }
        }
    }
    let config = &Config { device: chosen.device, ..config.clone() };
    prepared.hashes.config = prepare::config_hash(config)?;
    // Whoever was asked to stop while it read the model has nothing to save, and takes nobody's place.
    if options.stop.load(Ordering::Relaxed) {
        return Err(Error::interrupted("stopped before the first step").help("the same command starts it again"));
    }
    let directory = directory.claim(config, &prepared)?;
    let run = directory.path.clone();
    let summary = session::Session::start(config, options, prepared, directory, chosen, observer)?.train(observer)?;
    // Adapters are small and what most people take along; whole weights are in the checkpoint until they are exported.
    if summary.trained.trained_tensors == 0 {
        export::export(
            &run,
            None,
            export::Format::Peft,
            &run.join("adapter"),
            &export::Options { force: true, ..export::Options::default() },
            observer,
        )?;
    }
    Ok(summary)
}
