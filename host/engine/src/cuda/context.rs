//! A card: its context, the stream that all work is queued on, the kernels compiled for it, and the products' plans.

use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cudarc::driver::{result, sys};

use super::gemm::Gemm;
use super::kernels::{Kernels, Source};
use super::libraries::Library;
use super::profile::{Kind, Profile, Times};
use crate::error::{EngineError, Result};

/// A card to compute on; clones share it.
#[derive(Clone, Debug)]
pub struct Context(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    ordinal: usize,
    name: String,
    capability: (u32, u32),
    multiprocessors: usize,
    device: sys::CUdevice,
    context: sys::CUcontext,
    stream: sys::CUstream,
    copies: sys::CUstream,
    kernels: Mutex<Kernels>,
    gemm: Mutex<Option<Gemm>>,
    profile: Mutex<Option<Profile>>,
    kind: Mutex<Kind>,
    allocated: AtomicI64,
    most_allocated: AtomicI64,
    dry: AtomicBool,
}

// SAFETY: the driver's handles may be used from any thread whose current context is theirs; `bind` makes it so, and
// what changes lies behind mutexes.
unsafe impl Send for Inner {}
// SAFETY: as above.
unsafe impl Sync for Inner {}

/// The driver's answer as the engine's.
pub(crate) fn check<T>(doing: &str, answer: std::result::Result<T, result::DriverError>) -> Result<T> {
    answer.map_err(|error| {
        let name = error.error_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let text = error.error_string().map(|text| text.to_string_lossy().into_owned()).unwrap_or_default();
        EngineError::Device { doing: doing.into(), reason: format!("{text} ({name})") }
    })
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How many cards there are.
///
/// # Errors
/// When there is no driver, or it cannot start.
pub fn devices() -> Result<usize> {
    Library::Driver.require()?;
    check("start the driver", result::init())?;
    Ok(check("count the cards", result::device::get_count())? as usize)
}

impl Context {
    /// The card with this number.
    ///
    /// # Errors
    /// When a library is missing, there is no such card, or it is older than compute capability 8.0.
    pub fn new(ordinal: usize) -> Result<Self> {
        for library in [Library::Driver, Library::CublasLt, Library::Nvrtc] {
            library.require()?;
        }
        let count = devices()?;
        if ordinal >= count {
            return Err(EngineError::NoSuchDevice { ordinal, count });
        }
        let device = check("open the card", result::device::get(ordinal as i32))?;
        let name = check("read the card's name", result::device::get_name(device))?;
        use sys::CUdevice_attribute as Attribute;
        // SAFETY: the device is valid.
        let attribute = |attribute| unsafe { result::device::get_attribute(device, attribute) };
        let major =
            check("read the card's properties", attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR))?;
        let minor =
            check("read the card's properties", attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR))?;
        let processors =
            check("read the card's properties", attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT))?;
        let capability = (major as u32, minor as u32);
        if capability < (8, 0) {
            let found = format!("{name} with {major}.{minor}");
            return Err(EngineError::Device {
                doing: format!("use cuda:{ordinal}"),
                reason: format!("it is {found}; compute capability 8.0 (Ampere) or newer is needed"),
            });
        }
        // SAFETY: the device is valid; the primary context is shared with whatever else the process runs on it.
        let context = check("open the card", unsafe { result::primary_ctx::retain(device) })?;
        // SAFETY: just retained.
        check("open the card", unsafe { result::ctx::set_current(context) })?;
        let stream = check("make a stream", result::stream::create(result::stream::StreamKind::NonBlocking))?;
        let copies = check("make a stream", result::stream::create(result::stream::StreamKind::NonBlocking))?;
        let this = Self(Arc::new(Inner {
            ordinal,
            name,
            capability,
            multiprocessors: processors as usize,
            device,
            context,
            stream,
            copies,
            kernels: Mutex::new(Kernels::new(capability)),
            gemm: Mutex::new(None),
            profile: Mutex::new(None),
            kind: Mutex::new(Kind::Other),
            allocated: AtomicI64::new(0),
            most_allocated: AtomicI64::new(0),
            dry: AtomicBool::new(false),
        }));
        *lock(&this.0.gemm) = Some(Gemm::new(&this)?);
        Ok(this)
    }

    /// A card that is not there: buffers have no memory and nothing is queued, but every decision and size is that of
    /// a real step. For planning memory, and for tests.
    pub fn dry(capability: (u32, u32)) -> Self {
        let null = std::ptr::null_mut();
        Self(Arc::new(Inner {
            ordinal: 0,
            name: "none".into(),
            capability,
            multiprocessors: 132,
            device: 0,
            context: null,
            stream: std::ptr::null_mut(),
            copies: std::ptr::null_mut(),
            kernels: Mutex::new(Kernels::new(capability)),
            gemm: Mutex::new(None),
            profile: Mutex::new(None),
            kind: Mutex::new(Kind::Other),
            allocated: AtomicI64::new(0),
            most_allocated: AtomicI64::new(0),
            dry: AtomicBool::new(true),
        }))
    }

    /// Whether nothing is computed at present.
    pub fn is_dry(&self) -> bool {
        self.0.dry.load(Ordering::Relaxed)
    }

    /// Runs `work` without computing anything: what it allocates from an arena is counted, what it queues is not.
    #[allow(dead_code)]
    pub(crate) fn dry_run<T>(&self, work: impl FnOnce() -> T) -> T {
        let before = self.0.dry.swap(true, Ordering::Relaxed);
        let out = work();
        self.0.dry.store(before, Ordering::Relaxed);
        out
    }

    /// Makes the card's context the thread's current one.
    ///
    /// # Errors
    /// When the driver does.
    pub fn bind(&self) -> Result<()> {
        if self.0.context.is_null() {
            return Ok(());
        }
        // SAFETY: the context is retained until the last clone is dropped.
        check("use the card", unsafe { result::ctx::set_current(self.0.context) })
    }

    /// The card's number.
    pub fn ordinal(&self) -> usize {
        self.0.ordinal
    }

    /// The card's name.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Compute capability, major and minor.
    pub fn capability(&self) -> (u32, u32) {
        self.0.capability
    }

    /// How many multiprocessors it has.
    pub fn multiprocessors(&self) -> usize {
        self.0.multiprocessors
    }

    /// The stream that all work is queued on.
    pub fn stream(&self) -> sys::CUstream {
        self.0.stream
    }

    /// A second stream, for copies beside the work.
    pub fn copy_stream(&self) -> sys::CUstream {
        self.0.copies
    }

    /// Waits for all work; fails with what went wrong in it.
    ///
    /// # Errors
    /// When the device does.
    pub fn synchronize(&self) -> Result<()> {
        if self.is_dry() {
            return Ok(());
        }
        // SAFETY: the stream is valid.
        check("compute on the card", unsafe { result::stream::synchronize(self.0.stream) })
    }

    /// Free and total bytes of the card, other programs' included.
    ///
    /// # Errors
    /// When the device does.
    pub fn memory(&self) -> Result<(usize, usize)> {
        self.bind()?;
        check("read the card's memory", result::mem_get_info())
    }

    /// Bytes that buffers take now, and the most they ever took.
    pub fn allocated_bytes(&self) -> (usize, usize) {
        let read = |value: &AtomicI64| value.load(Ordering::Relaxed).max(0) as usize;
        (read(&self.0.allocated), read(&self.0.most_allocated))
    }

    /// Forgets the most that was allocated.
    pub fn reset_peak(&self) {
        self.0.most_allocated.store(self.0.allocated.load(Ordering::Relaxed), Ordering::Relaxed);
    }

    pub(crate) fn allocated(&self, bytes: i64) {
        let now = self.0.allocated.fetch_add(bytes, Ordering::Relaxed) + bytes;
        self.0.most_allocated.fetch_max(now, Ordering::Relaxed);
    }

    /// Says what the work queued from now on is for.
    pub fn kind(&self, kind: Kind) {
        *lock(&self.0.kind) = kind;
    }

    /// Starts measuring everything that is queued.
    pub fn start_profile(&self) {
        *lock(&self.0.profile) = Some(Profile::new());
    }

    /// Waits and gives what was measured since [`Context::start_profile`].
    ///
    /// # Errors
    /// When the device does.
    pub fn end_profile(&self) -> Result<Option<Times>> {
        self.synchronize()?;
        lock(&self.0.profile).take().map(|mut profile| profile.sums()).transpose()
    }

    /// Runs `queue` between two marks of the profile, if one is taken.
    pub(crate) fn measured(&self, queue: impl FnOnce() -> Result<()>) -> Result<()> {
        let mut profile = lock(&self.0.profile);
        let Some(profile) = profile.as_mut() else {
            drop(profile);
            return queue();
        };
        profile.start(*lock(&self.0.kind), self.0.stream)?;
        queue()?;
        profile.end(self.0.stream)
    }

    pub(crate) fn with_gemm<T>(&self, work: impl FnOnce(&mut Gemm) -> Result<T>) -> Result<T> {
        match lock(&self.0.gemm).as_mut() {
            Some(gemm) => work(gemm),
            None => Err(EngineError::Device { doing: "multiply".into(), reason: "there is no card".into() }),
        }
    }

    /// Queues a kernel: `name` of `source`, compiled with `defines`. `arguments` as [`super::kernels::args!`] makes them.
    ///
    /// # Errors
    /// When it does not compile or cannot be launched.
    pub(crate) fn launch(
        &self,
        source: &'static Source,
        defines: &[(&'static str, i64)],
        name: &'static str,
        launch: Launch,
        arguments: &[u64],
    ) -> Result<()> {
        if self.is_dry() || launch.grid.contains(&0) {
            return Ok(());
        }
        let function = lock(&self.0.kernels).function(source, defines, name, launch.shared)?;
        let mut slots: Vec<*mut std::ffi::c_void> =
            arguments.iter().map(|argument| std::ptr::from_ref(argument).cast_mut().cast()).collect();
        let ([x, y, z], stream) = (launch.grid, self.0.stream);
        self.measured(|| {
            // SAFETY: each kernel's caller passes the arguments that its source declares, views of live buffers among
            // them; the driver copies the arguments before it returns.
            let queued = unsafe {
                result::launch_kernel(function, (x, y, z), (launch.block, 1, 1), launch.shared, stream, &mut slots)
            };
            check(name, queued)
        })
    }
}

/// A kernel's grid.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Launch {
    /// Blocks in x, y, z.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block: u32,
    /// Bytes of dynamic shared memory.
    pub shared: u32,
}

impl Launch {
    /// `blocks` blocks of `block` threads.
    #[allow(dead_code)]
    pub fn new(blocks: usize, block: u32) -> Self {
        Self { grid: [blocks as u32, 1, 1], block, shared: 0 }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if self.context.is_null() {
            return;
        }
        // SAFETY: the last owner goes; kernels and products' plans die with the context's last user.
        unsafe {
            let _ = result::ctx::set_current(self.context);
            let _ = result::stream::synchronize(self.stream);
            *self.gemm.get_mut().unwrap_or_else(PoisonError::into_inner) = None;
            let _ = result::stream::destroy(self.stream);
            let _ = result::stream::destroy(self.copies);
            let _ = result::primary_ctx::release(self.device);
        }
    }
}
