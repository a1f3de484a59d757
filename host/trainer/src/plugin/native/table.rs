//! The functions that a plugin is given: each turns its arguments into a question, sends it to the host, waits for the
//! answer, and hands it out as C has it.

use std::any::Any;
use std::ffi::c_void;
use std::fs::File;
use std::io::BufReader;
use std::sync::Mutex;

use serde_json::Value;

use super::abi::{
    ABI_VERSION, Adapter, Failure, Host, MaybeCount, MaybeNumber, MaybeText, Numbers, Shape, Tensors, Text, Texts,
    host_functions,
};
use super::load::Function;
use super::values::{Argument, Handed, bytes};
use super::wire::{ANSWER, DONE, Message};

/// A defect, as the plugin API numbers it.
const DEFECT: u32 = 4;
/// The settings are wrong, as the plugin API numbers it.
const SETTINGS: u32 = 1;
/// Most bytes of an answer.
const MOST_BYTES: usize = 1 << 30;

/// What stands behind the table.
pub(super) struct Context {
    inner: Mutex<Inner>,
}

/// What a call's questions and answers pass through.
pub(super) struct Inner {
    input: BufReader<File>,
    output: File,
    settings: Value,
    /// What was handed out; it stays where it is until the call is over.
    kept: Vec<Box<dyn Any + Send>>,
    /// Why the last question failed.
    failure: Option<(u32, Vec<u8>, Vec<u8>)>,
    /// The reason that the plugin gave itself.
    given: Option<(u32, Vec<u8>, Vec<u8>)>,
}

impl Context {
    pub fn new(input: BufReader<File>, output: File, settings: &[u8]) -> Self {
        let settings = serde_json::from_slice(settings).unwrap_or(Value::Null);
        Self { inner: Mutex::new(Inner { input, output, settings, kept: Vec::new(), failure: None, given: None }) }
    }

    /// Calls the plugin's function, and gives the stream to the host and what to say of it: that it is done, or failed
    /// and why.
    pub fn call(self, function: Function, settings: &[u8]) -> (File, Message) {
        let host = table((&raw const self).cast_mut().cast());
        // SAFETY: the function is the plugin's, of the ABI's type; the table and the settings live until it returns.
        let code = unsafe { function(&host, Text { data: settings.as_ptr(), length: settings.len() }) };
        let inner = match self.inner.into_inner() {
            Ok(inner) => inner,
            Err(poisoned) => poisoned.into_inner(),
        };
        if code == 0 {
            return (inner.output, Message::new(DONE).number(0));
        }
        let (code, message, help) = inner.reason();
        (inner.output, Message::new(DONE).number(code.into()).text(message).text(help))
    }

    fn locked<T>(&self, work: impl FnOnce(&mut Inner) -> T) -> T {
        match self.inner.lock() {
            Ok(mut inner) => work(&mut inner),
            Err(mut poisoned) => work(poisoned.get_mut()),
        }
    }
}

impl Inner {
    fn reason(&self) -> (u32, Vec<u8>, Vec<u8>) {
        let unknown = || (DEFECT, b"it failed and gave no reason".to_vec(), Vec::new());
        self.given.clone().or_else(|| self.failure.clone()).unwrap_or_else(unknown)
    }

    /// Sends a question and waits for its answer.
    fn ask(&mut self, question: &Message) -> Result<Message, i32> {
        let answer = question.write(&mut self.output).and_then(|()| Message::read(&mut self.input, MOST_BYTES));
        let Ok(Some(mut answer)) = answer else {
            // The host is gone, or has had enough of this plugin.
            // SAFETY: ends the process at once.
            unsafe { libc::_exit(1) }
        };
        match (answer.tag, answer.numbers.first().copied()) {
            (ANSWER, Some(0)) => {
                answer.numbers.remove(0);
                Ok(answer)
            }
            (ANSWER, Some(code)) => {
                let mut texts = answer.texts.into_iter();
                Err(self.fail(code as u32, texts.next().unwrap_or_default(), texts.next().unwrap_or_default()))
            }
            _ => Err(self.fail(DEFECT, b"the host's answer makes no sense".to_vec(), Vec::new())),
        }
    }

    fn fail(&mut self, code: u32, message: Vec<u8>, help: Vec<u8>) -> i32 {
        self.failure = Some((code, message, help));
        code.max(1) as i32
    }

    /// Keeps the items until the call is over; where they lie, and how many.
    pub(super) fn keep<T: Send + 'static>(&mut self, items: Vec<T>) -> (*const T, usize) {
        let items = items.into_boxed_slice();
        let place = (items.as_ptr(), items.len());
        self.kept.push(Box::new(items));
        place
    }

    /// Keeps the text until the call is over.
    pub(super) fn keep_text(&mut self, text: Vec<u8>) -> Text {
        let (data, length) = self.keep(text);
        Text { data, length }
    }

    /// The setting at a path with dots.
    fn setting(&mut self, path: Text) -> Result<Value, i32> {
        let path = String::from_utf8_lossy(&bytes(path)).into_owned();
        let found = path.split('.').try_fold(&self.settings, |value, part| value.get(part));
        match found.cloned() {
            Some(value) => Ok(value),
            None => Err(self.fail(SETTINGS, format!("`policy.{path}` is not set").into_bytes(), Vec::new())),
        }
    }

    fn wrong_type(&mut self, path: Text, wanted: &str) -> i32 {
        let path = String::from_utf8_lossy(&bytes(path)).into_owned();
        self.fail(SETTINGS, format!("`policy.{path}` is no {wanted}").into_bytes(), Vec::new())
    }
}

