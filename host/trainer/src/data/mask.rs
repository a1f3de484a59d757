//! Where the model speaks in a rendered conversation.
//!
//! In: a chat template and a conversation. Out: the rendered text and the range of each assistant turn in it. Three ways
//! are tried, each exact where it applies:
//! 1. the template marks what the model says (`{% generation %}`);
//! 2. the conversation up to a turn, rendered with the generation prompt, is how the whole begins: the turn starts
//!    there; the conversation up to its end, rendered, is how the whole begins: it ends there;
//! 3. the turn's content is exchanged for a mark: what stands before and after the mark stands before and after the
//!    content. This serves templates that render a turn differently once others follow, such as those that take the
//!    thinking out of earlier turns.

use std::ops::Range;

use serde_json::Value;

use super::encode::Encoder;
use super::template::ChatTemplate;
use crate::{Error, Result};

/// Stands for a turn's content: noncharacters, which no text holds, and which no template trims or takes apart.
const MARK: &str = "\u{fdd2}\u{fdd3}";

/// A rendered conversation, and where the model speaks in it.
#[derive(Clone, Debug, PartialEq)]
pub struct Spoken {
    /// The text.
    pub text: String,
    /// Where each assistant turn stands, its end-of-turn token included, in bytes; ascending.
    pub ranges: Vec<Range<usize>>,
    /// What the last assistant turn says, as given; empty if it is not text.
    pub last_answer: String,
}

/// Whether a message is the model's.
pub fn is_assistant(message: &Value) -> bool {
    message.get("role").and_then(Value::as_str) == Some("assistant")
}

/// Renders a conversation and finds where the model speaks.
///
/// # Errors
/// The template refuses the conversation, or none of the three ways finds a turn.
pub fn spoken(template: &ChatTemplate, encoder: &Encoder, messages: &[Value], tools: Option<&Value>) -> Result<Spoken> {
    let rendered = template.render(messages, tools, false)?;
    let whole = rendered.text;
    let last = messages.iter().rev().find(|m| is_assistant(m)).and_then(|m| m.get("content")).and_then(Value::as_str);
    let last_answer = last.unwrap_or_default().to_string();
    if template.marks_generation {
        return Ok(Spoken { text: whole, ranges: rendered.generated, last_answer });
    }
    let mut ranges: Vec<Range<usize>> = Vec::new();
    for index in (0..messages.len()).filter(|&i| is_assistant(&messages[i])) {
        // A template may refuse a part of a conversation (such as none of it) and still render the whole.
        let length_if_prefix = |part: &[Value], prompt: bool| {
            let text = template.render(part, tools, prompt).ok()?.text;
            whole.starts_with(&text).then_some(text.len())
        };
        let start = length_if_prefix(&messages[..index], true);
        let end = match index + 1 == messages.len() {
            true => Some(whole.len()),
            false => length_if_prefix(&messages[..=index], false),
        };
        let (start, end) = match (start, end) {
            (Some(start), Some(end)) => (Some(start), Some(end)),
            _ => {
                let (marked_start, marked_end) = around_mark(template, encoder, messages, tools, index, &whole);
                (start.or(marked_start), end.or(marked_end))
            }
        };
        let after = ranges.last().map_or(0, |range| range.end);
        match (start, end) {
            (Some(start), Some(end)) if after <= start && start <= end => {
                let turn = whole.get(start..end).unwrap_or_default();
                ranges.push(start..start + encoder.end_of_turn(turn));
            }
            _ => {
                return Err(Error::data(format!(
                    "cannot tell where message {} (of the assistant) stands in what the chat template makes of the \
                     conversation",
                    index + 1
                ))
                .help(
                    "set data.loss_on = \"all\", or give a template with {% generation %} around what the model says \
                     as data.chat_template",
                ));
            }
        }
    }
    Ok(Spoken { text: whole, ranges, last_answer })
}

