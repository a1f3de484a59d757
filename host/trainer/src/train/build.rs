//! A base model and a plan become the engine's decoder: every weight read once, kept as the plan says, frozen, trained
//! or adapted.

use std::collections::BTreeMap;

use half::bf16;
use liftplan_engine::adapter::row_norms;
use liftplan_engine::ops::attention::Heads;
use liftplan_engine::rng::Random;
use liftplan_engine::{
    Adapter, AdapterOptions, Block, BlockShape, Decoder, EngineError, Int8, Linear, Nf4, Nf4Options, Param, Pool, Rope,
    Weight,
};

use crate::model::BaseModel;
use crate::model::inventory::{Kind, TensorInfo};
use crate::plan::{AdapterSpec, Entry, Plan, Storage, Treatment};
use crate::report::{Event, Observer};
use crate::{Error, Result};

/// Names of an adapter's tensors, made of its weight's name: `X.weight` has `X.lora_A.weight`, `X.lora_B.weight` and
/// `X.lora_magnitude_vector`.
pub struct AdapterNames {
    /// `[rank, in]`.
    pub a: String,
    /// `[out, rank]`.
    pub b: String,
    /// `[out]`, DoRA only.
    pub magnitude: String,
}

impl AdapterNames {
    /// The names for the adapter of the tensor called `weight`.
    pub fn of(weight: &str) -> Self {
        let stem = weight.strip_suffix(".weight").unwrap_or(weight);
        Self {
            a: format!("{stem}.lora_A.weight"),
            b: format!("{stem}.lora_B.weight"),
            magnitude: format!("{stem}.lora_magnitude_vector"),
        }
    }

    /// Whether this is one of them.
    pub fn has(&self, name: &str) -> bool {
        [&self.a, &self.b, &self.magnitude].into_iter().any(|of| of == name)
    }
}

/// Builds the decoder. `seed` draws the adapters' first values: A uniform in `±1/sqrt(in)` (as PEFT does), B zero,
/// DoRA's magnitudes the norms of the weight's rows.
///
/// # Errors
/// When the plan is not one of this model, or a tensor can't be read.
pub fn build(base: &BaseModel, plan: &Plan, seed: u64, observer: &mut dyn Observer) -> Result<Decoder> {
    let total = base.inventory.tensors.len() as u64;
    let mut builder = Builder { base, seed, params: BTreeMap::new(), adapters: BTreeMap::new() };
    for (i, info) in base.inventory.tensors.iter().enumerate() {
        let entry = plan.entries.get(i).filter(|entry| entry.tensor == info.name).ok_or_else(|| {
            Error::plan(format!("the plan has no entry {i} for `{}`: it was made for another model", info.name))
        })?;
        builder.add(info, entry, i as u32)?;
        observer.on(&Event::Progress { unit: "tensors", done: i as u64 + 1, total });
    }
    builder.decoder()
}

struct Builder<'a> {
    base: &'a BaseModel,
    seed: u64,
    params: BTreeMap<Key, Param>,
    adapters: BTreeMap<Key, Adapter>,
}

/// A tensor's place in the model: block, role, and whether it is a bias.
type Key = (Option<usize>, String, bool);

impl Builder<'_> {
    fn add(&mut self, info: &TensorInfo, entry: &Entry, index: u32) -> Result<()> {
        let (rows, cols) = match *info.shape.as_slice() {
            [cols] => (1, cols),
            [rows, cols] => (rows, cols),
            _ => return Err(Error::internal(format!("`{}` has the shape {:?}", info.name, info.shape))),
        };
        let value = read(self.base, info, entry.storage)?;
        let key = (info.block, info.role.clone(), info.kind == Kind::Bias);
        if let Treatment::Adapt(spec) = &entry.treatment {
            let adapter = adapter([rows, cols], info, spec, &value, (self.seed, index))?;
            self.adapters.insert(key.clone(), adapter);
        }
        let make = if entry.treatment == Treatment::Train { Param::trained } else { Param::frozen };
        let param = make(info.name.clone(), rows, cols, value).map_err(unfit)?;
        self.params.insert(key, param);
        Ok(())
    }

    fn decoder(mut self) -> Result<Decoder> {
        let spec = &self.base.spec;
        let blocks = (0..spec.blocks).map(|block| self.block(block)).collect::<Result<Vec<_>>>()?;
        let embedding = self.take(None, "embed_tokens", false)?;
        let norm = self.take(None, "norm", false)?;
        let head = if spec.tied { None } else { Some(self.take(None, "lm_head", false)?) };
        let rope = Rope::new(spec.rope.inverse_frequencies(spec.head_dim));
        let decoder = Decoder { embedding, blocks, norm, head, rope, pool: Pool::new() };
        decoder.check().map_err(unfit)?;
        Ok(decoder)
    }

    fn block(&mut self, index: usize) -> Result<Block> {
        let spec = &self.base.spec;
        let window = spec.windows.get(index).copied().flatten();
        let heads = Heads { queries: spec.heads, keys: spec.kv_heads, dim: spec.head_dim, window };
        let shape =
            BlockShape { hidden: spec.hidden, intermediate: spec.intermediate, heads, rms_eps: spec.rms_eps as f32 };
        let block = Some(index);
        Ok(Block {
            shape,
            input_norm: self.take(block, "input_layernorm", false)?,
            q: self.linear(block, "q_proj")?,
            k: self.linear(block, "k_proj")?,
            v: self.linear(block, "v_proj")?,
            q_norm: self.take_if(spec.qk_norm, block, "q_norm")?,
            k_norm: self.take_if(spec.qk_norm, block, "k_norm")?,
            o: self.linear(block, "o_proj")?,
            post_norm: self.take(block, "post_attention_layernorm", false)?,
            gate: self.linear(block, "gate_proj")?,
            up: self.linear(block, "up_proj")?,
            down: self.linear(block, "down_proj")?,
        })
    }

    fn linear(&mut self, block: Option<usize>, role: &str) -> Result<Linear> {
        let weight = self.take(block, role, false)?;
        let bias = self.params.remove(&(block, role.to_string(), true));
        let mut linear = Linear::new(weight, bias).map_err(unfit)?;
        linear.adapter = self.adapters.remove(&(block, role.to_string(), false));
        Ok(linear)
    }

    fn take_if(&mut self, there: bool, block: Option<usize>, role: &str) -> Result<Option<Param>> {
        if there { self.take(block, role, false).map(Some) } else { Ok(None) }
    }

    fn take(&mut self, block: Option<usize>, role: &str, bias: bool) -> Result<Param> {
        self.params.remove(&(block, role.to_string(), bias)).ok_or_else(|| match block {
            Some(block) => Error::internal(format!("the inventory has no `{role}` in block {block}")),
            None => Error::internal(format!("the inventory has no `{role}`")),
        })
    }
}

