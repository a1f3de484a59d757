//! Page-locked memory of the host, which copies reach at the bus's full rate and kernels read as if it were the card's.
//! In: sizes, numbers. Out: addresses on either side.

use std::ffi::c_void;

use cudarc::driver::{result, sys};

use super::context::{Context, check};
use super::memory::{Element, View};
use crate::error::{EngineError, Result, expect_shape};

/// Memory of the host that stays where it is.
#[derive(Debug)]
pub(crate) struct Locked {
    host: *mut c_void,
    device: sys::CUdeviceptr,
    bytes: usize,
    context: Context,
}

// SAFETY: memory that the host writes only while nothing that reads it is queued.
unsafe impl Send for Locked {}
// SAFETY: as above; sharing it gives addresses alone.
unsafe impl Sync for Locked {}

impl Locked {
    /// `bytes` bytes with unspecified contents; none of them where there is no card.
    ///
    /// # Errors
    /// When the host has not that much memory to lock.
    pub fn new(context: &Context, bytes: usize) -> Result<Self> {
        context.bind()?;
        let (mut host, mut device) = (std::ptr::null_mut(), 0);
        if !context.is_dry() {
            let doing = format!("lock {:.1} GiB of the host's memory", bytes as f64 / (1_u64 << 30) as f64);
            // SAFETY: freed when dropped.
            host = unsafe { result::malloc_host(bytes.max(1), sys::CU_MEMHOSTALLOC_DEVICEMAP) }
                .map_err(|error| EngineError::Device { doing: doing.clone(), reason: format!("{error:?}") })?;
            // SAFETY: the memory was just made so that the card can reach it; the call writes one address.
            check(&doing, unsafe { sys::cuMemHostGetDevicePointer_v2(&mut device, host, 0) }.result())?;
        }
        Ok(Self { host, device, bytes, context: context.clone() })
    }

    /// Bytes of it.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// As kernels read it: a matrix of `rows × cols`.
    pub fn view<T: Element>(&self, rows: usize, cols: usize) -> View<T> {
        assert!(rows * cols * size_of::<T>() <= self.bytes, "a view inside its memory");
        View::at(self.device, rows, cols, cols)
    }

    /// Where `bytes` bytes from `offset` on lie, for copies.
    ///
    /// # Errors
    /// When there are not that many.
    pub fn place(&self, offset: usize, bytes: usize) -> Result<*mut c_void> {
        if self.host.is_null() || offset + bytes > self.bytes {
            return Err(EngineError::Device {
                doing: "use the host's memory".into(),
                reason: "no more was made".into(),
            });
        }
        // SAFETY: inside the allocation, as just checked.
        Ok(unsafe { self.host.cast::<u8>().add(offset) }.cast())
    }

    /// Fills all of it once the card is idle.
    ///
    /// # Errors
    /// When there are too many numbers or too few, or the device fails.
    pub fn write<T: Element>(&self, values: &[T]) -> Result<()> {
        expect_shape("numbers for the host's memory", self.bytes, size_of_val(values))?;
        if self.host.is_null() {
            return Ok(());
        }
        self.context.synchronize()?;
        // SAFETY: both sides have that many bytes and do not overlap, and nothing on the card reads it now.
        unsafe { std::ptr::copy_nonoverlapping(values.as_ptr().cast::<u8>(), self.host.cast::<u8>(), self.bytes) };
        Ok(())
    }

    /// Fills all of it with what lies on the card, and waits.
    ///
    /// # Errors
    /// When the sizes differ, or the device fails.
    pub fn fetch<T: Element>(&self, from: View<T>) -> Result<()> {
        expect_shape("numbers for the host's memory", self.bytes, from.len() * size_of::<T>())?;
        if self.host.is_null() {
            return Ok(());
        }
        // SAFETY: both sides have that many bytes, and the copy is waited for.
        let queued = unsafe { sys::cuMemcpyDtoHAsync_v2(self.host, from.ptr(), self.bytes, self.context.stream()) };
        check("copy to the host's memory", queued.result())?;
        self.context.synchronize()
    }
}

impl Drop for Locked {
    fn drop(&mut self) {
        if self.host.is_null() || self.context.bind().is_err() {
            return;
        }
        // What is still queued may use it.
        let _ = self.context.synchronize();
        // SAFETY: allocated by `new`, freed once.
        let _ = unsafe { result::free_host(self.host) };
    }
}
