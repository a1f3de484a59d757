//! Device memory: buffers that own it and views that name a part of it. In: sizes, numbers of the host. Out: addresses.

use std::marker::PhantomData;

use cudarc::driver::{result, sys};
use half::bf16;

use super::context::{Context, check};
use crate::error::{EngineError, Result};

/// A number as it lies in device memory.
pub trait Element: Copy + Send + Sync + 'static {}
impl Element for bf16 {}
impl Element for f32 {}
impl Element for u8 {}
impl Element for i32 {}
impl Element for u32 {}
impl Element for f64 {}

/// A row-major matrix in device memory; rows may lie further apart than they are wide. It is an address: work that is
/// queued on the stream with it must end before the buffer behind it goes, which [`Buffer`] sees to.
#[derive(Debug)]
pub struct View<T> {
    ptr: sys::CUdeviceptr,
    rows: usize,
    cols: usize,
    stride: usize,
    element: PhantomData<T>,
}

impl<T> Clone for View<T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for View<T> {}

impl<T: Element> View<T> {
    /// A matrix at an address.
    pub(crate) fn at(ptr: sys::CUdeviceptr, rows: usize, cols: usize, stride: usize) -> Self {
        Self { ptr, rows, cols, stride, element: PhantomData }
    }

    /// Its address.
    pub fn ptr(&self) -> sys::CUdeviceptr {
        self.ptr
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Elements from the start of a row to the start of the next.
    pub fn stride(&self) -> usize {
        self.stride
    }

    /// Elements, if the rows lie without gaps.
    pub fn len(&self) -> usize {
        self.rows * self.cols
    }

    /// Whether it has no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Its bytes, if the rows lie without gaps.
    pub(crate) fn as_bytes(&self) -> View<u8> {
        let bytes = self.reshaped(1, self.len()).cols * size_of::<T>();
        View::at(self.ptr, 1, bytes, bytes)
    }

    /// The same matrix `bytes` further on.
    pub(crate) fn moved(&self, bytes: u64) -> Self {
        Self { ptr: self.ptr.wrapping_add(bytes), ..*self }
    }

    /// `rows` rows from `first` on.
    pub fn slice_rows(&self, first: usize, rows: usize) -> Self {
        assert!(first + rows <= self.rows, "rows {first}+{rows} of {}", self.rows);
        let ptr = self.ptr + (first * self.stride * size_of::<T>()) as u64;
        Self { ptr, rows, ..*self }
    }

    /// `cols` columns from `first` on.
    pub fn slice_cols(&self, first: usize, cols: usize) -> Self {
        assert!(first + cols <= self.stride, "columns {first}+{cols} of {}", self.stride);
        Self { ptr: self.ptr + (first * size_of::<T>()) as u64, cols, ..*self }
    }

    /// The same memory, without gaps, as another shape.
    pub fn reshaped(&self, rows: usize, cols: usize) -> Self {
        assert!(self.stride == self.cols || self.rows <= 1, "a reshape needs rows without gaps");
        assert_eq!(self.rows * self.cols, rows * cols, "a reshape keeps the number of elements");
        Self { rows, cols, stride: cols, ..*self }
    }
}

/// Device memory that is freed when dropped.
#[derive(Debug)]
pub struct Buffer {
    ptr: sys::CUdeviceptr,
    bytes: usize,
    context: Context,
}

impl Buffer {
    /// `bytes` bytes with unspecified contents.
    ///
    /// # Errors
    /// [`EngineError::OutOfDeviceMemory`] with what there is.
    pub fn new(context: &Context, bytes: usize) -> Result<Self> {
        context.bind()?;
        let padded = bytes.max(256).next_multiple_of(256);
        if context.is_dry() {
            return Ok(Self { ptr: 0, bytes: padded, context: context.clone() });
        }
        // SAFETY: the context is current; the memory is used through views of this buffer only.
        match unsafe { result::malloc_sync(padded) } {
            Ok(ptr) => {
                context.allocated(padded as i64);
                Ok(Self { ptr, bytes: padded, context: context.clone() })
            }
            Err(result::DriverError(sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY)) => {
                let (free, total) = context.memory()?;
                Err(EngineError::OutOfDeviceMemory { needed: padded, free, total })
            }
            Err(error) => Err(check("allocate device memory", Err(error)).unwrap_err_or_internal()),
        }
    }

