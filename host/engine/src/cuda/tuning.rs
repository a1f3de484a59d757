//! Which of cuBLASLt's algorithms is the fastest for a product: measured once for a class of shapes, and kept on disk, so that the
//! next run computes the same bits.
//!
//! A card at its limit of power lowers its clock within milliseconds, and what comes after a rest runs faster than what comes after
//! other work. So the ways take turns without a pause between them, timed by the card itself: measured one after another with
//! waiting between, the choice was another every time, and steps with it up to 2 % apart. Where the turns differ by less than
//! [`MARGIN`] the library's order decides: its first guess takes less power, which is speed on such a card, and the choice is the
//! same on the next machine.

use std::collections::HashMap;
use std::io::Write;
use std::path::PathBuf;

use super::context::Context;
use super::event::Event;
use super::kernels::cache_root;
use crate::error::Result;

/// Rounds in which every way has its turn; the first is not counted.
const ROUNDS: usize = 4;
/// How long a turn is to be, in seconds, and how often it may repeat the work for that.
const TURN_SECONDS: f64 = 5e-4;
const REPEATS: f64 = 8.0;
/// By what share a way must be faster than one that the library proposes before it.
const MARGIN: f64 = 0.02;

/// The choices of one card and one cuBLASLt.
#[derive(Debug, Default)]
pub(crate) struct Choices {
    file: Option<PathBuf>,
    known: HashMap<String, usize>,
}

impl Choices {
    /// Those kept for this card and library.
    pub fn load(card: &str, version: usize) -> Self {
        let plain: String = card.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
        let file = cache_root().map(|root| root.join("products").join(format!("{plain}-{version}.txt")));
        let text = file.as_ref().and_then(|file| std::fs::read_to_string(file).ok()).unwrap_or_default();
        // A line that was cut short is measured again; the last of several counts.
        let known = text.lines().filter_map(|line| line.split_once('\t'));
        let known = known.filter_map(|(key, choice)| Some((key.to_string(), choice.parse().ok()?))).collect();
        Self { file, known }
    }

    /// What was chosen for a shape.
    pub fn get(&self, key: &str) -> Option<usize> {
        self.known.get(key).copied()
    }

    /// Keeps a choice; a cache that cannot be written costs time, not the run.
    pub fn set(&mut self, key: String, choice: usize) {
        if let Some(file) = &self.file {
            let _ = file.parent().map(std::fs::create_dir_all);
            if let Ok(mut out) = std::fs::OpenOptions::new().create(true).append(true).open(file) {
                // In one piece, since other processes write to the same file.
                let _ = out.write_all(format!("{key}\t{choice}\n").as_bytes());
            }
        }
        self.known.insert(key, choice);
    }
}

/// Which of several ways of doing the same, of about so many `seconds`, takes the least time.
///
/// # Errors
/// When the device fails; a way that cannot be queued is only not chosen.
pub(crate) fn fastest<W>(context: &Context, ways: &[W], seconds: f64, run: impl Fn(&W) -> Result<()>) -> Result<usize> {
    let repeats = (TURN_SECONDS / seconds).ceil().clamp(1.0, REPEATS) as usize;
    let mut serves = vec![true; ways.len()];
    let mark = || -> Result<Event> {
        let event = Event::timed()?;
        event.record(context.stream()).map(|()| event)
    };
    let mut marks = vec![mark()?];
    for _ in 0..ROUNDS {
        for (way, serves) in ways.iter().zip(&mut serves) {
            *serves = *serves && (0..repeats).all(|_| run(way).is_ok());
            marks.push(mark()?);
        }
    }
    context.synchronize()?;
    let mut sums = vec![f64::INFINITY; ways.len()];
    for way in (0..ways.len()).filter(|&way| serves[way]) {
        let turns =
            (1..ROUNDS).map(|round| round * ways.len() + way).map(|at| marks[at].milliseconds_to(&marks[at + 1]));
        sums[way] = turns.sum::<Result<f64>>()?;
    }
    Ok(first_of_the_fastest(&sums))
}

/// The first whose time is within [`MARGIN`] of the least.
fn first_of_the_fastest(times: &[f64]) -> usize {
    let least = times.iter().copied().fold(f64::INFINITY, f64::min);
    times.iter().position(|&time| time <= least * (1.0 + MARGIN)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_library_s_order_decides_where_times_are_alike() {
        assert_eq!(first_of_the_fastest(&[1.03, 1.01, 1.0]), 1);
        assert_eq!(first_of_the_fastest(&[1.5, f64::INFINITY, 1.0]), 2);
        // None that could be queued: the first guess, whose error then is the product's.
        assert_eq!(first_of_the_fastest(&[f64::INFINITY; 3]), 0);
    }
}