/// Where the content of message `index` begins and ends (with its end-of-turn token) in `whole`.
fn around_mark(
    template: &ChatTemplate,
    encoder: &Encoder,
    messages: &[Value],
    tools: Option<&Value>,
    index: usize,
    whole: &str,
) -> (Option<usize>, Option<usize>) {
    let mut marked = messages.to_vec();
    marked[index]["content"] = Value::String(MARK.to_string());
    let Ok(rendered) = template.render(&marked, tools, false) else { return (None, None) };
    let Some((before, after)) = rendered.text.split_once(MARK) else { return (None, None) };
    if after.contains(MARK) {
        return (None, None);
    }
    let start = whole.starts_with(before).then_some(before.len());
    let end = whole.ends_with(after).then(|| {
        let content_end = whole.len() - after.len();
        // The end of the turn follows at once, if there is a token for it.
        match encoder.find_special(after) {
            Some((_, found)) if found.start == 0 => content_end + found.end,
            _ => content_end,
        }
    });
    (start, end)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::json;

    use super::*;
    use crate::data::encode::tests::{counted, encoder};
    use crate::data::template::TemplateContext;
    use crate::data::template::tests::golden;

    fn chat(contents: &[&str]) -> Vec<Value> {
        let roles = ["user", "assistant"].iter().cycle();
        contents.iter().zip(roles).map(|(content, role)| json!({"role": role, "content": content})).collect()
    }

    /// What counts when `messages` are rendered by a template of tests/golden/chat.
    fn counts(name: &str, messages: &[Value]) -> Vec<String> {
        let golden = golden();
        let encoder = encoder(&golden.special(name, "eos").unwrap());
        let spoken = spoken(&golden.template(name, &BTreeMap::new()), &encoder, messages, None).unwrap();
        counted(&encoder, &encoder.conversation(&spoken.text, &spoken.ranges).unwrap())
    }

    #[test]
    fn assistant_turns_count_with_their_end_and_nothing_else_does() {
        let turns = chat(&["Hi", "Hello!", "More?", "Yes\nno."]);
        assert_eq!(counts("chatml", &turns), ["Hello!<|im_end|>", "Yes\nno.<|im_end|>"]);
        assert_eq!(counts("tool_chatml", &turns), ["Hello!<|im_end|>", "Yes\nno.<|im_end|>"]);
        assert_eq!(counts("header", &turns), ["Hello!<|eot_id|>", "Yes\nno.<|eot_id|>"]);
        assert_eq!(counts("inst", &turns), [" Hello!</s>", " Yes\nno.</s>"]);
        assert_eq!(counts("turns", &turns), ["Hello!<end_of_turn>", "Yes\nno.<end_of_turn>"]);
        assert_eq!(counts("marked", &turns), ["Hello!</s>", "Yes\nno.</s>"]);
    }

    #[test]
    fn a_turn_that_is_rendered_differently_once_others_follow() {
        let thought = "<think>\nHm.\n</think>\n\nSo.";
        let turns = chat(&["Why?", thought, "And?", thought]);
        assert_eq!(counts("thinking", &turns), ["So.<|im_end|>", "<think>\nHm.\n</think>\n\nSo.<|im_end|>"]);
        let without = chat(&["Why?", "So.", "And?", "Thus."]);
        assert_eq!(counts("thinking", &without), ["So.<|im_end|>", "<think>\n\n</think>\n\nThus.<|im_end|>"]);
    }

    #[test]
    fn assistant_first_users_last_and_text_that_looks_like_the_template() {
        let mut first = chat(&["Hi", "Ho", "Bye"]);
        first.remove(0);
        assert_eq!(counts("chatml", &first), ["Ho<|im_end|>"]);
        assert_eq!(counts("chatml", &chat(&["Hi", "Ho", "Bye"])), ["Ho<|im_end|>"]);
        let same = chat(&["a", "a", "a", "a"]);
        assert_eq!(counts("chatml", &same), ["a<|im_end|>", "a<|im_end|>"]);
        let inside = chat(&["x<|im_end|>\n<|im_start|>assistant\nfake", "y<|im_end|>\n<|im_start|>user\nz", "more"]);
        assert_eq!(counts("chatml", &inside), ["y<|im_end|>\n<|im_start|>user\nz<|im_end|>"]);
        assert_eq!(counts("chatml", &chat(&["a", "  padded \n", "b"])), ["  padded \n<|im_end|>"]);
    }

    #[test]
    fn a_template_that_hides_what_the_model_says_is_an_error() {
        let source = "{% for m in messages %}{{ m.role }}{{ m.content | length }}{% endfor %}";
        let template = ChatTemplate::new(source, TemplateContext::default()).unwrap();
        // Prefixes still tell where the turns stand.
        assert!(spoken(&template, &encoder("</s>"), &chat(&["a", "b", "c"]), None).is_ok());
        let source = "{{ messages|length }}{% for m in messages %}{{ m.role }}{{ m.content | length }}{% endfor %}";
        let template = ChatTemplate::new(source, TemplateContext::default()).unwrap();
        let error = spoken(&template, &encoder("</s>"), &chat(&["a", "b", "c"]), None).unwrap_err();
        assert!(error.message().starts_with("cannot tell where message 2 (of the assistant) stands"), "{error}");
        assert!(error.help_text().unwrap().contains("loss_on"));
    }
}
