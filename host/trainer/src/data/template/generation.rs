//! `{% generation %} … {% endgeneration %}`, with which a template marks what the model says.
//!
//! `minijinja` knows no such tag, so the source is rewritten: the tags become conditions that always hold, which keeps
//! their effect on white space, around two marks that are taken out again of the rendered text.

use std::ops::Range;
use std::sync::LazyLock;

use regex::Regex;

use super::Rendered;

/// Noncharacters, which Unicode reserves for such use inside a program and bars from text.
const BEGIN: char = '\u{fdd0}';
const END: char = '\u{fdd1}';

// The pattern is a constant that the tests compile.
#[allow(clippy::unwrap_used)]
static TAG: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"\{%([-+]?)\s*(generation|endgeneration)\s*([-+]?)%\}").unwrap());

/// The source without the tags, and whether there were any.
pub fn replace_tags(source: &str) -> (String, bool) {
    let replaced = TAG.replace_all(source, |tag: &regex::Captures<'_>| {
        let (left, right) = (&tag[1], &tag[3]);
        match &tag[2] {
            "generation" => format!("{{%{left} if true %}}{{{{ \"{BEGIN}\" }}}}{{% if true {right}%}}"),
            _ => format!("{{%{left} endif %}}{{{{ \"{END}\" }}}}{{% endif {right}%}}"),
        }
    });
    let any = matches!(replaced, std::borrow::Cow::Owned(_));
    (replaced.into_owned(), any)
}

/// Takes the marks out of a rendered text. Marks that do not pair (from the conversation itself) stay.
pub fn extract(marked: &str) -> Rendered {
    let mut text = String::with_capacity(marked.len());
    let mut generated: Vec<Range<usize>> = Vec::new();
    let mut rest = marked;
    while let Some((before, after)) = rest.split_once(BEGIN) {
        text.push_str(before);
        let Some((inside, after)) = after.split_once(END) else {
            text.push(BEGIN);
            rest = after;
            continue;
        };
        let start = text.len();
        text.push_str(inside);
        generated.push(start..text.len());
        rest = after;
    }
    text.push_str(rest);
    Rendered { text, generated }
}
