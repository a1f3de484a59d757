//! What a row is: from columns to a [`Sample`], and how to tell from the columns.
//!
//! | format | columns | becomes |
//! | --- | --- | --- |
//! | chat | `messages` | the conversation |
//! | sharegpt | `conversations`, `system`? | the conversation |
//! | prompt-completion | `prompt`, `completion`, `system`? | prompt → completion |
//! | alpaca | `instruction`, `input`?, `output`, `system`? | instruction and input → output |
//! | label | `text`, `label` | the worded text → label |
//! | text | `text` | the text |
//!
//! Prompt → answer is a conversation of two turns where there is a chat template (the prompt is the user's turn; an
//! alpaca prompt is the instruction, an empty line, and the input). Without one it is plain text: a system prompt and an
//! empty line, the prompt, the answer. An alpaca prompt then has the words of the Stanford Alpaca project. Nothing is put
//! between prompt and completion as they stand in a file; where the prompt has a wording of its own (label rows,
//! `data.prompt`), one space is, unless either side brings white space.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use super::read::kind_of;
use super::report::Finding;
use super::wording::Wording;
use crate::config::{DataConfig, DataFormat, FieldNames};
use crate::{Error, Result};

/// What a row says, ready to be encoded.
#[derive(Clone, Debug, PartialEq)]
pub enum Sample {
    /// A conversation for the chat template.
    Chat {
        /// Its messages as the template is to see them.
        messages: Vec<Value>,
        /// The tools that the row offers.
        tools: Option<Value>,
        /// Its label; label rows only.
        label: Option<String>,
    },
    /// Plain text after which the model is to go on.
    Pair {
        /// The text.
        prompt: String,
        /// What the model is to say.
        completion: String,
        /// Its label; label rows only.
        label: Option<String>,
    },
    /// Plain text.
    Text(String),
}

/// Why a row is no sample.
pub type Refusal = (Finding, String);

/// How rows become samples.
pub struct Reading<'a> {
    /// What rows are; never [`DataFormat::Auto`].
    pub format: DataFormat,
    /// Names of the columns.
    pub fields: &'a FieldNames,
    /// The prompt's wording, if it has one.
    pub wording: Option<Wording>,
    /// The labels, if they are known; otherwise any label will do.
    pub labels: &'a [String],
    /// Whether there is a chat template.
    pub has_template: bool,
    /// Whether rows without anything that the model says are useful.
    pub needs_answer: bool,
}

/// The columns that a format cannot do without.
pub fn required(format: DataFormat, fields: &FieldNames) -> Vec<&str> {
    match format {
        DataFormat::Auto => vec![],
        DataFormat::Chat => vec![&fields.messages],
        DataFormat::Sharegpt => vec![&fields.conversations],
        DataFormat::PromptCompletion => vec![&fields.prompt, &fields.completion],
        DataFormat::Alpaca => vec![&fields.instruction, &fields.output],
        DataFormat::Label => vec![&fields.text, &fields.label],
        DataFormat::Text => vec![&fields.text],
    }
}

/// Tells the format of `file` from its columns, or checks that it has those of the configured one.
///
/// # Errors
/// The columns fit no format or several, or lack some of the configured one.
pub fn detect(config: &DataConfig, format: DataFormat, file: &str, columns: &BTreeSet<String>) -> Result<DataFormat> {
    use DataFormat::{Alpaca, Auto, Chat, Label, PromptCompletion, Sharegpt, Text};
    let found = || match columns.is_empty() {
        true => "no columns".to_string(),
        false => format!("the columns {}", columns.iter().map(|c| format!("`{c}`")).collect::<Vec<_>>().join(", ")),
    };
    let has = |format| required(format, &config.fields).iter().all(|column| columns.contains(*column));
    if format != Auto {
        let missing: Vec<_> = required(format, &config.fields).into_iter().filter(|c| !columns.contains(*c)).collect();
        let Some(first) = missing.first() else { return Ok(format) };
        let near = columns.iter().max_by(|a, b| strsim::jaro(a, first).total_cmp(&strsim::jaro(b, first)));
        let help = match near.filter(|near| strsim::jaro(near, first) > 0.7) {
            Some(near) => format!("did you mean `{near}`? Name the columns in [data.fields]"),
            None => "name the columns in [data.fields], or choose another data.format".to_string(),
        };
        let name = format.name();
        let missing = missing.iter().map(|c| format!("`{c}`")).collect::<Vec<_>>().join(" and ");
        return Err(Error::data(format!(
            "{file}: the format \"{name}\" needs {missing}, but the file has {}",
            found()
        ))
        .help(help));
    }
    let mut fitting: Vec<DataFormat> =
        [Chat, Sharegpt, PromptCompletion, Alpaca, Label, Text].into_iter().filter(|f| has(*f)).collect();
    if fitting.contains(&Label) {
        fitting.retain(|f| *f != Text);
    }
    match fitting.as_slice() {
        [format] => Ok(*format),
        [] => Err(Error::data(format!("{file}: the format cannot be told from {}", found())).help(
            "set data.format, and name the columns in [data.fields]; \
             without that, messages, conversations, prompt + completion, instruction + output, text + label, or text \
             are looked for",
        )),
        several => {
            let names = several.iter().map(|f| format!("\"{}\"", f.name())).collect::<Vec<_>>().join(" and ");
            Err(Error::data(format!("{file}: {} fit more than one format: {names}", found()))
                .help("choose one with data.format"))
        }
    }
}

