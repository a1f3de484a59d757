//! Named tensors in safetensors files: written one after the other and hashed on the way, read one at a time.
//!
//! The `safetensors` crate defines the header; the data is streamed here because the crate's own writer can't fail in
//! the middle of a tensor's production, and doesn't hash.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use memmap2::Mmap;
use safetensors::Dtype;
use safetensors::tensor::{Metadata, SafeTensorError, SafeTensors, TensorInfo, TensorView};

use super::FileDigest;
use crate::files::output_error;
use crate::hash::{Hasher, sha256_of_file};
use crate::{Error, Result};

/// A tensor's elements on the host.
#[derive(Clone, Debug, PartialEq)]
pub enum TensorData {
    /// 32-bit floats.
    F32(Vec<f32>),
    /// bfloat16.
    Bf16(Vec<bf16>),
    /// IEEE half floats.
    F16(Vec<f16>),
    /// Bytes.
    U8(Vec<u8>),
    /// 32-bit unsigned integers.
    U32(Vec<u32>),
}

impl TensorData {
    /// The number of elements.
    pub fn len(&self) -> usize {
        match self {
            Self::F32(v) => v.len(),
            Self::Bf16(v) => v.len(),
            Self::F16(v) => v.len(),
            Self::U8(v) => v.len(),
            Self::U32(v) => v.len(),
        }
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The elements as 32-bit floats, whatever float type they are kept in.
    ///
    /// # Errors
    /// When they are integers.
    pub fn to_f32(&self) -> Result<Vec<f32>> {
        match self {
            Self::F32(v) => Ok(v.clone()),
            Self::Bf16(v) => Ok(v.iter().map(|x| x.to_f32()).collect()),
            Self::F16(v) => Ok(v.iter().map(|x| x.to_f32()).collect()),
            Self::U8(_) | Self::U32(_) => Err(Error::internal("an integer tensor was asked for as floats")),
        }
    }

    /// Its element type in safetensors.
    pub fn dtype(&self) -> Dtype {
        match self {
            Self::F32(_) => Dtype::F32,
            Self::Bf16(_) => Dtype::BF16,
            Self::F16(_) => Dtype::F16,
            Self::U8(_) => Dtype::U8,
            Self::U32(_) => Dtype::U32,
        }
    }

    /// The elements' bytes. Safetensors are little-endian, and so is every machine that Liftplan runs on.
    pub fn bytes(&self) -> &[u8] {
        match self {
            Self::F32(v) => bytemuck::cast_slice(v),
            Self::Bf16(v) => bytemuck::cast_slice(v),
            Self::F16(v) => bytemuck::cast_slice(v),
            Self::U8(v) => v,
            Self::U32(v) => bytemuck::cast_slice(v),
        }
    }

    fn from_bytes(dtype: Dtype, bytes: &[u8]) -> Option<Self> {
        Some(match dtype {
            Dtype::F32 => Self::F32(elements(bytes)),
            Dtype::BF16 => Self::Bf16(elements(bytes)),
            Dtype::F16 => Self::F16(elements(bytes)),
            Dtype::U8 => Self::U8(bytes.to_vec()),
            Dtype::U32 => Self::U32(elements(bytes)),
            _ => return None,
        })
    }
}

/// Copies elements out of a mapped file, whose bytes needn't be aligned to them.
fn elements<T: bytemuck::Pod>(bytes: &[u8]) -> Vec<T> {
    let mut out = vec![T::zeroed(); bytes.len() / size_of::<T>()];
    bytemuck::cast_slice_mut(&mut out).copy_from_slice(bytes);
    out
}

/// A tensor with its name and shape (outermost dimension first).
#[derive(Clone, Debug, PartialEq)]
pub struct NamedTensor {
    /// Name in the file.
    pub name: String,
    /// Shape; its product is the number of elements.
    pub shape: Vec<usize>,
    /// Elements in row-major order.
    pub data: TensorData,
}

/// A tensor's place in a file to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    /// Name in the file.
    pub name: String,
    /// Element type.
    pub dtype: Dtype,
    /// Shape, outermost dimension first.
    pub shape: Vec<usize>,
}

/// Tensors to be written. They are asked for one after the other, so that not all need to be in memory at once.
pub trait TensorSource {
    /// Name, type and shape of each.
    fn specs(&self) -> Vec<TensorSpec>;

    /// The little-endian bytes of the tensor at `index` of [`TensorSource::specs`].
    ///
    /// # Errors
    /// When the tensor can't be produced.
    fn bytes(&self, index: usize) -> Result<Cow<'_, [u8]>>;

    /// Says that the bytes of the tensor at `index` were written, and won't be asked for again.
    fn written(&self, index: usize) {
        let _ = index;
    }
}

impl TensorSource for Vec<NamedTensor> {
    fn specs(&self) -> Vec<TensorSpec> {
        self.iter()
            .map(|t| TensorSpec { name: t.name.clone(), dtype: t.data.dtype(), shape: t.shape.clone() })
            .collect()
    }

