//! The data of a run: what it trains on, and what it is judged on.

use std::path::{Path, PathBuf};

use super::encode::Encoder;
use super::load::{Loaded, Loader};
use super::report::Finding;
use super::split::split;
use super::template::{ChatTemplate, TemplateContext};
use super::types::Dataset;
use crate::config::{DataConfig, DataFormat};
use crate::model::BaseModel;
use crate::report::{Event, Observer};
use crate::{Error, ErrorKind, Result};

/// The data sets of a run.
#[derive(Debug)]
pub struct Splits {
    /// To train on.
    pub train: Dataset,
    /// To evaluate on while training: its own files, or rows held out of the training files.
    pub validation: Option<Dataset>,
    /// To evaluate on before and after training.
    pub test: Option<Dataset>,
}

/// Reads the files that `config` names. `seed` chooses the rows that are held out.
///
/// Validation and test files are of the training files' format. Their labels are those of the training files, or those
/// that the configuration gives.
///
/// # Errors
/// When a file can't be read, or its rows can't be used.
pub fn load_splits(config: &DataConfig, seed: u64, base: &BaseModel, observer: &mut dyn Observer) -> Result<Splits> {
    let encoder = Encoder::new(&base.tokenizer, base.spec.vocab)?;
    let template = chat_template(config, base)?;
    let loader = Loader { config, encoder: &encoder, template: template.as_ref() };
    splits(&loader, seed, observer)
}

/// Reads other files than those of the configuration in the same way, such as those that a finished run is judged by.
/// `labels` are those of the training; if empty, those of the configuration, or else those that the files hold.
///
/// # Errors
/// When a file can't be read, or its rows can't be used.
pub fn load_files(
    config: &DataConfig,
    files: &[PathBuf],
    labels: &[String],
    base: &BaseModel,
    observer: &mut dyn Observer,
) -> Result<Dataset> {
    let encoder = Encoder::new(&base.tokenizer, base.spec.vocab)?;
    let template = chat_template(config, base)?;
    let loader = Loader { config, encoder: &encoder, template: template.as_ref() };
    let labels = if labels.is_empty() { &config.labels } else { labels };
    dataset(&loader, files, config.format, labels, observer)
}

pub(super) fn splits(loader: &Loader<'_>, seed: u64, observer: &mut dyn Observer) -> Result<Splits> {
    let config = loader.config;
    let mut train = dataset(loader, &config.train, config.format, &config.labels, observer)?;
    let mut others = |files: &[PathBuf]| match files.is_empty() {
        true => Ok(None),
        false => dataset(loader, files, train.format, &train.labels, observer).map(Some),
    };
    let mut validation = others(&config.validation)?;
    let test = others(&config.test)?;
    if let Some(share) = config.validation_split {
        let (rest, held_out) = split(std::mem::take(&mut train.examples), share, seed, |example| example.label)?;
        train.rows.notes.push(format!("{} of the examples held out for validation", held_out.len()));
        validation = Some(Dataset { examples: held_out, ..train.clone() });
        train.examples = rest;
    }
    Ok(Splits { train, validation, test })
}

fn dataset(
    loader: &Loader<'_>,
    files: &[PathBuf],
    format: DataFormat,
    labels: &[String],
    observer: &mut dyn Observer,
) -> Result<Dataset> {
    let mut loaded = loader.load(files, format, labels, observer)?;
    if !labels.is_empty() && loaded.format != DataFormat::Label && loader.config.labels == labels {
        return Err(Error::config(format!("`data.labels` has no effect: the format is \"{}\"", loaded.format.name()))
            .help("leave it out"));
    }
    if loader.template.is_some_and(|template| template.asks_for_date) && loader.config.template_date.is_none() {
        let note = "the chat template tells today's date; data.template_date makes it the same every day";
        loaded.rows.notes.push(note.to_string());
    }
    if !loader.encoder.has_eos() {
        loaded.rows.notes.push("the tokenizer has no token that ends a text, so none is learnt".to_string());
    }
    warn(&loaded, observer);
    label(loader, loaded, labels)
}

/// Tells the user of rows that were not used, or not as they are.
fn warn(loaded: &Loaded, observer: &mut dyn Observer) {
    for (finding, report) in &loaded.rows.findings {
        let rows = if report.count == 1 { "row" } else { "rows" };
        let first = report.first.first().map(|p| format!(", the first at {}: {}", p.at, p.what)).unwrap_or_default();
        let text = format!("{} of {} {rows} {}{first}", report.count, loaded.rows.read, finding.describe());
        // A cut is what the configuration asks for; what it costs is in the report.
        if *finding != Finding::Cut || report.count * 10 >= loaded.rows.read {
            observer.on(&Event::Warning(&text));
        }
    }
}

