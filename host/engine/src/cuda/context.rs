//! A card: its context, the stream that all work is queued on, the kernels compiled for it, and the products' plans.

use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cudarc::driver::{result, sys};

use super::attention::fused::Fused;
use super::gemm::Gemm;
use super::kernels::Kernels;
use super::libraries::Library;
use super::profile::{Kind, Profile, Times};
use crate::error::{EngineError, Result};

mod launch;

pub(crate) use launch::Launch;

/// A card to compute on; clones share it.
#[derive(Clone, Debug)]
pub struct Context(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    card: Card,
    kernels: Mutex<Kernels>,
    gemm: Mutex<Option<Gemm>>,
    fused: Mutex<Fused>,
    fuses: AtomicBool,
    profile: Mutex<Option<Profile>>,
    kind: Mutex<Kind>,
    allocated: AtomicI64,
    most_allocated: AtomicI64,
    dry: AtomicBool,
}

/// What the driver says of a card, and the handles it gives.
#[derive(Debug)]
struct Card {
    ordinal: usize,
    name: String,
    capability: (u32, u32),
    multiprocessors: usize,
    device: sys::CUdevice,
    context: sys::CUcontext,
    stream: sys::CUstream,
    copies: sys::CUstream,
    beside: sys::CUstream,
    /// Orders `beside` behind the main stream and back.
    turns: [sys::CUevent; 2],
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
        for library in Library::REQUIRED {
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
        let beside = check("make a stream", result::stream::create(result::stream::StreamKind::NonBlocking))?;
        let event = || check("make an event", result::event::create(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING));
        let turns = [event()?, event()?];
        let multiprocessors = processors as usize;
        let card = Card { ordinal, name, capability, multiprocessors, device, context, stream, copies, beside, turns };
        let this = Self::of(card, Library::Cudnn.is_present(), false);
        *lock(&this.0.gemm) = Some(Gemm::new(&this)?);
        Ok(this)
    }

    /// A card that is not there: buffers have no memory and nothing is queued, but every decision and size is that of
    /// a real step with all libraries. For planning memory, and for tests.
    pub fn dry(capability: (u32, u32)) -> Self {
        let (none, context, event) = (std::ptr::null_mut(), std::ptr::null_mut(), std::ptr::null_mut());
        let card = Card {
            ordinal: 0,
            name: "none".into(),
            capability,
            multiprocessors: 132,
            device: 0,
            context,
            stream: none,
            copies: none,
            beside: none,
            turns: [event; 2],
        };
        Self::of(card, true, true)
    }

    fn of(card: Card, fuses: bool, dry: bool) -> Self {
        Self(Arc::new(Inner {
            kernels: Mutex::new(Kernels::new(card.capability)),
            card,
            gemm: Mutex::new(None),
            fused: Mutex::default(),
            fuses: AtomicBool::new(fuses),
            profile: Mutex::new(None),
            kind: Mutex::new(Kind::Other),
            allocated: AtomicI64::new(0),
            most_allocated: AtomicI64::new(0),
            dry: AtomicBool::new(dry),
        }))
    }

    /// Whether cuDNN's attention may be used: its library is there, and nobody turned it off.
    pub fn fuses(&self) -> bool {
        self.0.fuses.load(Ordering::Relaxed)
    }

    /// Turns cuDNN's attention off or on again, to compare it with our own.
    pub fn set_fuses(&self, fuses: bool) {
        self.0.fuses.store(fuses && (self.0.card.context.is_null() || Library::Cudnn.is_present()), Ordering::Relaxed);
    }

    pub(crate) fn with_fused<T>(&self, work: impl FnOnce(&mut Fused) -> Result<T>) -> Result<T> {
        work(&mut lock(&self.0.fused))
    }

    /// Whether nothing is computed at present.
    pub fn is_dry(&self) -> bool {
        self.0.dry.load(Ordering::Relaxed)
    }

