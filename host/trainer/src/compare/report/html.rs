//! The report as one page that opens without a network: `page.html` with style, scripts and data put into it.
//!
//! The data go in as JSON. Every `<` in it is written as an escape, so that nothing in a name or a configuration can
//! end the script that holds it; the scripts put text into the page as text only.

use super::Report;
use crate::{Error, Result};

const PAGE: &str = include_str!("page.html");
const STYLE: &str = include_str!("style.css");
const SCRIPTS: [&str; 4] =
    [include_str!("dom.js"), include_str!("charts.js"), include_str!("layers.js"), include_str!("report.js")];

/// The page.
///
/// # Errors
/// When the report can't be written as JSON.
pub fn page(report: &Report) -> Result<String> {
    let json = serde_json::to_string(report).map_err(|error| Error::internal(format!("the report: {error}")))?;
    // U+2028 and U+2029 end lines in old readers of JavaScript.
    let json = json.replace('<', "\\u003c").replace('\u{2028}', "\\u2028").replace('\u{2029}', "\\u2029");
    let title = escaped(&report.title);
    let mut page = String::with_capacity(PAGE.len() + STYLE.len() + json.len() + 40_000);
    for part in PAGE.split_inclusive("}}") {
        let (text, slot) = match part.rfind("{{") {
            Some(at) if part.ends_with("}}") => (&part[..at], &part[at..]),
            _ => (part, ""),
        };
        page.push_str(text);
        match slot {
            "{{title}}" => page.push_str(&title),
            "{{style}}" => page.push_str(STYLE),
            "{{data}}" => page.push_str(&json),
            "{{scripts}}" => SCRIPTS.iter().for_each(|script| page.push_str(script)),
            other => page.push_str(other),
        }
    }
    Ok(page)
}

/// Text that means nothing to HTML.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;").replace('\'', "&#39;")
}
