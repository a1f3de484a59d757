//! Rows of every format, told from their columns, and what is refused.

use serde_json::{Value, json};

use super::*;

fn row(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        _ => unreachable!(),
    }
}

fn sample_with(
    format: DataFormat,
    value: Value,
    has_template: bool,
    change: impl Fn(&mut Reading<'_>),
) -> Result<Sample, Refusal> {
    let fields = FieldNames::default();
    let mut reading = Reading { format, fields: &fields, wording: None, labels: &[], has_template, needs_answer: true };
    change(&mut reading);
    reading.sample(&row(value))
}

fn sample(format: DataFormat, value: Value) -> Result<Sample, Refusal> {
    sample_with(format, value, false, |_| {})
}

fn pair(prompt: &str, completion: &str) -> Result<Sample, Refusal> {
    Ok(Sample::Pair { prompt: prompt.into(), completion: completion.into(), label: None })
}

fn chat(messages: Value) -> Result<Sample, Refusal> {
    let Value::Array(messages) = messages else { unreachable!() };
    Ok(Sample::Chat { messages, tools: None, label: None })
}

#[test]
fn formats_are_told_from_columns() {
    let told = |columns: &[&str]| {
        let columns = columns.iter().map(|c| c.to_string()).collect();
        detect(&DataConfig::default(), DataFormat::Auto, "a.csv", &columns).map_err(|e| e.message().to_string())
    };
    assert_eq!(told(&["id", "messages"]), Ok(DataFormat::Chat));
    assert_eq!(told(&["conversations"]), Ok(DataFormat::Sharegpt));
    assert_eq!(told(&["prompt", "completion"]), Ok(DataFormat::PromptCompletion));
    assert_eq!(told(&["instruction", "input", "output"]), Ok(DataFormat::Alpaca));
    assert_eq!(told(&["text"]), Ok(DataFormat::Text));
    assert_eq!(told(&["text", "label"]), Ok(DataFormat::Label));
    assert_eq!(told(&["prompt", "messages"]), Ok(DataFormat::Chat));
    let several = "a.csv: the columns `messages`, `text` fit more than one format: \"chat\" and \"text\"";
    assert_eq!(told(&["messages", "text"]), Err(several.into()));
    assert_eq!(told(&["a", "b"]), Err("a.csv: the format cannot be told from the columns `a`, `b`".into()));
}

#[test]
fn a_configured_format_needs_its_columns() {
    let columns = ["texts".to_string(), "label".to_string()].into();
    let error = detect(&DataConfig::default(), DataFormat::Label, "a.csv", &columns).unwrap_err();
    assert_eq!(
        error.message(),
        "a.csv: the format \"label\" needs `text`, but the file has the columns `label`, `texts`"
    );
    assert!(error.help_text().unwrap().starts_with("did you mean `texts`?"), "{error}");
}

#[test]
fn prompts_and_completions_stay_as_they_are() {
    let format = DataFormat::PromptCompletion;
    assert_eq!(sample(format, json!({"prompt": "a:", "completion": "b"})), pair("a:", "b"));
    assert_eq!(sample(format, json!({"prompt": null, "completion": 5})), pair("", "5"));
    assert_eq!(sample(format, json!({"prompt": "a", "completion": "b", "system": "s"})), pair("s\n\na", "b"));
    let turns = json!([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]);
    let value = json!({"prompt": "a", "completion": "b"});
    assert_eq!(sample_with(format, value, true, |_| {}), chat(turns));
    let worded = |prompt: &str, completion: &str| {
        let value = json!({"prompt": "x", "completion": completion});
        sample_with(format, value, false, |r| r.wording = Some(Wording::parse(prompt).unwrap()))
    };
    assert_eq!(worded("Say {prompt}:", "b"), pair("Say x:", " b"));
    assert_eq!(worded("Say {prompt}\n", "b"), pair("Say x\n", "b"));
    assert_eq!(worded("Say {prompt}", "\nb"), pair("Say x", "\nb"));
}

#[test]
fn alpaca_in_its_own_words_or_as_a_turn() {
    let with = json!({"instruction": "Add", "input": "1 2", "output": "3"});
    let without = json!({"instruction": "Greet", "input": "", "output": "Hi"});
    let Ok(Sample::Pair { prompt, completion, .. }) = sample(DataFormat::Alpaca, with.clone()) else { panic!() };
    assert!(prompt.ends_with("### Instruction:\nAdd\n\n### Input:\n1 2\n\n### Response:\n"), "{prompt}");
    assert_eq!(completion, "3");
    let Ok(Sample::Pair { prompt, .. }) = sample(DataFormat::Alpaca, without) else { panic!() };
    assert!(prompt.ends_with("request.\n\n### Instruction:\nGreet\n\n### Response:\n"), "{prompt}");
    let turns = json!([{"role": "user", "content": "Add\n\n1 2"}, {"role": "assistant", "content": "3"}]);
    assert_eq!(sample_with(DataFormat::Alpaca, with, true, |_| {}), chat(turns));
}

#[test]
fn conversations_of_both_kinds() {
    let messages = json!([{"role": "system", "content": "s"}, {"role": "user", "content": "a", "name": null},
                          {"role": "assistant", "content": "b", "weight": 1}]);
    let expected = json!([{"role": "system", "content": "s"}, {"role": "user", "content": "a"},
                          {"role": "assistant", "content": "b", "weight": 1}]);
    assert_eq!(sample(DataFormat::Chat, json!({"messages": messages})), chat(expected.clone()));
    assert_eq!(sample(DataFormat::Chat, json!({"messages": messages.to_string()})), chat(expected));
    let turns =
        json!({"system": "s", "conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]});
    let expected = json!([{"role": "system", "content": "s"}, {"role": "user", "content": "a"},
                          {"role": "assistant", "content": "b"}]);
    assert_eq!(sample(DataFormat::Sharegpt, turns), chat(expected));
}

#[test]
fn labels_as_names_numbers_and_answers() {
    let label = |value: Value, labels: &[&str]| {
        let labels: Vec<String> = labels.iter().map(|l| l.to_string()).collect();
        let fields = FieldNames::default();
        let reading = Reading {
            format: DataFormat::Label,
            fields: &fields,
            wording: None,
            labels: &labels,
            has_template: false,
            needs_answer: true,
        };
        reading.sample(&row(json!({"text": "t", "label": value})))
    };
    let expected =
        |l: &str| Ok(Sample::Pair { prompt: "t\nLabel:".into(), completion: format!(" {l}"), label: Some(l.into()) });
    assert_eq!(label(json!(" good "), &[]), expected("good"));
    assert_eq!(label(json!(1), &[]), expected("1"));
    assert_eq!(label(json!(1), &["bad", "good"]), expected("good"));
    assert_eq!(label(json!("1"), &["bad", "good"]), expected("good"));
    assert_eq!(label(json!("1"), &["1", "0"]), expected("1"));
    let (finding, what) = label(json!("fine"), &["bad", "good"]).unwrap_err();
    assert_eq!((finding, what.as_str()), (Finding::Unlabelled, "the label \"fine\" is not among \"bad\", \"good\""));
    assert_eq!(label(json!(2), &["bad", "good"]).unwrap_err().0, Finding::Unlabelled);
    assert_eq!(label(json!(null), &[]).unwrap_err(), (Finding::Unlabelled, "no `label`".into()));
    assert_eq!(expected("good").unwrap().with_label("bad"), expected("bad").unwrap());
}

#[test]
fn rows_that_are_no_sample_say_why() {
    use DataFormat::{Alpaca, Chat, PromptCompletion, Sharegpt, Text};
    use Finding::{Empty, Undecodable, Unlabelled};
    let cases = [
        (Text, json!({"text": " \n"}), Empty, "`text` is empty"),
        (Text, json!({"txt": "a"}), Empty, "no `text`"),
        (Text, json!({"text": ["a"]}), Undecodable, "`text` is a list, not a text"),
        (PromptCompletion, json!({"prompt": "a", "completion": ""}), Unlabelled, "`completion` is empty"),
        (PromptCompletion, json!({"prompt": {}, "completion": "a"}), Undecodable, "`prompt` is an object, not a text"),
        (Alpaca, json!({"instruction": "", "output": "a"}), Empty, "`instruction` is empty"),
        (Chat, json!({"messages": null}), Empty, "no `messages`"),
        (Chat, json!({"messages": []}), Empty, "nobody says anything"),
        (Chat, json!({"messages": 5}), Undecodable, "`messages` is a number, not a list"),
        (Chat, json!({"messages": "hello"}), Undecodable, "`messages` is a text, but not that of a JSON list"),
        (Chat, json!({"messages": ["a"]}), Undecodable, "`messages`, entry 1 is a text, not an object"),
        (
            Chat,
            json!({"messages": [{"content": "a"}]}),
            Undecodable,
            "`messages`, entry 1 has no `role` that is a text",
        ),
        (
            Chat,
            json!({"messages": [{"role": "user"}]}),
            Undecodable,
            "`messages`, entry 1 has no `content` that is a text",
        ),
        (Chat, json!({"messages": [{"role": "user", "content": "a"}]}), Unlabelled, "the assistant says nothing"),
        (
            Sharegpt,
            json!({"conversations": [{"from": "cat", "value": "a"}]}),
            Undecodable,
            "`conversations`, entry 1: nobody knows who `from` is",
        ),
    ];
    for (format, value, finding, what) in cases {
        assert_eq!(sample(format, value.clone()), Err((finding, what.to_string())), "{value}");
    }
}
