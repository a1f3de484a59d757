//! What trains, as named tensors: from the decoder into a checkpoint and back.

use std::borrow::Cow;
use std::collections::BTreeMap;

use half::bf16;
use liftplan_engine::optim::{AdamW, State};
use liftplan_engine::{Decoder, Param, Weight};
use safetensors::Dtype;

use crate::checkpoint::tensors::TensorSpec;
use crate::checkpoint::{NamedTensor, TensorData, TensorFile, TensorSource};
use crate::{Error, Result};

/// The parameters that train, each with the shape it has in files.
pub struct Trainable<'a>(Vec<&'a Param>);

impl<'a> Trainable<'a> {
    /// Those of `decoder`, in the order of the forward pass.
    pub fn of(decoder: &'a Decoder) -> Self {
        Self(decoder.params().filter(|param| param.trains()).collect())
    }

    /// How many numbers they are.
    pub fn parameters(&self) -> u64 {
        self.0.iter().map(|param| param.value.len() as u64).sum()
    }
}

/// A vector has one row in the engine and one dimension in files; an adapter's matrices always have two.
fn shape(param: &Param) -> Vec<usize> {
    let matrix = param.rows() > 1 || param.name().contains(".lora_A.") || param.name().contains(".lora_B.");
    if matrix { vec![param.rows(), param.cols()] } else { vec![param.cols()] }
}

impl TensorSource for Trainable<'_> {
    fn specs(&self) -> Vec<TensorSpec> {
        let dtype = |param: &Param| match param.value {
            Weight::F32(_) => Dtype::F32,
            Weight::Bf16(_) => Dtype::BF16,
        };
        let spec =
            |param: &&Param| TensorSpec { name: param.name().to_string(), dtype: dtype(param), shape: shape(param) };
        self.0.iter().map(spec).collect()
    }

    fn bytes(&self, index: usize) -> Result<Cow<'_, [u8]>> {
        let param = self.0.get(index).ok_or_else(|| Error::internal(format!("there is no parameter {index}")))?;
        Ok(Cow::Borrowed(match &param.value {
            Weight::F32(values) => bytemuck::cast_slice(values),
            Weight::Bf16(values) => bytemuck::cast_slice(values),
        }))
    }
}

/// Puts the tensors of a checkpoint into the decoder.
///
/// # Errors
/// When one is missing, or has another shape or type than the plan gives it.
pub fn load(decoder: &mut Decoder, file: &TensorFile) -> Result<()> {
    for param in decoder.params_mut().filter(|param| param.trains()) {
        let tensor = file.get(param.name())?;
        let expected = shape(param);
        param.value = match (&param.value, tensor.data) {
            (Weight::F32(_), TensorData::F32(values)) if tensor.shape == expected => Weight::F32(values),
            (Weight::Bf16(_), TensorData::Bf16(values)) if tensor.shape == expected => Weight::Bf16(values),
            (_, data) => {
                return Err(Error::output(format!(
                    "{}: `{}` is {:?} of {:?}, where the plan has {expected:?}",
                    file.path().display(),
                    param.name(),
                    data.dtype(),
                    tensor.shape,
                )));
            }
        };
    }
    Ok(())
}

const FIRST: &str = "first";
const SECOND: &str = "second";
const MASTER: &str = "master";
const UPDATES: &str = "updates";

/// The optimiser's states as tensors named `parameter:first`, `:second`, `:master`, and `:updates`.
pub struct OptimizerTensors(Vec<NamedTensor>);

impl OptimizerTensors {
    /// Copies of the states of `optimizer`.
    pub fn of(optimizer: &AdamW) -> Self {
        let mut tensors = Vec::new();
        for (name, state) in optimizer.states() {
            let mut push = |part: &str, data: TensorData| {
                tensors.push(NamedTensor { name: format!("{name}:{part}"), shape: vec![data.len()], data });
            };
            push(FIRST, TensorData::F32(state.first.clone()));
            push(SECOND, TensorData::F32(state.second.clone()));
            if let Some(master) = &state.master {
                push(MASTER, TensorData::F32(master.clone()));
            }
            let updates = state.updates;
            push(UPDATES, TensorData::U32(vec![updates as u32, (updates >> 32) as u32]));
        }
        Self(tensors)
    }

    /// The states in a checkpoint's file, by parameter.
    ///
    /// # Errors
    /// When a state is incomplete or of the wrong type.
    pub fn states(file: &TensorFile) -> Result<BTreeMap<String, State>> {
        let damaged = |name: &str| Error::output(format!("{}: `{name}` is damaged", file.path().display()));
        let floats = |name: String| match file.get(&name)?.data {
            TensorData::F32(values) => Ok(values),
            _ => Err(damaged(&name)),
        };
        let mut states = BTreeMap::new();
        for name in file.names()? {
            let Some(parameter) = name.strip_suffix(&format!(":{UPDATES}")) else { continue };
            let updates = match file.get(&name)?.data {
                TensorData::U32(words) if words.len() == 2 => u64::from(words[0]) | u64::from(words[1]) << 32,
                _ => return Err(damaged(&name)),
            };
            let master_name = format!("{parameter}:{MASTER}");
            let has_master = file.find(&master_name)?.is_some();
            let state = State {
                first: floats(format!("{parameter}:{FIRST}"))?,
                second: floats(format!("{parameter}:{SECOND}"))?,
                master: if has_master { Some(floats(master_name)?) } else { None },
                updates,
            };
            states.insert(parameter.to_string(), state);
        }
        Ok(states)
    }
}

impl TensorSource for OptimizerTensors {
    fn specs(&self) -> Vec<TensorSpec> {
        self.0.specs()
    }

    fn bytes(&self, index: usize) -> Result<Cow<'_, [u8]>> {
        self.0.bytes(index)
    }
}

/// Numbers that fit a parameter's type are needed where a test or an import sets weights.
pub fn set_values(param: &mut Param, values: &[f32]) -> Result<()> {
    if values.len() != param.value.len() {
        return Err(Error::internal(format!(
            "`{}` has {} numbers, not {}",
            param.name(),
            param.value.len(),
            values.len()
        )));
    }
    param.value = match param.value {
        Weight::F32(_) => Weight::F32(values.to_vec()),
        Weight::Bf16(_) => Weight::Bf16(values.iter().map(|&value| bf16::from_f32(value)).collect()),
    };
    Ok(())
}
