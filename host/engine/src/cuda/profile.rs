//! Where a step's time goes: events around everything that is queued, summed by kind of work.

use std::collections::BTreeMap;

use cudarc::driver::{result, sys};

use super::context::check;
use crate::error::Result;

/// What a piece of work is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Products with the model's weights.
    Base,
    /// Products with adapters' matrices.
    Adapter,
    /// Gradients of weights that train.
    WeightGradient,
    /// Products with the vocabulary's matrix.
    Head,
    /// Attention.
    Attention,
    /// Norms, with residual additions.
    Norm,
    /// Rotary embedding and the heads' norms.
    Rope,
    /// The gated activation.
    Activation,
    /// The loss and its gradient.
    Loss,
    /// Gradient norm and update.
    Optimizer,
    /// Unpacking of quantised weights.
    Unpack,
    /// Squares of matrices.
    Square,
    /// Reflections that make a square tridiagonal.
    Reflections,
    /// Applying them.
    Reflected,
    /// Eigenvalues of what is tridiagonal.
    Bisection,
    /// All else: embedding, copies, clearing.
    Other,
}

#[derive(Debug)]
pub(crate) struct Profile {
    marks: Vec<(Kind, sys::CUevent, sys::CUevent)>,
}

// SAFETY: events are handles that any thread may use while their context is current.
unsafe impl Send for Profile {}

impl Profile {
    pub(crate) fn new() -> Self {
        Self { marks: Vec::new() }
    }

    pub(crate) fn start(&mut self, kind: Kind, stream: sys::CUstream) -> Result<()> {
        let flags = sys::CUevent_flags::CU_EVENT_DEFAULT;
        let start = check("make an event", result::event::create(flags))?;
        let end = check("make an event", result::event::create(flags))?;
        self.marks.push((kind, start, end));
        // SAFETY: event and stream are valid.
        check("record an event", unsafe { result::event::record(start, stream) })
    }

    pub(crate) fn end(&mut self, stream: sys::CUstream) -> Result<()> {
        let Some((_, _, end)) = self.marks.last() else { return Ok(()) };
        // SAFETY: event and stream are valid.
        check("record an event", unsafe { result::event::record(*end, stream) })
    }

    /// Milliseconds by kind, how many pieces each had, and the milliseconds from the first to the last.
    pub(crate) fn sums(&mut self) -> Result<Times> {
        let mut by_kind = BTreeMap::<Kind, (f64, usize)>::new();
        let mut total_ms = 0.0;
        if let (Some((_, first, _)), Some((_, _, last))) = (self.marks.first(), self.marks.last()) {
            // SAFETY: both are recorded, and the caller has waited for the stream.
            total_ms = f64::from(check("read an event", unsafe { result::event::elapsed(*first, *last) })?);
        }
        for (kind, start, end) in self.marks.drain(..) {
            // SAFETY: as above; each event is destroyed once.
            let ms = check("read an event", unsafe { result::event::elapsed(start, end) })?;
            let sum = by_kind.entry(kind).or_default();
            (sum.0, sum.1) = (sum.0 + f64::from(ms), sum.1 + 1);
            // SAFETY: as above.
            unsafe {
                let _ = result::event::destroy(start);
                let _ = result::event::destroy(end);
            }
        }
        Ok(Times { by_kind, total_ms })
    }
}

/// A profile's sums.
#[derive(Clone, Debug)]
pub struct Times {
    /// Milliseconds and number of pieces.
    pub by_kind: BTreeMap<Kind, (f64, usize)>,
    /// From the first piece's start to the last's end.
    pub total_ms: f64,
}
