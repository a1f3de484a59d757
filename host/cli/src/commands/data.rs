//! `liftplan data CONFIG`: examples as the model will see them, with what the loss counts set off.

use std::io::IsTerminal;
use std::path::Path;

use anyhow::Result;
use liftplan::{Error, data, model};

use super::configuration;
use crate::args::{Data, Split};
use crate::output::Output;
use crate::progress::Progress;

/// Reads all data and shows some.
pub fn run(args: &Data, output: &Output) -> Result<()> {
    let config = configuration(&args.configured)?;
    let mut progress = Progress::new();
    let model = model::open(&config.model, Path::new(""), &mut progress)?;
    let splits =
        data::load_splits(&config.data, config.seed, &model, &mut progress).map_err(|error| config.locate(error))?;
    drop(progress);
    let (chosen, name) = match args.split {
        Split::Train => (Some(splits.train), "training"),
        Split::Validation => (splits.validation, "validation"),
        Split::Test => (splits.test, "test"),
    };
    let chosen = chosen.ok_or_else(|| Error::config(format!("the configuration has no {name} data")))?;
    let preview = data::preview(&chosen, &model.tokenizer, args.show)?;
    let colour = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    Ok(output.result(&preview, preview.render(colour))?)
}
