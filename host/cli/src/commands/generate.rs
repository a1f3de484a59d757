//! `liftplan generate RUN|MODEL --prompt TEXT`: streams what the model writes.

use std::time::Instant;

use anyhow::Result;
use liftplan::data::prompt_ids;
use liftplan::eval::generate::{Generator, Sampling, TextStream};
use serde::Serialize;

use super::open;
use crate::args::Generate;
use crate::output::Output;
use crate::progress::Progress;

#[derive(Serialize)]
struct Generation<'a> {
    prompt: &'a str,
    text: String,
    tokens: usize,
    seconds: f64,
}

/// Writes the answer as it comes; as JSON, at once at the end.
pub fn run(args: &Generate, output: &Output) -> Result<()> {
    let mut progress = Progress::new();
    let model = open(&args.target, args.step, args.device, &mut progress)?;
    let (data, seed) = (model.config.as_ref().map(|config| &config.data), model.config.as_ref().map_or(0, |c| c.seed));
    let prompt = prompt_ids(data, seed, &model.base, &args.prompt, args.plain, &mut progress)?;
    drop(progress);
    let tokenizer = &model.base.tokenizer;
    let sampling = Sampling { temperature: args.temperature, top_p: args.top_p, top_k: args.top_k, seed: args.seed };
    let mut generator = Generator::new(model.model(), tokenizer, &sampling)?;
    let mut stream = TextStream::new(tokenizer);
    let mut text = String::new();
    let show = |piece: String, text: &mut String| {
        text.push_str(&piece);
        if output.is_json() { Ok(()) } else { output.text(piece) }
    };
    let begun = Instant::now();
    let tokens = generator.stream(&prompt, args.max_tokens, |id| {
        show(stream.push(id)?, &mut text)?;
        Ok(true)
    })?;
    show(stream.finish()?, &mut text)?;
    let seconds = begun.elapsed().as_secs_f64();
    if output.is_json() {
        output.result(&Generation { prompt: &args.prompt, text, tokens, seconds }, "")?;
    } else {
        output.text("\n")?;
    }
    Ok(())
}
