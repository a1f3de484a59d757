//! What the host keeps beside one instance of a component while it runs: the call that it serves, and the fences.

use std::ptr::NonNull;
use std::time::{Duration, Instant};

use wasmtime::ResourceLimiter;

use crate::plan::AdapterSpec;
use crate::plugin::call::Call;
use crate::plugin::limits::{Exceeded, Limits};

/// A tensor's handle; it stands for its number.
pub struct Tensor;
/// The model's handle.
pub struct View;
/// The handle of measurements on data.
pub struct Session;
/// An adapter's handle; it stands for a place in [`Guest::adapters`].
pub struct Adapter;
/// The plan's handle.
pub struct Builder;
/// The moment's handle.
pub struct Moment;

/// Elements of all tables of a component, at most.
const MOST_TABLE_ELEMENTS: usize = 100_000;
/// Core instances, memories and tables of a component, at most. Python's toolchain makes a dozen.
const MOST_INSTANCES: usize = 64;

/// The data of a component's store.
pub struct Guest {
    lent: Option<NonNull<Call<'static, 'static>>>,
    fences: Fences,
    pub(super) adapters: Vec<Option<AdapterSpec>>,
    started: Instant,
    limits: Limits,
}

impl Guest {
    /// For one call.
    pub fn new(limits: &Limits) -> Self {
        Self {
            lent: None,
            fences: Fences { memory_bytes: 0, table_elements: 0, limits: limits.clone() },
            adapters: Vec::new(),
            started: Instant::now(),
            limits: limits.clone(),
        }
    }

    /// Serves `call` until [`Guest::take_back`].
    ///
    /// # Safety
    /// `call` must stay where it is, and be touched by nobody else, until `take_back` is called.
    pub unsafe fn lend(&mut self, call: &mut Call<'_, '_>) {
        self.lent = Some(NonNull::from(call).cast());
    }

    /// Ends what [`Guest::lend`] began.
    pub fn take_back(&mut self) {
        self.lent = None;
    }

    /// The call that is served.
    ///
    /// # Errors
    /// There is none: a component can't ask for anything while it is being loaded.
    pub fn call(&mut self) -> wasmtime::Result<&mut Call<'static, 'static>> {
        let lent = self.lent.ok_or_else(|| {
            let what = "it called the host while it was being loaded, before it was asked for anything".into();
            wasmtime::Error::new(Exceeded { what, setting: "" })
        })?;
        // SAFETY: `lend`'s caller keeps the call alive and to itself until `take_back`. What the call borrows lives
        // longer than that; what the functions in `imports` take out of it they copy before they return.
        Ok(unsafe { &mut *lent.as_ptr() })
    }

    /// An error if the time that was not the host's own is over.
    pub fn check_time(&mut self) -> Result<(), Exceeded> {
        let host = self.call().map_or(Duration::ZERO, |call| call.meter.host_time);
        if self.started.elapsed().saturating_sub(host).as_secs_f64() <= self.limits.seconds {
            return Ok(());
        }
        let what = format!("it ran for more than {} seconds", self.limits.seconds);
        Err(Exceeded { what, setting: "plugins.seconds" })
    }

    /// What limits the component's memories and tables.
    pub fn fences(&mut self) -> &mut dyn ResourceLimiter {
        &mut self.fences
    }
}

/// Counts memory and tables over all instances of a component.
struct Fences {
    memory_bytes: usize,
    table_elements: usize,
    limits: Limits,
}

impl ResourceLimiter for Fences {
    fn memory_growing(&mut self, current: usize, desired: usize, _: Option<usize>) -> wasmtime::Result<bool> {
        let all = self.memory_bytes.saturating_add(desired.saturating_sub(current));
        let limit = self.limits.memory_mib;
        if all as u64 > limit << 20 {
            let what = format!("it wanted {} MiB of memory, more than {limit}", all.div_ceil(1 << 20));
            return Err(wasmtime::Error::new(Exceeded { what, setting: "plugins.memory_mib" }));
        }
        self.memory_bytes = all;
        Ok(true)
    }

    fn table_growing(&mut self, current: usize, desired: usize, _: Option<usize>) -> wasmtime::Result<bool> {
        let all = self.table_elements.saturating_add(desired.saturating_sub(current));
        if all > MOST_TABLE_ELEMENTS {
            let what = format!("it wanted tables of {all} elements, more than {MOST_TABLE_ELEMENTS}");
            return Err(wasmtime::Error::new(Exceeded { what, setting: "" }));
        }
        self.table_elements = all;
        Ok(true)
    }

    fn instances(&self) -> usize {
        MOST_INSTANCES
    }

    fn tables(&self) -> usize {
        MOST_INSTANCES
    }

    fn memories(&self) -> usize {
        MOST_INSTANCES
    }
}