    /// Bytes of it.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// All of it as a matrix of `rows × cols`.
    pub fn view<T: Element>(&self, rows: usize, cols: usize) -> View<T> {
        self.part(0, rows, cols)
    }

    /// A matrix from byte `offset` on.
    pub fn part<T: Element>(&self, offset: usize, rows: usize, cols: usize) -> View<T> {
        assert!(offset + rows * cols * size_of::<T>() <= self.bytes || self.ptr == 0, "a view inside its buffer");
        View::at(self.ptr + offset as u64, rows, cols, cols)
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if self.ptr == 0 || self.context.bind().is_err() {
            return;
        }
        self.context.allocated(-(self.bytes as i64));
        // SAFETY: allocated by `new`; freeing waits for the work that was queued before.
        let _ = unsafe { result::free_sync(self.ptr) };
    }
}

trait InternalError {
    fn unwrap_err_or_internal(self) -> EngineError;
}

impl InternalError for Result<()> {
    fn unwrap_err_or_internal(self) -> EngineError {
        match self {
            Err(error) => error,
            Ok(()) => EngineError::Device { doing: "allocate device memory".into(), reason: "unknown".into() },
        }
    }
}

impl Context {
    /// Copies numbers of the host to the device and waits.
    ///
    /// # Errors
    /// When the device does.
    pub fn upload<T: Element>(&self, to: View<T>, from: &[T]) -> Result<()> {
        assert_eq!(to.len(), from.len(), "an upload fills its view");
        self.copy_2d(to, from.as_ptr().cast_mut(), true)
    }

    /// Queues a copy of numbers of the host, which lie without gaps in page-locked memory that stays as it is until the copy has
    /// ended.
    pub(crate) fn queue_upload<T: Element>(&self, to: View<T>, from: *mut std::ffi::c_void) -> Result<()> {
        let bytes = size_of::<T>();
        let device = Side::Device(to.ptr(), to.stride() * bytes);
        self.queue_copy(device, Side::Host(from, to.cols() * bytes), [to.rows(), to.cols() * bytes])
    }

    /// Copies numbers of the host to the device beside the queued work, and waits for the copy only. Nothing that is
    /// queued may use the view.
    ///
    /// # Errors
    /// When the device does.
    pub fn upload_beside<T: Element>(&self, to: View<T>, from: &[T]) -> Result<()> {
        assert_eq!(to.len(), from.len(), "an upload fills its view");
        assert!(to.rows() <= 1 || to.stride() == to.cols(), "an upload beside the work needs rows without gaps");
        if self.is_dry() || to.is_empty() {
            return Ok(());
        }
        self.bind()?;
        // SAFETY: the view's memory is that large; the numbers live until the copy is done.
        check("copy memory", unsafe { result::memcpy_htod_async(to.ptr(), from, self.copy_stream()) })?;
        // SAFETY: the stream is valid.
        check("copy memory", unsafe { result::stream::synchronize(self.copy_stream()) })
    }

    /// Copies numbers of the device to the host, once the work queued so far is done.
    ///
    /// # Errors
    /// When the device does, also in work queued before.
    pub fn download<T: Element>(&self, from: View<T>) -> Result<Vec<T>> {
        let mut to = Vec::with_capacity(from.len());
        self.copy_2d(from, to.as_mut_ptr(), false)?;
        if !self.is_dry() {
            // SAFETY: the copy wrote all of them; without a device the length stays 0.
            unsafe { to.set_len(from.len()) };
        }
        Ok(to)
    }

