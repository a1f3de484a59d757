//! Weights as the plan packed them, in the layout in which bitsandbytes saves its own: what [`crate::model`] reads again.

use std::cell::RefCell;

use liftplan_engine::Weight;
use liftplan_engine::storage::dynamic8::SIGNED;
use liftplan_engine::storage::nf4::{self, NESTED_BLOCK, Scales};
use safetensors::Dtype;
use serde_json::{Value, json};

use crate::checkpoint::tensors::TensorSpec;
use crate::model::BaseModel;
use crate::model::inventory::{Kind, TensorInfo};
use crate::plan::{Plan, Storage, Treatment};
use crate::train::build;
use crate::{Error, Result};

/// Characters that a number takes in a weight's description, blanks included: its length must be known before it is.
const NUMBER_WIDTH: usize = 26;

/// Packs weights one at a time; several tensors are asked of each in turn.
pub(super) struct Packer<'a> {
    base: &'a BaseModel,
    last: RefCell<Option<(String, Weight)>>,
}

impl<'a> Packer<'a> {
    pub fn new(base: &'a BaseModel) -> Self {
        Self { base, last: RefCell::new(None) }
    }

    /// The bytes of one of [`specs`].
    pub fn bytes(&self, info: &TensorInfo, storage: Storage, part: usize) -> Result<Vec<u8>> {
        let mut last = self.last.borrow_mut();
        let weight = match &*last {
            Some((name, weight)) if *name == info.name => weight,
            _ => {
                let weight = build::read(self.base, info, storage)?;
                &last.insert((info.name.clone(), weight)).1
            }
        };
        bytes(weight, info, part)
    }
}

/// The tensors that a packed weight becomes.
pub(super) fn specs(info: &TensorInfo, storage: Storage) -> Vec<TensorSpec> {
    let spec = |name: String, dtype, shape| TensorSpec { name, dtype, shape };
    let part = |part: &str, dtype, len| spec(format!("{}.{part}", info.name), dtype, vec![len]);
    match storage {
        Storage::Nf4 { block_size, double_quantization } => {
            let blocks = info.len().div_ceil(block_size);
            let mut specs = vec![
                spec(info.name.clone(), Dtype::U8, vec![info.len().div_ceil(2), 1]),
                part("absmax", if double_quantization { Dtype::U8 } else { Dtype::F32 }, blocks),
                part("quant_map", Dtype::F32, nf4::VALUES.len()),
                part(
                    "quant_state.bitsandbytes__nf4",
                    Dtype::U8,
                    description(info, block_size, double_quantization.then_some(0.0)).len(),
                ),
            ];
            if double_quantization {
                specs.push(part("nested_absmax", Dtype::F32, blocks.div_ceil(NESTED_BLOCK)));
                specs.push(part("nested_quant_map", Dtype::F32, SIGNED.values.len()));
            }
            specs
        }
        Storage::Int8 => {
            let module = info.name.strip_suffix(".weight").unwrap_or(&info.name);
            vec![
                spec(info.name.clone(), Dtype::I8, info.shape.clone()),
                spec(format!("{module}.SCB"), Dtype::F32, vec![info.shape.first().copied().unwrap_or(1)]),
                spec(format!("{module}.weight_format"), Dtype::U8, Vec::new()),
            ]
        }
        Storage::F32 | Storage::Bf16 => Vec::new(),
    }
}

fn bytes(weight: &Weight, info: &TensorInfo, part: usize) -> Result<Vec<u8>> {
    let floats = |values: &[f32]| bytemuck::cast_slice(values).to_vec();
    Ok(match (weight, part) {
        (Weight::Nf4(packed), 0) => packed.codes().to_vec(),
        (Weight::Nf4(packed), 2) if !packed.is_empty() => floats(&nf4::VALUES),
        (Weight::Nf4(packed), _) => match (packed.scales(), part) {
            (Scales::Plain(scales), 1) => floats(scales),
            (Scales::Plain(_), 3) => description(info, packed.options().block_size, None).into_bytes(),
            (Scales::Double { codes, .. }, 1) => codes.clone(),
            (Scales::Double { offset, .. }, 3) => {
                description(info, packed.options().block_size, Some(*offset)).into_bytes()
            }
            (Scales::Double { absmax, .. }, 4) => floats(absmax),
            (Scales::Double { .. }, 5) => floats(&SIGNED.values),
            _ => return Err(Error::internal(format!("`{}` has no part {part}", info.name))),
        },
        (Weight::Int8(packed), 0) => bytemuck::cast_slice(packed.codes()).to_vec(),
        (Weight::Int8(packed), 1) => floats(packed.absmax()),
        // Plain rows.
        (Weight::Int8(_), 2) => vec![0],
        _ => return Err(Error::internal(format!("`{}` is not packed", info.name))),
    })
}

