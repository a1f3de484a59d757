//! The policy `spectrum` (arXiv 2406.06623): of each role, the weights with the highest signal-to-noise ratio train whole.
//!
//! The ratio, or another statistic, comes from the weights themselves, from a published file of scores, or is left out
//! altogether for a list of what to unfreeze. As in Spectrum's own script, the number kept of each role is rounded down
//! (`int(count · percent / 100)`), equal scores go to the earlier block, and a layer's bias trains with its weight. Unlike
//! there, embeddings, output head and norms stay frozen unless asked for: the first two are a third of an 8B model's
//! trained memory, and norms, being vectors, all tie at an infinite ratio.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::select::{self, Blocks, Eligible, Patterns};
use super::spectrum_source::{Scores, Unfrozen};
use super::{ModelView, Policy, PolicyInfo, read_settings, resolved, setting_infos};
use crate::config::suggest;
use crate::model::inventory::{Kind, TensorInfo};
use crate::plan::PlanBuilder;
use crate::stats::{Statistic, kept, order};
use crate::{Error, Result};

/// The policy.
pub(super) struct Spectrum;

const SETTINGS: [(&str, &str); 14] = [
    ("percent", "how many of the weights train, 0 to 100, rounded down; default 25"),
    ("percents", "table of role = percent, for other percentages than `percent`"),
    ("by", "\"role\" ranks each role by itself, \"global\" all weights together; default \"role\""),
    (
        "statistic",
        "what to rank by, highest first: \"snr\", \"spectral_norm\", \"nuclear_norm\", \"stable_rank\" or \"effective_rank\"; default \"snr\"",
    ),
    ("targets", "patterns of the weights to rank; default \"all-linear\""),
    ("exclude", "patterns of weights to leave out; default none"),
    ("blocks", "only these decoder blocks, \"0-3,8\" or a list, from 0; default all"),
    ("scores", "a JSON file of scores as Spectrum's script writes and publishes it, instead of computing them"),
    (
        "unfrozen",
        "a YAML file with Spectrum's list `unfrozen_parameters`, or the list itself, instead of ranking; the lines for embedding and head that its script always writes count only with `embeddings` and `head`",
    ),
    ("embeddings", "train the token embedding too; default false, for the memory it costs"),
    ("head", "train the output head too; default false"),
    ("norms", "train all normalisations too; default false"),
    ("lr_scales", "table of pattern = factor on the learning rate"),
    ("biases", "train the biases of the chosen weights, as Spectrum's script does; default true"),
];

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum By {
    Role,
    Global,
}

#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Settings {
    #[serde(skip_serializing_if = "Option::is_none")]
    percent: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    percents: Option<BTreeMap<String, f64>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    by: Option<By>,
    #[serde(skip_serializing_if = "Option::is_none")]
    statistic: Option<Statistic>,
    #[serde(skip_serializing_if = "Option::is_none")]
    targets: Option<Patterns>,
    #[serde(skip_serializing_if = "Option::is_none")]
    exclude: Option<Patterns>,
    #[serde(skip_serializing_if = "Option::is_none")]
    blocks: Option<Blocks>,
    #[serde(skip_serializing_if = "Option::is_none")]
    scores: Option<Scores>,
    #[serde(skip_serializing_if = "Option::is_none")]
    unfrozen: Option<Unfrozen>,
    embeddings: bool,
    head: bool,
    norms: bool,
    lr_scales: BTreeMap<String, f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    biases: Option<bool>,
}

