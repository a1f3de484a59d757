//! Plugins that are native libraries: trusted code, kept apart all the same.
//!
//! In: a library that the user allowed by its hash, and the limits. Out: a [`Policy`](crate::policy::Policy). The library
//! is inspected before anything of it runs; each call runs in a process of its own, which gets the bytes that were hashed
//! and passes the plugin's questions back over a pipe. The host answers them as it answers a component's, and takes over
//! nothing but the plugin's calls to the plan: a plugin that crashes, hangs or leaves is an error message.
//!
//! ```text
//! Loaded → inspect → process: memory file → dlopen → liftplan_plugin() → make-plan ⇄ questions ⇄ Call → PlanBuilder
//! ```
//!
//! `plugin-api/rust/src/abi.rs` is the C ABI; `plugin-api/c/liftplan_plugin.h` is made from it.

use std::cell::Cell;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;

use super::call::Call;
use super::limits::Limits;
use super::metadata::{Capability, Kind, Metadata};
use super::store::Loaded;
use super::{Refusal, escaped, settings};
use crate::plan::PlanBuilder;
use crate::policy::{Level, ModelView, Moment, Policy, PolicyInfo};
use crate::{Error, Result};

#[path = "../../../../../plugin-api/rust/src/abi.rs"]
#[allow(missing_docs, reason = "its structs are documented as a whole, for C")]
mod abi;
mod answers;
mod guest;
mod inspect;
mod load;
mod process;
mod table;
mod values;
mod wire;

pub use guest::serve;
pub use process::COMMAND;

use process::{Heard, Process};
use wire::{DONE, LOADED, Message, START, UNFIT};

/// A native library that was inspected and allowed.
pub struct NativePlugin {
    loaded: Loaded,
    limits: Limits,
    program: PathBuf,
    seconds: Cell<f64>,
}

impl NativePlugin {
    /// The plugin in these bytes. Nothing of it runs yet; its processes will be this program's.
    ///
    /// # Errors
    /// The user did not allow it, it was built for another machine, or is damaged.
    pub fn new(loaded: Loaded, limits: &Limits) -> Result<Self> {
        let program = std::env::current_exe()
            .map_err(|error| Error::internal(format!("this program cannot find itself: {error}")))?;
        Self::in_program(loaded, limits, program)
    }

    /// The same with `program` as the one that serves the hidden command, for programs that do not have it.
    ///
    /// # Errors
    /// As [`NativePlugin::new`].
    pub fn in_program(loaded: Loaded, limits: &Limits, program: PathBuf) -> Result<Self> {
        let shown = loaded.metadata.shown();
        if loaded.kind != Kind::Native {
            return Err(Error::internal(format!("plugin {shown} is no native library")));
        }
        inspect::check(&loaded.bytes).map_err(|error| error.at(format!("plugin {shown}")))?;
        if !loaded.allow_native {
            return Err(Error::plan(format!("plugin {shown} is native code, and was not allowed to run"))
                .help(format!("if you trust its author, allow this very file with --allow-native {}", loaded.sha256)));
        }
        Ok(Self { loaded, limits: limits.clone(), program, seconds: Cell::new(0.0) })
    }

    /// What the file says about itself.
    pub fn metadata(&self) -> &Metadata {
        &self.loaded.metadata
    }

