//! The library's error: what was wrong, where, what was expected, and what to do about it.

use std::fmt;
use std::path::Path;

/// What kind of thing went wrong; each has its own exit code on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// A defect of Liftplan itself. Exit code 1.
    Internal,
    /// The command line or the configuration. Exit code 2.
    Config,
    /// The base model: missing, unreadable, unsupported, inconsistent. Exit code 3.
    Model,
    /// The data. Exit code 4.
    Data,
    /// A policy or its plan. Exit code 5.
    Plan,
    /// The training run itself, such as a loss that is not finite. Exit code 6.
    Train,
    /// Reading or writing what a run makes: a full disk, a directory in use, a damaged checkpoint. Exit code 7.
    Output,
    /// Stopped by the user. Exit code 130.
    Interrupted,
}

/// An error for a person to read: `message` says what was wrong, where, and what was expected; `help` says what to do.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    message: String,
    help: Option<String>,
}

/// The library's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

macro_rules! constructors {
    ($($name:ident => $kind:ident),*) => {
        $(
            #[doc = concat!("An error of kind [`ErrorKind::", stringify!($kind), "`].")]
            pub fn $name(message: impl Into<String>) -> Self {
                Self { kind: ErrorKind::$kind, message: message.into(), help: None }
            }
        )*
    };
}

impl Error {
    constructors!(internal => Internal, config => Config, model => Model, data => Data, plan => Plan, train => Train,
                  output => Output, interrupted => Interrupted);

    /// Adds what the user can do about it, as one sentence.
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// Takes over the help of another error, if it has some.
    pub(crate) fn help_of(mut self, other: Self) -> Self {
        self.help = other.help.or(self.help);
        self
    }

    /// Puts where it happened in front of the message: `where: message`.
    pub fn at(mut self, place: impl fmt::Display) -> Self {
        self.message = format!("{place}: {}", self.message);
        self
    }

    /// A failed file operation of the given kind, naming the file.
    pub fn io(kind: ErrorKind, doing: &str, path: &Path, error: &std::io::Error) -> Self {
        let help = match error.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::FileTooLarge | std::io::ErrorKind::QuotaExceeded => {
                Some("free some space, or choose another directory".to_string())
            }
            std::io::ErrorKind::NotADirectory => {
                Some("a file stands where a directory should; choose another place".to_string())
            }
            std::io::ErrorKind::PermissionDenied => {
                Some("check the permissions of the file and its directory".to_string())
            }
            _ => None,
        };
        Self { kind, message: format!("cannot {doing} {}: {error}", path.display()), help }
    }

    /// What kind of thing went wrong.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// What was wrong, where, and what was expected.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// What to do about it.
    pub fn help_text(&self) -> Option<&str> {
        self.help.as_deref()
    }

    /// The process's exit code for this error.
    pub fn exit_code(&self) -> i32 {
        match self.kind {
            ErrorKind::Internal => 1,
            ErrorKind::Config => 2,
            ErrorKind::Model => 3,
            ErrorKind::Data => 4,
            ErrorKind::Plan => 5,
            ErrorKind::Train => 6,
            ErrorKind::Output => 7,
            ErrorKind::Interrupted => 130,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        if let Some(help) = &self.help {
            write!(f, "\n  help: {help}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {}
