//! What cards of 8 to 80 GB train of the 8B shape: the longest sequence that the planner takes on, trained, and the most tokens
//! a second with documents of 2,048. In: methods, and how much of the card at hand may be taken. Out: a line for each thing
//! trained, with the peak beside its prediction, and the table of `host/docs/gpu.md`.
//!
//! Without a card (`--dry`) the same is planned and nothing is trained.

use std::time::Instant;

use liftplan_engine::cuda::{Context, Decoder, MomentFormat, Options, StepPlan};
use liftplan_engine::{Batch, EngineError};

use crate::work::{DRIVER_GIB, Method, batch, bytes, described, gib, step};

const METHODS: [(&str, &str, Method); 4] = [
    ("lora", "LoRA", Method::Lora),
    ("qlora", "QLoRA", Method::Qlora),
    ("spectrum-25", "Spectrum 25 %", Method::Spectrum),
    ("qspectrum-25", "QSpectrum 25 %", Method::Qspectrum),
];
/// GiB of whole cards, the smallest first: what was trained within one fits the next as well.
const BUDGETS: [u32; 6] = [8, 12, 16, 24, 48, 80];
/// Tokens that the model's own positions end with.
const MOST_TOKENS: usize = 40_960;
/// Lengths are multiples of this.
const GRAIN: usize = 64;
/// Tokens of a document where many are trained at once.
const DOCUMENT: usize = 2048;
/// GiB of an H100 of 80 GB.
const H100_GIB: f64 = 79.1;

/// What a method does with a budget.
#[derive(Clone, Default)]
struct Cell {
    /// Tokens of the longest sequence.
    longest: Option<usize>,
    /// Tokens a second, and how many documents are trained at once.
    fastest: Option<(f64, usize)>,
    /// GiB of the card that a document of 2,048 tokens takes at the least.
    least: f64,
}

/// What was trained.
struct Seen {
    documents: [usize; 2],
    plan: StepPlan,
    speed: f64,
}

/// Plans and trains what was asked for (all without), gives whether anything failed.
pub fn run(context: &Context, methods: &str, budgets: &str) -> bool {
    let known = [&METHODS.map(|method| method.0.to_string())[..], &BUDGETS.map(|budget| budget.to_string())];
    for (list, known) in [methods, budgets].into_iter().zip(known) {
        if let Some(unknown) = list.split(',').find(|one| !list.is_empty() && !known.iter().any(|name| name == one)) {
            eprintln!("error: `{unknown}` is none of {}", known.join(", "));
            return true;
        }
    }
    let methods: Vec<_> = METHODS.iter().filter(|method| named(methods, method.0)).collect();
    let budgets: Vec<u32> = BUDGETS.into_iter().filter(|budget| named(budgets, &budget.to_string())).collect();
    let (total, before) = match context.is_dry() {
        true => (bytes(H100_GIB), bytes(DRIVER_GIB[0])),
        false => {
            let (free, total) = context.memory().unwrap();
            (total, total - free)
        }
    };
    println!("the card holds {:.2} GiB, {:.2} are taken before the model", gib(total), gib(before));
    println!("| s | method | of GiB | documents | tok/s | GiB of the card, predicted | engine, predicted | plan |");
    println!("| --- | --- | --- | --- | --- | --- | --- | --- |");
    let mut cells = vec![vec![Vec::new(); methods.len()]; budgets.len()];
    let (started, mut failed) = (Instant::now(), false);
    for (column, (_, name, method)) in methods.iter().enumerate() {
        // The usual way for all cards, and the lean one for those that it lets train more; on a card, the lean one.
        let mut rows: Vec<usize> = (0..budgets.len()).collect();
        let ways: &[bool] = if context.is_dry() { &[false, true] } else { &[true] };
        for &lean in ways {
            if rows.is_empty() {
                break;
            }
            let name = format!("{name}{}", if lean { " ʰᵘ" } else { "" });
            let usual = method.options(MomentFormat::EightBit);
            let options = Options { embedding_on_host: lean, update_in_backward: lean, ..usual };
            let mut decoder = match method.build(context, options) {
                Ok(decoder) => decoder,
                Err(error) => {
                    println!("{name}: {error}");
                    failed = true;
                    break;
                }
            };
            let mut measured = Measured { name, total, before, started, seen: Vec::new(), failed: false };
            measured.first_step(&mut decoder);
            rows.retain(|&row| {
                let cell = measured.cell(&mut decoder, budgets[row]);
                let more = cell.longest != Some(MOST_TOKENS);
                cells[row][column].push(cell);
                more
            });
            failed |= measured.failed;
        }
    }
    println!("\nLongest sequence; most tok/s (documents of {DOCUMENT} tokens at once)\n");
    println!("| card |{}", methods.iter().map(|method| format!(" {} |", method.1)).collect::<String>());
    println!("| --- |{}", " --- |".repeat(methods.len()));
    for (budget, cells) in budgets.iter().zip(&cells) {
        println!("| {budget} GiB |{}", cells.iter().map(|ways| format!(" {} |", in_table(ways))).collect::<String>());
    }
    failed
}

