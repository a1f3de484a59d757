//! Plugins that are WebAssembly components.
//!
//! In: the bytes of a file and the limits. Out: a [`Policy`](crate::policy::Policy). Each call runs in a fresh instance,
//! so that nothing but the state that checkpoints hold passes from one to the next, and behind fences: no files, network
//! or clock to reach; fuel, a deadline, and caps on memory, tables, instances, stack, calls to the host, bytes passed,
//! messages and statistics.
//!
//! ```text
//! bytes → sha256 → metadata → compiled (cached) → linked → an instance a call → Call → ModelView, PlanBuilder
//! ```

mod bindings;
mod compiled;
mod fault;
mod guest;
mod imports;
mod imports_plan;
mod policy;

use std::cell::Cell;
use std::path::Path;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use wasmtime::component::{HasSelf, Linker, Resource};
use wasmtime::{Engine, Store, UpdateDeadline};

use self::bindings::{Plugin, PluginPre};
use self::guest::Guest;
use super::call::Call;
use super::limits::Limits;
use super::metadata::{Kind, Metadata};
use crate::{Error, ErrorKind, Result};

/// How often the deadline is looked at.
const TICK: Duration = Duration::from_millis(10);

/// Handles that a component may hold at once: enough for every tensor of the largest models.
const MOST_HANDLES: usize = 20_000;

/// A component, checked, compiled and linked.
pub struct WasmPlugin {
    metadata: Metadata,
    sha256: String,
    engine: &'static Engine,
    pre: PluginPre<Guest>,
    limits: Limits,
    seconds: Cell<f64>,
}

impl WasmPlugin {
    /// Reads the component in the file at `path`.
    ///
    /// # Errors
    /// It can't be read, or as [`WasmPlugin::load`].
    pub fn open(path: &Path, limits: &Limits) -> Result<Self> {
        let bytes = read_file(path, limits)?;
        Self::load(&bytes, limits).map_err(|error| error.at(path.display()))
    }

    /// The component of these bytes.
    ///
    /// # Errors
    /// It is no plugin, is not valid, or imports what no plugin gets.
    pub fn load(bytes: &[u8], limits: &Limits) -> Result<Self> {
        Self::load_with_cache(bytes, limits, crate::stats::cache_root().as_deref())
    }

    /// The same with another place for compiled code, or none.
    ///
    /// # Errors
    /// As [`WasmPlugin::load`].
    pub fn load_with_cache(bytes: &[u8], limits: &Limits, cache: Option<&Path>) -> Result<Self> {
        check_size(bytes.len() as u64, limits)?;
        let sha256 = crate::sha256(bytes);
        let (kind, metadata) = Metadata::read(bytes)?;
        if kind != Kind::Wasm {
            return Err(Error::plan("it is a native library, and a WebAssembly component is wanted"));
        }
        let engine = compiled::engine()?;
        let component = compiled::component(engine, bytes, &sha256, cache)?;
        let shown = metadata.shown();
        fault::check_imports(&component, engine).map_err(|error| error.at(format!("plugin {shown}")))?;
        let mut linker = Linker::new(engine);
        let linked = Plugin::add_to_linker::<_, HasSelf<_>>(&mut linker, |guest: &mut Guest| guest);
        linked.map_err(|error| Error::internal(format!("the plugin API cannot be linked: {error}")))?;
        let pre = linker.instantiate_pre(&component).and_then(PluginPre::new).map_err(|error| {
            let error = super::escaped(&error.root_cause().to_string(), 300);
            Error::plan(format!("plugin {shown} does not fit the plugin API {}: {error}", metadata.api))
                .help("build it again with the SDK of this version")
        })?;
        Ok(Self { metadata, sha256, engine, pre, limits: limits.clone(), seconds: Cell::new(0.0) })
    }

    /// What the file says about itself.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// The SHA-256 of the bytes that run, in hexadecimal.
    pub fn sha256(&self) -> &str {
        &self.sha256
    }

    /// Seconds spent in the plugin so far, without what the host computed for it.
    pub fn seconds(&self) -> f64 {
        self.seconds.get()
    }

    /// What the component says about itself when it runs; its file must say the same.
    ///
    /// # Errors
    /// It breaks off, or exceeds a limit.
    pub fn describe(&self) -> Result<String> {
        let mut store = self.store();
        self.guarded(&mut store, "describe", |plugin, store| plugin.liftplan_policy_policy().call_describe(store))
    }

