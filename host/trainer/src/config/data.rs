//! The `[data]` section: which files, how their rows are read, and what becomes of rows that cannot be used.
//!
//! In: TOML. Out: [`DataConfig`], every default filled in, which `data::load` carries out.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer, Serialize};

use super::Places;
use crate::{Error, Result};

/// The `[data]` section. Paths are relative to the configuration file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DataConfig {
    /// Files to train on: one path or a list. By extension: `.jsonl`, `.ndjson`, `.json`, `.csv`, `.tsv`, `.parquet`.
    #[serde(deserialize_with = "one_or_many")]
    pub train: Vec<PathBuf>,
    /// Files to evaluate on during training; excludes `validation_split`.
    #[serde(deserialize_with = "one_or_many", skip_serializing_if = "Vec::is_empty")]
    pub validation: Vec<PathBuf>,
    /// Share of the training rows, in `(0, 1)`, that is held out for validation, chosen by the seed, of each label alike.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub validation_split: Option<f64>,
    /// Files to evaluate on before and after training.
    #[serde(deserialize_with = "one_or_many", skip_serializing_if = "Vec::is_empty")]
    pub test: Vec<PathBuf>,
    /// What a row is.
    pub format: DataFormat,
    /// The columns that a row's parts are in.
    pub fields: FieldNames,
    /// The prompt's wording for `label` and `prompt-completion` rows: `{column}` stands for the row's value, `{{` and
    /// `}}` for braces. Unset: `{text}\nLabel:` for label rows, the prompt column as it is for prompt-completion rows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt: Option<String>,
    /// The labels of `label` rows. Empty: those found in the training files, sorted. Where the column holds numbers
    /// and these are names, a number is an index into them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub labels: Vec<String>,
    /// How conversations, and prompts with answers, are put into words: `auto` is the model's chat template if it has
    /// one and plain text otherwise, `none` is plain text, anything else is the path of a Jinja file.
    pub chat_template: String,
    /// Further variables for the chat template, such as `enable_thinking = false`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub template_variables: BTreeMap<String, serde_json::Value>,
    /// The day, `YYYY-MM-DD`, that the template's `strftime_now` tells. Unset: today, which makes training depend on
    /// the day it is started; the report says when a template asks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub template_date: Option<String>,
    /// Which tokens the loss counts.
    pub loss_on: LossOn,
    /// Longest example, in tokens.
    pub max_length: usize,
    /// What becomes of longer examples. A cut example that has no target token left is dropped.
    pub too_long: TooLong,
    /// What becomes of rows without text, or without anything to learn.
    pub empty: OnProblem,
    /// What becomes of rows that are not valid UTF-8, JSON or CSV, or not of the format.
    pub undecodable: OnProblem,
    /// What becomes of rows without a label or an answer, or with a label that is not among the labels.
    pub unlabelled: OnProblem,
    /// Whether micro-batches are filled up to a token budget with whole examples (true) or hold a fixed number of
    /// examples (false). Training's results do not depend on it, only its speed.
    pub packing: bool,
}

impl Default for DataConfig {
    fn default() -> Self {
        Self {
            train: Vec::new(),
            validation: Vec::new(),
            validation_split: None,
            test: Vec::new(),
            format: DataFormat::Auto,
            fields: FieldNames::default(),
            prompt: None,
            labels: Vec::new(),
            chat_template: "auto".to_string(),
            template_variables: BTreeMap::new(),
            template_date: None,
            loss_on: LossOn::Assistant,
            max_length: 1024,
            too_long: TooLong::Truncate,
            empty: OnProblem::Drop,
            undecodable: OnProblem::Error,
            unlabelled: OnProblem::Error,
            packing: true,
        }
    }
}

