//! LoRA as a plugin: low-rank adapters (arXiv 2106.09685) beside chosen linear layers. The same plan as the built-in
//! policy `lora`, for the settings that both have.

use std::collections::BTreeMap;

use liftplan_plugin::{Adapter, Error, Model, Plan, Policy, Result, Settings, plugin};

#[derive(Settings)]
#[serde(crate = "liftplan_plugin::serde")]
struct Lora {
    rank: u32,
    alpha: Option<f64>,
    dropout: f64,
    targets: Vec<String>,
    exclude: Vec<String>,
    blocks: Option<Vec<u32>>,
    ranks: BTreeMap<String, u32>,
    alphas: BTreeMap<String, f64>,
    rslora: bool,
    dora: bool,
    lora_plus_ratio: f64,
}

/// The value that a table of pattern = value gives to each tensor among `chosen`.
fn values<T: Copy + PartialEq + std::fmt::Display>(
    model: &Model,
    setting: &str,
    table: &BTreeMap<String, T>,
    chosen: &[u32],
) -> Result<BTreeMap<u32, T>> {
    let mut values = BTreeMap::new();
    for (pattern, value) in table {
        for id in model.matching(setting, std::slice::from_ref(pattern), chosen)? {
            if let Some(other) = values.insert(id, *value).filter(|other| other != value) {
                let name = model.tensor(id)?.name().to_string();
                return Err(Error::plan(format!("`{setting}`: patterns give both {other} and {value} to `{name}`"))
                    .help("narrow one of the patterns, so that each tensor has one value"));
            }
        }
    }
    Ok(values)
}

impl Policy for Lora {
    fn make_plan(&self, model: &Model, plan: &mut Plan) -> Result<()> {
        let mut chosen = model.choose("policy.targets", &self.targets, &["linear"])?;
        if let Some(blocks) = &self.blocks {
            chosen.retain(|id| {
                model.tensor(*id).is_ok_and(|tensor| tensor.block().is_some_and(|block| blocks.contains(&block)))
            });
            if chosen.is_empty() {
                return Err(Error::plan("`policy.blocks` leaves nothing to adapt: no target lies in these blocks"));
            }
        }
        if !self.exclude.is_empty() {
            let excluded = model.matching("policy.exclude", &self.exclude, &chosen)?;
            chosen.retain(|id| !excluded.contains(id));
            if chosen.is_empty() {
                return Err(Error::plan("`policy.exclude` leaves nothing to adapt: it takes away every target")
                    .help("narrow policy.exclude, or widen policy.targets"));
            }
        }
        let ranks = values(model, "policy.ranks", &self.ranks, &chosen)?;
        let alphas = values(model, "policy.alphas", &self.alphas, &chosen)?;
        for id in chosen {
            let mut adapter = Adapter::new(ranks.get(&id).copied().unwrap_or(self.rank));
            if let Some(alpha) = alphas.get(&id).copied().or(self.alpha) {
                adapter.alpha = alpha;
            }
            adapter.dropout = self.dropout;
            adapter.rslora = self.rslora;
            adapter.dora = self.dora;
            plan.adapt(id, adapter)?;
            if self.lora_plus_ratio != 1.0 {
                plan.lr_scale_b(id, self.lora_plus_ratio)?;
            }
        }
        Ok(())
    }
}

plugin! {
    policy: Lora,
    name: "lora",
    about: "Low-rank adapters beside chosen linear layers; the model's own weights stay frozen.",
    capabilities: [],
    settings: include_str!("../settings.json"),
}