    /// Runs one call in a process of its own, and answers what it asks.
    ///
    /// # Errors
    /// The policy's own, or it crashed, exceeded a limit or left.
    pub fn run(&self, what: &str, settings: &Value, call: &mut Call<'_, '_>) -> Result<()> {
        let limits = &self.limits;
        let passed = usize::try_from(limits.passed_mib << 20).unwrap_or(usize::MAX);
        let mut process = Process::start(&self.program, passed, (limits.log_kib << 10) as usize).map_err(|error| {
            Error::plan(format!("plugin {}: its process cannot be started: {error}", self.metadata().shown()))
        })?;
        let ended = self.talk(what, settings, call, &mut process);
        self.seconds.set(self.seconds.get() + process.waited.as_secs_f64());
        match ended {
            Ok(()) => {
                for line in process.printed().lines().filter(|line| !line.trim().is_empty()) {
                    // Past its limit, it is left out.
                    let _ = call.log(Level::Debug, line);
                }
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    fn talk(&self, what: &str, settings: &Value, call: &mut Call<'_, '_>, process: &mut Process) -> Result<()> {
        let limits = &self.limits;
        let limit = Duration::try_from_secs_f64(limits.seconds).unwrap_or(Duration::MAX);
        process.send(
            Message::new(START)
                .number(limits.memory_mib)
                .number(limit.as_secs())
                .text(self.loaded.bytes.as_slice())
                .text(what)
                .text(settings.to_string()),
        );
        let mut place = "while it was loaded".to_string();
        loop {
            match process.hear(limit) {
                Heard::Message(message) => match message.tag {
                    LOADED => place = format!("in {what}"),
                    // However fast it came behind what was printed.
                    DONE if process.is_loud() => return Err(self.loud(&place)),
                    DONE => return self.done(&message, &place),
                    UNFIT => {
                        let why = message.texts.first().map(|why| String::from_utf8_lossy(why).into_owned());
                        return Err(self
                            .fault(&place, &escaped(&why.unwrap_or_default(), 400))
                            .help("its author must build it for this version of Liftplan"));
                    }
                    _ => match answers::answer(call, message) {
                        Ok(answer) => process.send(answer),
                        Err(exceeded) => {
                            let help = format!("raise {} if you trust the plugin", exceeded.setting);
                            return Err(self.fault(&place, &exceeded.to_string()).help(help));
                        }
                    },
                },
                Heard::End => {
                    let ended = process.end().map_or_else(|| "it closed its pipe".into(), process::in_words);
                    let said = process.printed();
                    let said = last_words(&said).map_or_else(String::new, |words| format!("; it printed: {words}"));
                    return Err(self
                        .fault(&place, &format!("{ended}{said}"))
                        .help("the plugin's author must mend it; nothing was planned"));
                }
                Heard::Nonsense => {
                    return Err(self.fault(&place, "it sent what makes no sense, or too much at once"));
                }
                Heard::Late => {
                    let what = format!("it ran for more than {} seconds (`plugins.seconds`)", limits.seconds);
                    return Err(self.fault(&place, &what).help("raise plugins.seconds if you trust the plugin"));
                }
                Heard::Loud => return Err(self.loud(&place)),
            }
        }
    }

    fn done(&self, message: &Message, place: &str) -> Result<()> {
        let text = |at: usize| message.texts.get(at).map(|text| String::from_utf8_lossy(text).into_owned());
        match message.numbers.first() {
            Some(0) => Ok(()),
            Some(code) => {
                let refusal = Refusal {
                    code: u32::try_from(*code).unwrap_or(0),
                    message: text(0).unwrap_or_default(),
                    help: text(1).unwrap_or_default(),
                };
                Err(refusal.into_error(&self.metadata().shown()))
            }
            None => Err(self.fault(place, "it sent what makes no sense, or too much at once")),
        }
    }

    fn loud(&self, place: &str) -> Error {
        let what = format!("it printed more than {} KiB (`plugins.log_kib`)", self.limits.log_kib);
        self.fault(place, &what).help("raise plugins.log_kib if you trust the plugin")
    }

    fn fault(&self, place: &str, what: &str) -> Error {
        Error::plan(format!("plugin {}: {place}: {what}", self.metadata().shown()))
    }
}

/// The last lines that it printed; of a panic in Rust, its message.
fn last_words(printed: &str) -> Option<String> {
    let lines: Vec<&str> = printed.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let panic = lines.iter().position(|line| line.starts_with("thread '") && line.contains(" panicked at "));
    let words = match panic {
        Some(at) => lines.iter().skip(at + 1).take(1).copied().collect::<String>(),
        None => lines.iter().skip(lines.len().saturating_sub(3)).copied().collect::<Vec<_>>().join(" | "),
    };
    (!words.is_empty()).then(|| escaped(&words, 300))
}

impl Policy for NativePlugin {
    fn describe(&self) -> PolicyInfo {
        self.metadata().policy_info()
    }

    fn resolve(&self, settings: &Value) -> Result<Value> {
        settings::resolve(&self.metadata().settings, settings)
    }

    fn reads_weights(&self) -> bool {
        self.metadata().capabilities.contains(&Capability::Statistics)
    }

    fn plugin_sha256(&self) -> Option<&str> {
        Some(&self.loaded.sha256)
    }

    fn seconds(&self) -> f64 {
        self.seconds.get()
    }

    fn make_plan(&self, settings: &Value, view: &ModelView<'_>, builder: &mut PlanBuilder<'_>) -> Result<()> {
        let mut call = Call::new(view, None, builder, &self.limits, &self.metadata().capabilities);
        self.run("make-plan", settings, &mut call)
    }

    fn revise(&self, moment: &Moment<'_>, builder: &mut PlanBuilder<'_>) -> Result<()> {
        let mut call = Call::new(moment.view, Some(moment), builder, &self.limits, &self.metadata().capabilities);
        self.run("revise", moment.settings, &mut call)
    }
}
