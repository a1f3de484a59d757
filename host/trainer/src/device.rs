//! What computes: the processor or a GPU. In: the configuration's `device`. Out: a device that is there, or what is missing.

use liftplan_engine::cuda::libraries::Library;
use liftplan_engine::cuda::{self, Context};
use serde::Serialize;

use crate::config::Device;
use crate::report::text::memory;
use crate::report::{Event, Observer};
use crate::{Error, Result};

/// What computes.
#[derive(Clone, Debug)]
pub struct Chosen {
    /// The processor or a GPU; never `auto`.
    pub device: Device,
    /// The GPU, open.
    pub context: Option<Context>,
    /// What it is, for the first lines of a run and for its report: `cuda:0, NVIDIA H100 80GB HBM3`.
    pub name: String,
    /// Why not the GPU that `auto` looked for, if it is there.
    pub warning: Option<String>,
}

impl Chosen {
    /// The processor; `why` is what the user did not ask for.
    pub fn processor(why: &str) -> Self {
        let name = if why.is_empty() { "cpu".into() } else { format!("cpu ({why})") };
        Self { device: Device::Cpu, context: None, name, warning: None }
    }

    /// Says what computes.
    pub fn tell(&self, observer: &mut dyn Observer) {
        if let Some(warning) = &self.warning {
            observer.on(&Event::Warning(warning));
        }
        observer.on(&Event::Note(&format!("device: {}", self.name)));
    }
}

/// The device that is wanted, open. `auto` is the first GPU that can be used, else the processor; a GPU that is there and cannot
/// be used is a warning then. What is asked for by name is what computes, or an error.
///
/// # Errors
/// When a GPU is asked for that is not there, or whose libraries are missing.
pub fn choose(wanted: Device) -> Result<Chosen> {
    match wanted {
        Device::Cpu => Ok(Chosen::processor("")),
        Device::Cuda(ordinal) => open(ordinal),
        Device::Auto => match cuda::context::devices() {
            Err(_) | Ok(0) => Ok(Chosen::processor("no GPU was found")),
            Ok(_) => Ok(open(0).unwrap_or_else(|error| Chosen {
                warning: Some(format!("there is a GPU, and it is not used: {}", error.message())),
                ..Chosen::processor("the GPU cannot be used")
            })),
        },
    }
}

/// The device for something that was made on `recorded`: that one where it is, else what there is, with a warning.
///
/// # Errors
/// None where there is a processor.
pub fn choose_like(recorded: Device) -> Result<Chosen> {
    match choose(recorded) {
        Ok(chosen) => Ok(chosen),
        Err(_) => {
            let chosen = choose(Device::Auto)?;
            let warning = format!("the run was trained on {recorded}, which is not here: numbers round otherwise");
            Ok(Chosen { warning: chosen.warning.clone().or(Some(warning)), ..chosen })
        }
    }
}

/// Fails with the first library that the GPU needs and that cannot be opened.
fn require_libraries() -> Result<()> {
    for library in Library::REQUIRED {
        library.require().map_err(|error| {
            Error::config(error.to_string())
                .help("`liftplan doctor` lists what is missing; device = \"cpu\" needs none of it")
        })?;
    }
    Ok(())
}

/// Opens a GPU.
fn open(ordinal: usize) -> Result<Chosen> {
    let device = Device::Cuda(ordinal);
    require_libraries().map_err(|error| error.at(format!("`device` is \"{device}\"")))?;
    let failed = |error| {
        Error::config(format!("`device` is \"{device}\": {error}"))
            .help("`liftplan doctor` lists the GPUs; device = \"cpu\" computes on the processor")
    };
    let context = Context::new(ordinal).map_err(failed)?;
    let (free, total) = context.memory().map_err(failed)?;
    let amount = |bytes: usize| memory(bytes as u64);
    let name = format!("{device}, {}, {} of {} free", context.name(), amount(free), amount(total));
    Ok(Chosen { device, context: Some(context), name, warning: None })
}

/// What a machine has to compute on GPUs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Survey {
    /// Each library that the engine opens.
    pub libraries: Vec<LibraryState>,
    /// Each GPU.
    pub gpus: Vec<Gpu>,
    /// Why there are none, if that is known.
    pub problem: Option<String>,
}

/// A library, and how to get it where it is missing.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LibraryState {
    /// Such as `libnvrtc`.
    pub name: String,
    /// Whether it can be opened.
    pub present: bool,
    /// Whether GPUs can be used without it.
    pub optional: bool,
    /// How to get it.
    pub help: Option<String>,
}

/// A GPU.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Gpu {
    /// As `device` names it.
    pub device: String,
    /// Its name.
    pub name: String,
    /// Compute capability, such as `9.0`.
    pub capability: String,
    /// Memory in all, in bytes.
    pub memory_bytes: u64,
    /// Memory that no program holds.
    pub free_bytes: u64,
}

/// Looks at the machine.
pub fn survey() -> Survey {
    let libraries: Vec<_> = Library::ALL
        .iter()
        .map(|library| {
            let missing = library.require().err();
            LibraryState {
                name: format!("lib{}", library.name()),
                present: missing.is_none(),
                optional: !Library::REQUIRED.contains(library),
                help: missing.map(|error| match error {
                    liftplan_engine::EngineError::MissingLibrary { help, .. } => help,
                    other => other.to_string(),
                }),
            }
        })
        .collect();
    let (mut gpus, mut problem) = (Vec::new(), None);
    match cuda::context::devices() {
        Ok(count) if libraries.iter().all(|library| library.present || library.optional) => {
            for ordinal in 0..count {
                match gpu(ordinal) {
                    Ok(gpu) => gpus.push(gpu),
                    Err(error) => problem = Some(format!("cuda:{ordinal}: {error}")),
                }
            }
        }
        Ok(count) => problem = Some(format!("{count} found, unusable while libraries are missing")),
        Err(error) => problem = Some(error.to_string()),
    }
    Survey { libraries, gpus, problem }
}

fn gpu(ordinal: usize) -> Result<Gpu, liftplan_engine::EngineError> {
    let context = Context::new(ordinal)?;
    let (free, total) = context.memory()?;
    let (major, minor) = context.capability();
    Ok(Gpu {
        device: format!("cuda:{ordinal}"),
        name: context.name().to_string(),
        capability: format!("{major}.{minor}"),
        memory_bytes: total as u64,
        free_bytes: free as u64,
    })
}
