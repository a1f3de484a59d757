//! Choosing tensors by pattern. The same patterns serve every policy's settings.
//!
//! | pattern | matches |
//! | --- | --- |
//! | `all-linear` | every linear layer's weight in the blocks |
//! | `all` | every tensor |
//! | `q_proj` | a role |
//! | `mlp.up_proj` | names that end so, after a dot; with or without `.weight` |
//! | `model.layers.[0-9].mlp.*` | a glob over the whole name (`*`, `?`, `[…]`, `{a,b}`; `*` crosses dots), with or without `.weight` |
//! | `re:model\.layers\.(3\|7)\..*` | a regular expression over the whole name, with or without `.weight` |
//!
//! A pattern that matches nothing, or nothing that can be meant, is an error with near matches.

use std::fmt;

use serde::de::{SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use super::ModelView;
use crate::config::suggest;
use crate::model::inventory::{Kind, TensorInfo};
use crate::{Error, Result};

/// One pattern.
#[derive(Clone, Debug)]
pub struct Pattern {
    text: String,
    matcher: Matcher,
}

#[derive(Clone, Debug)]
enum Matcher {
    All,
    AllLinear,
    Name(String),
    Glob(globset::GlobMatcher),
    Expression(regex::Regex),
}

impl Pattern {
    /// Understands the pattern `text`, which the setting at path `setting` holds.
    pub fn parse(setting: &str, text: &str) -> Result<Self> {
        let wrong = |what: String| Error::config(format!("`{setting}`: {what}"));
        let matcher = if text == "all" {
            Matcher::All
        } else if text == "all-linear" {
            Matcher::AllLinear
        } else if let Some(expression) = text.strip_prefix("re:") {
            let whole = regex::Regex::new(&format!("^(?:{expression})$")).map_err(|error| {
                // The error's last line says what is wrong; those before it draw where.
                let error = error.to_string();
                let reason = error.lines().last().unwrap_or_default().trim_start_matches("error: ").to_string();
                wrong(format!("`{text}` is not a regular expression: {reason}"))
            })?;
            Matcher::Expression(whole)
        } else if text.contains(['*', '?', '[', '{']) {
            let glob =
                globset::Glob::new(text).map_err(|error| wrong(format!("`{text}` is not a glob: {}", error.kind())))?;
            Matcher::Glob(glob.compile_matcher())
        } else if text.is_empty() {
            return Err(wrong("a pattern is empty".into()));
        } else {
            Matcher::Name(text.to_string())
        };
        Ok(Self { text: text.to_string(), matcher })
    }

    /// Whether the pattern means this tensor.
    pub fn matches(&self, info: &TensorInfo) -> bool {
        let stem = stem(&info.name);
        match &self.matcher {
            Matcher::All => true,
            Matcher::AllLinear => info.kind == Kind::Linear,
            Matcher::Name(text) => {
                let ends_so = |name: &str| {
                    name.strip_suffix(text.as_str()).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
                };
                info.role == *text || ends_so(&info.name) || ends_so(stem)
            }
            Matcher::Glob(glob) => glob.is_match(&info.name) || glob.is_match(stem),
            Matcher::Expression(expression) => expression.is_match(&info.name) || expression.is_match(stem),
        }
    }
}

fn stem(name: &str) -> &str {
    name.strip_suffix(".weight").unwrap_or(name)
}

/// Patterns as a setting: one string, or a list of them.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(transparent)]
pub struct Patterns(pub Vec<String>);

impl<'de> Deserialize<'de> for Patterns {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Patterns;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a pattern or a list of patterns")
            }
            fn visit_str<E>(self, text: &str) -> std::result::Result<Patterns, E> {
                Ok(Patterns(vec![text.to_string()]))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> std::result::Result<Patterns, A::Error> {
                let mut patterns = Vec::new();
                while let Some(text) = items.next_element()? {
                    patterns.push(text);
                }
                Ok(Patterns(patterns))
            }
        }
        deserializer.deserialize_any(Reader)
    }
}

/// Blocks as a setting: `"0-3,8"`, or a list of numbers, from 0. Kept sorted, each once.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(transparent)]
pub struct Blocks(pub Vec<usize>);