/// Whether a name is in a list; all are in an empty one.
fn named(list: &str, name: &str) -> bool {
    list.is_empty() || list.split(',').any(|one| one == name)
}

/// A model that is measured within one budget after the other.
struct Measured {
    name: String,
    /// Bytes of the card, and what of them was taken before there was a model.
    total: usize,
    before: usize,
    started: Instant,
    seen: Vec<Seen>,
    failed: bool,
}

impl Measured {
    /// What is made once for all lengths is made before anything is planned: the table of positions, kernels.
    fn first_step(&mut self, decoder: &mut Decoder) {
        if decoder.context().is_dry() {
            return;
        }
        let mut batch = batch(decoder.shape(), [GRAIN, 1], 0);
        for position in &mut batch.positions {
            *position += (MOST_TOKENS - GRAIN) as u32;
        }
        if let Err(error) = step(decoder, &batch) {
            self.fails(&format!("a first step: {error}"));
        }
    }

    fn cell(&mut self, decoder: &mut Decoder, budget: u32) -> Cell {
        let cap = bytes(f64::from(budget)).min(self.total);
        self.cap(decoder, cap);
        let longest = longest(|length| planned(decoder, [length, 1]).is_ok());
        let mut cell = Cell { longest, ..Cell::default() };
        match longest {
            // One step shows what it takes. What a smaller card trained is not trained again.
            Some(length) if self.seen.iter().any(|seen| seen.documents == [length, 1]) => (),
            Some(length) => {
                self.train(decoder, cap, [length, 1], 0);
            }
            None => println!("{}, {budget} GiB: not even {GRAIN} tokens fit", self.name),
        }
        // Many at once keep the products large; of few, more is kept.
        for documents in [4, 2, 1] {
            let speed = self.train(decoder, cap, [DOCUMENT, documents], 3).filter(|&speed| speed > 0.0);
            if let Some(speed) = speed.filter(|&speed| cell.fastest.is_none_or(|(fastest, _)| speed > fastest)) {
                cell.fastest = Some((speed, documents));
            }
        }
        decoder.set_budget(Some(0));
        if let Err(EngineError::OutOfDeviceMemory { needed, .. }) = planned(decoder, [DOCUMENT, 1]) {
            cell.least = gib(self.lasting(decoder) + needed + self.beside());
        }
        if longest.is_none_or(|longest| longest < DOCUMENT) {
            println!("{}, {budget} GiB: {DOCUMENT} tokens take {:.1} GiB at the least", self.name, cell.least);
        }
        cell
    }

    /// Trains documents of one length, `timed` steps after the first, or plans it without a card. Gives tokens a second: their
    /// median, or that of the first step, 0 without a card; `None` if they do not fit `cap` bytes of the card.
    fn train(&mut self, decoder: &mut Decoder, cap: usize, documents: [usize; 2], timed: usize) -> Option<f64> {
        self.cap(decoder, cap);
        let (plan, batch) = planned(decoder, documents).ok()?;
        let seen = self.seen.iter().find(|seen| seen.documents == documents && seen.plan == plan);
        if let Some(Seen { speed, .. }) = seen {
            println!("{}: {} as planned above, in {:.0} GiB too", self.name, told(documents), gib(cap));
            return Some(*speed);
        }
        let engine = self.lasting(decoder) + decoder.needed(&batch, &plan).unwrap();
        let card = engine + self.beside();
        let (mut speed, mut told_speed, mut found) = (0.0, "–".into(), ["–".into(), "–".into()]);
        if !decoder.context().is_dry() {
            match self.steps(decoder, &batch, timed) {
                Ok(seconds) => speed = batch.tokens() as f64 / seconds,
                Err(error) => {
                    self.fails(&format!("{}: {error}", told(documents)));
                    return None;
                }
            }
            let (free, total) = decoder.context().memory().unwrap();
            let taken = [total - free, decoder.context().allocated_bytes().1];
            for (what, found, predicted) in [("card", taken[0], card), ("engine", taken[1], engine)] {
                let percent = 100.0 * (found as f64 / predicted as f64 - 1.0);
                if percent.abs() > 5.0 {
                    self.fails(&format!("{}: of the {what} {percent:+.1} % beside the prediction", told(documents)));
                }
            }
            if taken[0] > cap {
                self.fails(&format!("{}: {:.2} GiB taken of {:.2}", told(documents), gib(taken[0]), gib(cap)));
            }
            found = taken.map(|bytes| format!("{:.2}", gib(bytes)));
            told_speed = format!("{}{speed:.0}", if timed == 0 { "≥ " } else { "" });
        }
        println!(
            "| {:.0} | {} | {:.0} | {} | {told_speed} | {}, {:.2} | {}, {:.2} | {} |",
            self.started.elapsed().as_secs_f64(),
            self.name,
            gib(cap),
            told(documents),
            found[0],
            gib(card),
            found[1],
            gib(engine),
            described(&plan)
        );
        self.seen.push(Seen { documents, plan, speed });
        Some(speed)
    }

