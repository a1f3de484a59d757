//! What computes: the processor or a GPU. In: the configuration's `device`. Out: a device that is there, or what is missing.

use liftplan_engine::cuda::libraries::Library;
use liftplan_engine::cuda::{self, Context};
use serde::Serialize;

use crate::config::Device;
use crate::{Error, Result};

/// `device` with `auto` decided: the first GPU if there is one, else the processor.
///
/// # Errors
/// When there is a GPU whose libraries are missing: computing on the processor instead would be a silent factor of a hundred.
pub fn resolve(device: Device) -> Result<Device> {
    if device != Device::Auto {
        return Ok(device);
    }
    match cuda::context::devices() {
        Ok(count) if count > 0 => {
            require_libraries().map_err(|error| error.at("there is a GPU, but it cannot be used"))?;
            Ok(Device::Cuda(0))
        }
        _ => Ok(Device::Cpu),
    }
}

/// Fails with the first library that the GPU needs and that cannot be opened.
fn require_libraries() -> Result<()> {
    for library in [Library::Driver, Library::CublasLt, Library::Nvrtc] {
        library.require().map_err(|error| {
            Error::config(error.to_string())
                .help("`liftplan doctor` lists what is missing; device = \"cpu\" needs none of it")
        })?;
    }
    Ok(())
}

/// Opens a GPU.
///
/// # Errors
/// When there is none of the number, or its driver or libraries are missing.
pub fn open(device: Device) -> Result<Context> {
    let ordinal = match resolve(device)? {
        Device::Cuda(ordinal) => ordinal,
        Device::Cpu | Device::Auto => return Err(Error::internal("the processor is no GPU")),
    };
    require_libraries().map_err(|error| error.at(format!("`device` is \"cuda:{ordinal}\"")))?;
    Context::new(ordinal).map_err(|error| {
        Error::config(format!("`device` is \"cuda:{ordinal}\": {error}"))
            .help("`liftplan doctor` lists the GPUs; device = \"cpu\" computes on the processor")
    })
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
                optional: *library == Library::Cudnn,
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
