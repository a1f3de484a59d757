//! The header of a GGUF file: metadata and the table of tensors, read from the mapped bytes.
//!
//! candle has a reader too, and its value type and its decoders of quantised blocks are used here. The header is read
//! by this file all the same, because candle's reader divides by an alignment of zero, stops at the first tensor type
//! it doesn't know without naming the tensor, takes the last of two tensors with one name, and lets sizes overflow.
//! Here nothing is allocated that the file isn't long enough for, and each error says which entry is wrong.
//!
//! Format: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>

use std::collections::BTreeMap;

use candle_core::quantized::GgmlDType;
pub use candle_core::quantized::gguf_file::Value;

use crate::{Error, Result};

/// Longest key, tensor name or array in a sound file, each far above what occurs.
const LONGEST_NAME: u64 = 1 << 16;
const MOST_ELEMENTS: u64 = 1 << 22;
const DEEPEST_NESTING: usize = 4;
const MOST_DIMENSIONS: u32 = 4;

/// What a GGUF file says of itself.
pub(super) struct Header {
    pub metadata: BTreeMap<String, Value>,
    pub tensors: Vec<Entry>,
}

/// One tensor of the table, its range checked against the file.
pub(super) struct Entry {
    /// llama.cpp's name, `blk.0.attn_q.weight`.
    pub name: String,
    /// Outermost dimension first (the file has the innermost first).
    pub shape: Vec<usize>,
    pub dtype: GgmlDType,
    /// First byte in the file, and number of bytes.
    pub range: (usize, usize),
}

/// Reads the header of the file whose contents are `bytes`.
///
/// # Errors
/// Not a GGUF file, a version or byte order that isn't supported, a damaged or truncated header, a tensor type that
/// isn't supported, tensors outside the file.
pub(super) fn read(bytes: &[u8]) -> Result<Header> {
    let mut cursor = Cursor { bytes, at: 0 };
    if bytes.get(..4) != Some(b"GGUF") {
        let found: String = bytes.iter().take(4).map(|&b| format!("{b:02x}")).collect();
        let error = Error::model(format!("not a GGUF file: it begins with {found}, expected 47475546 (`GGUF`)"));
        return Err(match bytes.starts_with(b"version https://git-lfs") {
            true => error.help("this is a Git LFS pointer; run `git lfs pull` in its repository"),
            false => error,
        });
    }
    cursor.at = 4;
    match cursor.u32("the version")? {
        2 | 3 => {}
        swapped if swapped.swap_bytes() < 16 => {
            return Err(Error::model("this GGUF file is for big-endian machines").help("get the little-endian file"));
        }
        other => {
            return Err(Error::model(format!("GGUF version {other} is not supported"))
                .help("supported: 2 and 3; convert the file with a current llama.cpp"));
        }
    }
    let tensor_count = cursor.count("the number of tensors", 24)?;
    let entry_count = cursor.count("the number of metadata entries", 13)?;

    let mut metadata = BTreeMap::new();
    for index in 0..entry_count {
        let key = cursor.string(LONGEST_NAME, &format!("the key of metadata entry {index}"))?;
        let kind = cursor.u32(&key)?;
        let value = cursor.value(kind, &key, 0)?;
        if metadata.insert(key.clone(), value).is_some() {
            return Err(damaged(format!("metadata `{key}` occurs twice")));
        }
    }
    let mut table = Vec::new();
    for index in 0..tensor_count {
        table.push(cursor.tensor(index)?);
    }
    let alignment = match metadata.get("general.alignment") {
        None => 32,
        Some(value) => match value.to_u64() {
            Ok(alignment) if alignment.is_power_of_two() && (8..=1 << 20).contains(&alignment) => alignment as usize,
            _ => return Err(damaged(format!("`general.alignment` is {value:?}; expected a power of two, 8 or more"))),
        },
    };
    let data_start = cursor.at.div_ceil(alignment) * alignment;
    let mut tensors = Vec::with_capacity(table.len());
    let mut names = std::collections::BTreeSet::new();
    for raw in table {
        if !names.insert(raw.name.clone()) {
            return Err(damaged(format!("tensor `{}` occurs twice", raw.name)));
        }
        tensors.push(raw.place(data_start, alignment, bytes.len())?);
    }
    Ok(Header { metadata, tensors })
}

