//! A delta: only what a run trained, with the content hash of the base model that it belongs to. Beside the base model it is
//! a run's result again, which can be exported in every other format.
//!
//! `delta.safetensors` has the trained tensors as checkpoints have them: whole ones under their own names, adapters as A and
//! B. `plan.json` is the run's plan, and `delta.json` says what it is a delta of.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::Made;
use super::target::Target;
use crate::checkpoint::tensors::{self, TensorFile, TensorSource, TensorSpec};
use crate::model::{self, BaseModel};
use crate::plan::{self, Plan};
use crate::report::Observer;
use crate::{Error, ErrorKind, Result};

const ABOUT: &str = "delta.json";
const TENSORS: &str = "delta.safetensors";
const PLAN: &str = "plan.json";
const VERSION: u32 = 1;

/// What `delta.json` holds.
#[derive(Serialize, Deserialize)]
struct About {
    /// The format's version.
    version: u32,
    /// The run's name.
    name: String,
    /// Steps that were trained.
    step: u64,
    /// The base model's reference, as the run's configuration had it.
    base: String,
    /// Its content hash.
    base_hash: String,
    /// Size and sha256 of the tensors' file.
    tensors: crate::checkpoint::FileDigest,
}

/// A delta, opened with its base model.
pub struct Delta {
    name: String,
    base: BaseModel,
    plan: Plan,
    trained: TensorFile,
    step: u64,
}

/// Writes the delta; answers what to know when using it.
pub(super) fn write(made: &Made<'_>, target: &Target) -> Result<Vec<String>> {
    let metadata = [("format".to_string(), "pt".to_string()), ("base_hash".to_string(), made.base.hash.clone())].into();
    let digest = tensors::write(&target.path(TENSORS), &metadata, &Copied::of(made.trained)?)?;
    plan::file::write(made.plan, &target.path(PLAN))?;
    let about = About {
        version: VERSION,
        name: made.name.to_string(),
        step: made.step,
        base: made.base.origin.clone(),
        base_hash: made.base.hash.clone(),
        tensors: digest,
    };
    let about = serde_json::to_value(about).map_err(|e| Error::internal(format!("{ABOUT} is not JSON: {e}")))?;
    target.write_json(ABOUT, &about)?;
    Ok(Vec::new())
}

/// The tensors of a file, one at a time.
struct Copied<'a> {
    file: &'a TensorFile,
    specs: Vec<TensorSpec>,
}

impl<'a> Copied<'a> {
    fn of(file: &'a TensorFile) -> Result<Self> {
        let spec = |name: String| {
            let tensor = file.get(&name)?;
            Ok(TensorSpec { name, dtype: tensor.data.dtype(), shape: tensor.shape })
        };
        Ok(Self { file, specs: file.names()?.into_iter().map(spec).collect::<Result<_>>()? })
    }
}

impl TensorSource for Copied<'_> {
    fn specs(&self) -> Vec<TensorSpec> {
        self.specs.clone()
    }

    fn bytes(&self, index: usize) -> Result<std::borrow::Cow<'_, [u8]>> {
        let spec = self.specs.get(index).ok_or_else(|| Error::internal(format!("there is no tensor {index}")))?;
        Ok(std::borrow::Cow::Owned(self.file.get(&spec.name)?.data.bytes().to_vec()))
    }
}

impl Delta {
    /// Whether the directory holds a delta.
    pub fn is_in(dir: &Path) -> bool {
        dir.join(ABOUT).is_file()
    }

    /// Opens the delta in `dir` and its base model: `model`, seen from `here`, or the one that it names itself.
    ///
    /// # Errors
    /// When it is damaged, or the model can't be opened or is not the one that it was trained from.
    pub fn open(dir: &Path, model: Option<&str>, here: &Path, observer: &mut dyn Observer) -> Result<Self> {
        let place = dir.join(ABOUT);
        let text = std::fs::read_to_string(&place).map_err(|e| Error::io(ErrorKind::Output, "read", &place, &e))?;
        let about: About = serde_json::from_str(&text)
            .map_err(|e| Error::output(format!("{}: not a delta's description: {e}", place.display())))?;
        if about.version != VERSION {
            return Err(Error::output(format!(
                "{}: a delta of version {}, and this Liftplan reads version {VERSION}",
                place.display(),
                about.version
            )));
        }
        let file = dir.join(TENSORS);
        if tensors::digest(&file)? != about.tensors {
            return Err(Error::output(format!("{}: damaged: its content has changed", file.display()))
                .help("make the delta again with `liftplan export --format delta`"));
        }
        let plan = plan::file::read(&dir.join(PLAN))?;
        let base = model::open(model.unwrap_or(&about.base), here, observer)
            .map_err(|error| error.at(format!("the base model of the delta {}", dir.display())))?;
        if base.hash != about.base_hash {
            return Err(Error::output(format!(
                "the delta {} was not trained from {}: its base model has the content hash {:.12}…, and this one {:.12}…",
                dir.display(),
                base.origin,
                about.base_hash,
                base.hash
            ))
            .help(format!("name the model that it was trained from with --model: it was {}", about.base)));
        }
        plan.check_against(&base.inventory)?;
        Ok(Self { name: about.name, base, plan, trained: TensorFile::open(&file)?, step: about.step })
    }

    /// It, for exporting.
    pub(super) fn made(&self) -> Made<'_> {
        Made { name: &self.name, base: &self.base, plan: &self.plan, trained: &self.trained, step: self.step }
    }
}