impl DataConfig {
    /// Makes paths absolute, seen from the configuration file's `directory`, and refuses what contradicts itself or
    /// would have no effect.
    pub fn resolve(&mut self, directory: &Path, places: &Places) -> Result<()> {
        if self.train.is_empty() {
            return Err(Error::config("`data.train` is missing").help("name a file: train = \"data/train.jsonl\""));
        }
        for path in self.train.iter_mut().chain(&mut self.validation).chain(&mut self.test) {
            *path = directory.join(&*path);
        }
        if !matches!(self.chat_template.as_str(), "auto" | "none") {
            self.chat_template = directory.join(&self.chat_template).display().to_string();
        }
        if let Some(share) = self.validation_split {
            if !self.validation.is_empty() {
                return Err(Error::config("`data.validation_split` and `data.validation` are both set")
                    .help("keep one of them"));
            }
            if !(share > 0.0 && share < 1.0) {
                return Err(Error::config(format!("`data.validation_split` must be in (0, 1), not {share}")));
            }
        }
        if self.max_length < 2 {
            return Err(Error::config(format!("`data.max_length` must be at least 2, not {}", self.max_length)));
        }
        if let Some(date) = &self.template_date
            && date.parse::<chrono::NaiveDate>().is_err()
        {
            return Err(Error::config(format!("`data.template_date` must be a day, YYYY-MM-DD, not \"{date}\"")));
        }
        if let Some(label) = self.labels.iter().enumerate().find(|(i, l)| self.labels[..*i].contains(l)).map(|(_, l)| l)
        {
            return Err(Error::config(format!("`data.labels` names \"{label}\" twice")));
        }
        use DataFormat::{Auto, Label, PromptCompletion};
        let no_effect = |name: &str, formats: &[DataFormat]| {
            let idle = places.has(&format!("data.{name}")) && self.format != Auto && !formats.contains(&self.format);
            let format = self.format.name();
            let names: Vec<_> = formats.iter().map(|f| format!("\"{}\"", f.name())).collect();
            match idle {
                true => Err(Error::config(format!("`data.{name}` has no effect: the format is \"{format}\""))
                    .help(format!("leave it out, or set data.format to {}", names.join(" or ")))),
                false => Ok(()),
            }
        };
        no_effect("labels", &[Label])?;
        no_effect("prompt", &[Label, PromptCompletion])
    }

    /// Whether there is anything to evaluate on while training.
    pub fn has_validation(&self) -> bool {
        !self.validation.is_empty() || self.validation_split.is_some()
    }
}

/// What a row of data is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DataFormat {
    /// Told from the columns; an error where they fit no format or several.
    Auto,
    /// `messages`: a list of `{role, content}`.
    Chat,
    /// `prompt` and `completion`: two texts.
    PromptCompletion,
    /// `instruction`, `input` (may be empty or absent) and `output`.
    Alpaca,
    /// `conversations`: a list of `{from, value}`.
    Sharegpt,
    /// `text`.
    Text,
    /// `text` and `label`.
    Label,
}

impl DataFormat {
    /// The name used in configuration files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Chat => "chat",
            Self::PromptCompletion => "prompt-completion",
            Self::Alpaca => "alpaca",
            Self::Sharegpt => "sharegpt",
            Self::Text => "text",
            Self::Label => "label",
        }
    }
}

/// Names of the columns that a row's parts are in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FieldNames {
    /// Chat: the list of messages.
    pub messages: String,
    /// ShareGPT: the list of turns.
    pub conversations: String,
    /// Prompt-completion: the prompt.
    pub prompt: String,
    /// Prompt-completion: the completion.
    pub completion: String,
    /// Alpaca: the instruction.
    pub instruction: String,
    /// Alpaca: the optional input.
    pub input: String,
    /// Alpaca: the answer.
    pub output: String,
    /// Alpaca, ShareGPT, prompt-completion: an optional system prompt.
    pub system: String,
    /// Text and label rows: the text.
    pub text: String,
    /// Label rows: the label.
    pub label: String,
}

impl Default for FieldNames {
    fn default() -> Self {
        Self {
            messages: "messages".into(),
            conversations: "conversations".into(),
            prompt: "prompt".into(),
            completion: "completion".into(),
            instruction: "instruction".into(),
            input: "input".into(),
            output: "output".into(),
            system: "system".into(),
            text: "text".into(),
            label: "label".into(),
        }
    }
}

