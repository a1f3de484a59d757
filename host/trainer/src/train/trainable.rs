//! What trains, as named tensors: from the decoder into a checkpoint and back.

use std::borrow::Cow;
use std::collections::BTreeMap;

use liftplan_engine::optim::{AdamW, BLOCK, Moment, Pages, State};
use liftplan_engine::{Decoder, Param, Weight};
use safetensors::Dtype;

use crate::checkpoint::tensors::TensorSpec;
use crate::checkpoint::{TensorData, TensorFile, TensorSource};
use crate::{Error, Result};

/// The parameters that train or once did, each with the shape it has in files.
pub struct Trainable<'a>(Vec<&'a Param>);

impl<'a> Trainable<'a> {
    /// Those of `decoder`, in the order of the forward pass.
    pub fn of(decoder: &'a Decoder) -> Self {
        Self(decoder.params().filter(|param| param.has_trained()).collect())
    }

    /// Those that train now.
    pub fn now(decoder: &'a Decoder) -> Self {
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
        // Nothing packed trains, so that the others never come here.
        let dtype = |param: &Param| match param.value {
            Weight::Bf16(_) => Dtype::BF16,
            Weight::F32(_) | Weight::Nf4(_) | Weight::Int8(_) => Dtype::F32,
        };
        let spec =
            |param: &&Param| TensorSpec { name: param.name().to_string(), dtype: dtype(param), shape: shape(param) };
        self.0.iter().map(spec).collect()
    }

    fn bytes(&self, index: usize) -> Result<Cow<'_, [u8]>> {
        let param = self.0.get(index).ok_or_else(|| Error::internal(format!("there is no parameter {index}")))?;
        match &param.value {
            Weight::F32(values) => Ok(Cow::Borrowed(bytemuck::cast_slice(values))),
            Weight::Bf16(values) => Ok(Cow::Borrowed(bytemuck::cast_slice(values))),
            packed => Err(Error::internal(format!("`{}` trains and is kept as {}", param.name(), packed.format()))),
        }
    }
}

/// Puts the tensors of a checkpoint into the decoder.
///
/// # Errors
/// When one is missing, or has another shape or type than the plan gives it.
pub fn load(decoder: &mut Decoder, file: &TensorFile) -> Result<()> {
    for param in decoder.params_mut().filter(|param| param.has_trained()) {
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

/// The optimiser's states as tensors named `parameter:first`, `:second`, `:master`, and `:updates`. A moment in 8 bits has its
/// codes under its name, and the scales of their blocks as `:first_absmax` or `:second_absmax`.
pub struct OptimizerTensors<'a>(Vec<StateTensor<'a>>);

/// One of them, and the pages that it lies in.
struct StateTensor<'a> {
    spec: TensorSpec,
    bytes: Cow<'a, [u8]>,
    pages: Option<&'a dyn Pages>,
}

impl<'a> OptimizerTensors<'a> {
    /// The states of `optimizer`, borrowed.
    pub fn of(optimizer: &'a AdamW) -> Self {
        Self::of_states(optimizer.states())
    }

    /// These states, borrowed.
    pub fn of_states(states: &'a BTreeMap<String, State>) -> Self {
        let mut tensors = Vec::new();
        for (name, state) in states {
            let mut push = |part: &str, dtype: Dtype, bytes: Cow<'a, [u8]>, pages| {
                let shape = vec![bytes.len() * 8 / dtype.bitsize()];
                let spec = TensorSpec { name: format!("{name}:{part}"), dtype, shape };
                tensors.push(StateTensor { spec, bytes, pages });
            };
            for (part, moment) in [(FIRST, &state.first), (SECOND, &state.second)] {
                match moment {
                    Moment::F32(values) => push(part, Dtype::F32, borrowed(values), values.pages()),
                    Moment::Bits8 { codes, absmax } => {
                        push(part, Dtype::U8, borrowed(codes), codes.pages());
                        push(&absmax_of(part), Dtype::F32, borrowed(absmax), None);
                    }
                }
            }
            if let Some(master) = &state.master {
                push(MASTER, Dtype::F32, borrowed(master), master.pages());
            }
            let updates = [state.updates as u32, (state.updates >> 32) as u32];
            push(UPDATES, Dtype::U32, Cow::Owned(bytemuck::cast_slice(&updates).to_vec()), None);
        }
        Self(tensors)
    }

    /// Hands the states in a checkpoint's file to `take` one by one, each with its parameter's name.
    ///
    /// # Errors
    /// When a state is incomplete or of the wrong type, and what `take` says.
    pub fn each(file: &TensorFile, mut take: impl FnMut(String, State) -> Result<()>) -> Result<()> {
        let damaged = |name: &str| Error::output(format!("{}: `{name}` is damaged", file.path().display()));
        let floats = |name: String| match file.get(&name)?.data {
            TensorData::F32(values) => Ok(values),
            _ => Err(damaged(&name)),
        };
        let moment = |parameter: &str, part: &str| {
            let name = format!("{parameter}:{part}");
            match file.get(&name)?.data {
                TensorData::F32(values) => Ok(Moment::F32(values.into())),
                TensorData::U8(codes) => {
                    let absmax = floats(format!("{parameter}:{}", absmax_of(part)))?;
                    if absmax.len() != codes.len().div_ceil(BLOCK) {
                        return Err(damaged(&name));
                    }
                    Ok(Moment::Bits8 { codes: codes.into(), absmax })
                }
                _ => Err(damaged(&name)),
            }
        };
        for name in file.names()? {
            let Some(parameter) = name.strip_suffix(&format!(":{UPDATES}")) else { continue };
            let updates = match file.get(&name)?.data {
                TensorData::U32(words) if words.len() == 2 => u64::from(words[0]) | u64::from(words[1]) << 32,
                _ => return Err(damaged(&name)),
            };
            let master_name = format!("{parameter}:{MASTER}");
            let has_master = file.find(&master_name)?.is_some();
            let state = State {
                first: moment(parameter, FIRST)?,
                second: moment(parameter, SECOND)?,
                master: if has_master { Some(floats(master_name)?.into()) } else { None },
                updates,
            };
            take(parameter.to_string(), state)?;
        }
        Ok(())
    }
}

