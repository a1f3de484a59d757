//! Checkpoints that bitsandbytes quantised: the tensors that belong to one weight become one again, still packed.
//!
//! A 4-bit `X.weight` `[bytes, 1]` has beside it `X.weight.absmax`, `X.weight.quant_map`, a JSON text in
//! `X.weight.quant_state.bitsandbytes__nf4`, and with double quantisation `X.weight.nested_absmax` and
//! `X.weight.nested_quant_map`. An 8-bit `X.weight` `[out, in]` has `X.SCB` and `X.weight_format`.

use liftplan_engine::storage::dynamic8::SIGNED;
use liftplan_engine::storage::nf4::{self, NESTED_BLOCK, Scales};
use liftplan_engine::{EngineError, Int8, Nf4, Weight};
use serde::Deserialize;

use super::mapped::MappedFile;
use super::safetensors::Checkpoint;
use super::weights::{Encoding, Stored};
use crate::{Error, Result};

/// What ends the name of a weight's description.
const STATE: &str = ".quant_state.bitsandbytes__";

/// What belongs to a packed weight beside its codes.
pub(super) enum Packed {
    /// Four bits.
    Nf4 { block_size: usize, absmax: Span, nested: Option<Nested> },
    /// Eight bits.
    Int8 { absmax: Span },
}

/// The second stage of a double quantisation.
pub(super) struct Nested {
    absmax: Span,
    offset: f32,
}

/// Bytes of a file.
#[derive(Clone, Copy)]
pub(super) struct Span {
    file: usize,
    range: (usize, usize),
}

impl Span {
    fn of(stored: &Stored) -> Self {
        Self { file: stored.file, range: stored.range }
    }

    pub fn bytes(self, files: &[MappedFile]) -> &[u8] {
        &files[self.file].bytes()[self.range.0..self.range.0 + self.range.1]
    }

    fn floats(self, files: &[MappedFile]) -> Vec<f32> {
        self.bytes(files).as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
    }
}

/// The text that describes a 4-bit weight.
#[derive(Deserialize)]
struct State {
    blocksize: usize,
    shape: Vec<usize>,
    nested_blocksize: Option<usize>,
    nested_offset: Option<f64>,
}

impl Packed {
    /// The weight as the file has it.
    pub fn weight(&self, stored: &Stored, files: &[MappedFile]) -> std::result::Result<Weight, EngineError> {
        let codes = Span::of(stored).bytes(files);
        match self {
            Self::Nf4 { block_size, absmax, nested } => {
                let scales = match nested {
                    None => Scales::Plain(absmax.floats(files)),
                    Some(Nested { absmax: second, offset }) => Scales::Double {
                        codes: absmax.bytes(files).to_vec(),
                        absmax: second.floats(files),
                        offset: *offset,
                    },
                };
                let len = stored.shape.iter().product();
                Nf4::from_parts(len, *block_size, codes.to_vec(), scales).map(Weight::Nf4)
            }
            Self::Int8 { absmax } => {
                let codes = codes.iter().map(|code| *code as i8).collect();
                let cols = stored.shape.last().copied().unwrap_or(1);
                Int8::from_parts(cols, codes, absmax.floats(files)).map(Weight::Int8)
            }
        }
    }

    /// The bytes beside the codes, for the content hash.
    pub fn more_bytes<'a>(&self, files: &'a [MappedFile]) -> Vec<&'a [u8]> {
        match self {
            Self::Nf4 { absmax, nested, .. } => {
                let second = nested.as_ref().map(|nested| nested.absmax.bytes(files));
                std::iter::once(absmax.bytes(files)).chain(second).collect()
            }
            Self::Int8 { absmax } => vec![absmax.bytes(files)],
        }
    }
}

/// Makes one tensor of each packed weight and what belongs to it.
///
/// # Errors
/// When a part is missing or does not fit, or the weight is of a kind that isn't supported (FP4).
pub(super) fn fold(origin: &str, checkpoint: &mut Checkpoint) -> Result<()> {
    let names: Vec<String> = checkpoint.tensors.keys().cloned().collect();
    for name in &names {
        if let Some((weight, kind)) = name.split_once(STATE) {
            let at = |error: Error| error.at(format!("{origin}: tensor `{weight}`"));
            fold_4bit(weight, kind, checkpoint).map_err(at)?;
        } else if let Some(module) = name.strip_suffix(".SCB") {
            let at = |error: Error| error.at(format!("{origin}: tensor `{module}.weight`"));
            fold_8bit(module, checkpoint).map_err(at)?;
        }
    }
    Ok(())
}