/// Which tokens the loss counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LossOn {
    /// What the model is to say: assistant turns with their end-of-turn token, completions, labels. Plain text: all.
    Assistant,
    /// Every token.
    All,
}

/// What becomes of an example with more tokens than `max_length`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TooLong {
    /// Its end is cut off.
    Truncate,
    /// It is left out, and reported.
    Drop,
    /// Training does not start.
    Error,
}

/// What becomes of a row that cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnProblem {
    /// It is left out, and reported.
    Drop,
    /// Training does not start.
    Error,
}

/// Reads `"a.jsonl"` and `["a.jsonl", "b.jsonl"]`.
fn one_or_many<'de, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Vec<PathBuf>, D::Error> {
    struct Files;
    impl<'de> serde::de::Visitor<'de> for Files {
        type Value = Vec<PathBuf>;
        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("a path or a list of paths")
        }
        fn visit_str<E: serde::de::Error>(self, path: &str) -> std::result::Result<Self::Value, E> {
            Ok(vec![PathBuf::from(path)])
        }
        fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut seq: A) -> std::result::Result<Self::Value, A::Error> {
            let mut paths = Vec::new();
            while let Some(path) = seq.next_element()? {
                paths.push(path);
            }
            Ok(paths)
        }
    }
    deserializer.deserialize_any(Files)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn one_file_or_many_and_all_defaults() {
        let one: DataConfig = toml::from_str("train = 'a.jsonl'").unwrap();
        let many: DataConfig = toml::from_str("train = ['a.jsonl']").unwrap();
        assert_eq!(one, many);
        assert_eq!(one, DataConfig { train: vec!["a.jsonl".into()], ..DataConfig::default() });
    }

    #[test]
    fn written_out_it_reads_back_the_same() {
        let text = "train = 'a.csv'\nvalidation_split = 0.1\nformat = 'prompt-completion'\ntoo_long = 'drop'\n\
                    template_variables = { enable_thinking = false }\nfields = { prompt = 'question' }";
        let config: DataConfig = toml::from_str(text).unwrap();
        assert_eq!(config.fields.prompt, "question");
        let again: DataConfig = toml::from_str(&toml::to_string(&config).unwrap()).unwrap();
        assert_eq!(config, again);
    }

    #[test]
    fn contradictions_are_errors_that_name_the_setting() {
        let cases = [
            ("", "`data.train` is missing"),
            ("validation = 'b'\nvalidation_split = 0.1", "`data.validation_split` and `data.validation` are both set"),
            ("validation_split = 1.5", "`data.validation_split` must be in (0, 1), not 1.5"),
            ("max_length = 1", "`data.max_length` must be at least 2, not 1"),
            ("template_date = 'soon'", "`data.template_date` must be a day, YYYY-MM-DD, not \"soon\""),
            ("labels = ['a', 'b', 'a']", "`data.labels` names \"a\" twice"),
        ];
        for (text, expected) in cases {
            let train = if text.is_empty() { "" } else { "train = 'a'\n" };
            let mut config: DataConfig = toml::from_str(&format!("{train}{text}")).unwrap();
            assert_eq!(config.resolve(Path::new("/d"), &Places::default()).unwrap_err().message(), expected);
        }
        let mut config: DataConfig =
            toml::from_str("train = 'a'\ntest = ['b', '/c']\nchat_template = 't.jinja'").unwrap();
        config.resolve(Path::new("/d"), &Places::default()).unwrap();
        assert_eq!(config.train, [Path::new("/d/a")]);
        assert_eq!(config.test, [Path::new("/d/b"), Path::new("/c")]);
        assert_eq!(config.chat_template, "/d/t.jinja");
    }

    #[test]
    fn unknown_keys_are_errors() {
        let error = toml::from_str::<DataConfig>("trian = 'a.jsonl'").unwrap_err().to_string();
        assert!(error.contains("unknown field `trian`"), "{error}");
        assert!(toml::from_str::<DataConfig>("fields = { promt = 'x' }").is_err());
    }
}