/// The first values of the A of an adapter of the model's tensor number `index`: `[rank, input]`.
pub(super) fn initial_a(rank: usize, input: usize, seed: u64, index: u32) -> Vec<f32> {
    let bound = 1.0 / (input as f32).sqrt();
    let mut random = Random::new(seed, index);
    (0..rank * input).map(|_| (2.0 * random.uniform() - 1.0) * bound).collect()
}

/// Reads one tensor as the plan keeps it. What is quantised is read and packed at once, so that no more than this one tensor is
/// in memory twice.
///
/// # Errors
/// When it can't be read, or holds what its storage can't.
pub fn read(base: &BaseModel, info: &TensorInfo, storage: Storage) -> Result<Weight> {
    let unpackable = |error: EngineError| {
        Error::model(format!("`{}` cannot be kept as {storage}: {error}", info.name))
            .help("the checkpoint is damaged, or leave this tensor out with storage.exclude")
    };
    // What the checkpoint holds in the very storage of the plan is used as it is.
    match (base.packed(&info.name)?, storage) {
        (Some(Weight::Nf4(packed)), Storage::Nf4 { block_size, double_quantization })
            if packed.options() == (Nf4Options { block_size, double_quantization }) =>
        {
            return Ok(Weight::Nf4(packed));
        }
        (Some(packed @ Weight::Int8(_)), Storage::Int8) => return Ok(packed),
        _ => {}
    }
    match storage {
        Storage::F32 => Ok(Weight::F32(base.read_f32(&info.name)?)),
        Storage::Bf16 => {
            let values = base.read(&info.name).and_then(|tensor| {
                let tensor = tensor.to_dtype(candle_core::DType::BF16).and_then(|tensor| tensor.flatten_all());
                tensor
                    .and_then(|tensor| tensor.to_vec1::<bf16>())
                    .map_err(|error| Error::model(format!("`{}` cannot be kept as bf16: {error}", info.name)))
            })?;
            Ok(Weight::Bf16(values))
        }
        Storage::Nf4 { block_size, double_quantization } => {
            let options = Nf4Options { block_size, double_quantization };
            Nf4::quantise(&base.read_f32(&info.name)?, options).map(Weight::Nf4).map_err(unpackable)
        }
        Storage::Int8 => {
            let cols = info.shape.last().copied().unwrap_or(1);
            Int8::quantise(&base.read_f32(&info.name)?, cols).map(Weight::Int8).map_err(unpackable)
        }
    }
}

/// The adapter that `spec` asks for beside the weight `[out, in]`, the model's tensor number `index`, as it is before its
/// first step.
pub(super) fn adapter(
    [out, input]: [usize; 2],
    info: &TensorInfo,
    spec: &AdapterSpec,
    weight: &Weight,
    (seed, index): (u64, u32),
) -> Result<Adapter> {
    let names = AdapterNames::of(&info.name);
    let a = initial_a(spec.rank, input, seed, index);
    let a = Param::trained(names.a, spec.rank, input, Weight::F32(a)).map_err(unfit)?;
    let zeros = vec![0.0; out * spec.rank];
    let b = Param::trained(names.b, out, spec.rank, Weight::F32(zeros)).map_err(unfit)?;
    let magnitude = match spec.dora {
        false => None,
        true => {
            let norms = row_norms(&weight.as_f32(), input);
            Some(Param::trained(names.magnitude, 1, out, Weight::F32(norms)).map_err(unfit)?)
        }
    };
    let options = AdapterOptions { scale: spec.scale() as f32, dropout: spec.dropout as f32, dropout_stream: index };
    Adapter::new([out, input], a, b, magnitude, options).map_err(unfit)
}

/// The model was checked when it was opened and the plan when it was made, so that this is a defect of ours.
fn unfit(error: EngineError) -> Error {
    Error::internal(format!("the model's weights do not fit together: {error}"))
}
