//! Where a step's time goes: events around everything that is queued, summed by kind of work. On a card that is not there what
//! would be queued is counted.

use std::collections::BTreeMap;

use cudarc::driver::sys;

use super::event::Event;
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
    /// Start and end of each piece, if there is a card to note them.
    marks: Vec<(Kind, Option<[Event; 2]>)>,
}

impl Profile {
    pub(crate) fn new() -> Self {
        Self { marks: Vec::new() }
    }

    pub(crate) fn start(&mut self, kind: Kind, stream: sys::CUstream) -> Result<()> {
        let (start, end) = (Event::timed()?, Event::timed()?);
        let recorded = start.record(stream);
        self.marks.push((kind, Some([start, end])));
        recorded
    }

    /// Counts a piece that no card carries out.
    pub(crate) fn count(&mut self, kind: Kind) {
        self.marks.push((kind, None));
    }

    pub(crate) fn end(&mut self, stream: sys::CUstream) -> Result<()> {
        let mark = self.marks.last().and_then(|(_, events)| events.as_ref());
        mark.map_or(Ok(()), |[_, end]| end.record(stream))
    }

    /// Milliseconds by kind, how many pieces each had, and the milliseconds from the first to the last.
    pub(crate) fn sums(&mut self) -> Result<Times> {
        let mut by_kind = BTreeMap::<Kind, (f64, usize)>::new();
        let mut total_ms = 0.0;
        if let (Some((_, Some([first, _]))), Some((_, Some([_, last])))) = (self.marks.first(), self.marks.last()) {
            total_ms = first.milliseconds_to(last)?;
        }
        for (kind, events) in self.marks.drain(..) {
            let sum = by_kind.entry(kind).or_default();
            let taken_ms = events.map_or(Ok(0.0), |[start, end]| start.milliseconds_to(&end))?;
            (sum.0, sum.1) = (sum.0 + taken_ms, sum.1 + 1);
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