    /// Makes the first plan.
    ///
    /// # Errors
    /// The policy's own, or it breaks off, or exceeds a limit.
    pub fn make_plan(&self, settings: &str, call: &mut Call<'_, '_>) -> Result<()> {
        self.lend("make-plan", call, |plugin, store| {
            let (view, builder) = (Resource::new_borrow(0), Resource::new_borrow(0));
            plugin.liftplan_policy_policy().call_make_plan(store, settings, view, builder)
        })
    }

    /// Revises the plan; `call` has a moment.
    ///
    /// # Errors
    /// As [`WasmPlugin::make_plan`].
    pub fn revise(&self, settings: &str, call: &mut Call<'_, '_>) -> Result<()> {
        self.lend("revise", call, |plugin, store| {
            let (view, moment, builder) = (Resource::new_borrow(0), Resource::new_borrow(0), Resource::new_borrow(0));
            plugin.liftplan_policy_policy().call_revise(store, settings, view, moment, builder)
        })
    }

    fn lend(
        &self,
        what: &str,
        call: &mut Call<'_, '_>,
        run: impl FnOnce(
            &Plugin,
            &mut Store<Guest>,
        ) -> wasmtime::Result<std::result::Result<(), bindings::liftplan::policy::types::Error>>,
    ) -> Result<()> {
        let mut store = self.store();
        let answer = self.guarded(&mut store, what, |plugin, store| {
            // SAFETY: `call` is borrowed for the whole of this function, and taken back before this closure ends.
            unsafe { store.data_mut().lend(call) };
            let answer = run(plugin, store);
            store.data_mut().take_back();
            answer
        });
        let host = call.meter.host_time.as_secs_f64();
        self.seconds.set((self.seconds.get() - host).max(0.0));
        answer?.map_err(|error| {
            let refusal = super::Refusal { code: error.code, message: error.message, help: error.help };
            refusal.into_error(&self.metadata.shown())
        })
    }

    fn store(&self) -> Store<Guest> {
        let mut store = Store::new(self.engine, Guest::new(&self.limits));
        store.limiter(|guest| guest.fences());
        store.set_hostcall_fuel((self.limits.passed_mib << 20) as usize);
        store.set_max_component_handles(MOST_HANDLES);
        store.set_epoch_deadline(1);
        store.epoch_deadline_callback(|mut context| {
            context.data_mut().check_time().map_err(wasmtime::Error::new)?;
            Ok(UpdateDeadline::Continue(1))
        });
        store
    }

    /// Runs a call in a fresh instance, behind the fences.
    fn guarded<T>(
        &self,
        store: &mut Store<Guest>,
        what: &str,
        run: impl FnOnce(&Plugin, &mut Store<Guest>) -> wasmtime::Result<T>,
    ) -> Result<T> {
        let started = Instant::now();
        let ticker = Ticker::start(self.engine);
        let result = store
            .set_fuel(self.limits.fuel)
            .and_then(|()| self.pre.instantiate(&mut *store).map_err(|error| fault::Loading(error).into()))
            .and_then(|plugin| run(&plugin, store));
        drop(ticker);
        self.seconds.set(self.seconds.get() + started.elapsed().as_secs_f64());
        result.map_err(|error| fault::explain(error, &self.metadata.shown(), what, &self.limits))
    }
}

/// Reads a plugin's file, if it isn't too large.
///
/// # Errors
/// It is too large, or can't be read.
pub fn read_file(path: &Path, limits: &Limits) -> Result<Vec<u8>> {
    let cannot = |error: std::io::Error| Error::io(ErrorKind::Plan, "read the plugin", path, &error);
    let size = std::fs::metadata(path).map_err(cannot)?.len();
    check_size(size, limits).map_err(|error| error.at(path.display()))?;
    std::fs::read(path).map_err(cannot)
}

fn check_size(bytes: u64, limits: &Limits) -> Result<()> {
    if bytes <= limits.file_mib << 20 {
        return Ok(());
    }
    let mib = bytes.div_ceil(1 << 20);
    Err(Error::plan(format!("the plugin's file has {mib} MiB, more than {} (`plugins.file_mib`)", limits.file_mib))
        .help("raise the limit if you trust the file"))
}

/// Moves the engine's clock while a call runs.
struct Ticker {
    stop: Option<mpsc::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Ticker {
    fn start(engine: &'static Engine) -> Self {
        let (stop, stopped) = mpsc::channel();
        let thread = thread::spawn(move || {
            while stopped.recv_timeout(TICK) == Err(mpsc::RecvTimeoutError::Timeout) {
                engine.increment_epoch();
            }
        });
        Self { stop: Some(stop), thread: Some(thread) }
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        self.stop = None;
        // It can't have panicked, and would have nothing to say if it had.
        let _ = self.thread.take().map(thread::JoinHandle::join);
    }
}