fn fold_4bit(name: &str, kind: &str, checkpoint: &mut Checkpoint) -> Result<()> {
    if kind != "nf4" {
        return Err(Error::model(format!("it is quantised as `{kind}`, which is not supported"))
            .help("supported: bitsandbytes' nf4 and 8-bit weights; or use the unquantised checkpoint"));
    }
    let state = take(checkpoint, &format!("{name}{STATE}{kind}"), "u8")?;
    let state: State = serde_json::from_slice(Span::of(&state).bytes(&checkpoint.files))
        .map_err(|error| damaged(format!("its description is not as expected: {error}")))?;
    check_map(checkpoint, &format!("{name}.quant_map"), &nf4::VALUES)?;
    let (absmax, nested) = match (state.nested_blocksize, state.nested_offset) {
        (None, None) => (Span::of(&take(checkpoint, &format!("{name}.absmax"), "f32")?), None),
        (Some(NESTED_BLOCK), Some(offset)) => {
            check_map(checkpoint, &format!("{name}.nested_quant_map"), &SIGNED.values)?;
            let second = Span::of(&take(checkpoint, &format!("{name}.nested_absmax"), "f32")?);
            let first = Span::of(&take(checkpoint, &format!("{name}.absmax"), "u8")?);
            (first, Some(Nested { absmax: second, offset: offset as f32 }))
        }
        (size, _) => {
            return Err(damaged(format!("its scales are quantised in blocks of {size:?}; expected {NESTED_BLOCK}")));
        }
    };
    let mut codes = take(checkpoint, name, "u8")?;
    codes.shape.clone_from(&state.shape);
    codes.dtype = "nf4".to_string();
    codes.encoding = Encoding::Packed;
    finish(name, codes, Packed::Nf4 { block_size: state.blocksize, absmax, nested }, checkpoint)
}

fn fold_8bit(module: &str, checkpoint: &mut Checkpoint) -> Result<()> {
    let absmax = Span::of(&take(checkpoint, &format!("{module}.SCB"), "f32")?);
    let format = format!("{module}.weight_format");
    if checkpoint.tensors.contains_key(&format) {
        let format = take(checkpoint, &format, "u8")?;
        if Span::of(&format).bytes(&checkpoint.files) != [0] {
            return Err(damaged("its codes are not in plain rows".into())
                .help("save it again with a current bitsandbytes, or use the unquantised checkpoint"));
        }
    }
    let name = format!("{module}.weight");
    let mut codes = take(checkpoint, &name, "i8")?;
    codes.dtype = "int8".to_string();
    codes.encoding = Encoding::Packed;
    finish(&name, codes, Packed::Int8 { absmax }, checkpoint)
}

/// Checks that the parts fit each other, and puts the whole into the checkpoint.
fn finish(name: &str, mut codes: Stored, packed: Packed, checkpoint: &mut Checkpoint) -> Result<()> {
    let cells = codes.shape.iter().try_fold(1usize, |cells, dimension| cells.checked_mul(*dimension));
    if cells.is_none() {
        return Err(damaged(format!("its shape {:?} is impossible", codes.shape)));
    }
    packed.weight(&codes, &checkpoint.files).map_err(|error| damaged(error.to_string()))?;
    codes.packed = Some(packed);
    checkpoint.tensors.insert(name.to_string(), codes);
    Ok(())
}

fn take(checkpoint: &mut Checkpoint, name: &str, dtype: &str) -> Result<Stored> {
    let stored = checkpoint.tensors.remove(name).ok_or_else(|| damaged(format!("`{name}` is missing")))?;
    match stored.dtype == dtype {
        true => Ok(stored),
        false => Err(damaged(format!("`{name}` is {}, and not {dtype}", stored.dtype))),
    }
}

/// Fails unless the map in the file is the one that codes are read by.
fn check_map(checkpoint: &mut Checkpoint, name: &str, expected: &[f32]) -> Result<()> {
    let stored = take(checkpoint, name, "f32")?;
    match Span::of(&stored).floats(&checkpoint.files) == expected {
        true => Ok(()),
        false => Err(damaged(format!("`{name}` is another map than bitsandbytes'"))),
    }
}

fn damaged(message: String) -> Error {
    Error::model(message).help("fetch the checkpoint again, or use the unquantised one")
}