impl<'de> Deserialize<'de> for Blocks {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Reader;
        const WANTED: &str = "blocks such as \"0-3,8\", or a list of whole numbers";
        impl<'de> Visitor<'de> for Reader {
            type Value = Vec<usize>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(WANTED)
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> std::result::Result<Self::Value, E> {
                parse_blocks(text).ok_or_else(|| E::invalid_value(serde::de::Unexpected::Str(text), &WANTED))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> std::result::Result<Self::Value, A::Error> {
                let mut blocks = Vec::new();
                while let Some(block) = items.next_element()? {
                    blocks.push(block);
                }
                Ok(blocks)
            }
        }
        let mut blocks = deserializer.deserialize_any(Reader)?;
        blocks.sort_unstable();
        blocks.dedup();
        Ok(Self(blocks))
    }
}

/// More blocks than any model has; a longer range is a typing error.
const MOST_BLOCKS: usize = 100_000;

fn parse_blocks(text: &str) -> Option<Vec<usize>> {
    let mut blocks = Vec::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (usize, usize) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        if first > last || last >= MOST_BLOCKS {
            return None;
        }
        blocks.extend(first..=last);
    }
    Some(blocks)
}

impl Blocks {
    /// Checks that the model has them all.
    pub fn check(&self, setting: &str, view: &ModelView<'_>) -> Result<()> {
        let error = match self.0.last() {
            None => Error::config(format!("`{setting}` names no block")),
            Some(last) if *last >= view.blocks() => Error::plan(format!(
                "`{setting}` names block {last}, and the model's blocks are 0 to {}",
                view.blocks().saturating_sub(1)
            )),
            Some(_) => return Ok(()),
        };
        Err(error.help("leave it out for all blocks"))
    }

    /// Whether the tensor belongs to one of them.
    pub fn contain(&self, info: &TensorInfo) -> bool {
        info.block.is_some_and(|block| self.0.binary_search(&block).is_ok())
    }
}

/// Which tensors a policy can treat at all, and what messages call them.
pub struct Eligible<'a> {
    /// Whether it can treat this one.
    pub test: &'a dyn Fn(&TensorInfo) -> bool,
    /// `linear layers' weights`.
    pub what: &'static str,
}

/// The eligible tensors that any of `patterns` matches, one flag a tensor of the view. Each pattern must match some.
pub fn choose(setting: &str, patterns: &Patterns, view: &ModelView<'_>, eligible: &Eligible<'_>) -> Result<Vec<bool>> {
    let mut chosen = vec![false; view.tensors().len()];
    if patterns.0.is_empty() {
        return Err(Error::config(format!("`{setting}` is an empty list")).help("leave it out for its default"));
    }
    for text in &patterns.0 {
        let pattern = Pattern::parse(setting, text)?;
        let mut found = false;
        let mut other = None;
        for (flag, info) in chosen.iter_mut().zip(view.tensors()) {
            if pattern.matches(info) {
                if (eligible.test)(info) {
                    (*flag, found) = (true, true);
                } else {
                    other = other.or(Some(info));
                }
            }
        }
        match (found, other) {
            (true, _) => {}
            (false, Some(info)) => {
                return Err(Error::plan(format!(
                    "`{setting}`: `{text}` matches `{}`, which is {}, but no {}",
                    info.name,
                    crate::plan::kind_in_words(info.kind),
                    eligible.what
                )));
            }
            (false, None) => return Err(no_match(setting, &pattern, view, |info| (eligible.test)(info))),
        }
    }
    Ok(chosen)
}

/// Takes away what `patterns` match. Each must take away something.
pub fn exclude(setting: &str, patterns: &Patterns, view: &ModelView<'_>, chosen: &mut [bool]) -> Result<()> {
    let before = chosen.to_vec();
    for text in &patterns.0 {
        let pattern = Pattern::parse(setting, text)?;
        let mut found = false;
        for ((flag, was), info) in chosen.iter_mut().zip(&before).zip(view.tensors()) {
            if *was && pattern.matches(info) {
                (*flag, found) = (false, true);
            }
        }
        if !found {
            return Err(no_match_in(setting, &pattern, view, &before));
        }
    }
    Ok(())
}

