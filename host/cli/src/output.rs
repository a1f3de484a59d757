//! Standard output for results, standard error for errors.

use std::fmt::Display;
use std::io::{ErrorKind as Io, Write};
use std::process::ExitCode;

use liftplan::{Error, Result};
use serde::Serialize;

/// Where a command's result goes, and in which form.
pub struct Output {
    json: bool,
}

impl Output {
    /// Text for people, or JSON.
    pub fn new(json: bool) -> Self {
        Self { json }
    }

    /// Whether the result is wanted as JSON.
    pub fn is_json(&self) -> bool {
        self.json
    }

    /// Prints the result: `value` as JSON, or `text`.
    pub fn result(&self, value: &impl Serialize, text: impl Display) -> Result<()> {
        if !self.json {
            return self.text(format!("{}\n", text.to_string().trim_end_matches('\n')));
        }
        let json = serde_json::to_string_pretty(value)
            .map_err(|error| Error::internal(format!("the result cannot be written as JSON: {error}")))?;
        self.text(format!("{json}\n"))
    }

    /// Prints `text` as it is.
    pub fn text(&self, text: impl Display) -> Result<()> {
        let mut stdout = std::io::stdout().lock();
        match write!(stdout, "{text}").and_then(|()| stdout.flush()) {
            Ok(()) => Ok(()),
            // The reader has seen enough (`| head`): the work is done, quietly.
            Err(error) if error.kind() == Io::BrokenPipe => std::process::exit(0),
            Err(error) => Err(Error::output(format!("cannot write to standard output: {error}"))),
        }
    }
}

/// Shows an error and gives its exit code.
pub fn fail(error: &anyhow::Error) -> ExitCode {
    // Nobody is left to tell if standard error is closed.
    writeln!(std::io::stderr(), "error: {error:#}").ok();
    let code = error.downcast_ref::<Error>().map_or(1, Error::exit_code);
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}