    /// A first step and `timed` more; seconds of their median, or of the first.
    fn steps(&self, decoder: &mut Decoder, batch: &Batch, timed: usize) -> Result<f64, EngineError> {
        let mut seconds = Vec::new();
        for _ in 0..=timed {
            let started = Instant::now();
            step(decoder, batch)?;
            seconds.push(started.elapsed().as_secs_f64());
        }
        if timed > 0 {
            seconds.remove(0);
        }
        seconds.sort_by(f64::total_cmp);
        Ok(seconds[seconds.len() / 2])
    }

    /// Lets the engine have no more than this of the card, as if nothing had been trained before.
    fn cap(&self, decoder: &mut Decoder, cap: usize) {
        decoder.release_arena().unwrap();
        let context = decoder.context();
        context.reset_peak();
        // A card that is not there has no driver, and no table of positions yet.
        let table = self.lasting(decoder) - decoder.account(&[]).total();
        let taken = if context.is_dry() { self.beside() + table } else { 0 };
        decoder.set_budget(Some(cap.saturating_sub(taken)));
    }

    /// Bytes of weights, states and tables.
    fn lasting(&self, decoder: &Decoder) -> usize {
        decoder.account(&[MOST_TOKENS as u32 - 1]).total()
    }

    /// Bytes that are taken beside the engine's.
    fn beside(&self) -> usize {
        self.before + bytes(DRIVER_GIB[1])
    }

    fn fails(&mut self, what: &str) {
        println!("FAILED {}, {what}", self.name);
        self.failed = true;
    }
}

/// The longest length that fits, if any does: where one does not, no longer one is asked for.
fn longest(fits: impl Fn(usize) -> bool) -> Option<usize> {
    if fits(MOST_TOKENS) {
        return Some(MOST_TOKENS);
    }
    let lengths: Vec<usize> = (1..MOST_TOKENS / GRAIN).map(|count| GRAIN * count).collect();
    let count = lengths.partition_point(|&length| fits(length));
    count.checked_sub(1).map(|last| lengths[last])
}

fn planned(decoder: &Decoder, documents: [usize; 2]) -> Result<(StepPlan, Batch), EngineError> {
    let batch = batch(decoder.shape(), documents, 0);
    match decoder.choose_plan(&batch) {
        Ok(plan) => Ok((plan, batch)),
        Err(error @ EngineError::OutOfDeviceMemory { .. }) => Err(error),
        Err(error) => panic!("a step cannot be laid out: {error}"),
    }
}

fn told([length, count]: [usize; 2]) -> String {
    format!("{count} × {}", grouped(length))
}

/// A number with commas.
fn grouped(number: usize) -> String {
    match number {
        0..1000 => number.to_string(),
        _ => format!("{},{:03}", number / 1000, number % 1000),
    }
}

/// What stands in the table: the longest sequence and, if any was timed, the most tokens a second with so many documents; the
/// usual way and, if that was tried, the lean one.
fn in_table(ways: &[Cell]) -> String {
    if ways.iter().all(|cell| cell.longest.is_none()) {
        return format!("– ({:.1} GiB at the least)", ways.last().map_or(0.0, |cell| cell.least));
    }
    let each = |text: &dyn Fn(&Cell) -> Option<String>| -> String {
        let texts: Vec<String> = ways.iter().map(|cell| text(cell).unwrap_or_else(|| "–".into())).collect();
        texts.join(" / ")
    };
    let longest = each(&|cell| cell.longest.map(grouped));
    if ways.iter().all(|cell| cell.fastest.is_none()) {
        return longest;
    }
    let fastest = |(speed, documents): (f64, usize)| format!("{} ({documents})", grouped(speed.round() as usize));
    format!("{longest}; {}", each(&|cell| cell.fastest.map(fastest)))
}