/// The value that a table of pattern → value gives to each chosen tensor. Each pattern must match a chosen tensor, and
/// two that match the same one must agree.
pub fn values<T: Copy + PartialEq + fmt::Display>(
    setting: &str,
    table: &std::collections::BTreeMap<String, T>,
    view: &ModelView<'_>,
    chosen: &[bool],
) -> Result<Vec<Option<T>>> {
    let mut values: Vec<Option<(T, &str)>> = vec![None; view.tensors().len()];
    for (text, value) in table {
        let pattern = Pattern::parse(setting, text)?;
        let mut found = false;
        for ((slot, info), _) in values.iter_mut().zip(view.tensors()).zip(chosen).filter(|(_, chosen)| **chosen) {
            if !pattern.matches(info) {
                continue;
            }
            found = true;
            if let Some((other, by)) = slot.replace((*value, text))
                && other != *value
            {
                return Err(Error::plan(format!(
                    "`{setting}`: `{by}` gives {other} to `{}`, and `{text}` gives it {value}",
                    info.name
                ))
                .help("narrow one of the patterns, so that each tensor has one value"));
            }
        }
        if !found {
            return Err(no_match_in(setting, &pattern, view, chosen));
        }
    }
    Ok(values.into_iter().map(|slot| slot.map(|(value, _)| value)).collect())
}

fn no_match_in(setting: &str, pattern: &Pattern, view: &ModelView<'_>, chosen: &[bool]) -> Error {
    let matches_any = view.tensors().iter().any(|info| pattern.matches(info));
    if matches_any {
        return Error::plan(format!("`{setting}`: `{}` matches none of the tensors that are chosen", pattern.text))
            .help("leave it out, or choose more with policy.targets");
    }
    let names: std::collections::BTreeSet<&str> =
        view.tensors().iter().zip(chosen).filter(|(_, chosen)| **chosen).map(|(info, _)| info.name.as_str()).collect();
    no_match(setting, pattern, view, |info| names.contains(info.name.as_str()))
}

/// The error for a pattern that matches no tensor, with near roles and names among those that `meant` says can be meant.
fn no_match(setting: &str, pattern: &Pattern, view: &ModelView<'_>, meant: impl Fn(&TensorInfo) -> bool) -> Error {
    let error = Error::plan(format!("`{setting}`: `{}` matches no tensor of the model", pattern.text));
    if view.tied() && pattern.text.contains("lm_head") {
        let embedding = view.tensors().iter().find(|info| info.kind == Kind::Embedding);
        return error.help(format!(
            "its output head is tied: it is the embedding, `{}`",
            embedding.map_or("model.embed_tokens.weight", |info| info.name.as_str())
        ));
    }
    let tensors = || view.tensors().iter().filter(|info| meant(info));
    let mut roles: Vec<&str> = Vec::new();
    for info in tensors() {
        if !roles.contains(&info.role.as_str()) {
            roles.push(&info.role);
        }
    }
    if let Matcher::Name(text) = &pattern.matcher {
        let last = text.rsplit('.').next().unwrap_or(text);
        let near = suggest::near(last, roles.iter().copied(), 3);
        if !near.is_empty() {
            let near: Vec<_> = near.iter().map(|name| format!("`{name}`")).collect();
            return error.help(format!("did you mean {}?", near.join(" or ")));
        }
        return error.help(format!("the model's roles are {}", suggest::list(&roles)));
    }
    let text = pattern.text.trim_start_matches("re:").replace('\\', "");
    let whole = if pattern.text.starts_with("re:") {
        "an expression must match a whole name"
    } else {
        "a glob must match a whole name"
    };
    let nearest = suggest::near(&text, tensors().map(|info| stem(&info.name)), 1);
    let example = nearest.first().copied().or_else(|| tensors().next().map(|info| stem(&info.name)));
    error.help(match example {
        Some(name) => format!("{whole}, such as `{name}`"),
        None => whole.to_string(),
    })
}
