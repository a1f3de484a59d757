//! The way of a tensor onto the card. In: the base model's tensor, or what a run made of it. Out: the same in its place, packed as
//! the plan keeps it.

use liftplan_engine::cuda::nf4::Parts;
use liftplan_engine::cuda::{Builder, Data, Slot};
use liftplan_engine::storage::nf4::Scales;
use liftplan_engine::{EngineError, Nf4, Nf4Options, Weight};

use super::build::read;
use crate::checkpoint::{TensorData, TensorFile};
use crate::model::BaseModel;
use crate::model::inventory::TensorInfo;
use crate::plan::{Entry, Storage};
use crate::{Error, Result};

/// Reads one tensor and copies it to its place. The card packs what is to be kept in 4 bits, unless the checkpoint has it so.
pub(super) fn load(
    builder: &mut Builder,
    base: &BaseModel,
    info: &TensorInfo,
    entry: &Entry,
    slot: Slot,
) -> Result<()> {
    let fit = |error: EngineError| Error::model(format!("`{}`: {error}", info.name));
    if let (Storage::Nf4 { block_size, double_quantization }, Some(Weight::Nf4(packed))) =
        (entry.storage, base.packed(&info.name)?)
        && packed.options() == (Nf4Options { block_size, double_quantization })
    {
        return builder.load(slot, Data::Nf4(parts(&packed))).map_err(fit);
    }
    if !matches!(entry.storage, Storage::Int8)
        && base.is_plain_bf16(&info.name)?
        && let Some(mut upload) = builder.upload(slot).map_err(fit)?
    {
        while let Some((start, piece)) = upload.next_piece().map_err(fit)? {
            base.read_bytes(&info.name, start, piece)?;
        }
        return upload.finish().map_err(fit);
    }
    // The card packs what is bf16, which is what it reads. The rest is packed here, so that its codes are those of its own numbers.
    let storage = match entry.storage {
        Storage::Nf4 { .. } if info.dtype == "bf16" => Storage::Bf16,
        other => other,
    };
    match read(base, info, storage)? {
        Weight::F32(values) => builder.load(slot, Data::F32(&values)).map_err(fit),
        Weight::Bf16(values) => builder.load(slot, Data::Bf16(&values)).map_err(fit),
        Weight::Nf4(packed) => builder.load(slot, Data::Nf4(parts(&packed))).map_err(fit),
        Weight::Int8(packed) => builder.load(slot, Data::Int8(packed.codes(), packed.absmax())).map_err(fit),
    }
}

/// Copies to its place what a run made of a tensor.
pub(super) fn load_trained(builder: &mut Builder, file: &TensorFile, info: &TensorInfo, slot: Slot) -> Result<()> {
    let fit = |error: EngineError| Error::output(format!("{}: `{}`: {error}", file.path().display(), info.name));
    match file.get(&info.name)?.data {
        TensorData::F32(values) => builder.load(slot, Data::F32(&values)).map_err(fit),
        TensorData::Bf16(values) => builder.load(slot, Data::Bf16(&values)).map_err(fit),
        other => Err(Error::output(format!("{}: `{}` is {:?}", file.path().display(), info.name, other.dtype()))),
    }
}

/// A packed weight as the card takes it.
fn parts(packed: &Nf4) -> Parts<'_> {
    match packed.scales() {
        Scales::Plain(scales) => Parts::Single(packed.codes(), scales),
        Scales::Double { codes, absmax, offset } => Parts::Double(packed.codes(), codes, absmax, &[], *offset),
    }
}
