//! A plan as the GPU engine has it. In: a model's tensors or dimensions, and a plan. Out: what each weight is to the card, and the model's dimensions;
//! or what a GPU does not do.

use liftplan_engine::cuda::{self, MomentFormat, Options, Role, TensorSpec};

use super::AdapterNames;
use super::card::CardOptions;
use crate::model::BaseModel;
use crate::model::inventory::{Inventory, Kind, TensorInfo};
use crate::model::spec::ModelSpec;
use crate::plan::{AdapterSpec, Plan, Storage, Treatment};
use crate::{Error, Result};

const ON_CPU: &str = "set device to \"cpu\"";

/// Whether a GPU can do what the plan asks, wherever that is asked.
///
/// # Errors
/// Names the first width or tensor with which it can't, and the way out.
pub fn check(base: &BaseModel, plan: &Plan) -> Result<()> {
    shape(&base.spec).check().map_err(|error| Error::plan(error.to_string()).help(ON_CPU))?;
    specs(&base.inventory, plan).map(|_| ())
}

/// What the model's tensors are to the card, and whether it can do what the plan asks.
pub(super) fn specs(inventory: &Inventory, plan: &Plan) -> Result<Vec<TensorSpec>> {
    let tensors = inventory.tensors.iter().enumerate();
    tensors
        .map(|(i, info)| {
            let entry = plan.entries.get(i).filter(|entry| entry.tensor == info.name).ok_or_else(|| {
                Error::plan(format!("the plan has no entry {i} for `{}`: it was made for another model", info.name))
            })?;
            let role = role(info).ok_or_else(|| {
                Error::plan(format!("`{}`: a GPU knows no {} of this kind yet", info.name, info.role)).help(ON_CPU)
            })?;
            let treatment = match &entry.treatment {
                Treatment::Frozen => cuda::Treatment::Frozen,
                Treatment::Train => cuda::Treatment::Train,
                Treatment::Adapt(spec) => cuda::Treatment::Adapt(adapter(info, spec, i)),
            };
            let storage = kept_as(entry.storage);
            Ok(TensorSpec { slot: (info.block, role), name: info.name.clone(), treatment, storage })
        })
        .collect()
}

/// A storage as the card calls it.
pub(super) fn kept_as(storage: Storage) -> cuda::Storage {
    match storage {
        Storage::F32 => cuda::Storage::F32,
        Storage::Bf16 => cuda::Storage::Bf16,
        Storage::Nf4 { block_size, double_quantization } => {
            cuda::Storage::Nf4 { block: block_size, double: double_quantization }
        }
        Storage::Int8 => cuda::Storage::Int8,
    }
}

/// An adapter beside the model's tensor number `index`.
pub(super) fn adapter(info: &TensorInfo, spec: &AdapterSpec, index: usize) -> cuda::AdapterSpec {
    let AdapterNames { a, b, magnitude } = AdapterNames::of(&info.name);
    cuda::AdapterSpec {
        rank: spec.rank,
        scale: spec.scale() as f32,
        dropout: spec.dropout as f32,
        dropout_stream: index as u32,
        a,
        b,
        magnitude: spec.dora.then_some(magnitude),
    }
}

/// What holds for the whole model.
///
/// # Errors
/// When the embedding is to lie in the host's memory and can't.
pub(super) fn settings(inventory: &Inventory, spec: &ModelSpec, plan: &Plan, options: CardOptions) -> Result<Options> {
    if options.offload_embedding {
        can_offload(inventory, spec, plan)?;
    }
    Ok(Options {
        moments: if options.eight_bit_states { MomentFormat::EightBit } else { MomentFormat::Wide },
        narrow_grads: false,
        masters: options.masters,
        unordered: options.unordered,
        embedding_on_host: options.offload_embedding,
        update_in_backward: options.update_in_backward,
        waiting_limit: options.waiting_limit.map(|bytes| bytes as usize),
        ..Options::default()
    })
}

/// Whether the embedding can lie in the host's memory.
///
/// # Errors
/// Says why it can't.
pub(super) fn can_offload(inventory: &Inventory, spec: &ModelSpec, plan: &Plan) -> Result<()> {
    let mut tensors = inventory.tensors.iter().zip(&plan.entries);
    let Some((info, entry)) = tensors.find(|(info, _)| role(info) == Some(Role::Embedding)) else { return Ok(()) };
    let why = match entry.treatment {
        _ if spec.tied => "is the output head too, which every step multiplies by",
        Treatment::Train => "trains",
        Treatment::Frozen | Treatment::Adapt(_) => return Ok(()),
    };
    Err(Error::plan(format!("`storage.offload_embedding`: `{}` {why}, and stays on the GPU", info.name))
        .help("leave storage.offload_embedding out"))
}

/// A tensor's part in the card's model, if it knows one.
pub(super) fn role(info: &TensorInfo) -> Option<Role> {
    Some(match (info.role.as_str(), info.kind == Kind::Bias) {
        ("embed_tokens", false) => Role::Embedding,
        ("input_layernorm", false) => Role::InputNorm,
        ("q_proj", false) => Role::Q,
        ("k_proj", false) => Role::K,
        ("v_proj", false) => Role::V,
        ("q_proj", true) => Role::QBias,
        ("k_proj", true) => Role::KBias,
        ("v_proj", true) => Role::VBias,
        ("o_proj", true) => Role::OBias,
        ("gate_proj", true) => Role::GateBias,
        ("up_proj", true) => Role::UpBias,
        ("down_proj", true) => Role::DownBias,
        ("q_norm", false) => Role::QNorm,
        ("k_norm", false) => Role::KNorm,
        ("o_proj", false) => Role::O,
        ("post_attention_layernorm", false) => Role::PostNorm,
        ("gate_proj", false) => Role::Gate,
        ("up_proj", false) => Role::Up,
        ("down_proj", false) => Role::Down,
        ("norm", false) => Role::FinalNorm,
        ("lm_head", false) => Role::Head,
        _ => return None,
    })
}

/// The model's dimensions.
pub(super) fn shape(spec: &ModelSpec) -> cuda::ModelShape {
    cuda::ModelShape {
        vocab: spec.vocab,
        hidden: spec.hidden,
        intermediate: spec.intermediate,
        blocks: spec.blocks,
        heads: spec.heads,
        kv_heads: spec.kv_heads,
        dim: spec.head_dim,
        windows: spec.windows.clone(),
        rms_eps: spec.rms_eps as f32,
        tied: spec.tied,
        inverse_frequencies: spec.rope.inverse_frequencies(spec.head_dim),
    }
}
