//! `liftplan plan CONFIG`: the plan that a configuration makes, without training; or, with `--shape`, what each method
//! would take for a model that need not be here.

use std::fmt::Write;
use std::path::Path;

use anyhow::Result;
use liftplan::config::{Config, OptimizerName, bytes};
use liftplan::model::shapes;
use liftplan::plan::memory::{self, States, Work};
use liftplan::plan::{self, fit};
use liftplan::report::process;
use liftplan::report::text::memory as amount;
use liftplan::{Error, model, policy, train};

use super::here;
use crate::args::{Kind, Plan};
use crate::output::Output;
use crate::progress::Progress;

/// Makes the plan and shows it: counted for people, whole as JSON.
pub fn run(args: &Plan, output: &Output) -> Result<()> {
    if let Some(shape) = &args.shape {
        return methods(args, shape, output);
    }
    // The parser asks for one of the two.
    let path = args.config.as_deref().ok_or_else(|| Error::config("neither a configuration nor a shape is named"))?;
    let config = Config::load(path, &args.set)?;
    policy::check(&config)?;
    let mut progress = Progress::new();
    let model = model::open(&config.model, Path::new(""), &mut progress)?;
    // What the program holds before it loads a model; the data come on top.
    let process_bytes = process::resident_bytes().unwrap_or(0);
    let plan = train::plan(&config, &model, &mut progress)?;
    drop(progress);
    if let Some(path) = &args.out {
        plan::file::write(&plan, path)?;
    }
    if output.is_json() {
        return Ok(output.text(plan::file::to_text(&plan)?)?);
    }
    let tokens = config.train.micro_batch_tokens;
    let longest = config.data.max_length.min(tokens);
    let work = Work { tokens, targets: tokens, longest, recompute: config.train.recompute };
    let predicted = memory::predict(&plan, &model.inventory, &model.spec, States::of(&config), work, process_bytes);
    let mut text = format!("{}\n", plan.summary(&model.inventory));
    // Writing to a string can't fail.
    let _ = writeln!(
        text,
        "peak while training: at most {} with {tokens} tokens at once (activations {}, the program and its tokenizer {}; \
         data not counted)",
        amount(predicted.total()),
        amount(predicted.activations_bytes),
        amount(predicted.process_bytes)
    );
    Ok(output.text(text)?)
}

fn methods(args: &Plan, shape: &str, output: &Output) -> Result<()> {
    let shape = shapes::find(shape, &here()?)?;
    let available_bytes = args.memory.as_deref().map(bytes::parse).transpose()?;
    let optimizer = if args.eight_bit_states { OptimizerName::Adamw8bit } else { OptimizerName::Adamw };
    let found = match args.device {
        Kind::Cuda if args.recompute => {
            return Err(Error::config(
                "--recompute has no effect with --device cuda: the least memory is what is shown",
            )
            .help("leave it out")
            .into());
        }
        Kind::Cuda => {
            let question = train::card_fit::Question {
                available_bytes,
                eight_bit_states: args.eight_bit_states,
                offload_embedding: args.offload_embedding,
                update_in_backward: args.update_in_backward,
            };
            train::fit_on_card(&shape, question)?
        }
        Kind::Cpu if args.offload_embedding || args.update_in_backward => {
            let flag = if args.offload_embedding { "--offload-embedding" } else { "--update-in-backward" };
            return Err(Error::config(format!("{flag} has no effect without --device cuda"))
                .help("leave it out")
                .into());
        }
        Kind::Cpu => {
            let process_bytes = process::resident_bytes().unwrap_or(0);
            fit::fit(&shape, fit::Question { available_bytes, process_bytes, recompute: args.recompute, optimizer })?
        }
    };
    Ok(output.result(&found, &found)?)
}
