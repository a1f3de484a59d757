//! The GGUF container, version 3: a header, metadata, a table of tensors, and their data, each at a multiple of 32.
//!
//! Format: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use super::quant::GgmlType;
use crate::files::output_error;
use crate::{Error, Result};

const ALIGNMENT: usize = 32;

// The format's numbers for the types of values.
const U32: u32 = 4;
const I32: u32 = 5;
const F32: u32 = 6;
const BOOL: u32 = 7;
const TEXT: u32 = 8;
const ARRAY: u32 = 9;

/// A metadata value.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Meta {
    U32(u32),
    F32(f32),
    Bool(bool),
    Text(String),
    Texts(Vec<String>),
    F32s(Vec<f32>),
    I32s(Vec<i32>),
}

/// A tensor in the table.
pub(super) struct GgufTensor {
    /// llama.cpp's name.
    pub name: String,
    /// Outermost dimension first; the file has it the other way round.
    pub shape: Vec<usize>,
    pub kind: GgmlType,
}

/// A file to be written.
pub(super) struct GgufWriter {
    pub metadata: Vec<(String, Meta)>,
    pub tensors: Vec<GgufTensor>,
}

/// Produces a tensor's bytes by its index in the table.
type Produce<'a> = dyn FnMut(usize, &GgufTensor) -> Result<Vec<u8>> + 'a;

impl GgufWriter {
    /// Writes the file and brings it to the disk; each tensor is produced when its turn comes.
    ///
    /// # Errors
    /// When a tensor can't be produced, or the file can't be written.
    pub fn write(&self, path: &Path, produce: &mut Produce<'_>) -> Result<()> {
        let failed = |e: std::io::Error| output_error("write", path, &e);
        let mut out = BufWriter::with_capacity(1 << 20, File::create(path).map_err(failed)?);
        let mut header = self.header();
        header.resize(header.len().next_multiple_of(ALIGNMENT), 0);
        out.write_all(&header).map_err(failed)?;
        for (index, tensor) in self.tensors.iter().enumerate() {
            let mut bytes = produce(index, tensor)?;
            let expected = tensor.bytes();
            if bytes.len() != expected {
                let message = format!("{}: {} bytes instead of {expected}", tensor.name, bytes.len());
                return Err(Error::internal(message).at(path.display()));
            }
            bytes.resize(bytes.len().next_multiple_of(ALIGNMENT), 0);
            out.write_all(&bytes).map_err(failed)?;
        }
        out.into_inner().map_err(|e| failed(e.into_error()))?.sync_all().map_err(failed)
    }

    fn header(&self) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(3u32.to_le_bytes());
        put_u64(&mut out, self.tensors.len());
        put_u64(&mut out, self.metadata.len());
        for (key, value) in &self.metadata {
            put_text(&mut out, key);
            put_value(&mut out, value);
        }
        let mut offset = 0;
        for tensor in &self.tensors {
            put_text(&mut out, &tensor.name);
            out.extend((tensor.shape.len() as u32).to_le_bytes());
            for dimension in tensor.shape.iter().rev() {
                put_u64(&mut out, *dimension);
            }
            out.extend(tensor.kind.code().to_le_bytes());
            put_u64(&mut out, offset);
            offset += tensor.bytes().next_multiple_of(ALIGNMENT);
        }
        out
    }
}

impl GgufTensor {
    fn bytes(&self) -> usize {
        self.kind.bytes(self.shape.iter().product())
    }
}

fn put_u64(out: &mut Vec<u8>, value: usize) {
    out.extend((value as u64).to_le_bytes());
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    put_u64(out, text.len());
    out.extend(text.as_bytes());
}

fn put_value(out: &mut Vec<u8>, value: &Meta) {
    let put_array = |out: &mut Vec<u8>, kind: u32, len: usize| {
        out.extend(ARRAY.to_le_bytes());
        out.extend(kind.to_le_bytes());
        put_u64(out, len);
    };
    match value {
        Meta::U32(v) => {
            out.extend(U32.to_le_bytes());
            out.extend(v.to_le_bytes());
        }
        Meta::F32(v) => {
            out.extend(F32.to_le_bytes());
            out.extend(v.to_le_bytes());
        }
        Meta::Bool(v) => {
            out.extend(BOOL.to_le_bytes());
            out.push(u8::from(*v));
        }
        Meta::Text(v) => {
            out.extend(TEXT.to_le_bytes());
            put_text(out, v);
        }
        Meta::Texts(v) => {
            put_array(out, TEXT, v.len());
            v.iter().for_each(|text| put_text(out, text));
        }
        Meta::F32s(v) => {
            put_array(out, F32, v.len());
            v.iter().for_each(|x| out.extend(x.to_le_bytes()));
        }
        Meta::I32s(v) => {
            put_array(out, I32, v.len());
            v.iter().for_each(|x| out.extend(x.to_le_bytes()));
        }
    }
}
