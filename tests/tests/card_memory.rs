//! `plan --shape … --device cuda` against the peaks that were measured on a card: the table of `host/docs/gpu.md` is read, each
//! work is laid out as the benchmark does it, and the prediction for a card that has just as much is within 5 %.

#![allow(clippy::unwrap_used)]

use std::path::Path;

use liftplan::model::inventory::{Kind, TensorInfo};
use liftplan::model::shapes::{self, Shape};
use liftplan::plan::{AdapterSpec, Origin, Plan, PlanBuilder, Storage, StorageRule};
use liftplan::train::card_fit::{Account, Question, fit_on_card};
use liftplan_engine::Batch;
use liftplan_engine::cuda::{MomentFormat, Options};
use liftplan_tests::golden;

const GIB: f64 = (1_u64 << 30) as f64;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Method {
    Lora,
    Qlora,
    Spectrum,
    Qspectrum,
}

/// The blocks whose weights of each role train in the benchmark.
const SPECTRUM: [(&str, [usize; 9]); 7] = [
    ("q_proj", [2, 12, 16, 24, 25, 26, 29, 31, 34]),
    ("k_proj", [3, 4, 8, 9, 13, 19, 22, 24, 30]),
    ("v_proj", [2, 6, 9, 16, 19, 23, 27, 28, 34]),
    ("o_proj", [6, 10, 19, 20, 21, 22, 27, 30, 33]),
    ("gate_proj", [0, 3, 16, 17, 25, 28, 29, 30, 35]),
    ("up_proj", [0, 5, 7, 10, 21, 22, 23, 25, 31]),
    ("down_proj", [2, 4, 9, 12, 14, 15, 17, 25, 33]),
];

fn plan(shape: &Shape, method: Method) -> Plan {
    let inventory = &shape.inventory;
    let others = inventory.tensors.iter().filter(|info| info.kind != Kind::Linear);
    let exceptions = others.map(|info| (info.name.clone(), Storage::Bf16)).collect();
    let nf4 = Storage::Nf4 { block_size: 64, double_quantization: true };
    let frozen = if matches!(method, Method::Qlora | Method::Qspectrum) { nf4 } else { Storage::Bf16 };
    let mut builder = PlanBuilder::new(inventory, StorageRule { trained: Storage::Bf16, frozen, exceptions });
    let picked = |info: &TensorInfo| {
        let blocks = SPECTRUM.iter().find(|(role, _)| *role == info.role).map(|(_, blocks)| blocks);
        blocks.zip(info.block).is_some_and(|(blocks, block)| blocks.contains(&block))
    };
    for info in inventory.tensors.iter().filter(|info| info.kind == Kind::Linear) {
        match method {
            Method::Lora | Method::Qlora => {
                let adapter = AdapterSpec { rank: 16, alpha: 32.0, dropout: 0.0, rslora: false, dora: false };
                builder.adapt(&info.name, adapter).unwrap();
            }
            Method::Spectrum | Method::Qspectrum if picked(info) => builder.train(&info.name).unwrap(),
            Method::Spectrum | Method::Qspectrum => {}
        }
    }
    let origin = Origin { policy: "test".into(), version: String::new(), settings: serde_json::Value::Null };
    builder.build(origin).unwrap()
}

/// A line of the table: the work, its documents and their length, and GiB of the card and of it the engine's.
struct Measured {
    work: String,
    /// With the embedding in the host's memory, and with updates inside the backward pass.
    lean: [bool; 2],
    method: Method,
    moments: MomentFormat,
    documents: usize,
    tokens: usize,
    card: f64,
    engine: f64,
}