    /// Runs `work` without computing anything: what it allocates from an arena is counted, what it queues is not.
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
        if self.0.card.context.is_null() {
            return Ok(());
        }
        // SAFETY: the context is retained until the last clone is dropped.
        check("use the card", unsafe { result::ctx::set_current(self.0.card.context) })
    }

    /// The card's number.
    pub fn ordinal(&self) -> usize {
        self.0.card.ordinal
    }

    /// The card's name.
    pub fn name(&self) -> &str {
        &self.0.card.name
    }

    /// Compute capability, major and minor.
    pub fn capability(&self) -> (u32, u32) {
        self.0.card.capability
    }

    /// How many multiprocessors it has.
    pub fn multiprocessors(&self) -> usize {
        self.0.card.multiprocessors
    }

    /// The stream that all work is queued on.
    pub fn stream(&self) -> sys::CUstream {
        self.0.card.stream
    }

    /// A second stream, for copies beside the work.
    pub fn copy_stream(&self) -> sys::CUstream {
        self.0.card.copies
    }

    /// Queues two pieces of work that do not depend on each other, so that either fills what the other leaves idle.
    pub(crate) fn side_by_side(
        &self,
        first: impl FnOnce(sys::CUstream) -> Result<()>,
        second: impl FnOnce(sys::CUstream) -> Result<()>,
    ) -> Result<()> {
        let Card { stream, beside, turns: [fork, join], .. } = self.0.card;
        if self.is_dry() {
            return Ok(());
        }
        let flags = sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
        self.measured(|| {
            // SAFETY: streams and events live as long as the card; an event is recorded before it is waited for.
            unsafe {
                check("record an event", result::event::record(fork, stream))?;
                check("wait for an event", result::stream::wait_event(beside, fork, flags))?;
            }
            first(beside)?;
            second(stream)?;
            // SAFETY: as above.
            unsafe {
                check("record an event", result::event::record(join, beside))?;
                check("wait for an event", result::stream::wait_event(stream, join, flags))
            }
        })
    }

    /// Waits for all work, copies beside it included; fails with what went wrong in it.
    ///
    /// # Errors
    /// When the device does.
    pub fn synchronize(&self) -> Result<()> {
        if self.is_dry() {
            return Ok(());
        }
        // SAFETY: the stream is valid.
        check("compute on the card", unsafe { result::stream::synchronize(self.0.card.stream) })?;
        // SAFETY: the stream is valid.
        check("copy beside the work", unsafe { result::stream::synchronize(self.0.card.copies) })
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

    /// Starts measuring everything that is queued; on a card that is not there, counting what would be.
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
        let there = !self.0.card.context.is_null();
        // A dry run beside a card is no work of its.
        let Some(profile) = profile.as_mut().filter(|_| !(there && self.is_dry())) else {
            drop(profile);
            return queue();
        };
        if !there {
            profile.count(*lock(&self.0.kind));
            return queue();
        }
        profile.start(*lock(&self.0.kind), self.0.card.stream)?;
        queue()?;
        profile.end(self.0.card.stream)
    }

    pub(crate) fn with_gemm<T>(&self, work: impl FnOnce(&mut Gemm) -> Result<T>) -> Result<T> {
        match lock(&self.0.gemm).as_mut() {
            Some(gemm) => work(gemm),
            None => Err(EngineError::Device { doing: "multiply".into(), reason: "there is no card".into() }),
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if self.card.context.is_null() {
            return;
        }
        // SAFETY: the last owner goes; kernels and products' plans die with the context's last user.
        unsafe {
            let _ = result::ctx::set_current(self.card.context);
            let _ = result::stream::synchronize(self.card.stream);
            *self.fused.get_mut().unwrap_or_else(PoisonError::into_inner) = Fused::default();
            *self.gemm.get_mut().unwrap_or_else(PoisonError::into_inner) = None;
            *self.profile.get_mut().unwrap_or_else(PoisonError::into_inner) = None;
            let _ = result::stream::destroy(self.card.stream);
            let _ = result::stream::destroy(self.card.copies);
            let _ = result::stream::destroy(self.card.beside);
            for event in self.card.turns {
                let _ = result::event::destroy(event);
            }
            let _ = result::primary_ctx::release(self.card.device);
        }
    }
}
