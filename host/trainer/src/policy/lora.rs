//! The policy `lora`: low-rank adapters (arXiv 2106.09685) beside chosen linear layers, with rank-stabilised scaling,
//! LoRA+ and DoRA as settings. Kept over any storage; over 4-bit storage it is QLoRA.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::select::{self, Blocks, Eligible, Patterns};
use super::{ModelView, Policy, PolicyInfo, read_settings, resolved, setting_infos};
use crate::model::inventory::Kind;
use crate::plan::{AdapterSpec, PlanBuilder};
use crate::{Error, Result};

/// The policy.
pub(super) struct Lora;

const SETTINGS: [(&str, &str); 11] = [
    ("rank", "rank of the adapters, 1 or more; default 8"),
    ("alpha", "numerator of the scale alpha / rank; default twice the tensor's rank"),
    ("dropout", "probability in [0, 1) that an adapter's input is dropped; default 0"),
    ("targets", "patterns of the weights to adapt; default \"all-linear\""),
    ("exclude", "patterns of weights to leave out; default none"),
    ("blocks", "only these decoder blocks, \"0-3,8\" or a list, from 0; default all"),
    ("ranks", "table of pattern = rank, for other ranks than `rank`"),
    ("alphas", "table of pattern = alpha, for other alphas than `alpha`"),
    ("rslora", "scale by alpha / sqrt(rank) (arXiv 2312.03732); default false"),
    ("dora", "train magnitude and direction apart (arXiv 2402.09353); default false"),
    ("lora_plus_ratio", "learning rate of B over that of A (arXiv 2402.12354); default 1"),
];

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Settings {
    rank: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    alpha: Option<f64>,
    dropout: f64,
    targets: Patterns,
    exclude: Patterns,
    #[serde(skip_serializing_if = "Option::is_none")]
    blocks: Option<Blocks>,
    ranks: BTreeMap<String, usize>,
    alphas: BTreeMap<String, f64>,
    rslora: bool,
    dora: bool,
    lora_plus_ratio: f64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            rank: 8,
            alpha: None,
            dropout: 0.0,
            targets: Patterns(vec!["all-linear".into()]),
            exclude: Patterns::default(),
            blocks: None,
            ranks: BTreeMap::new(),
            alphas: BTreeMap::new(),
            rslora: false,
            dora: false,
            lora_plus_ratio: 1.0,
        }
    }
}

impl Settings {
    fn read(settings: &Value) -> Result<Self> {
        let settings: Self = read_settings("lora", settings)?;
        let ranks = settings.ranks.iter().map(|(pattern, rank)| (format!("policy.ranks.{pattern}"), *rank));
        for (path, rank) in ranks.chain([("policy.rank".into(), settings.rank)]) {
            if rank == 0 {
                return Err(Error::config(format!("`{path}` must be at least 1"))
                    .help("to leave tensors out, use policy.targets or policy.exclude"));
            }
        }
        let alphas = settings.alphas.iter().map(|(pattern, alpha)| (format!("policy.alphas.{pattern}"), *alpha));
        let positive = alphas
            .chain(settings.alpha.map(|alpha| ("policy.alpha".into(), alpha)))
            .chain([("policy.lora_plus_ratio".into(), settings.lora_plus_ratio)]);
        for (path, number) in positive {
            if !(number.is_finite() && number > 0.0) {
                return Err(Error::config(format!("`{path}` must be above 0, not {number}")));
            }
        }
        if !(0.0..1.0).contains(&settings.dropout) {
            return Err(Error::config(format!("`policy.dropout` must be in [0, 1), not {}", settings.dropout)));
        }
        for (setting, patterns) in [("policy.targets", &settings.targets), ("policy.exclude", &settings.exclude)] {
            for text in &patterns.0 {
                select::Pattern::parse(setting, text)?;
            }
        }
        Ok(settings)
    }
}

impl Policy for Lora {
    fn describe(&self) -> PolicyInfo {
        PolicyInfo {
            name: "lora".into(),
            version: "1.0.0".into(),
            about: "Low-rank adapters beside chosen linear layers; the model's own weights stay frozen.".into(),
            settings: setting_infos(&SETTINGS),
        }
    }

    fn resolve(&self, settings: &Value) -> Result<Value> {
        resolved("lora", &Settings::read(settings)?)
    }

    fn heeds_storage(&self) -> bool {
        false
    }

    fn make_plan(&self, settings: &Value, view: &ModelView<'_>, builder: &mut PlanBuilder<'_>) -> Result<()> {
        let settings = Settings::read(settings)?;
        let linear = Eligible { test: &|info| info.kind == Kind::Linear, what: "linear layer's weight" };
        let mut chosen = select::choose("policy.targets", &settings.targets, view, &linear)?;
        if let Some(blocks) = &settings.blocks {
            blocks.check("policy.blocks", view)?;
            for (flag, info) in chosen.iter_mut().zip(view.tensors()) {
                *flag &= blocks.contain(info);
            }
            if !chosen.contains(&true) {
                return Err(Error::plan("`policy.blocks` leaves nothing to adapt: no target lies in these blocks"));
            }
        }
        select::exclude("policy.exclude", &settings.exclude, view, &mut chosen)?;
        if !chosen.contains(&true) {
            return Err(Error::plan("`policy.exclude` leaves nothing to adapt: it takes away every target")
                .help("narrow policy.exclude, or widen policy.targets"));
        }
        let ranks = select::values("policy.ranks", &settings.ranks, view, &chosen)?;
        let alphas = select::values("policy.alphas", &settings.alphas, view, &chosen)?;
        for (i, info) in view.tensors().iter().enumerate().filter(|(i, _)| chosen[*i]) {
            let rank = ranks[i].unwrap_or(settings.rank);
            let alpha = alphas[i].or(settings.alpha).unwrap_or(2.0 * rank as f64);
            let adapter =
                AdapterSpec { rank, alpha, dropout: settings.dropout, rslora: settings.rslora, dora: settings.dora };
            builder.adapt(&info.name, adapter)?;
            if settings.lora_plus_ratio != 1.0 {
                builder.lr_scale_b(&info.name, settings.lora_plus_ratio)?;
            }
        }
        Ok(())
    }
}