fn absmax_of(part: &str) -> String {
    format!("{part}_absmax")
}

fn borrowed<T: bytemuck::Pod>(values: &[T]) -> Cow<'_, [u8]> {
    Cow::Borrowed(bytemuck::cast_slice(values))
}

impl TensorSource for OptimizerTensors<'_> {
    fn specs(&self) -> Vec<TensorSpec> {
        self.0.iter().map(|tensor| tensor.spec.clone()).collect()
    }

    fn bytes(&self, index: usize) -> Result<Cow<'_, [u8]>> {
        let tensor = self.0.get(index).ok_or_else(|| Error::internal(format!("there is no state {index}")))?;
        Ok(Cow::Borrowed(&tensor.bytes))
    }

    /// States in pages leave the memory again, so that a checkpoint needs no more than training does.
    fn written(&self, index: usize) {
        if let Some(pages) = self.0.get(index).and_then(|tensor| tensor.pages) {
            pages.release();
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use liftplan_engine::optim::{AdamWOptions, Bf16Update, LEAST_FOR_PAGES};

    use super::*;
    use crate::checkpoint::tensors;

    /// Pages that count how often they were let go of.
    struct Counted(Vec<u32>, Arc<AtomicUsize>);

    impl Pages for Counted {
        fn bytes(&self) -> &[u8] {
            bytemuck::cast_slice(&self.0)
        }

        fn bytes_mut(&mut self) -> &mut [u8] {
            bytemuck::cast_slice_mut(&mut self.0)
        }

        fn release(&self) {
            self.1.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn states_in_pages_are_let_go_of_once_they_are_read_or_written() {
        let released = Arc::new(AtomicUsize::new(0));
        let options = AdamWOptions { betas: (0.9, 0.999), eps: 1e-8, bf16_update: Bf16Update::Stochastic, seed: 0 };
        let paged = || {
            let mut optimizer = AdamW::new(options);
            let released = released.clone();
            optimizer
                .set_pages(Arc::new(move |bytes| Ok(Box::new(Counted(vec![0; bytes / 4], released.clone())) as _)));
            optimizer
        };
        let mut optimizer = paged();
        let numbers: Vec<f32> = (0..LEAST_FOR_PAGES).map(|i| i as f32).collect();
        let moment = |len: usize| Moment::F32(numbers[..len].to_vec().into());
        for (name, len) in [("large", LEAST_FOR_PAGES), ("small", 8)] {
            let state = State { first: moment(len), second: moment(len), master: None, updates: 3 };
            optimizer.set_state(name.into(), state).unwrap();
        }
        assert_eq!(released.swap(0, Ordering::Relaxed), 2, "both moments of the large one");

        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("optimizer.safetensors");
        tensors::write(&path, &BTreeMap::new(), &OptimizerTensors::of(&optimizer)).unwrap();
        assert_eq!(released.swap(0, Ordering::Relaxed), 2, "as they were written");

        let mut again = paged();
        let file = TensorFile::open(&path).unwrap();
        OptimizerTensors::each(&file, |name, state| {
            again.set_state(name, state).unwrap();
            Ok(())
        })
        .unwrap();
        assert_eq!(released.load(Ordering::Relaxed), 2, "as they were read");
        let of =
            |optimizer: &AdamW| OptimizerTensors::of(optimizer).0.into_iter().map(|t| t.bytes.into_owned()).collect();
        let (before, after): (Vec<_>, Vec<_>) = (of(&optimizer), of(&again));
        assert_eq!(before, after);
    }
}