fn damaged(message: impl Into<String>) -> Error {
    Error::model(format!("damaged GGUF header: {}", message.into())).help("fetch the file again")
}

struct RawEntry {
    name: String,
    shape: Vec<usize>,
    dtype: GgmlDType,
    offset: u64,
}

impl RawEntry {
    /// Computes where the tensor lies, and that it lies within the file.
    fn place(self, data_start: usize, alignment: usize, file_len: usize) -> Result<Entry> {
        let RawEntry { name, shape, dtype, offset } = self;
        let block = dtype.block_size();
        let row = shape.last().copied().unwrap_or(1);
        if !row.is_multiple_of(block) {
            return Err(damaged(format!(
                "tensor `{name}` has rows of {row}, not a multiple of the {block} of its type"
            )));
        }
        let size = shape
            .iter()
            .try_fold(1usize, |product, &dimension| product.checked_mul(dimension))
            .and_then(|elements| (elements / block).checked_mul(dtype.type_size()));
        let start = usize::try_from(offset).ok().and_then(|offset| offset.checked_add(data_start));
        let (Some(size), Some(start)) = (size, start) else {
            return Err(damaged(format!("tensor `{name}` {shape:?} at offset {offset} is larger than any file")));
        };
        if !start.is_multiple_of(alignment) {
            return Err(damaged(format!("tensor `{name}` begins at offset {offset}, not a multiple of {alignment}")));
        }
        match start.checked_add(size) {
            Some(end) if end <= file_len => Ok(Entry { name, shape, dtype, range: (start, size) }),
            _ => Err(Error::model(format!(
                "truncated: tensor `{name}` ends at byte {}, the file at {file_len}",
                start.saturating_add(size)
            ))
            .help("fetch the file again; the download was probably cut off")),
        }
    }
}