/// What bitsandbytes needs to know beside the numbers, of the same length for every offset.
fn description(info: &TensorInfo, block_size: usize, offset: Option<f32>) -> String {
    let mut text = json!({
        "quant_type": "nf4", "blocksize": block_size, "dtype": type_name(info), "shape": info.shape,
    });
    if offset.is_some() {
        text["nested_blocksize"] = json!(NESTED_BLOCK);
        text["nested_dtype"] = json!("float32");
    }
    let text = text.to_string();
    match offset {
        None => text,
        // Every digit of the number, which Python reads as 64 bits wide.
        Some(offset) => {
            let number = format!("{:?}", f64::from(offset));
            format!("{}, \"nested_offset\": {number:>NUMBER_WIDTH$}}}", text.trim_end_matches('}'))
        }
    }
}

fn type_name(info: &TensorInfo) -> &'static str {
    match info.dtype.as_str() {
        "bf16" => "bfloat16",
        "f16" => "float16",
        _ => "float32",
    }
}

/// Checks that transformers can hold every tensor as the plan packs it.
///
/// # Errors
/// When a packed weight has an adapter or is the embedding.
pub(super) fn check(plan: &Plan, base: &BaseModel) -> Result<()> {
    for (entry, info) in plan.entries.iter().zip(&base.inventory.tensors).filter(|(e, _)| !e.storage.can_train()) {
        if let Treatment::Adapt(_) = entry.treatment {
            return Err(Error::plan(format!(
                "`{}` has an adapter, which can't be merged into {} weights without quantising them anew",
                entry.tensor, entry.storage
            ))
            .help("export the adapter with --format peft, or leave --base packed out"));
        }
        if info.kind == Kind::Embedding {
            return Err(Error::plan(format!(
                "`{}` is kept as {}, and transformers has no such embeddings",
                entry.tensor, entry.storage
            ))
            .help("use --base dequantised"));
        }
    }
    Ok(())
}

/// What `config.json` says of it.
pub(super) fn quantization_config(plan: &Plan, base: &BaseModel) -> Value {
    let entries = || plan.entries.iter().zip(&base.inventory.tensors);
    let four_bit = entries().find_map(|(entry, _)| match entry.storage {
        Storage::Nf4 { double_quantization, .. } => Some(double_quantization),
        _ => None,
    });
    let module = |name: &str| name.rsplit_once('.').map_or(name.to_string(), |(module, _)| module.to_string());
    let mut plain: Vec<String> = entries()
        .filter(|(entry, info)| matches!(info.kind, Kind::Linear | Kind::Head) && entry.storage.can_train())
        .map(|(entry, _)| module(&entry.tensor))
        .collect();
    if base.inventory.tied {
        plain.push("lm_head".into());
    }
    let mut config = json!({
        "quant_method": "bitsandbytes",
        "load_in_4bit": four_bit.is_some(), "_load_in_4bit": four_bit.is_some(),
        "load_in_8bit": four_bit.is_none(), "_load_in_8bit": four_bit.is_none(),
        "llm_int8_enable_fp32_cpu_offload": false, "llm_int8_has_fp16_weight": false,
        "llm_int8_skip_modules": plain, "llm_int8_threshold": 6.0,
    });
    if let Some(double) = four_bit {
        let compute = base.inventory.tensors.first().map_or("float32", type_name);
        config["bnb_4bit_quant_type"] = json!("nf4");
        config["bnb_4bit_use_double_quant"] = json!(double);
        config["bnb_4bit_compute_dtype"] = json!(compute);
        config["bnb_4bit_quant_storage"] = json!("uint8");
    }
    config
}