fn measured() -> Vec<Measured> {
    let text = std::fs::read_to_string(golden::folder().join("../../host/docs/gpu.md")).unwrap();
    let row = |line: &str| -> Option<Measured> {
        let mut cells = line.strip_prefix('|')?.split('|').map(str::trim);
        let (work, memory) = (cells.next()?, cells.next()?);
        let lean = ['ʰ', 'ᵘ'].map(|mark| work.contains(mark));
        let work = work.trim_end_matches(['ʰ', 'ᵘ', ' ']);
        let (name, rest) = work.split_once(' ')?;
        let method = match name {
            "LoRA" => Method::Lora,
            "QLoRA" => Method::Qlora,
            "Spectrum-25" => Method::Spectrum,
            "qspectrum-25" => Method::Qspectrum,
            _ => return None,
        };
        let moments = match rest.split_once(", ").map(|(_, moments)| moments) {
            Some(text) if text.starts_with("8-bit") => MomentFormat::EightBit,
            Some(text) if text.starts_with("bf16") => MomentFormat::Bf16,
            _ if method == Method::Qlora => MomentFormat::EightBit,
            _ => MomentFormat::Wide,
        };
        let (tokens, documents) = rest.split(',').next()?.split_once('×')?;
        let (card, engine) = memory.strip_suffix(')')?.split_once(" (")?;
        Some(Measured {
            work: work.to_string(),
            lean,
            method,
            moments,
            documents: documents.trim().parse().ok()?,
            tokens: tokens.trim().parse().ok()?,
            card: card.parse().ok()?,
            engine: engine.parse().ok()?,
        })
    };
    text.lines().filter_map(row).collect()
}

#[test]
fn what_was_measured_on_a_card_was_predicted_without_one() {
    let shape = shapes::find("qwen3-8b", Path::new("")).unwrap();
    let rows = measured();
    assert!(rows.len() >= 18, "{} rows of host/docs/gpu.md can be read", rows.len());
    for row in rows {
        let options = Options {
            moments: row.moments,
            narrow_grads: true,
            rank_multiple: if row.method == Method::Qlora { 16 } else { 0 },
            embedding_on_host: row.lean[0],
            update_in_backward: row.lean[1],
            ..Options::default()
        };
        let mut account = Account::new(&shape, &plan(&shape, row.method), options).unwrap();
        let (ids, targets) = (vec![1; row.tokens], vec![true; row.tokens]);
        let batch = Batch::pack((0..row.documents).map(|_| (ids.as_slice(), targets.as_slice())));
        // The work fits a card that has what it took, and a fifth of a GiB: half of that is what the driver is reckoned to take more
        // than it did, and plans come in steps.
        let on_card = account.bytes_on(((row.card + 0.2) * GIB) as u64, &batch).unwrap();
        let on_card = on_card.unwrap_or_else(|| panic!("{} is said not to fit {} GiB", row.work, row.card));
        let predicted = (account.lasting_bytes(&batch) + on_card) as f64 / GIB;
        assert!(
            (predicted / row.engine - 1.0).abs() < 0.05,
            "{}: {predicted:.2} GiB predicted, {:.2} measured",
            row.work,
            row.engine
        );
        // And what must be there at the least is no more than that.
        let least = (account.lasting_bytes(&batch) + account.least_bytes(&batch).unwrap()) as f64 / GIB;
        assert!(least <= row.engine * 1.01, "{}: {least:.2} GiB at the least, {:.2} measured", row.work, row.engine);
    }
}

#[test]
fn more_memory_trains_longer_sequences_and_fewer_bits_fit_smaller_cards() {
    let shape = shapes::find("qwen3-8b", Path::new("")).unwrap();
    let longest = |gib: u64| -> Vec<(String, Option<usize>)> {
        let fit = fit_on_card(
            &shape,
            Question { available_bytes: Some(gib << 30), eight_bit_states: true, ..Question::default() },
        )
        .unwrap();
        for method in &fit.methods {
            let taken: Vec<u64> = method.memory.iter().map(|memory| memory.total()).collect();
            assert!(taken.windows(2).all(|pair| pair[0] <= pair[1]), "{}: {taken:?}", method.method);
        }
        fit.methods.into_iter().map(|method| (method.method, method.longest_tokens)).collect()
    };
    let [small, middle, large] = [8, 24, 80].map(longest);
    let of = |all: &[(String, Option<usize>)], name: &str| all.iter().find(|(method, _)| method == name).unwrap().1;
    assert_eq!(of(&small, "lora"), None);
    assert!(of(&small, "qlora").is_some() && of(&middle, "lora").is_some());
    for (before, after) in [(&small, &middle), (&middle, &large)] {
        assert!(before.iter().zip(after).all(|(a, b)| a.1 <= b.1), "{before:?} {after:?}");
    }
}
