//! The templates against `transformers` (tests/golden/chat), and what a hostile one cannot do.

use std::path::PathBuf;

use serde::Deserialize;
use serde_json::json;

use super::*;

/// A case of tests/golden/chat/cases.json.
#[derive(Deserialize)]
pub struct Case {
    pub name: String,
    pub template: String,
    pub messages: Vec<Value>,
    #[serde(default)]
    pub tools: Option<Value>,
    #[serde(default)]
    pub add_generation_prompt: bool,
    #[serde(default)]
    pub variables: BTreeMap<String, Value>,
    pub text: Option<String>,
    pub error: Option<String>,
    pub ids: Option<Vec<u32>>,
    pub assistant: Option<Vec<u8>>,
}

/// The whole file.
#[derive(Deserialize)]
pub struct Golden {
    pub date: String,
    pub special: BTreeMap<String, BTreeMap<String, Option<String>>>,
    pub cases: Vec<Case>,
}

pub fn directory() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/chat")
}

pub fn golden() -> Golden {
    serde_json::from_str(&std::fs::read_to_string(directory().join("cases.json")).unwrap()).unwrap()
}

impl Golden {
    /// The bos and eos texts of a template's tokenizer.
    pub fn special(&self, template: &str, name: &str) -> Option<String> {
        self.special[template][name].clone()
    }

    pub fn template(&self, name: &str, variables: &BTreeMap<String, Value>) -> ChatTemplate {
        let source = std::fs::read_to_string(directory().join(format!("templates/{name}.jinja"))).unwrap();
        let mut special_tokens = BTreeMap::new();
        for key in ["bos", "eos"] {
            if let Some(text) = self.special(name, key) {
                special_tokens.insert(format!("{key}_token"), text);
            }
        }
        let date = Some(self.date.parse().unwrap());
        ChatTemplate::new(&source, TemplateContext { special_tokens, variables: variables.clone(), date }).unwrap()
    }
}

fn template(source: &str) -> ChatTemplate {
    ChatTemplate::new(source, TemplateContext::default()).unwrap()
}

#[test]
fn texts_agree_with_transformers() {
    let golden = golden();
    assert!(golden.cases.len() >= 30);
    let mut differing = String::new();
    for case in &golden.cases {
        let template = golden.template(&case.template, &case.variables);
        let rendered = template.render(&case.messages, case.tools.as_ref(), case.add_generation_prompt);
        let agrees = match (&rendered, &case.text, &case.error) {
            (Ok(rendered), Some(text), None) => &rendered.text == text,
            (Err(error), None, Some(message)) => error.message().contains(message.as_str()),
            _ => false,
        };
        if !agrees {
            let rendered = rendered.map(|r| r.text);
            differing +=
                &format!("\n== {}\n{:?}\n{rendered:?}\n", case.name, case.text.as_ref().or(case.error.as_ref()));
        }
    }
    assert!(differing.is_empty(), "{differing}");
}

#[test]
fn generation_tags_give_the_ranges_of_what_the_model_says() {
    let golden = golden();
    let template = golden.template("marked", &BTreeMap::new());
    assert!(template.marks_generation);
    let messages = [json!({"role": "user", "content": "Hi"}), json!({"role": "assistant", "content": "Ho\u{fdd0}"})];
    let rendered = template.render(&messages, None, false).unwrap();
    let said: Vec<_> = rendered.generated.iter().map(|range| &rendered.text[range.clone()]).collect();
    assert!(said.len() == 1 && said[0].starts_with("Ho") && said[0].ends_with("</s>"), "{said:?}");
}

#[test]
fn templates_that_are_not_valid_or_not_found_in_time_are_errors() {
    let error = ChatTemplate::new("{% if %}", TemplateContext::default()).unwrap_err();
    assert!(error.message().starts_with("the chat template is not valid"), "{error}");
    assert!(ChatTemplate::new("{% generation %}", TemplateContext::default()).is_err());
    let endless = "{% for a in range(9999) %}{% for b in range(9999) %}{% for c in range(9999) %}{% endfor %}{% endfor %}{% endfor %}";
    let error = template(endless).render(&[], None, false).unwrap_err();
    assert!(error.message().contains("fuel"), "{error}");
    let deep = template("{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}").render(&[], None, false);
    assert!(deep.is_err());
    for source in ["{% include '/etc/passwd' %}", "{{ messages.x.y }}", "{{ messages|nofilter }}", "{{ 1 + 'a' }}"] {
        let rendered = ChatTemplate::new(source, TemplateContext::default()).and_then(|t| t.render(&[], None, false));
        assert!(rendered.is_err(), "{source}");
    }
}

#[test]
fn the_date_is_today_unless_given() {
    let today = template("{{ strftime_now('%Y') }}").render(&[], None, false).unwrap().text;
    assert!(today.parse::<u32>().unwrap() >= 2025);
    let context = TemplateContext { date: Some("2024-07-06".parse().unwrap()), ..Default::default() };
    let given = ChatTemplate::new("{{ strftime_now('%-d %B %Y %H') }}", context).unwrap();
    assert!(given.asks_for_date);
    assert_eq!(given.render(&[], None, false).unwrap().text, "6 July 2024 00");
    assert!(template("{{ strftime_now('%Q') }}").render(&[], None, false).is_err());
}
