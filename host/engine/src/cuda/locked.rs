//! Page-locked memory of the host, which copies reach at the bus's full rate and kernels read as if it were the card's.
//! In: sizes, numbers. Out: addresses on either side.

use std::ffi::c_void;

use cudarc::driver::{result, sys};
use rayon::prelude::*;

use super::context::{Context, check};
use super::memory::{Element, View};
use crate::error::{EngineError, Result, expect_shape};

/// Memory of the host that stays where it is.
#[derive(Debug)]
pub(crate) struct Locked {
    host: *mut c_void,
    device: sys::CUdeviceptr,
    bytes: usize,
    /// Bytes that were mapped for it, where the driver did not make it.
    mapped: Option<usize>,
    context: Context,
}

// SAFETY: memory that the host writes only while nothing that reads it is queued.
unsafe impl Send for Locked {}
// SAFETY: as above; sharing it gives addresses alone.
unsafe impl Sync for Locked {}

/// From here on pages are made by all cores and then locked: the driver makes them by one, at half a second a GiB.
const MAPPED_FROM: usize = 256 << 20;
const HUGE_PAGE: usize = 2 << 20;

impl Locked {
    /// `bytes` bytes with unspecified contents; none of them where there is no card.
    ///
    /// # Errors
    /// When the host has not that much memory to lock.
    pub fn new(context: &Context, bytes: usize) -> Result<Self> {
        context.bind()?;
        let mut this = Self { host: std::ptr::null_mut(), device: 0, bytes, mapped: None, context: context.clone() };
        if context.is_dry() {
            return Ok(this);
        }
        let doing = format!("lock {:.1} GiB of the host's memory", bytes as f64 / (1_u64 << 30) as f64);
        let flags = sys::CU_MEMHOSTALLOC_DEVICEMAP;
        if bytes < MAPPED_FROM {
            // SAFETY: freed when dropped.
            this.host = unsafe { result::malloc_host(bytes.max(1), flags) }
                .map_err(|error| EngineError::Device { doing: doing.clone(), reason: format!("{error:?}") })?;
        } else {
            let length = bytes.next_multiple_of(HUGE_PAGE);
            let host = mapped(length)?;
            // SAFETY: pages of our own, which stay mapped until they are unlocked.
            let locked = unsafe { sys::cuMemHostRegister_v2(host, length, sys::CU_MEMHOSTREGISTER_DEVICEMAP) };
            if let Err(error) = check(&doing, locked.result()) {
                // SAFETY: mapped above, and nothing uses it.
                unsafe { libc::munmap(host, length) };
                return Err(error);
            }
            (this.host, this.mapped) = (host, Some(length));
        }
        // SAFETY: the memory was just made so that the card can reach it; the call writes one address.
        check(&doing, unsafe { sys::cuMemHostGetDevicePointer_v2(&mut this.device, this.host, 0) }.result())?;
        Ok(this)
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
        // SAFETY: made by `new`, given back once and in its way.
        unsafe {
            match self.mapped {
                None => {
                    let _ = result::free_host(self.host);
                }
                Some(length) => {
                    let _ = sys::cuMemHostUnregister(self.host);
                    libc::munmap(self.host, length);
                }
            }
        }
    }
}

/// `length` bytes of pages of their own, a multiple of huge ones, which all cores have touched.
fn mapped(length: usize) -> Result<*mut c_void> {
    let out_of_memory = |free: usize| EngineError::OutOfHostMemory { needed: length, free };
    // Touching more than there is would end this program, or another.
    if let Some(free) = available_bytes().filter(|&free| length > free / 10 * 9) {
        return Err(out_of_memory(free));
    }
    let (access, kind) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    // SAFETY: new pages wherever the system likes.
    let host = unsafe { libc::mmap(std::ptr::null_mut(), length, access, kind, -1, 0) };
    if host == libc::MAP_FAILED {
        return Err(out_of_memory(available_bytes().unwrap_or(0)));
    }
    // SAFETY: the pages just mapped; where the advice is not taken they are small ones, and children get copies.
    unsafe {
        libc::madvise(host, length, libc::MADV_HUGEPAGE);
        libc::madvise(host, length, libc::MADV_DONTFORK);
    }
    let at = host as usize;
    (0..length / HUGE_PAGE).into_par_iter().for_each(|page| {
        for byte in (0..HUGE_PAGE).step_by(4096) {
            // SAFETY: inside the mapping; no two threads write the same byte.
            unsafe { std::ptr::write_volatile((at + page * HUGE_PAGE + byte) as *mut u8, 0) };
        }
    });
    Ok(host)
}

/// What this program can still take of the machine's memory, in bytes, if the system tells: what programs leave, and what its
/// control group has left.
fn available_bytes() -> Option<usize> {
    let read = |path: &str| std::fs::read_to_string(path).ok();
    let machine = || {
        let text = read("/proc/meminfo")?;
        let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
        Some(line.trim().strip_suffix("kB")?.trim().parse::<usize>().ok()? << 10)
    };
    let group = || {
        let number = |name: &str| read(&format!("/sys/fs/cgroup/memory.{name}"))?.trim().parse::<usize>().ok();
        Some(number("max")?.saturating_sub(number("current")?))
    };
    [machine(), group()].into_iter().flatten().min()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_made_and_too_many_are_refused() {
        let length = 3 * HUGE_PAGE;
        let host = mapped(length).unwrap();
        // SAFETY: mapped above, given back once.
        assert_eq!(unsafe { (*host.cast::<u8>().add(length - 1), libc::munmap(host, length)) }, (0, 0));
        let most = available_bytes().unwrap();
        match mapped((2 * most).next_multiple_of(HUGE_PAGE)) {
            Err(EngineError::OutOfHostMemory { needed, free }) => assert!(needed > free),
            other => panic!("{other:?}"),
        }
    }
}