    fn bytes(&self, index: usize) -> Result<Cow<'_, [u8]>> {
        let tensor = self.get(index).ok_or_else(|| Error::internal(format!("there is no tensor {index} to write")))?;
        Ok(Cow::Borrowed(tensor.data.bytes()))
    }
}

/// Writes a safetensors file, tensors in the source's order, and brings it to the disk. `metadata` goes into the header
/// (`format: pt` is what Python's readers look for).
///
/// # Errors
/// When a tensor can't be produced, doesn't fit its shape or has a name twice, or the file can't be written.
pub fn write(path: &Path, metadata: &BTreeMap<String, String>, source: &dyn TensorSource) -> Result<FileDigest> {
    let specs = source.specs();
    let mut infos: BTreeMap<&str, TensorInfo> = BTreeMap::new();
    let mut ordered = Vec::with_capacity(specs.len());
    let mut offset = 0;
    for spec in &specs {
        let bytes = spec.shape.iter().product::<usize>() * spec.dtype.bitsize() / 8;
        let info = TensorInfo { dtype: spec.dtype, shape: spec.shape.clone(), data_offsets: (offset, offset + bytes) };
        offset += bytes;
        if infos.insert(&spec.name, info.clone()).is_some() {
            return Err(Error::internal(format!("{}: the tensor {} is there twice", path.display(), spec.name)));
        }
        ordered.push((spec.name.clone(), info));
    }
    let bad_header = |e: &dyn std::fmt::Display| Error::internal(format!("{}: no header: {e}", path.display()));
    let metadata = (!metadata.is_empty()).then(|| metadata.clone().into_iter().collect());
    let header = Metadata::new(metadata, ordered).map_err(|e| bad_header(&e))?;
    let mut header = serde_json::to_vec(&header).map_err(|e| bad_header(&e))?;
    // The data starts at a multiple of eight.
    header.resize(header.len().next_multiple_of(8), b' ');

    let failed = |e: std::io::Error| output_error("write", path, &e);
    let mut out = Hashing {
        out: BufWriter::with_capacity(1 << 20, File::create(path).map_err(failed)?),
        hash: Hasher::default(),
        bytes: 0,
    };
    out.write_all(&(header.len() as u64).to_le_bytes()).map_err(failed)?;
    out.write_all(&header).map_err(failed)?;
    for (index, spec) in specs.iter().enumerate() {
        let bytes = source.bytes(index)?;
        let expected = infos.get(spec.name.as_str()).map_or(0, |i| i.data_offsets.1 - i.data_offsets.0);
        if bytes.len() != expected {
            return Err(Error::internal(format!(
                "{}: {} has {} bytes where its shape {:?} in {} needs {expected}",
                path.display(),
                spec.name,
                bytes.len(),
                spec.shape,
                spec.dtype
            )));
        }
        out.write_all(&bytes).map_err(failed)?;
        drop(bytes);
        source.written(index);
    }
    out.flush().map_err(failed)?;
    let Hashing { out, hash, bytes } = out;
    let file = out.into_inner().map_err(|e| failed(e.into_error()))?;
    file.sync_all().map_err(failed)?;
    Ok(FileDigest { bytes, sha256: hash.finish() })
}

struct Hashing {
    out: BufWriter<File>,
    hash: Hasher,
    bytes: u64,
}

impl Write for Hashing {
    fn write(&mut self, buffer: &[u8]) -> std::io::Result<usize> {
        let n = self.out.write(buffer)?;
        self.hash.update(&buffer[..n]);
        self.bytes += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.out.flush()
    }
}

/// Size and sha256 of a file.
///
/// # Errors
/// When it can't be read.
pub fn digest(path: &Path) -> Result<FileDigest> {
    let (bytes, sha256) = sha256_of_file(path).map_err(|e| output_error("read", path, &e))?;
    Ok(FileDigest { bytes, sha256 })
}

/// A safetensors file, mapped; tensors are copied out one at a time.
#[derive(Debug)]
pub struct TensorFile {
    path: PathBuf,
    map: Mmap,
}