impl Settings {
    /// Checked, files read, and every default that has an effect filled in.
    fn read(settings: &Value) -> Result<Self> {
        let mut settings: Self = read_settings("spectrum", settings)?;
        let percents = settings.percents.iter().flatten().map(|(role, p)| (format!("policy.percents.{role}"), *p));
        for (path, percent) in percents.chain(settings.percent.map(|percent| ("policy.percent".into(), percent))) {
            if !(0.0..=100.0).contains(&percent) {
                return Err(Error::config(format!("`{path}` must be between 0 and 100, not {percent}")));
            }
        }
        for (pattern, factor) in &settings.lr_scales {
            if !(factor.is_finite() && *factor > 0.0) {
                return Err(Error::config(format!("`policy.lr_scales.{pattern}` must be above 0, not {factor}")));
            }
        }
        for (setting, patterns) in [("policy.targets", &settings.targets), ("policy.exclude", &settings.exclude)] {
            for text in patterns.iter().flat_map(|patterns| &patterns.0) {
                select::Pattern::parse(setting, text)?;
            }
        }
        if let Some(unfrozen) = &mut settings.unfrozen {
            unfrozen.read("policy.unfrozen")?;
            for (setting, is_set) in [
                ("percent", settings.percent.is_some()),
                ("percents", settings.percents.is_some()),
                ("by", settings.by.is_some()),
                ("statistic", settings.statistic.is_some()),
                ("targets", settings.targets.is_some()),
                ("exclude", settings.exclude.is_some()),
                ("blocks", settings.blocks.is_some()),
                ("scores", settings.scores.is_some()),
                ("biases", settings.biases.is_some()),
            ] {
                if is_set {
                    let message = format!("`policy.{setting}` has no effect: policy.unfrozen says what trains");
                    return Err(Error::config(message).help("keep one of them"));
                }
            }
            return Ok(settings);
        }
        match &mut settings.scores {
            Some(_) if settings.statistic.is_some() => {
                return Err(Error::config("`policy.statistic` has no effect: the scores come from policy.scores")
                    .help("keep one of them"));
            }
            Some(scores) => scores.read("policy.scores")?,
            None => settings.statistic = settings.statistic.or(Some(Statistic::Snr)),
        }
        settings.percent.get_or_insert(25.0);
        settings.targets.get_or_insert_with(|| Patterns(vec!["all-linear".into()]));
        settings.exclude.get_or_insert_with(Patterns::default);
        settings.biases.get_or_insert(true);
        if *settings.by.get_or_insert(By::Role) == By::Global
            && settings.percents.as_ref().is_some_and(|percents| !percents.is_empty())
        {
            return Err(Error::config(
                "`policy.percents` has no effect: policy.by = \"global\" ranks all roles together",
            )
            .help("keep one of them"));
        }
        settings.percents.get_or_insert_with(BTreeMap::new);
        Ok(settings)
    }

    /// The weights to rank, as positions in the view.
    fn candidates(&self, view: &ModelView<'_>) -> Result<Vec<usize>> {
        let linear = Eligible { test: &|info| info.kind == Kind::Linear, what: "linear layer's weight" };
        let everything = Patterns(vec!["all-linear".into()]);
        let targets = self.targets.as_ref().unwrap_or(&everything);
        let mut chosen = select::choose("policy.targets", targets, view, &linear)?;
        if let Some(blocks) = &self.blocks {
            blocks.check("policy.blocks", view)?;
            for (flag, info) in chosen.iter_mut().zip(view.tensors()) {
                *flag &= blocks.contain(info);
            }
        }
        if let Some(exclude) = &self.exclude {
            select::exclude("policy.exclude", exclude, view, &mut chosen)?;
        }
        let candidates: Vec<usize> = (0..chosen.len()).filter(|i| chosen[*i]).collect();
        if candidates.is_empty() {
            return Err(Error::plan("`policy` leaves nothing to rank")
                .help("widen policy.targets or policy.blocks, or narrow policy.exclude"));
        }
        Ok(candidates)
    }

    /// The score of each of these tensors.
    fn scores(&self, tensors: &[&TensorInfo], view: &ModelView<'_>) -> Result<Vec<f64>> {
        if let Some(scores) = &self.scores {
            return tensors.iter().map(|info| scores.of("policy.scores", &info.name)).collect();
        }
        let statistic = self.statistic.unwrap_or_default();
        let values = view.singular_values(tensors)?;
        let score = |(info, values): (&&TensorInfo, &std::sync::Arc<[f64]>)| {
            let [rows, cols] = info.shape[..] else {
                return Err(Error::plan(format!(
                    "tensor `{}` has shape {:?}, and not two dimensions",
                    info.name, info.shape
                )));
            };
            statistic.of(values, rows, cols).map_err(|error| error.at(format!("tensor `{}`", info.name)))
        };
        tensors.iter().zip(&values).map(score).collect()
    }

