//! The host, as a native library reaches it: by the table of functions in [`abi`].

use std::cell::Cell;
use std::mem::MaybeUninit;
use std::ptr;

use crate::policy::{self, Policy};

#[path = "abi.rs"]
#[allow(missing_docs)]
pub mod abi;

use abi::{Host, Text};

thread_local! {
    /// The table of the call that runs.
    static HOST: Cell<*const Host> = const { Cell::new(ptr::null()) };
}

/// What the host answers with when it refuses.
#[derive(Debug)]
pub struct Error {
    pub code: u32,
    pub message: String,
    pub help: String,
}

/// Runs `make_plan` for the host.
///
/// # Safety
/// As the ABI says: `host` is a whole table, and it and `settings` live until this returns.
pub unsafe extern "C" fn make_plan<P: Policy>(host: *const Host, settings: Text) -> i32 {
    // SAFETY: as above.
    unsafe { run(host, settings, |settings| policy::make_plan::<P>(settings, &View, &Builder)) }
}

/// Runs `revise` for the host.
///
/// # Safety
/// As [`make_plan`].
pub unsafe extern "C" fn revise<P: Policy>(host: *const Host, settings: Text) -> i32 {
    // SAFETY: as above.
    unsafe { run(host, settings, |settings| policy::revise::<P>(settings, &View, &Moment, &Builder)) }
}

unsafe fn run(host: *const Host, settings: Text, work: impl FnOnce(&str) -> Result<(), Error>) -> i32 {
    HOST.set(host);
    // SAFETY: the host promises that the settings are there until the call returns.
    let settings = unsafe { taken(settings) };
    let result = work(&String::from_utf8_lossy(&settings));
    let code = match result {
        Ok(()) => 0,
        Err(error) => {
            let table = table();
            // SAFETY: the table's own function; both texts live until it returns.
            unsafe { (table.fail)(table, error.code, given(error.message.as_bytes()), given(error.help.as_bytes())) }
        }
    };
    HOST.set(ptr::null());
    code
}

fn table() -> &'static Host {
    let host = HOST.get();
    assert!(!host.is_null(), "outside of Liftplan there is no model to ask: test plugins with `liftplan plugin test`");
    // SAFETY: `run` sets it for the time of a call, and nothing keeps what comes of it for longer.
    unsafe { &*host }
}

fn given(text: &[u8]) -> Text {
    Text { data: text.as_ptr(), length: text.len() }
}

/// # Safety
/// The text's bytes are there.
unsafe fn taken(text: Text) -> Vec<u8> {
    // SAFETY: as above.
    unsafe { list(text.data, text.length) }
}

/// # Safety
/// The list's items are there.
unsafe fn list<T: Copy>(data: *const T, length: usize) -> Vec<T> {
    if length == 0 {
        return Vec::new();
    }
    // SAFETY: as above.
    unsafe { std::slice::from_raw_parts(data, length) }.to_vec()
}

fn string(text: Text) -> String {
    // SAFETY: the host's texts are there until the call returns.
    String::from_utf8_lossy(&unsafe { taken(text) }).into_owned()
}

fn numbers(numbers: abi::Numbers) -> Vec<f64> {
    // SAFETY: the host's lists are there until the call returns.
    unsafe { list(numbers.data, numbers.length) }
}

fn tensors(tensors: abi::Tensors) -> Vec<u32> {
    // SAFETY: the host's lists are there until the call returns.
    unsafe { list(tensors.data, tensors.length) }
}

