//! What went wrong in a component, in words: who, what it did, and the limit that it met.

use std::fmt;

use wasmtime::component::Component;
use wasmtime::{Engine, Trap};

use super::compiled::STACK_BYTES;
use crate::plugin::escaped;
use crate::plugin::limits::{Exceeded, Limits};
use crate::{Error, Result};

/// What plugins may import.
const API: &str = "liftplan:policy/";

/// Marks an error that came before the call itself.
#[derive(Debug)]
pub(super) struct Loading(pub wasmtime::Error);

impl fmt::Display for Loading {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self.0.root_cause(), f)
    }
}

impl std::error::Error for Loading {}

/// The error for the user: `plugin NAME VERSION: CALL: what it did (`the.limit`)`.
pub(super) fn explain(error: wasmtime::Error, shown: &str, call: &str, limits: &Limits) -> Error {
    let (error, call) = match error.downcast::<Loading>() {
        Ok(Loading(error)) => (error, "while it was loaded".to_string()),
        Err(error) => (error, format!("in {call}")),
    };
    let (what, help) = if let Some(exceeded) = error.downcast_ref::<Exceeded>() {
        let raise = format!("raise {} if you trust the plugin", exceeded.setting);
        match exceeded.setting {
            "" => (exceeded.what.clone(), None),
            _ => (exceeded.to_string(), Some(raise)),
        }
    } else if let Some(trap) = error.downcast_ref::<Trap>() {
        match trap {
            Trap::OutOfFuel => {
                let what = format!("it did more than {} units of work (`plugins.fuel`)", limits.fuel);
                (what, Some("raise plugins.fuel if you trust the plugin".into()))
            }
            Trap::StackOverflow => {
                (format!("it called itself too deep: its stack has {} KiB", STACK_BYTES >> 10), None)
            }
            Trap::MemoryOutOfBounds => ("it reached outside its memory".into(), None),
            Trap::UnreachableCodeReached => ("it broke off".into(), Some("the plugin's author must mend it".into())),
            trap => (format!("it broke off: {}", escaped(&trap.to_string(), 200)), None),
        }
    } else {
        rules(&error.root_cause().to_string(), limits)
    };
    let error = Error::plan(format!("plugin {shown}: {call}: {what}"));
    match help {
        Some(help) => error.help(help),
        None => error,
    }
}

/// What wasmtime says of a component that keeps to no rules: its own words, but for the limits that we set.
fn rules(text: &str, limits: &Limits) -> (String, Option<String>) {
    if text.contains("fuel allocated for hostcalls") {
        let what = format!("it passed more than {} MiB in one call (`plugins.passed_mib`)", limits.passed_mib);
        return (what, Some("raise plugins.passed_mib if you trust the plugin".into()));
    }
    (format!("it broke a rule of components: {}", escaped(text, 400)), None)
}

/// Refuses a component that imports more than the plugin API.
pub(super) fn check_imports(component: &Component, engine: &Engine) -> Result<()> {
    let imports = component.component_type();
    let mut others: Vec<String> = Vec::new();
    for (name, _) in imports.imports(engine) {
        if !name.starts_with(API) {
            others.push(format!("`{}`", escaped(name, 100)));
        }
    }
    let Some(first) = others.first() else { return Ok(()) };
    let more = match others.len() {
        1 => String::new(),
        count => format!(" and {} more", count - 1),
    };
    let error = Error::plan(format!("it imports {first}{more}, and plugins get nothing but the plugin API"));
    Err(match others.iter().all(|name| name.starts_with("`wasi:")) {
        true => error.help("its author can leave WASI out, as `liftplan plugin build` does (--stub-wasi)"),
        false => error,
    })
}
