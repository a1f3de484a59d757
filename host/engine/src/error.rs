//! The engine's errors: shapes that do not fit and numbers that are not finite.

/// What can go wrong inside the engine.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// Two things that must fit together do not.
    #[error("{what}: expected {expected}, found {found}")]
    Shape {
        /// What was looked at.
        what: String,
        /// The shape or number that fits.
        expected: String,
        /// The one that was given.
        found: String,
    },
    /// A token id outside the embedding.
    #[error("token id {id} at position {position} is outside the vocabulary of {vocab}")]
    TokenId {
        /// The id.
        id: u32,
        /// Its index in the batch.
        position: usize,
        /// Rows of the embedding.
        vocab: usize,
    },
    /// No pages for an optimiser's state.
    #[error("no room for {bytes} bytes of optimiser states: {error}")]
    Pages {
        /// How many bytes were wanted.
        bytes: usize,
        /// What the system said.
        error: std::io::Error,
    },
    /// A NaN or an infinity where a number was expected.
    #[error("{what} is not finite ({value})")]
    NotFinite {
        /// The loss, or the tensor whose gradient it is.
        what: String,
        /// `NaN`, `inf` or `-inf`.
        value: f64,
    },
    /// The same amid an update: what had changed by then.
    #[error("{what} is not finite ({value}); {updated} had been updated by then, and nothing else was")]
    NotFiniteAmid {
        /// The tensor whose gradient it is.
        what: String,
        /// `NaN`, `inf` or `-inf`.
        value: f64,
        /// Such as `blocks 3 to 35`.
        updated: String,
    },
    /// A library of the GPU path that cannot be opened.
    #[error("{name} cannot be opened: {help}")]
    MissingLibrary {
        /// Such as `libnvrtc`.
        name: String,
        /// How to get it.
        help: String,
    },
    /// There is no such card.
    #[error("there is no cuda:{ordinal}: this machine has {count} usable GPU{}", if *.count == 1 { "" } else { "s" })]
    NoSuchDevice {
        /// The card asked for.
        ordinal: usize,
        /// How many there are.
        count: usize,
    },
    /// The card or one of its libraries failed.
    #[error("could not {doing}: {reason}")]
    Device {
        /// What was tried.
        doing: String,
        /// What the driver or the library said.
        reason: String,
    },
    /// The machine's own memory does not suffice for what waits there.
    #[error("out of memory: {:.2} GiB are needed beside the GPU's, {:.2} are free", gib(*.needed), gib(*.free))]
    OutOfHostMemory {
        /// Bytes asked for.
        needed: usize,
        /// Bytes that the system has left.
        free: usize,
    },
    /// The card's memory does not suffice.
    #[error(
        "out of GPU memory: {:.2} GiB more are needed, {:.2} of {:.2} GiB are free",
        gib(*.needed), gib(*.free), gib(*.total)
    )]
    OutOfDeviceMemory {
        /// Bytes asked for.
        needed: usize,
        /// Bytes free on the card.
        free: usize,
        /// Bytes of the card.
        total: usize,
    },
}

fn gib(bytes: usize) -> f64 {
    bytes as f64 / (1_u64 << 30) as f64
}

/// The engine's result.
pub type Result<T> = std::result::Result<T, EngineError>;

/// Fails unless `found == expected`.
pub(crate) fn expect_shape<T: PartialEq + std::fmt::Debug>(what: &str, expected: T, found: T) -> Result<()> {
    if expected == found {
        return Ok(());
    }
    Err(EngineError::Shape { what: what.into(), expected: format!("{expected:?}"), found: format!("{found:?}") })
}