/// Runs `work` on the context behind a table, and writes what it gives to `out`.
///
/// # Safety
/// `host` must be the table that this process gave to the plugin, and `out` a place for a `T`.
unsafe fn answer<T>(host: *const Host, out: *mut T, work: impl FnOnce(&mut Inner) -> Result<T, i32>) -> i32 {
    // SAFETY: as this function's caller promises; `Context::call` keeps the context while the plugin runs.
    let context = unsafe { &*(*host).context.cast::<Context>() };
    match context.locked(work) {
        Ok(value) => {
            // SAFETY: as this function's caller promises.
            unsafe { out.write(value) };
            0
        }
        Err(code) => code,
    }
}

unsafe extern "C" fn last_failure(host: *const Host, out: *mut Failure) -> i32 {
    let work = |inner: &mut Inner| {
        let (code, message, help) = inner.reason();
        Ok(Failure { code, message: inner.keep_text(message), help: inner.keep_text(help) })
    };
    // SAFETY: as the ABI asks of the plugin.
    unsafe { answer(host, out, work) }
}

unsafe extern "C" fn fail(host: *const Host, code: u32, message: Text, help: Text) -> i32 {
    let mut nothing = ();
    let work = |inner: &mut Inner| -> Result<(), i32> {
        let code = code.clamp(1, DEFECT);
        inner.given = Some((code, bytes(message), bytes(help)));
        Err(code as i32)
    };
    // SAFETY: as the ABI asks of the plugin.
    unsafe { answer(host, &mut nothing, work) }
}

unsafe extern "C" fn setting_number(host: *const Host, path: Text, out: *mut f64) -> i32 {
    let work = |inner: &mut Inner| inner.setting(path)?.as_f64().ok_or_else(|| inner.wrong_type(path, "number"));
    // SAFETY: as the ABI asks of the plugin.
    unsafe { answer(host, out, work) }
}

unsafe extern "C" fn setting_flag(host: *const Host, path: Text, out: *mut bool) -> i32 {
    let work = |inner: &mut Inner| inner.setting(path)?.as_bool().ok_or_else(|| inner.wrong_type(path, "boolean"));
    // SAFETY: as the ABI asks of the plugin.
    unsafe { answer(host, out, work) }
}

unsafe extern "C" fn setting_text(host: *const Host, path: Text, out: *mut Text) -> i32 {
    let work = |inner: &mut Inner| match inner.setting(path)? {
        Value::String(text) => Ok(inner.keep_text(text.into_bytes())),
        _ => Err(inner.wrong_type(path, "text")),
    };
    // SAFETY: as the ABI asks of the plugin.
    unsafe { answer(host, out, work) }
}

unsafe extern "C" fn setting_texts(host: *const Host, path: Text, out: *mut Texts) -> i32 {
    let work = |inner: &mut Inner| {
        let texts = match inner.setting(path)? {
            Value::String(text) => vec![text],
            Value::Array(values) if values.iter().all(Value::is_string) => {
                values.into_iter().filter_map(|value| value.as_str().map(str::to_string)).collect()
            }
            _ => return Err(inner.wrong_type(path, "list of texts")),
        };
        let places: Vec<Handle> = texts.into_iter().map(|text| Handle(inner.keep_text(text.into_bytes()))).collect();
        let (data, length) = inner.keep(places);
        Ok(Texts { data: data.cast(), length })
    };
    // SAFETY: as the ABI asks of the plugin.
    unsafe { answer(host, out, work) }
}

/// A text among others that are kept.
#[repr(transparent)]
struct Handle(Text);

// SAFETY: the bytes behind it are kept in the same place, and are not changed.
unsafe impl Send for Handle {}

macro_rules! define_table {
    ($($(#[$doc:meta])* $name:ident ( $($arg:ident : $type:ty),* ) $(-> $out:ty)?;)*) => {
        /// The functions' places in the ABI, which are the tags of questions.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u16)]
        #[allow(non_camel_case_types)]
        pub(super) enum Question { $($name,)* }

        impl Question {
            /// All of them, each in its place.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// The one with this tag.
            pub fn of(tag: u16) -> Option<Self> {
                Self::ALL.get(usize::from(tag)).copied()
            }
        }

        $(define_table!(function $name ( $($arg : $type),* ) $(-> $out)?);)*

        fn table(context: *mut c_void) -> Host {
            Host {
                size: size_of::<Host>(),
                abi: ABI_VERSION,
                reserved: 0,
                context,
                last_failure,
                fail,
                setting_number,
                setting_text,
                setting_flag,
                setting_texts,
                $($name,)*
            }
        }
    };
    (function $name:ident ( $($arg:ident : $type:ty),* ) -> $out:ty) => {
        unsafe extern "C" fn $name(host: *const Host $(, $arg: $type)*, out: *mut $out) -> i32 {
            let work = |inner: &mut Inner| {
                #[allow(unused_mut)]
                let mut question = Message::new(Question::$name as u16);
                $($arg.put(&mut question);)*
                let answer = inner.ask(&question)?;
                let defect = "the host's answer makes no sense".as_bytes().to_vec();
                <$out>::take(answer, inner).ok_or_else(|| inner.fail(DEFECT, defect, Vec::new()))
            };
            // SAFETY: as the ABI asks of the plugin.
            unsafe { answer(host, out, work) }
        }
    };
    (function $name:ident ( $($arg:ident : $type:ty),* )) => {
        unsafe extern "C" fn $name(host: *const Host $(, $arg: $type)*) -> i32 {
            let work = |inner: &mut Inner| {
                let mut question = Message::new(Question::$name as u16);
                $($arg.put(&mut question);)*
                inner.ask(&question).map(|_| ())
            };
            let mut nothing = ();
            // SAFETY: as the ABI asks of the plugin.
            unsafe { answer(host, &mut nothing, work) }
        }
    };
}
host_functions!(define_table);
