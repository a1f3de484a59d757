//! The policy `full`: chosen tensors train whole; by default all of them.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::select::{self, Blocks, Eligible, Patterns};
use super::{ModelView, Policy, PolicyInfo, read_settings, resolved, setting_infos};
use crate::model::inventory::Kind;
use crate::plan::PlanBuilder;
use crate::{Error, Result};

/// The policy.
pub(super) struct Full;

const SETTINGS: [(&str, &str); 5] = [
    ("targets", "patterns of the tensors to train; default \"all\""),
    ("exclude", "patterns of tensors to leave frozen; default none"),
    ("blocks", "only these decoder blocks, \"0-3,8\" or a list, from 0; default all, and what lies outside blocks"),
    ("embeddings", "true trains the token embedding whatever else is chosen, false freezes it; default as chosen"),
    ("head", "the same for the output head; where it is tied to the embedding, the two must agree; default as chosen"),
];

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Settings {
    targets: Patterns,
    exclude: Patterns,
    #[serde(skip_serializing_if = "Option::is_none")]
    blocks: Option<Blocks>,
    #[serde(skip_serializing_if = "Option::is_none")]
    embeddings: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    head: Option<bool>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            targets: Patterns(vec!["all".into()]),
            exclude: Patterns::default(),
            blocks: None,
            embeddings: None,
            head: None,
        }
    }
}

impl Settings {
    fn read(settings: &Value) -> Result<Self> {
        let settings: Self = read_settings("full", settings)?;
        for (setting, patterns) in [("policy.targets", &settings.targets), ("policy.exclude", &settings.exclude)] {
            for text in &patterns.0 {
                select::Pattern::parse(setting, text)?;
            }
        }
        Ok(settings)
    }

    /// What `embeddings` and `head` ask of each kind of tensor in this model.
    fn switches(&self, view: &ModelView<'_>) -> Result<Vec<(&'static str, Kind, bool)>> {
        if !view.tied() {
            let switches =
                [("policy.embeddings", Kind::Embedding, self.embeddings), ("policy.head", Kind::Head, self.head)];
            return Ok(switches.into_iter().filter_map(|(name, kind, on)| Some((name, kind, on?))).collect());
        }
        match (self.embeddings, self.head) {
            (Some(embeddings), Some(head)) if embeddings != head => Err(Error::plan(format!(
                "`policy.head` = {head} contradicts policy.embeddings = {embeddings}: this model's output head is its embedding"
            ))
            .help("leave one of them out, or set both the same")),
            (Some(on), _) => Ok(vec![("policy.embeddings", Kind::Embedding, on)]),
            (None, Some(on)) => Ok(vec![("policy.head", Kind::Embedding, on)]),
            (None, None) => Ok(Vec::new()),
        }
    }
}

impl Policy for Full {
    fn describe(&self) -> PolicyInfo {
        PolicyInfo {
            name: "full".into(),
            version: "1.0.0".into(),
            about: "The model's own weights train: all of them, or those chosen by pattern.".into(),
            settings: setting_infos(&SETTINGS),
        }
    }

    fn resolve(&self, settings: &Value) -> Result<Value> {
        resolved("full", &Settings::read(settings)?)
    }

    fn heeds_storage(&self) -> bool {
        false
    }

    fn make_plan(&self, settings: &Value, view: &ModelView<'_>, builder: &mut PlanBuilder<'_>) -> Result<()> {
        let settings = Settings::read(settings)?;
        let any = Eligible { test: &|_| true, what: "tensor" };
        let mut chosen = select::choose("policy.targets", &settings.targets, view, &any)?;
        if let Some(blocks) = &settings.blocks {
            blocks.check("policy.blocks", view)?;
            for (flag, info) in chosen.iter_mut().zip(view.tensors()) {
                *flag &= blocks.contain(info);
            }
        }
        select::exclude("policy.exclude", &settings.exclude, view, &mut chosen)?;
        for (setting, kind, on) in settings.switches(view)? {
            let mut changed = on;
            for (flag, _) in chosen.iter_mut().zip(view.tensors()).filter(|(_, info)| info.kind == kind) {
                changed |= *flag;
                *flag = on;
            }
            if !changed {
                return Err(Error::plan(format!("`{setting}` = false has no effect: it isn't among what is chosen"))
                    .help("leave it out"));
            }
        }
        if !chosen.contains(&true) {
            return Err(Error::plan("`policy` leaves nothing to train")
                .help("widen policy.targets or policy.blocks, or narrow policy.exclude"));
        }
        for (_, info) in chosen.iter().zip(view.tensors()).filter(|(chosen, _)| **chosen) {
            builder.train(&info.name)?;
        }
        Ok(())
    }
}
