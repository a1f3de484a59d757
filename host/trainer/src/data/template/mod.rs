//! A model's chat template: conversations in, the text that the model was taught to read out, as
//! `transformers.apply_chat_template` renders it.
//!
//! The template is Jinja, run by `minijinja` with what `transformers` adds to Jinja: `trim_blocks` and `lstrip_blocks`,
//! loop controls, `raise_exception`, `strftime_now`, a `tojson` that is Python's `json.dumps`, Python's methods of
//! strings and dictionaries, and `{% generation %}`, which marks what the model says. A template comes with the model
//! and is not to be trusted: it sees nothing but its variables, and its work is limited.

use std::collections::BTreeMap;
use std::ops::Range;

use chrono::{NaiveDate, NaiveDateTime};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde, Value as JinjaValue, ValueKind};
use minijinja::{Environment, ErrorKind};
use serde_json::{Map, Value};

use crate::{Error, Result};

mod generation;
mod python_json;

/// Most instructions that one rendering may take; a long conversation takes some thousands.
const FUEL: u64 = 50_000_000;

/// What a template sees beside the messages.
#[derive(Clone, Debug, Default)]
pub struct TemplateContext {
    /// Special tokens by name, `bos_token` → `<s>`; those that a model lacks are absent.
    pub special_tokens: BTreeMap<String, String>,
    /// Further variables, such as `enable_thinking`.
    pub variables: BTreeMap<String, Value>,
    /// The day that `strftime_now` tells (at midnight); now (UTC) if none.
    pub date: Option<NaiveDate>,
}

/// A compiled chat template.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    context: TemplateContext,
    /// Whether the template marks what the model says with `{% generation %}`.
    pub marks_generation: bool,
    /// Whether the template asks for the date.
    pub asks_for_date: bool,
}

/// A rendered conversation.
#[derive(Clone, Debug, PartialEq)]
pub struct Rendered {
    /// The text.
    pub text: String,
    /// Where the template says that the model speaks, in bytes of `text`; empty without `{% generation %}`.
    pub generated: Vec<Range<usize>>,
}

impl ChatTemplate {
    /// Compiles a template.
    ///
    /// # Errors
    /// If it is not valid Jinja.
    pub fn new(source: &str, context: TemplateContext) -> Result<Self> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder()
            .trim_blocks(true)
            .lstrip_blocks(true)
            .build()
            .map_err(|e| Error::internal(format!("the syntax of chat templates: {e}")))?;
        environment.set_syntax(syntax);
        environment.set_fuel(Some(FUEL));
        environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        environment.set_unknown_method_callback(unknown_method);
        environment.add_filter("tojson", python_json::tojson);
        environment.add_function(
            "raise_exception",
            |message: String| -> std::result::Result<String, minijinja::Error> {
                Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
            },
        );
        let date = context.date;
        environment.add_function("strftime_now", move |format: &str| strftime(date, format));
        // In Python a string can be iterated over and indexed, and a dictionary iterated over.
        environment.add_test("iterable", |value: &JinjaValue| {
            value.kind() == ValueKind::String || value.is_undefined() || value.try_iter().is_ok()
        });
        environment.add_test("sequence", |value: &JinjaValue| {
            matches!(value.kind(), ValueKind::Seq | ValueKind::String | ValueKind::Map)
        });
        let (source, marks_generation) = generation::replace_tags(source);
        let asks_for_date = source.contains("strftime_now");
        environment.add_template_owned("chat template", source).map_err(|e| {
            Error::model(format!("the chat template is not valid: {}", describe(&e)))
                .help("give another as data.chat_template = \"file.jinja\", or \"none\" for plain text")
        })?;
        Ok(Self { environment, context, marks_generation, asks_for_date })
    }

    /// Renders a conversation: `messages` and `tools` as the template is to see them. With `add_generation_prompt` the
    /// text ends where the model is to go on.
    ///
    /// # Errors
    /// The template's own complaint (`raise_exception`), or what it could not do.
    pub fn render(&self, messages: &[Value], tools: Option<&Value>, add_generation_prompt: bool) -> Result<Rendered> {
        let mut variables = Map::new();
        for (name, text) in &self.context.special_tokens {
            variables.insert(name.clone(), Value::String(text.clone()));
        }
        for (name, value) in &self.context.variables {
            variables.insert(name.clone(), value.clone());
        }
        variables.insert("messages".into(), Value::Array(messages.to_vec()));
        variables.insert("tools".into(), tools.cloned().unwrap_or(Value::Null));
        variables.insert("documents".into(), Value::Null);
        variables.insert("add_generation_prompt".into(), Value::Bool(add_generation_prompt));
        let text = self
            .environment
            .get_template("chat template")
            .and_then(|template| template.render(JinjaValue::from(Serde(&variables))))
            .map_err(|e| Error::data(format!("the chat template refuses the conversation: {}", describe(&e))))?;
        Ok(if self.marks_generation { generation::extract(&text) } else { Rendered { text, generated: Vec::new() } })
    }
}

/// Python's string methods that `minijinja_contrib` lacks, and those that it has.
fn unknown_method(
    state: &mut minijinja::State,
    value: &JinjaValue,
    method: &str,
    args: &[JinjaValue],
) -> std::result::Result<JinjaValue, minijinja::Error> {
    if let (Some(text), [argument]) = (value.as_str(), args)
        && let Some(affix) = argument.as_str()
    {
        match method {
            "removeprefix" => return Ok(text.strip_prefix(affix).unwrap_or(text).into()),
            "removesuffix" => return Ok(text.strip_suffix(affix).unwrap_or(text).into()),
            _ => {}
        }
    }
    minijinja_contrib::pycompat::unknown_method_callback(state, value, method, args)
}

fn strftime(date: Option<NaiveDate>, format: &str) -> std::result::Result<String, minijinja::Error> {
    use std::fmt::Write;
    let now = match date {
        Some(date) => date.and_time(chrono::NaiveTime::MIN),
        None => {
            let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
            chrono::DateTime::from_timestamp(since.as_secs() as i64, 0).map(|t| t.naive_utc()).unwrap_or_default()
        }
    };
    let mut text = String::new();
    match write!(text, "{}", NaiveDateTime::format(&now, format)) {
        Ok(()) => Ok(text),
        Err(_) => Err(minijinja::Error::new(ErrorKind::InvalidOperation, format!("strftime_now cannot do {format:?}"))),
    }
}

/// The template engine's message with the template's line, in one line.
fn describe(error: &minijinja::Error) -> String {
    let what = error.detail().map_or_else(|| error.kind().to_string(), str::to_string);
    match error.line() {
        Some(line) => format!("{what} (line {line} of the template)"),
        None => what,
    }
}

/// Keyword arguments that a filter takes or ignores, by name.
fn keyword<T>(kwargs: &Kwargs, name: &str) -> std::result::Result<Option<T>, minijinja::Error>
where
    T: for<'a> minijinja::value::ArgType<'a, Output = T>,
{
    if kwargs.has(name) { kwargs.get::<Option<T>>(name) } else { Ok(None) }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub mod tests;
