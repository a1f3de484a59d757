//! A prompt as the training data would have put it: what a finished run is asked in `generate`.
//!
//! In: the run's data settings, or none for an untouched model, and the user's text. Out: the token ids after which the
//! model is to go on. They are made by the same way as training examples, with an answer that is then cut off.

use serde_json::{Map, Value, json};

use super::encode::Encoder;
use super::format::{Reading, Sample};
use super::load::Loader;
use super::splits::{chat_template, load_splits};
use super::wording::Wording;
use crate::config::{DataConfig, DataFormat};
use crate::model::BaseModel;
use crate::report::Observer;
use crate::{Error, Result};

/// Stands for the answer while the prompt is made.
const ANSWER: &str = "x";

/// The token ids that ask the model `text`.
///
/// With the data settings of a run, `text` takes the place of the row's prompt: the user's turn of a conversation, the
/// `{text}` of a wording, the instruction. Without (`None`), it is the user's turn if the model has a chat template,
/// and otherwise text to go on with. `plain` is always text to go on with.
///
/// # Errors
/// The wording needs other columns than the one that `text` stands for, or the chat template refuses the conversation.
pub fn prompt_ids(
    config: Option<&DataConfig>,
    seed: u64,
    base: &BaseModel,
    text: &str,
    plain: bool,
    observer: &mut dyn Observer,
) -> Result<Vec<u32>> {
    let encoder = Encoder::new(&base.tokenizer, base.spec.vocab)?;
    let default = DataConfig::default();
    let settings = config.unwrap_or(&default);
    let template = if plain { None } else { chat_template(settings, base)? };
    let format = match (plain, config) {
        (true, _) => DataFormat::Text,
        (false, None) if template.is_some() => DataFormat::Chat,
        (false, None) => DataFormat::Text,
        // What the rows were was told from their columns, and is told so again.
        (false, Some(config)) if config.format == DataFormat::Auto => {
            load_splits(config, seed, base, observer)
                .map_err(|error| error.at("the training data tells how to word a prompt, and it can't be read again"))?
                .train
                .format
        }
        (false, Some(config)) => config.format,
    };
    let loader = Loader { config: settings, encoder: &encoder, template: template.as_ref() };
    let sample = match row(format, settings, text) {
        None => return encoder.prompt(text),
        Some(row) => {
            let reading = Reading {
                format,
                fields: &settings.fields,
                wording: settings.prompt.as_deref().map(Wording::parse).transpose()?,
                labels: &[],
                has_template: template.is_some(),
                needs_answer: true,
            };
            reading.sample(&row).map_err(|(_, what)| {
                Error::config(format!("the prompt can't be worded as in training: {what}"))
                    .help("give the whole text yourself with --plain")
            })?
        }
    };
    if let (Sample::Chat { .. }, None) = (&sample, &template) {
        return Err(Error::config("the run was trained on conversations, and the model has no chat template"));
    }
    let (encoded, _) = loader.encode(&sample)?;
    let end = encoded.answers.last().copied().unwrap_or(encoded.ids.len());
    Ok(encoded.ids[..end.min(encoded.ids.len())].to_vec())
}

/// The row of which `text` is the prompt; none for plain text.
fn row(format: DataFormat, config: &DataConfig, text: &str) -> Option<Map<String, Value>> {
    let fields = &config.fields;
    let turns = |user: &str, assistant: &str, role: &str, content: &str| json!([{ role: user, content: text }, { role: assistant, content: ANSWER }]);
    let columns = match format {
        DataFormat::Auto | DataFormat::Text => return None,
        DataFormat::Chat => vec![(&fields.messages, turns("user", "assistant", "role", "content"))],
        DataFormat::Sharegpt => vec![(&fields.conversations, turns("human", "gpt", "from", "value"))],
        DataFormat::PromptCompletion => vec![(&fields.prompt, json!(text)), (&fields.completion, json!(ANSWER))],
        DataFormat::Alpaca => vec![(&fields.instruction, json!(text)), (&fields.output, json!(ANSWER))],
        DataFormat::Label => vec![(&fields.text, json!(text)), (&fields.label, json!(ANSWER))],
    };
    Some(columns.into_iter().map(|(name, value)| (name.clone(), value)).collect())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::report::Silent;

    fn asked(config: Option<&str>, text: &str, plain: bool) -> String {
        let repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let base = crate::model::open("tests/golden/families/llama/model", &repository, &mut Silent).unwrap();
        let config: Option<DataConfig> = config.map(|config| toml::from_str(config).unwrap());
        let ids = prompt_ids(config.as_ref(), 0, &base, text, plain, &mut Silent).unwrap();
        base.tokenizer.decode(&ids, false).unwrap()
    }

    #[test]
    fn a_prompt_is_worded_as_the_training_rows_were() {
        let label = "format = 'label'\nchat_template = 'none'\nprompt = '{text} is about'";
        assert!(asked(Some(label), "the cat", false).ends_with("the cat is about"));
        let pair = "format = 'prompt-completion'\nchat_template = 'none'";
        assert!(asked(Some(pair), "the cat", false).ends_with("the cat"));
        let alpaca = asked(Some("format = 'alpaca'\nchat_template = 'none'"), "the cat", false);
        assert!(alpaca.contains("the cat") && alpaca.contains("Response"), "{alpaca}");
    }

    #[test]
    fn the_chat_template_is_used_unless_plain_text_is_asked_for() {
        let chat = asked(None, "the cat", false);
        assert!(chat.contains("the cat") && !chat.ends_with("the cat"), "{chat}");
        assert_eq!(chat, asked(Some("format = 'chat'"), "the cat", false));
        assert_eq!(chat, asked(Some("format = 'sharegpt'"), "the cat", false));
        assert!(asked(None, "the cat", true).ends_with("the cat"));
    }
}