/// Counts the labels, and encodes each as an answer.
fn label(loader: &Loader<'_>, loaded: Loaded, known: &[String]) -> Result<Dataset> {
    let Loaded { mut examples, labels: of_examples, format, rows, first } = loaded;
    let (mut labels, mut label_ids) = (Vec::new(), Vec::new());
    if format == DataFormat::Label {
        labels = known.to_vec();
        if labels.is_empty() {
            labels = of_examples.iter().flatten().cloned().collect();
            labels.sort_unstable();
            labels.dedup();
        }
        for (example, label) in examples.iter_mut().zip(&of_examples) {
            example.label = label.as_ref().and_then(|label| labels.iter().position(|known| known == label));
            // The answer in words is the label as it is named.
            if example.reference.is_some() {
                example.reference.clone_from(label);
            }
        }
        for label in &labels {
            let Some(sample) = first.as_ref().map(|sample| sample.with_label(label)) else { continue };
            let (encoded, _) = loader.encode(&sample)?;
            let start = encoded.answers.last().copied().unwrap_or(0);
            let end = encoded.is_target.iter().rposition(|&target| target).map_or(0, |last| last + 1);
            label_ids.push(encoded.ids.get(start..end).unwrap_or_default().to_vec());
        }
    }
    Ok(Dataset { examples, format, labels, label_ids, rows })
}

/// The chat template that the configuration asks for, if any.
pub(super) fn chat_template(config: &DataConfig, base: &BaseModel) -> Result<Option<ChatTemplate>> {
    let source = match config.chat_template.as_str() {
        "none" => None,
        "auto" => base.chat_template.clone(),
        path => Some(
            std::fs::read_to_string(path)
                .map_err(|e| Error::io(ErrorKind::Config, "read the chat template", Path::new(path), &e))?,
        ),
    };
    let Some(source) = source else {
        if let Some(name) = config.template_variables.keys().next() {
            return Err(Error::config(format!(
                "`data.template_variables.{name}` has no effect: there is no chat template"
            ))
            .help("leave it out, or give a template as data.chat_template = \"file.jinja\""));
        }
        return Ok(None);
    };
    let tokenizer = &base.tokenizer;
    let named = [("bos_token", tokenizer.bos()), ("eos_token", tokenizer.eos()), ("pad_token", tokenizer.pad())];
    let special_tokens =
        named.into_iter().filter_map(|(name, token)| Some((name.to_string(), token?.text.clone()))).collect();
    let date = match &config.template_date {
        None => None,
        Some(date) => Some(date.parse().map_err(|_| Error::config("`data.template_date` must be a day, YYYY-MM-DD"))?),
    };
    let context = TemplateContext { special_tokens, variables: config.template_variables.clone(), date };
    ChatTemplate::new(&source, context).map(Some)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::report::Silent;

    fn repository() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
    }

    fn load(config: &str, change: impl Fn(&mut DataConfig)) -> Result<(Splits, BaseModel)> {
        let base = crate::model::open("tests/golden/families/llama/model", &repository(), &mut Silent)?;
        let mut config: DataConfig = toml::from_str(config).unwrap();
        config.resolve(&repository(), &crate::config::Places::default())?;
        change(&mut config);
        Ok((load_splits(&config, 0, &base, &mut Silent)?, base))
    }

    const TICKETS: &str = "train = 'examples/data/tickets/train.jsonl'\ntest = 'examples/data/tickets/test.jsonl'";

    #[test]
    fn example_data_with_a_model_from_its_files() {
        let (splits, base) = load(TICKETS, |c| c.chat_template = "none".into()).unwrap();
        let (train, test) = (&splits.train, splits.test.as_ref().unwrap());
        assert!(train.labels.len() > 1 && train.labels == test.labels);
        for example in train.examples.iter().chain(&test.examples) {
            let label = &train.labels[example.label.unwrap()];
            let said: Vec<u32> = example.ids[example.prompt_tokens..].to_vec();
            assert_eq!(base.tokenizer.decode(&said, true).unwrap(), format!(" {label}"));
            assert_eq!(said.last(), base.tokenizer.eos().map(|token| &token.id));
            assert_eq!(said, train.label_ids[example.label.unwrap()]);
        }
        let shown = crate::data::preview(train, &base.tokenizer, 2).unwrap().render(false);
        assert!(shown.contains("\nLabel:⟦ "), "{shown}");
    }

    #[test]
    fn the_models_own_template_is_the_default() {
        let (splits, base) = load(TICKETS, |_| {}).unwrap();
        let example = &splits.train.examples[0];
        let label = &splits.train.labels[example.label.unwrap()];
        let said: Vec<u32> =
            example.ids.iter().zip(&example.is_target).filter(|(_, t)| **t).map(|(id, _)| *id).collect();
        assert_eq!(base.tokenizer.decode(&said, true).unwrap(), *label);
        assert!(base.tokenizer.stop_ids().contains(said.last().unwrap()));
    }

    #[test]
    fn templates_that_cannot_be_read_or_are_not_there() {
        let missing = load(TICKETS, |c| c.chat_template = "/nowhere/t.jinja".into()).err().unwrap();
        assert!(missing.message().contains("cannot read the chat template /nowhere/t.jinja"), "{missing}");
        let idle = load(TICKETS, |c| {
            c.chat_template = "none".into();
            c.template_variables.insert("enable_thinking".into(), false.into());
        });
        let idle = idle.err().unwrap();
        assert!(idle.message().starts_with("`data.template_variables.enable_thinking` has no effect"), "{idle}");
    }
}
