//! Writes the logits that a trained run gives for sequences of token ids, for `tests/compat/check_export.py` to compare
//! with those of its exports.
//!
//!     logits RUN SEQUENCES.json OUT.safetensors
//!
//! SEQUENCES is a JSON list of lists of ids. OUT has `run.I` and `base.I`, `[length, vocab]` f32: with what the run trained,
//! and of the untouched base model.

use std::collections::HashMap;
use std::path::Path;

use candle_core::{Device, Tensor};
use liftplan::Error;
use liftplan::checkpoint::Source;
use liftplan::report::Silent;
use liftplan::train::{build, trainable};
use liftplan_engine::{Batch, Decoder};

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [run, sequences, out] = args.as_slice() else { return Err("give RUN SEQUENCES.json OUT.safetensors".into()) };
    let sequences: Vec<Vec<u32>> = serde_json::from_str(&std::fs::read_to_string(sequences)?)?;
    let source = Source::open(Path::new(run), None, &mut Silent)?;
    let mut tensors = HashMap::new();
    let mut plan = source.plan.clone();
    let mut decoder = build(&source.base, &plan, 0, &mut Silent)?;
    trainable::load(&mut decoder, &source.checkpoint.trainable)?;
    add(&mut tensors, "run", &decoder, &sequences)?;
    for entry in &mut plan.entries {
        entry.treatment = liftplan::plan::Treatment::Frozen;
    }
    add(&mut tensors, "base", &build(&source.base, &plan, 0, &mut Silent)?, &sequences)?;
    candle_core::safetensors::save(&tensors, out)?;
    Ok(())
}

fn add(
    tensors: &mut HashMap<String, Tensor>,
    name: &str,
    model: &Decoder,
    sequences: &[Vec<u32>],
) -> Result<(), Failure> {
    for (i, ids) in sequences.iter().enumerate() {
        let rows: Vec<usize> = (0..ids.len()).collect();
        let batch = Batch::pack([(ids.as_slice(), vec![false; ids.len()].as_slice())]);
        let logits = model.logits(&batch, &rows).map_err(|error| Error::internal(error.to_string()))?;
        let tensor = Tensor::from_slice(&logits, (logits.rows(), logits.cols()), &Device::Cpu)?;
        tensors.insert(format!("{name}.{i}"), tensor);
    }
    Ok(())
}