/// Asks, and gives the host's error if it refuses.
fn ask<T>(question: impl FnOnce(&'static Host, *mut T) -> i32) -> Result<T, Error> {
    let host = table();
    let mut out = MaybeUninit::uninit();
    if question(host, out.as_mut_ptr()) == 0 {
        // SAFETY: the host wrote the answer, since it says that it did what it was asked.
        return Ok(unsafe { out.assume_init() });
    }
    let mut failure = MaybeUninit::<abi::Failure>::uninit();
    // SAFETY: the table's own function, and a place for what it writes.
    let failed = unsafe { (host.last_failure)(host, failure.as_mut_ptr()) };
    if failed != 0 {
        return Err(Error { code: 4, message: "the host gives no reason".into(), help: String::new() });
    }
    // SAFETY: the host wrote it.
    let failure = unsafe { failure.assume_init() };
    Err(Error { code: failure.code, message: string(failure.message), help: string(failure.help) })
}

/// Asks what the host always answers.
fn sure<T>(question: impl FnOnce(&'static Host, *mut T) -> i32) -> T {
    match ask(question) {
        Ok(answer) => answer,
        Err(error) => panic!("{}", error.message),
    }
}

/// `ask!(function, arguments…)`: one of the table's functions with an answer.
macro_rules! ask {
    ($how:ident $name:ident $(, $arg:expr)*) => {
        // SAFETY: the table's own function; its arguments live until it returns, and `out` has the answer's type.
        $how(|host, out| unsafe { (host.$name)(host $(, $arg)*, out) })
    };
}

/// `tell!(function, arguments…)`: one of the table's functions without an answer.
macro_rules! tell {
    ($name:ident $(, $arg:expr)*) => {
        // SAFETY: the table's own function; its arguments live until it returns.
        ask(|host, _: *mut ()| unsafe { (host.$name)(host $(, $arg)*) })
    };
}

/// Runs `work` with the texts as the ABI has them.
fn with_texts<T>(texts: &[String], work: impl FnOnce(abi::Texts) -> T) -> T {
    let places: Vec<Text> = texts.iter().map(|text| given(text.as_bytes())).collect();
    work(abi::Texts { data: places.as_ptr(), length: places.len() })
}

fn given_tensors(tensors: &[u32]) -> abi::Tensors {
    abi::Tensors { data: tensors.as_ptr(), length: tensors.len() }
}

/// The model.
pub struct View;

impl View {
    pub fn architecture(&self) -> String {
        string(ask!(sure architecture))
    }
    pub fn blocks(&self) -> u32 {
        ask!(sure blocks)
    }
    pub fn tied(&self) -> bool {
        ask!(sure tied)
    }
    pub fn tensor_count(&self) -> u32 {
        ask!(sure tensor_count)
    }
    pub fn tensor(&self, id: u32) -> Result<Tensor, Error> {
        ask!(ask tensor_elements, id).map(|_: u64| Tensor(id))
    }
    pub fn find(&self, name: &str) -> Result<Tensor, Error> {
        ask!(ask find, given(name.as_bytes())).map(Tensor)
    }
    pub fn seed(&self) -> u64 {
        ask!(sure seed)
    }
    pub fn random(&self, draw: u64) -> u64 {
        ask!(sure random, draw)
    }
    pub fn memory_budget(&self) -> Option<u64> {
        let budget: abi::MaybeCount = ask!(sure memory_budget);
        budget.known.then_some(budget.value)
    }
    pub fn choose(&self, setting: &str, patterns: &[String], kinds: &[String]) -> Result<Vec<u32>, Error> {
        let setting = given(setting.as_bytes());
        with_texts(patterns, |patterns| with_texts(kinds, |kinds| ask!(ask choose, setting, patterns, kinds))).map(tensors)
    }
    pub fn matching(&self, setting: &str, patterns: &[String], among: &[u32]) -> Result<Vec<u32>, Error> {
        let setting = given(setting.as_bytes());
        with_texts(patterns, |patterns| ask!(ask matching, setting, patterns, given_tensors(among))).map(tensors)
    }
    pub fn prepare(&self, statistic: &str, tensors: &[u32]) -> Result<(), Error> {
        tell!(prepare, given(statistic.as_bytes()), given_tensors(tensors))
    }
}

/// A tensor.
pub struct Tensor(u32);

impl Tensor {
    pub fn id(&self) -> u32 {
        self.0
    }
    pub fn name(&self) -> String {
        string(ask!(sure tensor_name, self.0))
    }
    pub fn role(&self) -> String {
        string(ask!(sure tensor_role, self.0))
    }
    pub fn kind(&self) -> String {
        string(ask!(sure tensor_kind, self.0))
    }
    pub fn block(&self) -> Option<u32> {
        let block: i64 = ask!(sure tensor_block, self.0);
        u32::try_from(block).ok()
    }
    pub fn shape(&self) -> Vec<u64> {
        let shape: abi::Shape = ask!(sure tensor_shape, self.0);
        // SAFETY: the host's lists are there until the call returns.
        unsafe { list(shape.data, shape.length) }
    }
    pub fn elements(&self) -> u64 {
        ask!(sure tensor_elements, self.0)
    }
    pub fn dtype(&self) -> String {
        string(ask!(sure tensor_dtype, self.0))
    }
    pub fn storage(&self) -> String {
        string(ask!(sure tensor_storage, self.0))
    }
    pub fn tied(&self) -> bool {
        ask!(sure tensor_tied, self.0)
    }
    pub fn singular_values(&self) -> Result<Vec<f64>, Error> {
        ask!(ask singular_values, self.0).map(numbers)
    }
    pub fn spectral_threshold(&self) -> Result<f64, Error> {
        ask!(ask spectral_threshold, self.0)
    }
    pub fn snr(&self) -> Result<f64, Error> {
        ask!(ask snr, self.0)
    }
    pub fn spectral(&self, name: &str) -> Result<f64, Error> {
        ask!(ask spectral, self.0, given(name.as_bytes()))
    }
    pub fn norm(&self, name: &str) -> Result<f64, Error> {
        ask!(ask norm, self.0, given(name.as_bytes()))
    }
    pub fn quantiles(&self, parts: &[f64]) -> Result<Vec<f64>, Error> {
        let parts = abi::Numbers { data: parts.as_ptr(), length: parts.len() };
        ask!(ask quantiles, self.0, parts).map(numbers)
    }
    pub fn magnitude_quantiles(&self, parts: &[f64]) -> Result<Vec<f64>, Error> {
        let parts = abi::Numbers { data: parts.as_ptr(), length: parts.len() };
        ask!(ask magnitude_quantiles, self.0, parts).map(numbers)
    }
    pub fn moments(&self) -> Result<Vec<f64>, Error> {
        ask!(ask moments, self.0).map(numbers)
    }
}

/// Measurements on data.
pub struct Session;

/// Opens them.
pub fn open(_: &View, batches: u32) -> Result<Session, Error> {
    tell!(calibrate, batches).map(|()| Session)
}

impl Session {
    pub fn tokens(&self) -> u64 {
        ask!(sure calibration_tokens)
    }
    pub fn loss(&self) -> Result<f64, Error> {
        ask!(ask calibration_loss)
    }
    pub fn loss_without_block(&self, block: u32) -> Result<f64, Error> {
        ask!(ask loss_without_block, block)
    }
    pub fn block_cosine(&self, block: u32) -> Result<f64, Error> {
        ask!(ask block_cosine, block)
    }
    pub fn gradient_norm(&self, tensor: u32) -> Result<f64, Error> {
        ask!(ask gradient_norm, tensor)
    }
    pub fn squared_gradient(&self, tensor: u32) -> Result<f64, Error> {
        ask!(ask squared_gradient, tensor)
    }
    pub fn weight_gradient(&self, tensor: u32) -> Result<f64, Error> {
        ask!(ask weight_gradient, tensor)
    }
    pub fn input_moments(&self, tensor: u32) -> Result<Vec<f64>, Error> {
        ask!(ask input_moments, tensor).map(numbers)
    }
}

/// An adapter in the making.
pub struct Adapter(Cell<abi::Adapter>);

impl Adapter {
    pub fn new(rank: u32) -> Self {
        let alpha = 2.0 * f64::from(rank);
        Self(Cell::new(abi::Adapter { rank, rank_stabilised: false, dora: false, alpha, dropout: 0.0 }))
    }
    pub fn alpha(&self, alpha: f64) {
        self.0.set(abi::Adapter { alpha, ..self.0.get() });
    }
    pub fn dropout(&self, dropout: f64) {
        self.0.set(abi::Adapter { dropout, ..self.0.get() });
    }
    pub fn rank_stabilised(&self, rank_stabilised: bool) {
        self.0.set(abi::Adapter { rank_stabilised, ..self.0.get() });
    }
    pub fn dora(&self, dora: bool) {
        self.0.set(abi::Adapter { dora, ..self.0.get() });
    }
}

/// The plan.
pub struct Builder;

impl Builder {
    pub fn freeze(&self, tensor: u32) -> Result<(), Error> {
        tell!(freeze, tensor)
    }
    pub fn train(&self, tensor: u32) -> Result<(), Error> {
        tell!(train, tensor)
    }
    pub fn adapt(&self, tensor: u32, adapter: &Adapter) -> Result<(), Error> {
        tell!(adapt, tensor, adapter.0.as_ptr())
    }
    pub fn storage(&self, tensor: u32, storage: &str) -> Result<(), Error> {
        tell!(storage, tensor, given(storage.as_bytes()))
    }
    pub fn lr_scale(&self, tensor: u32, factor: f64) -> Result<(), Error> {
        tell!(lr_scale, tensor, factor)
    }
    pub fn lr_scale_b(&self, tensor: u32, factor: f64) -> Result<(), Error> {
        tell!(lr_scale_b, tensor, factor)
    }
    pub fn score(&self, tensor: u32, score: f64) -> Result<(), Error> {
        tell!(score, tensor, score)
    }
    pub fn pick_every(&self, steps: u64) -> Result<(), Error> {
        tell!(pick_every, steps)
    }
    pub fn pick_at(&self, step: u64) -> Result<(), Error> {
        tell!(pick_at, step)
    }
    pub fn treatment(&self, tensor: u32) -> Result<String, Error> {
        ask!(ask treatment, tensor).map(string)
    }
    pub fn trainable_parameters(&self) -> u64 {
        ask!(sure trainable_parameters)
    }
    pub fn memory_estimate(&self) -> u64 {
        ask!(sure memory_estimate)
    }
}

/// The run at a pick.
pub struct Moment;

impl Moment {
    pub fn step(&self) -> u64 {
        ask!(sure step)
    }
    pub fn total_steps(&self) -> u64 {
        ask!(sure total_steps)
    }
    pub fn since(&self) -> u64 {
        ask!(sure since)
    }
    pub fn losses(&self, first: u64, count: u32) -> Vec<f64> {
        numbers(ask!(sure losses, first, count))
    }
    pub fn gradient_norm(&self, tensor: u32) -> Result<Option<f64>, Error> {
        ask!(ask run_gradient_norm, tensor).map(|norm: abi::MaybeNumber| norm.known.then_some(norm.value))
    }
    pub fn update_norm(&self, tensor: u32) -> Result<Option<f64>, Error> {
        ask!(ask run_update_norm, tensor).map(|norm: abi::MaybeNumber| norm.known.then_some(norm.value))
    }
    pub fn random(&self, draw: u64) -> u64 {
        ask!(sure pick_random, draw)
    }
}

/// What was kept under `key`.
pub fn get_state(key: &str) -> Option<Vec<u8>> {
    let state: abi::MaybeText = ask!(sure get_state, given(key.as_bytes()));
    // SAFETY: the host's bytes are there until the call returns.
    state.known.then(|| unsafe { taken(state.value) })
}

/// Keeps `value` under `key`.
pub fn set_state(key: &str, value: &[u8]) -> Result<(), Error> {
    tell!(set_state, given(key.as_bytes()), given(value))
}

/// For the author.
pub fn debug(message: &str) {
    log(0, message);
}

/// Good to know.
pub fn info(message: &str) {
    log(1, message);
}

/// The user should know it.
pub fn warn(message: &str) {
    log(2, message);
}

fn log(level: u32, message: &str) {
    // A message that doesn't come through is no reason to fail.
    let _ = tell!(log, level, given(message.as_bytes()));
}