    /// Ranks, notes the scores, and marks the top of each group in `chosen`.
    fn rank(&self, view: &ModelView<'_>, builder: &mut PlanBuilder<'_>, chosen: &mut [bool]) -> Result<()> {
        let candidates = self.candidates(view)?;
        let tensors: Vec<&TensorInfo> = candidates.iter().map(|i| &view.tensors()[*i]).collect();
        // Groups in the order of the forward pass, each with its candidates.
        let mut groups: Vec<(&str, Vec<usize>)> = Vec::new();
        for (i, info) in tensors.iter().enumerate() {
            let name = if self.by == Some(By::Global) { "" } else { info.role.as_str() };
            match groups.iter_mut().find(|(group, _)| *group == name) {
                Some((_, members)) => members.push(i),
                None => groups.push((name, vec![i])),
            }
        }
        let percents = self.percents.iter().flatten();
        if let Some((unknown, _)) = percents.clone().find(|(role, _)| !groups.iter().any(|(group, _)| group == role)) {
            let roles: Vec<&str> = groups.iter().map(|(role, _)| *role).collect();
            let error = Error::plan(format!("`policy.percents.{unknown}`: no weight that is ranked has this role"));
            return Err(match suggest::nearest(unknown, roles.iter().copied()) {
                Some(near) => error.help(format!("did you mean `{near}`?")),
                None => error.help(format!("the roles are {}", suggest::list(&roles))),
            });
        }
        let default = self.percent.unwrap_or(25.0);
        let percent = |role: &str| percents.clone().find(|(name, _)| *name == role).map_or(default, |(_, p)| *p);
        let most = groups.iter().map(|(_, members)| members.len()).max().unwrap_or(1);
        if !(self.embeddings || self.head || self.norms)
            && groups.iter().all(|(role, members)| kept(members.len(), percent(role)) == 0)
        {
            let of = if self.by == Some(By::Global) { "there are" } else { "no role has more than" };
            return Err(Error::plan(format!(
                "`policy.percent` = {default} leaves nothing to train: {of} {most} weights, and the number kept is rounded down"
            ))
            .help(format!("raise it to {} or more", (100.0 / most as f64).ceil())));
        }
        let scores = self.scores(&tensors, view)?;
        for (info, score) in tensors.iter().zip(&scores) {
            builder.score(&info.name, *score)?;
        }
        for (role, members) in &groups {
            let of_group: Vec<f64> = members.iter().map(|i| scores[*i]).collect();
            for place in order(&of_group).into_iter().take(kept(members.len(), percent(role))) {
                chosen[candidates[members[place]]] = true;
            }
        }
        if self.biases == Some(true) {
            let layers: Vec<&str> = view
                .tensors()
                .iter()
                .zip(chosen.iter())
                .filter(|(_, chosen)| **chosen)
                .filter_map(|(info, _)| info.name.strip_suffix(".weight"))
                .collect();
            let of_chosen = |info: &TensorInfo| {
                info.kind == Kind::Bias && info.name.strip_suffix(".bias").is_some_and(|layer| layers.contains(&layer))
            };
            let biases: Vec<bool> = view.tensors().iter().map(of_chosen).collect();
            chosen.iter_mut().zip(biases).for_each(|(chosen, bias)| *chosen |= bias);
        }
        Ok(())
    }
}

impl Policy for Spectrum {
    fn describe(&self) -> PolicyInfo {
        PolicyInfo {
            name: "spectrum".into(),
            version: "1.0.0".into(),
            about: "The weights with the highest signal-to-noise ratio of their role train whole.".into(),
            settings: setting_infos(&SETTINGS),
        }
    }

    fn resolve(&self, settings: &Value) -> Result<Value> {
        resolved("spectrum", &Settings::read(settings)?)
    }

    fn reads_weights(&self) -> bool {
        true
    }

    fn heeds_storage(&self) -> bool {
        false
    }

    fn make_plan(&self, settings: &Value, view: &ModelView<'_>, builder: &mut PlanBuilder<'_>) -> Result<()> {
        let settings = Settings::read(settings)?;
        if settings.head && view.tied() && !settings.embeddings {
            return Err(Error::plan("`policy.head` = true: this model's output head is its embedding")
                .help("set policy.embeddings = true to train it, or leave policy.head out"));
        }
        let mut chosen = match &settings.unfrozen {
            Some(unfrozen) => unfrozen.choose("policy.unfrozen", view)?,
            None => vec![false; view.tensors().len()],
        };
        for (kind, setting, on) in [
            (Kind::Embedding, "embeddings", settings.embeddings),
            (Kind::Head, "head", settings.head && !view.tied()),
            (Kind::Norm, "norms", settings.norms),
        ] {
            let mut found = !on;
            for (flag, _) in chosen.iter_mut().zip(view.tensors()).filter(|(_, info)| on && info.kind == kind) {
                (*flag, found) = (true, true);
            }
            if !found {
                return Err(Error::plan(format!("`policy.{setting}` = true has no effect: the model has none")));
            }
        }
        if settings.unfrozen.is_none() {
            settings.rank(view, builder, &mut chosen)?;
        }
        let factors = select::values("policy.lr_scales", &settings.lr_scales, view, &chosen)?;
        for ((info, _), factor) in view.tensors().iter().zip(&chosen).zip(factors).filter(|((_, chosen), _)| **chosen) {
            builder.train(&info.name)?;
            if let Some(factor) = factor {
                builder.lr_scale(&info.name, factor)?;
            }
        }
        Ok(())
    }
}