impl TensorFile {
    /// Opens a file and checks its header.
    ///
    /// # Errors
    /// When it can't be read or its header doesn't fit its size.
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|e| output_error("read", path, &e))?;
        // SAFETY: the run's lock keeps other Liftplan processes from changing the file, and a file that is replaced is
        // renamed over, which leaves this mapping as it is.
        let map = unsafe { Mmap::map(&file) }.map_err(|e| output_error("read", path, &e))?;
        let this = Self { path: path.to_path_buf(), map };
        this.parse()?;
        Ok(this)
    }

    /// The tensors' names, in the order of their data.
    ///
    /// # Errors
    /// When the file is damaged.
    pub fn names(&self) -> Result<Vec<String>> {
        let (_, metadata) = SafeTensors::read_metadata(&self.map).map_err(|e| self.damaged(&e))?;
        Ok(metadata.offset_keys())
    }

    /// One tensor, or `None` when there is none of the name.
    ///
    /// # Errors
    /// When the file is damaged or the element type isn't one of [`TensorData`]'s.
    pub fn find(&self, name: &str) -> Result<Option<NamedTensor>> {
        match self.parse()?.tensor(name) {
            Ok(view) => self.copy(name, &view).map(Some),
            Err(SafeTensorError::TensorNotFound(_)) => Ok(None),
            Err(error) => Err(self.damaged(&error)),
        }
    }

    /// One tensor, which must be there.
    ///
    /// # Errors
    /// As [`TensorFile::find`], and when there is no tensor of the name.
    pub fn get(&self, name: &str) -> Result<NamedTensor> {
        self.find(name)?.ok_or_else(|| Error::output(format!("{}: there is no tensor {name}", self.path.display())))
    }

    /// All tensors, in the order of their data.
    ///
    /// # Errors
    /// As [`TensorFile::get`].
    pub fn all(&self) -> Result<Vec<NamedTensor>> {
        let tensors = self.parse()?;
        self.names()?.iter().map(|name| self.copy(name, &tensors.tensor(name).map_err(|e| self.damaged(&e))?)).collect()
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn parse(&self) -> Result<SafeTensors<'_>> {
        SafeTensors::deserialize(&self.map).map_err(|e| self.damaged(&e))
    }

    fn damaged(&self, error: &dyn std::fmt::Display) -> Error {
        Error::output(format!("{}: damaged: {error}", self.path.display()))
    }

    fn copy(&self, name: &str, view: &TensorView<'_>) -> Result<NamedTensor> {
        let data = TensorData::from_bytes(view.dtype(), view.data()).ok_or_else(|| {
            Error::output(format!("{}: {name} has the unsupported type {}", self.path.display(), view.dtype()))
        })?;
        // What was copied needn't be in memory a second time, as pages of the file.
        let (start, len) = (view.data().as_ptr() as usize - self.map.as_ptr() as usize, view.data().len());
        // SAFETY: dropping pages of a read-only mapping of a file changes no byte: the next access reads them anew.
        #[cfg(unix)]
        let _ = unsafe { self.map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, start, len) };
        Ok(NamedTensor { name: name.to_string(), shape: view.shape().to_vec(), data })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    pub(crate) fn some() -> Vec<NamedTensor> {
        let tensor = |name: &str, shape: &[usize], data| NamedTensor { name: name.into(), shape: shape.into(), data };
        vec![
            tensor("b", &[2, 3], TensorData::F32(vec![1.0, -2.5, f32::MIN_POSITIVE, 0.0, -0.0, 7.0])),
            tensor("a", &[3], TensorData::Bf16([1.0, 2.0, -3.0].map(bf16::from_f32).to_vec())),
            tensor("odd", &[1], TensorData::U8(vec![9])),
            tensor("late", &[2], TensorData::U32(vec![1, u32::MAX])),
            tensor("empty", &[0, 4], TensorData::F16(vec![])),
        ]
    }

    #[test]
    fn tensors_come_back_as_they_were_written_in_their_order() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t.safetensors");
        let tensors = some();
        let written = write(&path, &[("format".to_string(), "pt".to_string())].into(), &tensors).unwrap();
        assert_eq!(written, digest(&path).unwrap());
        assert_eq!(written.bytes, std::fs::metadata(&path).unwrap().len());
        let file = TensorFile::open(&path).unwrap();
        assert_eq!(file.names().unwrap(), ["b", "a", "odd", "late", "empty"]);
        assert_eq!(file.all().unwrap(), tensors);
        assert_eq!(file.get("late").unwrap(), tensors[3]);
        assert!(file.get("nowhere").unwrap_err().message().ends_with("there is no tensor nowhere"));
    }

    #[test]
    fn the_same_tensors_give_the_same_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let (one, two) = (dir.path().join("1"), dir.path().join("2"));
        let digests = [&one, &two].map(|p| write(p, &BTreeMap::new(), &some()).unwrap());
        assert_eq!(digests[0], digests[1]);
    }

    #[test]
    fn a_cut_file_and_a_wrong_shape_are_errors() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t.safetensors");
        let mut tensors = some();
        write(&path, &BTreeMap::new(), &tensors).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
        assert!(TensorFile::open(&path).unwrap_err().message().contains("t.safetensors: damaged"));
        tensors[0].shape = vec![7];
        assert!(write(&path, &BTreeMap::new(), &tensors).unwrap_err().message().contains("b has 24 bytes"));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_full_disk_is_an_error_that_says_what_to_do() {
        let error = write(Path::new("/dev/full"), &BTreeMap::new(), &some()).unwrap_err();
        assert!(error.message().starts_with("cannot write /dev/full: No space left on device"), "{error}");
        assert!(error.help_text().unwrap().contains("free some space"));
    }
}
