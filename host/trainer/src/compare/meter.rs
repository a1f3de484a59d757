//! The progress of a comparison's stage. In: cells that begin and end, and their scores. Out: how far it is, the time left, the best
//! so far.

use super::site::Site;
use crate::report::{CellProgress, Event, Observer};

/// A line of the progress: what goes on, how far it is, and the best so far.
pub(super) struct Meter<'a> {
    observer: &'a mut dyn Observer,
    site: &'a Site<'a>,
    /// Cells that have ended.
    pub done: u64,
    /// Of how many.
    pub total: u64,
    /// How many run at once.
    at_once: usize,
    /// Seconds of cells, and cells done, when this stage began.
    stage: (f64, u64),
    /// The best score so far, and whose.
    pub best: Option<(f64, String)>,
}

impl<'a> Meter<'a> {
    /// None of `total` cells is done, of which `at_once` run side by side.
    pub fn new(site: &'a Site<'a>, observer: &'a mut dyn Observer, total: u64, at_once: usize) -> Self {
        let mut meter = Self { observer, site, done: 0, total, at_once, stage: (0.0, 0), best: None };
        meter.begin_stage();
        meter
    }

    /// Time left is reckoned from what the stage's cells took, in this process or an earlier one.
    pub fn begin_stage(&mut self) {
        self.stage = (self.site.cell_seconds(), self.done);
    }

    /// Notes a score of the method's, which may be the best so far.
    pub fn scored(&mut self, score: f64, method: &str) {
        let better = self.site.comparison.score.better;
        if self.best.as_ref().is_none_or(|(best, _)| better.is(score, *best)) {
            self.best = Some((score, format!("{score:.4} by {method}")));
        }
    }

    /// Says that a cell begins, or what came of it.
    pub fn tell(&mut self, doing: &str, ended: Option<&str>) {
        let (seconds, done) = (self.site.cell_seconds() - self.stage.0, self.done - self.stage.1);
        let remaining = self.total - self.done;
        let at_once = (self.at_once as u64).clamp(1, remaining.max(1));
        let left = (done > 0 && remaining > 0).then(|| seconds / done as f64 * remaining as f64 / at_once as f64);
        let best = self.best.as_ref().map(|(_, words)| words.as_str());
        let progress = CellProgress { done: self.done, total: self.total, doing, ended, left_s: left, best };
        self.observer.on(&Event::Cell(&progress));
    }
}
