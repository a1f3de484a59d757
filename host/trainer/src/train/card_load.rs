//! The way of a tensor onto the card. In: the base model's tensor, what a run made of it, or an adapter's first numbers. Out: the
//! same in its place, packed as the plan keeps it.

use std::collections::BTreeSet;

use liftplan_engine::cuda::nf4::Parts;
use liftplan_engine::cuda::{Data, Decoder, Loader, Slot};
use liftplan_engine::storage::nf4::Scales;
use liftplan_engine::{EngineError, Nf4, Nf4Options, Weight};
use rayon::prelude::*;

use super::AdapterNames;
use super::build::{initial_a, read};
use super::card::{failed, memory_error, missing};
use crate::checkpoint::{TensorData, TensorFile};
use crate::model::BaseModel;
use crate::model::inventory::{Kind, TensorInfo};
use crate::plan::{Plan, Storage, Treatment};
use crate::{Error, Result};

/// Reads the tensor at `position` of the plan and copies it to its place. The card packs what is to be kept in 4 bits, unless the
/// checkpoint has it so.
pub(super) fn load(
    loader: &mut Loader,
    decoder: &Decoder,
    base: &BaseModel,
    plan: &Plan,
    (position, slot): (usize, Slot),
) -> Result<()> {
    let (Some(info), Some(entry)) = (base.inventory.tensors.get(position), plan.entries.get(position)) else {
        return Err(Error::internal(format!("the plan has no tensor {position}")));
    };
    let fit = |error: EngineError| match error {
        EngineError::OutOfDeviceMemory { .. } | EngineError::OutOfHostMemory { .. } => {
            memory_error(error, &format!("`{}`", info.name), plan)
        }
        error => Error::model(format!("`{}`: {error}", info.name)),
    };
    if !entry.storage.can_train() && info.kind != Kind::Linear {
        // It lies there in 16 or 32 bits, with the numbers that it has in few.
        let values = read(base, info, entry.storage)?.as_f32().into_owned();
        return loader.load(decoder, slot, Data::F32(&values)).map_err(fit);
    }
    if let (Storage::Nf4 { block_size, double_quantization }, Some(Weight::Nf4(packed))) =
        (entry.storage, base.packed(&info.name)?)
        && packed.options() == (Nf4Options { block_size, double_quantization })
    {
        return loader.load(decoder, slot, Data::Nf4(parts(&packed))).map_err(fit);
    }
    if !matches!(entry.storage, Storage::Int8)
        && base.is_plain_bf16(&info.name)?
        && let Some(mut upload) = loader.upload(decoder, slot).map_err(fit)?
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
    let mut put = |data: Data<'_>| loader.load(decoder, slot, data).map_err(fit);
    match read(base, info, storage)? {
        Weight::F32(values) => put(Data::F32(&values)),
        Weight::Bf16(values) => put(Data::Bf16(&values)),
        Weight::Nf4(packed) => put(Data::Nf4(parts(&packed))),
        Weight::Int8(packed) => put(Data::Int8(packed.codes(), packed.absmax())),
    }
}

/// Copies to its place what a run made of a tensor.
pub(super) fn load_trained(
    loader: &mut Loader,
    decoder: &Decoder,
    file: &TensorFile,
    info: &TensorInfo,
    slot: Slot,
) -> Result<()> {
    let fit = |error: EngineError| Error::output(format!("{}: `{}`: {error}", file.path().display(), info.name));
    match file.get(&info.name)?.data {
        TensorData::F32(values) => loader.load(decoder, slot, Data::F32(&values)).map_err(fit),
        TensorData::Bf16(values) => loader.load(decoder, slot, Data::Bf16(&values)).map_err(fit),
        other => Err(Error::output(format!("{}: `{}` is {:?}", file.path().display(), info.name, other.dtype()))),
    }
}

/// Gives the plan's adapters that are `new` their first numbers, drawn on all cores by `seed` as on the processor, and DoRA's
/// magnitudes the norms of their weights' rows; their names and shapes. The weights are loaded.
pub(super) fn begin_adapters(
    decoder: &mut Decoder,
    base: &BaseModel,
    plan: &Plan,
    seed: u64,
    new: impl Fn(&str) -> bool,
) -> Result<Vec<(String, Vec<usize>)>> {
    let tensors = base.inventory.tensors.iter().zip(&plan.entries).enumerate();
    let adapted = tensors.filter(|(_, (info, _))| new(&info.name)).filter_map(|(i, (info, entry))| {
        match (&entry.treatment, info.shape.as_slice()) {
            (Treatment::Adapt(adapter), &[out, input]) => {
                Some(Ok((i as u32, info, [adapter.rank, out, input], adapter.dora)))
            }
            (Treatment::Adapt(_), _) => Some(Err(Error::internal(format!("`{}` is no matrix", info.name)))),
            (Treatment::Frozen | Treatment::Train, _) => None,
        }
    });
    let adapted = adapted.collect::<Result<Vec<_>>>()?;
    let initial = |&(i, _, [rank, _, input], _): &(u32, &TensorInfo, [usize; 3], bool)| initial_a(rank, input, seed, i);
    let mut begun = Vec::with_capacity(2 * adapted.len());
    for some in adapted.chunks(rayon::current_num_threads()) {
        let drawn: Vec<Vec<f32>> = some.par_iter().map(initial).collect();
        for (&(_, info, [rank, out, input], dora), a) in some.iter().zip(drawn) {
            let names = AdapterNames::of(&info.name);
            let b = vec![0.0; out * rank];
            for (name, shape, values) in [(names.a, vec![rank, input], a), (names.b, vec![out, rank], b)] {
                let matrix = decoder.trainables().iter().position(|trainable| trainable.name == name);
                let matrix = matrix.ok_or_else(|| missing(&name))?;
                decoder.set_value(matrix, &values).map_err(failed)?;
                begun.push((name, shape));
            }
            if dora {
                begun.push((names.magnitude, vec![out]));
            }
        }
    }
    // Of the weights as they are on the card, B being zero.
    let magnitudes: BTreeSet<String> =
        adapted.iter().filter(|(.., dora)| *dora).map(|(_, info, ..)| AdapterNames::of(&info.name).magnitude).collect();
    if !magnitudes.is_empty() {
        let begun = decoder.begin_magnitudes(|name| magnitudes.contains(name));
        begun.map_err(|error| memory_error(error, "what is to be adapted", plan))?;
    }
    Ok(begun)
}

/// A packed weight as the card takes it.
fn parts(packed: &Nf4) -> Parts<'_> {
    match packed.scales() {
        Scales::Plain(scales) => Parts::Single(packed.codes(), scales),
        Scales::Double { codes, absmax, offset } => Parts::Double(packed.codes(), codes, absmax, &[], *offset),
    }
}