/// A checked reader over the file's bytes. `what` says in messages what was being read.
struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn take(&mut self, length: u64, what: &str) -> Result<&'a [u8]> {
        let end = usize::try_from(length).ok().and_then(|length| self.at.checked_add(length));
        match end.and_then(|end| self.bytes.get(self.at..end)) {
            Some(taken) => {
                self.at += taken.len();
                Ok(taken)
            }
            None => Err(Error::model(format!(
                "truncated or damaged GGUF header: {what} needs {length} bytes at byte {}, the file has {}",
                self.at,
                self.bytes.len()
            ))
            .help("fetch the file again; the download was probably cut off")),
        }
    }

    fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N]> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N as u64, what)?);
        Ok(array)
    }

    fn u32(&mut self, what: &str) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    fn u64(&mut self, what: &str) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }

    /// A number of entries that each take at least `least_bytes`.
    fn count(&mut self, what: &str, least_bytes: u64) -> Result<u64> {
        let count = self.u64(what)?;
        let left = (self.bytes.len() - self.at) as u64;
        match count.checked_mul(least_bytes) {
            Some(needed) if needed <= left && count <= MOST_ELEMENTS => Ok(count),
            _ => Err(damaged(format!("{what} is {count}, more than the file's {} bytes can hold", self.bytes.len()))),
        }
    }

    /// A string. Files with bytes that aren't UTF-8 exist; these are replaced, as llama.cpp's own tools do.
    fn string(&mut self, longest: u64, what: &str) -> Result<String> {
        let length = self.u64(what)?;
        if length > longest {
            return Err(damaged(format!("{what} is {length} bytes long")));
        }
        Ok(String::from_utf8_lossy(self.take(length, what)?).into_owned())
    }

    fn value(&mut self, kind: u32, key: &str, depth: usize) -> Result<Value> {
        Ok(match kind {
            0 => Value::U8(self.array::<1>(key)?[0]),
            1 => Value::I8(i8::from_le_bytes(self.array(key)?)),
            2 => Value::U16(u16::from_le_bytes(self.array(key)?)),
            3 => Value::I16(i16::from_le_bytes(self.array(key)?)),
            4 => Value::U32(self.u32(key)?),
            5 => Value::I32(i32::from_le_bytes(self.array(key)?)),
            6 => Value::F32(f32::from_le_bytes(self.array(key)?)),
            7 => match self.array::<1>(key)?[0] {
                0 => Value::Bool(false),
                1 => Value::Bool(true),
                other => return Err(damaged(format!("`{key}` is a truth value of {other}; expected 0 or 1"))),
            },
            8 => Value::String(self.string(self.bytes.len() as u64, key)?),
            9 if depth < DEEPEST_NESTING => {
                let kind = self.u32(key)?;
                let count = self.count(&format!("the length of `{key}`"), least_size(kind))?;
                // Grows as elements are read: a false length must not reserve memory.
                let mut elements = Vec::new();
                for _ in 0..count {
                    elements.push(self.value(kind, key, depth + 1)?);
                }
                Value::Array(elements)
            }
            9 => return Err(damaged(format!("`{key}` is nested deeper than {DEEPEST_NESTING} arrays"))),
            10 => Value::U64(self.u64(key)?),
            11 => Value::I64(i64::from_le_bytes(self.array(key)?)),
            12 => Value::F64(f64::from_le_bytes(self.array(key)?)),
            other => return Err(damaged(format!("`{key}` has value type {other}, which GGUF does not define"))),
        })
    }

    fn tensor(&mut self, index: u64) -> Result<RawEntry> {
        let name = self.string(LONGEST_NAME, &format!("the name of tensor {index}"))?;
        let dimensions = self.u32(&name)?;
        if !(1..=MOST_DIMENSIONS).contains(&dimensions) {
            return Err(damaged(format!(
                "tensor `{name}` has {dimensions} dimensions; expected 1 to {MOST_DIMENSIONS}"
            )));
        }
        let mut shape = Vec::new();
        for _ in 0..dimensions {
            let dimension = self.u64(&name)?;
            match usize::try_from(dimension) {
                Ok(dimension) if dimension > 0 => shape.push(dimension),
                _ => return Err(damaged(format!("tensor `{name}` has a dimension of {dimension}"))),
            }
        }
        shape.reverse();
        let dtype = self.u32(&name)?;
        let dtype = dtype_of(dtype).ok_or_else(|| unknown_type(&name, dtype))?;
        Ok(RawEntry { name, shape, dtype, offset: self.u64("a tensor's offset")? })
    }
}

fn least_size(kind: u32) -> u64 {
    match kind {
        2 | 3 => 2,
        4..=6 => 4,
        8 | 10..=12 => 8,
        9 => 12,
        _ => 1,
    }
}

/// ggml's type numbers, as far as the values can be decoded.
fn dtype_of(number: u32) -> Option<GgmlDType> {
    Some(match number {
        0 => GgmlDType::F32,
        1 => GgmlDType::F16,
        2 => GgmlDType::Q4_0,
        3 => GgmlDType::Q4_1,
        6 => GgmlDType::Q5_0,
        7 => GgmlDType::Q5_1,
        8 => GgmlDType::Q8_0,
        10 => GgmlDType::Q2K,
        11 => GgmlDType::Q3K,
        12 => GgmlDType::Q4K,
        13 => GgmlDType::Q5K,
        14 => GgmlDType::Q6K,
        30 => GgmlDType::BF16,
        _ => return None,
    })
}

fn unknown_type(tensor: &str, number: u32) -> Error {
    let name = match number {
        9 => "Q8_1",
        15 => "Q8_K",
        16 => "IQ2_XXS",
        17 => "IQ2_XS",
        18 => "IQ3_XXS",
        19 => "IQ1_S",
        20 => "IQ4_NL",
        21 => "IQ3_S",
        22 => "IQ2_S",
        23 => "IQ4_XS",
        24 => "I8",
        25 => "I16",
        26 => "I32",
        27 => "I64",
        28 => "F64",
        29 => "IQ1_M",
        34 => "TQ1_0",
        35 => "TQ2_0",
        39 => "MXFP4",
        _ => "unknown",
    };
    Error::model(format!("tensor `{tensor}` has GGUF type {number} ({name}), which is not supported"))
        .help("supported: F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K")
}