impl Reading<'_> {
    /// The sample of a row.
    ///
    /// # Errors
    /// The finding to report, and what is wrong, in words.
    pub fn sample(&self, row: &Map<String, Value>) -> Result<Sample, Refusal> {
        let fields = self.fields;
        match self.format {
            DataFormat::Chat | DataFormat::Auto => self.chat(row, &fields.messages, "role", "content"),
            DataFormat::Sharegpt => self.chat(row, &fields.conversations, "from", "value"),
            DataFormat::Text => Ok(Sample::Text(filled(row, &fields.text, Finding::Empty)?)),
            DataFormat::PromptCompletion => {
                let completion = filled(row, &fields.completion, Finding::Unlabelled)?;
                let prompt = text(row, &fields.prompt)?.unwrap_or_default();
                match &self.wording {
                    Some(wording) => Ok(self.worded(row, wording.fill(row)?, completion, None)?),
                    None => self.pair(row, prompt.clone(), prompt, completion, None),
                }
            }
            DataFormat::Alpaca => {
                let output = filled(row, &fields.output, Finding::Unlabelled)?;
                let instruction = filled(row, &fields.instruction, Finding::Empty)?;
                let input = text(row, &fields.input)?.filter(|input| !input.trim().is_empty());
                let turn = match &input {
                    Some(input) => format!("{instruction}\n\n{input}"),
                    None => instruction.clone(),
                };
                self.pair(row, turn, alpaca(&instruction, input.as_deref()), output, None)
            }
            DataFormat::Label => {
                let body = filled(row, &fields.text, Finding::Empty)?;
                let label = self.label(row)?;
                let prompt = match &self.wording {
                    Some(wording) => wording.fill(row)?,
                    None => format!("{body}\nLabel:"),
                };
                self.worded(row, prompt, label.clone(), Some(label))
            }
        }
    }

    fn label(&self, row: &Map<String, Value>) -> Result<String, Refusal> {
        let label = filled(row, &self.fields.label, Finding::Unlabelled)?.trim().to_string();
        if self.labels.is_empty() || self.labels.contains(&label) {
            return Ok(label);
        }
        let by_number = label.parse::<usize>().ok().and_then(|index| self.labels.get(index));
        by_number.cloned().ok_or_else(|| {
            let labels = self.labels.iter().take(20).map(|l| format!("\"{l}\"")).collect::<Vec<_>>().join(", ");
            (Finding::Unlabelled, format!("the label \"{label}\" is not among {labels}"))
        })
    }

    /// A prompt with a wording of its own.
    fn worded(
        &self,
        row: &Map<String, Value>,
        prompt: String,
        completion: String,
        label: Option<String>,
    ) -> Result<Sample, Refusal> {
        let is_apart = prompt.is_empty() || prompt.ends_with(char::is_whitespace);
        let apart = is_apart || completion.starts_with(char::is_whitespace) || self.has_template;
        let completion = if apart { completion } else { format!(" {completion}") };
        self.pair(row, prompt.clone(), prompt, completion, label)
    }

    fn pair(
        &self,
        row: &Map<String, Value>,
        turn: String,
        plain: String,
        completion: String,
        label: Option<String>,
    ) -> Result<Sample, Refusal> {
        let system = text(row, &self.fields.system)?.filter(|system| !system.is_empty());
        if !self.has_template {
            let prompt = system.map_or(plain.clone(), |system| format!("{system}\n\n{plain}"));
            return Ok(Sample::Pair { prompt, completion, label });
        }
        let mut messages = Vec::with_capacity(3);
        messages.extend(system.map(|system| json!({"role": "system", "content": system})));
        messages.push(json!({"role": "user", "content": turn}));
        messages.push(json!({"role": "assistant", "content": completion}));
        Ok(Sample::Chat { messages, tools: None, label })
    }

    fn chat(&self, row: &Map<String, Value>, column: &str, role: &str, content: &str) -> Result<Sample, Refusal> {
        let refuse = |what: String| (Finding::Undecodable, what);
        let turns = match row.get(column) {
            None | Some(Value::Null) => return Err((Finding::Empty, format!("no `{column}`"))),
            Some(Value::Array(turns)) => turns.clone(),
            // As it stands in CSV files.
            Some(Value::String(text)) => serde_json::from_str(text)
                .map_err(|_| refuse(format!("`{column}` is a text, but not that of a JSON list")))?,
            Some(other) => return Err(refuse(format!("`{column}` is {}, not a list", kind_of(other)))),
        };
        let mut messages = Vec::with_capacity(turns.len() + 1);
        if self.format == DataFormat::Sharegpt
            && let Some(system) = text(row, &self.fields.system)?.filter(|system| !system.is_empty())
        {
            messages.push(json!({"role": "system", "content": system}));
        }
        for (index, turn) in turns.into_iter().enumerate() {
            let at = format!("`{column}`, entry {}", index + 1);
            let Value::Object(mut turn) = turn else {
                return Err(refuse(format!("{at} is {}, not an object", kind_of(&turn))));
            };
            // Columnar files fill in what a message lacks.
            turn.retain(|key, value| key == content || !value.is_null());
            let Some(Value::String(speaker)) = turn.shift_remove(role) else {
                return Err(refuse(format!("{at} has no `{role}` that is a text")));
            };
            let speaker =
                if self.format == DataFormat::Sharegpt { sharegpt_role(&speaker) } else { Some(speaker.as_str()) };
            let Some(speaker) = speaker else {
                return Err(refuse(format!("{at}: nobody knows who `{role}` is")));
            };
            let said = turn.shift_remove(content).unwrap_or(Value::Null);
            if !matches!(said, Value::String(_) | Value::Array(_)) && !turn.contains_key("tool_calls") {
                return Err(refuse(format!("{at} has no `{content}` that is a text")));
            }
            let mut message = Map::new();
            message.insert("role".into(), Value::String(speaker.to_string()));
            message.insert("content".into(), said);
            if self.format != DataFormat::Sharegpt {
                message.extend(turn);
            }
            messages.push(Value::Object(message));
        }
        let is_blank = |m: &Value| m["content"].as_str().is_some_and(|said| said.trim().is_empty());
        let speaks = |m: &&Value| super::mask::is_assistant(m) && (!is_blank(m) || m.get("tool_calls").is_some());
        if messages.iter().all(|m| is_blank(m) && m.get("tool_calls").is_none()) {
            return Err((Finding::Empty, "nobody says anything".into()));
        }
        if self.needs_answer && !messages.iter().any(|m| speaks(&m)) {
            return Err((Finding::Unlabelled, "the assistant says nothing".into()));
        }
        let tools = match row.get("tools") {
            Some(Value::String(text)) => Some(
                serde_json::from_str(text)
                    .map_err(|_| refuse("`tools` is a text, but not that of a JSON list".into()))?,
            ),
            Some(Value::Null) | None => None,
            Some(tools) => Some(tools.clone()),
        };
        Ok(Sample::Chat { messages, tools, label: None })
    }
}