    fn copy_2d<T: Element>(&self, device: View<T>, host: *mut T, upload: bool) -> Result<()> {
        if self.is_dry() || device.is_empty() {
            return Ok(());
        }
        self.bind()?;
        let bytes = size_of::<T>();
        let device_side = Side::Device(device.ptr(), device.stride() * bytes);
        let host_side = Side::Host(host.cast(), device.cols() * bytes);
        let (to, from) = if upload { (device_side, host_side) } else { (host_side, device_side) };
        self.queue_copy(to, from, [device.rows(), device.cols() * bytes])?;
        self.synchronize()
    }

    /// Queues a copy of `rows` rows of `width` bytes.
    fn queue_copy(&self, to: Side, from: Side, [rows, width]: [usize; 2]) -> Result<()> {
        let (src_kind, src_host, src_device, src_pitch) = from.parts();
        let (dst_kind, dst_host, dst_device, dst_pitch) = to.parts();
        let copy = sys::CUDA_MEMCPY2D {
            srcXInBytes: 0,
            srcY: 0,
            srcMemoryType: src_kind,
            srcHost: src_host,
            srcDevice: src_device,
            srcArray: std::ptr::null_mut(),
            srcPitch: src_pitch,
            dstXInBytes: 0,
            dstY: 0,
            dstMemoryType: dst_kind,
            dstHost: dst_host,
            dstDevice: dst_device,
            dstArray: std::ptr::null_mut(),
            dstPitch: dst_pitch,
            WidthInBytes: width,
            Height: rows,
        };
        // SAFETY: both sides have that many rows of that many bytes; the driver copies the description.
        check("copy memory", unsafe { sys::cuMemcpy2DAsync_v2(&copy, self.stream()) }.result())
    }

    /// Queues setting every byte of a view (rows without gaps) to `byte`.
    ///
    /// # Errors
    /// When the device does.
    pub fn fill_bytes<T: Element>(&self, view: View<T>, byte: u8) -> Result<()> {
        if self.is_dry() || view.is_empty() {
            return Ok(());
        }
        let row = view.cols() * size_of::<T>();
        // SAFETY: the view's rows lie inside its buffer.
        let queued = unsafe {
            if view.stride() == view.cols() {
                result::memset_d8_async(view.ptr(), byte, row * view.rows(), self.stream())
            } else {
                let pitch = view.stride() * size_of::<T>();
                sys::cuMemsetD2D8Async(view.ptr(), pitch, byte, row, view.rows(), self.stream()).result()
            }
        };
        check("fill device memory", queued)
    }

    /// Queues a copy between two matrices of one shape.
    ///
    /// # Errors
    /// When the device does.
    pub fn copy<T: Element>(&self, to: View<T>, from: View<T>) -> Result<()> {
        assert_eq!((to.rows(), to.cols()), (from.rows(), from.cols()), "a copy keeps the shape");
        if self.is_dry() || to.is_empty() {
            return Ok(());
        }
        let bytes = size_of::<T>();
        let gapless = |view: View<T>| view.stride() == view.cols() || view.rows() == 1;
        if gapless(to) && gapless(from) {
            // SAFETY: both views lie inside their buffers.
            let queued = unsafe { result::memcpy_dtod_async(to.ptr(), from.ptr(), to.len() * bytes, self.stream()) };
            return check("copy memory", queued);
        }
        let side = |view: View<T>| Side::Device(view.ptr(), view.stride() * bytes);
        self.queue_copy(side(to), side(from), [to.rows(), to.cols() * bytes])
    }
}

/// One side of a copy, with the bytes from row to row.
enum Side {
    Host(*mut std::ffi::c_void, usize),
    Device(sys::CUdeviceptr, usize),
}

impl Side {
    fn parts(self) -> (sys::CUmemorytype, *mut std::ffi::c_void, sys::CUdeviceptr, usize) {
        match self {
            Self::Host(ptr, pitch) => (sys::CUmemorytype::CU_MEMORYTYPE_HOST, ptr, 0, pitch),
            Self::Device(ptr, pitch) => (sys::CUmemorytype::CU_MEMORYTYPE_DEVICE, std::ptr::null_mut(), ptr, pitch),
        }
    }
}