impl Sample {
    /// The same with another label as its answer. Not for samples without a label.
    pub fn with_label(&self, new: &str) -> Self {
        let mut sample = self.clone();
        match &mut sample {
            Self::Chat { messages, label, .. } => {
                if let Some(last) = messages.last_mut() {
                    last["content"] = Value::String(new.to_string());
                }
                *label = Some(new.to_string());
            }
            Self::Pair { completion, label, .. } => {
                let space = if completion.starts_with(' ') { " " } else { "" };
                *completion = format!("{space}{new}");
                *label = Some(new.to_string());
            }
            Self::Text(_) => {}
        }
        sample
    }

    /// Its label; label rows only.
    pub fn label(&self) -> Option<&str> {
        match self {
            Self::Chat { label, .. } | Self::Pair { label, .. } => label.as_deref(),
            Self::Text(_) => None,
        }
    }

    /// What it says in the row's own words, without what templates add.
    pub fn texts(&self) -> Vec<&str> {
        match self {
            Self::Chat { messages, .. } => messages.iter().filter_map(|m| m["content"].as_str()).collect(),
            Self::Pair { prompt, completion, .. } => vec![prompt, completion],
            Self::Text(text) => vec![text],
        }
    }
}

fn sharegpt_role(from: &str) -> Option<&str> {
    match from.to_ascii_lowercase().as_str() {
        "human" | "user" => Some("user"),
        "gpt" | "assistant" | "chatgpt" | "model" | "bot" => Some("assistant"),
        "system" => Some("system"),
        "tool" | "function" | "observation" => Some("tool"),
        _ => None,
    }
}

/// A column's text; numbers and truth values are written out.
fn text(row: &Map<String, Value>, column: &str) -> Result<Option<String>, Refusal> {
    match row.get(column) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(value @ (Value::Number(_) | Value::Bool(_))) => Ok(Some(value.to_string())),
        Some(other) => Err((Finding::Undecodable, format!("`{column}` is {}, not a text", kind_of(other)))),
    }
}

/// A column's text, which must not be blank.
fn filled(row: &Map<String, Value>, column: &str, finding: Finding) -> Result<String, Refusal> {
    match text(row, column)? {
        None => Err((finding, format!("no `{column}`"))),
        Some(text) if text.trim().is_empty() => Err((finding, format!("`{column}` is empty"))),
        Some(text) => Ok(text),
    }
}

/// The words of the Stanford Alpaca project.
fn alpaca(instruction: &str, input: Option<&str>) -> String {
    let task = "Below is an instruction that describes a task";
    let request = "Write a response that appropriately completes the request.";
    match input {
        Some(input) => format!(
            "{task}, paired with an input that provides further context. {request}\n\n\
             ### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
        ),
        None => format!("{task}. {request}\n\n### Instruction:\n{instruction}\n\n### Response:\n"),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
