//! The policy `random`: layers drawn by the run's seed, the control that every rule for choosing layers must beat.
//!
//! Either `percent` of each role train whole, as many as Spectrum would keep, or `like` names a plan: then each role's
//! treatments are dealt out again among its blocks, so that the control trains exactly as many tensors of each role, in
//! the same forms and storages, and differs in nothing but which. Of a plan that asks for picks they are dealt out anew at each.

use liftplan_engine::rng::philox;
use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use super::select::{self, Blocks, Eligible, Patterns};
use super::{ModelView, Moment, Policy, PolicyInfo, read_settings, resolved, setting_infos};
use crate::model::inventory::{Kind, TensorInfo};
use crate::plan::{Entry, Picks, PlanBuilder, Treatment, file};
use crate::stats::{kept, order};
use crate::{Error, Result};

/// The policy.
pub(super) struct Random;

const SETTINGS: [(&str, &str); 5] = [
    ("percent", "how many of each role's weights train, 0 to 100, rounded down; default 25"),
    ("targets", "patterns of the weights to draw from; default \"all-linear\""),
    ("exclude", "patterns of weights to leave out; default none"),
    ("blocks", "only these decoder blocks, \"0-3,8\" or a list, from 0; default all"),
    ("like", "a plan.json: as many tensors of each role, treated as there, but others; excludes the settings above"),
];

/// Part of the counter of each random number, so that no other use of the seed draws the same.
const STREAM: u32 = 0x7261_6e64;

#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Settings {
    #[serde(skip_serializing_if = "Option::is_none")]
    percent: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    targets: Option<Patterns>,
    #[serde(skip_serializing_if = "Option::is_none")]
    exclude: Option<Patterns>,
    #[serde(skip_serializing_if = "Option::is_none")]
    blocks: Option<Blocks>,
    #[serde(skip_serializing_if = "Option::is_none")]
    like: Option<Like>,
}

/// A plan by its file, or once read its entries, so that a plan made from it says all it was made from.
#[derive(Debug, PartialEq, Serialize)]
#[serde(untagged)]
enum Like {
    File(String),
    Entries(Vec<Entry>),
    Revised(Revised),
}

/// A plan that is revised while it trains.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Revised {
    entries: Vec<Entry>,
    picks: Picks,
}

impl Like {
    /// The entries, and when they are revised.
    fn read(&self) -> Result<(&[Entry], Option<&Picks>)> {
        match self {
            Like::File(_) => Err(Error::internal("the plan to be like was never read")),
            Like::Entries(entries) => Ok((entries, None)),
            Like::Revised(Revised { entries, picks }) => Ok((entries, Some(picks))),
        }
    }
}

impl Settings {
    fn read(settings: &Value) -> Result<Self> {
        let mut settings: Self = read_settings("random", settings)?;
        if let Some(like) = &mut settings.like {
            for (name, is_set) in [
                ("percent", settings.percent.is_some()),
                ("targets", settings.targets.is_some()),
                ("exclude", settings.exclude.is_some()),
                ("blocks", settings.blocks.is_some()),
            ] {
                if is_set {
                    return Err(Error::config(format!(
                        "`policy.{name}` has no effect: policy.like says how much trains"
                    ))
                    .help("keep one of them"));
                }
            }
            if let Like::File(path) = like {
                let plan = file::read(path.as_ref()).map_err(|error| {
                    Error::config(format!("`policy.like`: {}", error.message())).help("name a plan.json")
                })?;
                *like = match plan.picks.is_empty() {
                    true => Like::Entries(plan.entries),
                    false => Like::Revised(Revised { entries: plan.entries, picks: plan.picks }),
                };
            }
            return Ok(settings);
        }
        let percent = *settings.percent.get_or_insert(25.0);
        if !(0.0..=100.0).contains(&percent) {
            return Err(Error::config(format!("`policy.percent` must be between 0 and 100, not {percent}")));
        }
        settings.targets.get_or_insert_with(|| Patterns(vec!["all-linear".into()]));
        settings.exclude.get_or_insert_with(Patterns::default);
        for (setting, patterns) in [("policy.targets", &settings.targets), ("policy.exclude", &settings.exclude)] {
            for text in patterns.iter().flat_map(|patterns| &patterns.0) {
                select::Pattern::parse(setting, text)?;
            }
        }
        Ok(settings)
    }

    /// The weights to draw from, one flag a tensor.
    fn candidates(&self, view: &ModelView<'_>) -> Result<Vec<bool>> {
        let linear = Eligible { test: &|info| info.kind == Kind::Linear, what: "linear layer's weight" };
        let everything = Patterns(vec!["all-linear".into()]);
        let mut chosen = select::choose("policy.targets", self.targets.as_ref().unwrap_or(&everything), view, &linear)?;
        if let Some(blocks) = &self.blocks {
            blocks.check("policy.blocks", view)?;
            for (flag, info) in chosen.iter_mut().zip(view.tensors()) {
                *flag &= blocks.contain(info);
            }
        }
        if let Some(exclude) = &self.exclude {
            select::exclude("policy.exclude", exclude, view, &mut chosen)?;
        }
        Ok(chosen)
    }
}

impl Policy for Random {
    fn describe(&self) -> PolicyInfo {
        PolicyInfo {
            name: super::CONTROL.into(),
            version: "1.0.0".into(),
            about: "Weights drawn by the seed train whole: the control that a rule for choosing them must beat.".into(),
            settings: setting_infos(&SETTINGS),
        }
    }

    fn resolve(&self, settings: &Value) -> Result<Value> {
        resolved("random", &Settings::read(settings)?)
    }

    fn make_plan(&self, settings: &Value, view: &ModelView<'_>, builder: &mut PlanBuilder<'_>) -> Result<()> {
        let settings = Settings::read(settings)?;
        match &settings.like {
            Some(like) => {
                let (entries, picks) = like.read()?;
                if let Some(every) = picks.and_then(|picks| picks.every) {
                    builder.pick_every(every)?;
                }
                picks.iter().flat_map(|picks| &picks.at).try_for_each(|step| builder.pick_at(*step))?;
                deal_again(entries, view, 0, |from, to| copy(from, to, builder))
            }
            None => draw(&settings, view, builder),
        }
    }

    fn revise(&self, moment: &Moment<'_>, builder: &mut PlanBuilder<'_>) -> Result<()> {
        let settings = Settings::read(moment.settings)?;
        let Some(like) = &settings.like else { return Ok(()) };
        let (entries, _) = like.read()?;
        // Storage stays as it is, but for what begins to train: that is every plan's rule.
        deal_again(entries, moment.view, moment.step, |from, to| match from.treatment {
            Treatment::Frozen => builder.freeze(to),
            _ => builder.treat_like(to, from),
        })
    }
}

/// The numbers `0..count` in an order that depends on the seed, the step and `role` alone.
fn shuffled(seed: u64, step: u64, role: &str, count: usize) -> Vec<usize> {
    // The role's name goes into the counter, so that adding a role doesn't change the draw of the others.
    let name = role.bytes().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    let numbers: Vec<f64> =
        (0..count).map(|i| f64::from(philox(seed, [i as u32, name, STREAM, step as u32])[0])).collect();
    order(&numbers)
}

fn draw(settings: &Settings, view: &ModelView<'_>, builder: &mut PlanBuilder<'_>) -> Result<()> {
    let candidates = settings.candidates(view)?;
    let of_role = |role: &str| -> Vec<&TensorInfo> {
        let all = view.tensors().iter().zip(&candidates).filter(|(info, candidate)| **candidate && info.role == role);
        all.map(|(info, _)| info).collect()
    };
    let mut roles: Vec<&str> = Vec::new();
    for (info, _) in view.tensors().iter().zip(&candidates).filter(|(_, candidate)| **candidate) {
        if !roles.contains(&info.role.as_str()) {
            roles.push(&info.role);
        }
    }
    let percent = settings.percent.unwrap_or(25.0);
    let mut drawn: Vec<&TensorInfo> = Vec::new();
    for role in &roles {
        let members = of_role(role);
        let places = shuffled(view.seed(), 0, role, members.len());
        drawn.extend(places.into_iter().take(kept(members.len(), percent)).map(|place| members[place]));
    }
    if drawn.is_empty() {
        return Err(Error::plan(format!(
            "`policy.percent` = {percent} leaves nothing to train: the number drawn of each role is rounded down"
        ))
        .help("raise it"));
    }
    for info in view.tensors() {
        let layer = info.name.strip_suffix(".bias");
        let with_its_weight =
            layer.is_some_and(|layer| drawn.iter().any(|d| d.name.strip_suffix(".weight") == Some(layer)));
        if with_its_weight || drawn.iter().any(|d| d.name == info.name) {
            builder.train(&info.name)?;
        }
    }
    Ok(())
}

/// Deals each role's treatments out again among the blocks; a layer's weight and bias stay together, and what lies
/// outside the blocks stays as it is.
fn deal_again(
    entries: &[Entry],
    view: &ModelView<'_>,
    step: u64,
    mut give: impl FnMut(&Entry, &str) -> Result<()>,
) -> Result<()> {
    if entries.len() != view.tensors().len()
        || entries.iter().zip(view.tensors()).any(|(entry, info)| entry.tensor != info.name)
    {
        return Err(Error::plan("`policy.like`: the plan was made for another model"));
    }
    for info in view.tensors() {
        let same: Vec<usize> = (0..entries.len())
            .filter(|&i| {
                let other = &view.tensors()[i];
                (&other.role, other.kind, &other.shape) == (&info.role, info.kind, &info.shape)
                    && other.block.is_some() == info.block.is_some()
            })
            .collect();
        let place = same.iter().position(|&i| view.tensors()[i].name == info.name).unwrap_or(0);
        let from = same[shuffled(view.seed(), step, &info.role, same.len())[place]];
        give(&entries[from], &info.name)?;
    }
    Ok(())
}

/// Treats the tensor as `entry` treats its own.
fn copy(entry: &Entry, tensor: &str, builder: &mut PlanBuilder<'_>) -> Result<()> {
    builder.storage(tensor, entry.storage)?;
    builder.treat_like(tensor, entry)
}

impl<'de> Deserialize<'de> for Like {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Like;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("the path of a plan.json")
            }
            fn visit_str<E>(self, text: &str) -> std::result::Result<Like, E> {
                Ok(Like::File(text.to_string()))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> std::result::Result<Like, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = items.next_element()? {
                    entries.push(entry);
                }
                Ok(Like::Entries(entries))
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> std::result::Result<Like, A::Error> {
                Revised::deserialize(MapAccessDeserializer::new(map)).map(Like::Revised)
            }
        }
        deserializer.deserialize_any(Reader)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::path::Path;

    use serde_json::json;

    use super::*;
    use crate::model::inventory::Inventory;
    use crate::plan::{Origin, Plan, Storage};
    use crate::policy::Norms;
    use crate::report::Silent;

    fn inventory() -> Inventory {
        let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/families/qwen2/model");
        crate::model::open(&model.display().to_string(), Path::new(""), &mut Silent).unwrap().inventory
    }

    fn plan(inventory: &Inventory, settings: Value, seed: u64) -> Result<Plan> {
        let settings = Random.resolve(&settings)?;
        let mut builder = PlanBuilder::new(inventory, Storage::F32);
        Random.make_plan(&settings, &ModelView::new(inventory, seed), &mut builder)?;
        builder.build(Origin { policy: "random".into(), version: "1.0.0".into(), settings })
    }

    /// How many tensors of each role and kind train.
    fn counts(inventory: &Inventory, plan: &Plan) -> Vec<(String, Kind, usize)> {
        let mut counts: Vec<(String, Kind, usize)> = Vec::new();
        for (entry, info) in plan.entries.iter().zip(&inventory.tensors) {
            let trains = usize::from(entry.treatment != Treatment::Frozen);
            match counts.iter_mut().find(|(role, kind, _)| (role, *kind) == (&info.role, info.kind)) {
                Some((.., count)) => *count += trains,
                None => counts.push((info.role.clone(), info.kind, trains)),
            }
        }
        counts
    }

    #[test]
    fn the_seed_and_nothing_else_decides() {
        let inventory = inventory();
        let of_seed = |seed| plan(&inventory, json!({ "percent": 50 }), seed).unwrap().hash();
        assert_eq!(of_seed(1), of_seed(1));
        let different: std::collections::BTreeSet<String> = (0..8).map(of_seed).collect();
        assert!(different.len() > 4, "{different:?}");
    }

    #[test]
    fn like_a_plan_it_trains_as_many_of_each_role_and_keeps_weight_and_bias_together() {
        let inventory = inventory();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("plan.json");
        let first = plan(&inventory, json!({ "percent": 50 }), 3).unwrap();
        file::write(&first, &path).unwrap();
        let mut moved = 0;
        for seed in 0..6 {
            let again = plan(&inventory, json!({ "like": path.to_str().unwrap() }), seed).unwrap();
            assert_eq!(counts(&inventory, &again), counts(&inventory, &first));
            moved += usize::from(again.entries != first.entries);
            for (entry, info) in again.entries.iter().zip(&inventory.tensors).filter(|(_, i)| i.kind == Kind::Bias) {
                let weight = info.name.replace(".bias", ".weight");
                assert_eq!(again.get(&weight).unwrap().treatment, entry.treatment, "{}", info.name);
            }
        }
        assert!(moved > 0);
    }

    #[test]
    fn like_a_plan_with_picks_it_deals_out_as_many_anew_at_each() {
        let inventory = inventory();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("plan.json");
        let mut first = plan(&inventory, json!({ "percent": 50 }), 3).unwrap();
        first.picks = Picks { every: Some(2), at: vec![5] };
        file::write(&first, &path).unwrap();
        let control = plan(&inventory, json!({ "like": path.to_str().unwrap() }), 3).unwrap();
        assert_eq!(control.picks, first.picks);
        let view = ModelView::new(&inventory, 3);
        let at = |step: u64| {
            let mut builder = PlanBuilder::revising(&inventory, &control, Storage::F32);
            let (norms, settings) = (Norms::default(), &control.origin.settings);
            let moment = Moment { step, total_steps: 9, since: 1, losses: &[], norms: &norms, settings, view: &view };
            Random.revise(&moment, &mut builder).unwrap();
            builder.build(control.origin.clone()).unwrap()
        };
        let revised: Vec<Plan> = [3, 5, 7].map(at).into();
        for revised in &revised {
            assert_eq!(counts(&inventory, revised), counts(&inventory, &first));
            assert_eq!(revised.picks, first.picks);
        }
        assert!(revised.iter().any(|plan| plan.entries != control.entries) && revised[0].entries != revised[2].entries);
        assert_eq!(at(3).hash(), revised[0].hash());
    }

    #[test]
    fn settings_that_contradict_each_other_are_errors() {
        let inventory = inventory();
        let error = plan(&inventory, json!({ "percent": 10, "like": "plan.json" }), 0).unwrap_err();
        assert_eq!(error.message(), "`policy.percent` has no effect: policy.like says how much trains");
        let error = plan(&inventory, json!({ "percent": 1 }), 0).unwrap_err();
        assert!(error.message().starts_with("`policy.percent` = 1 leaves nothing to train"), "{error}");
        let error = plan(&inventory, json!({ "like": "/nowhere/plan.json" }), 0).unwrap_err();
        assert!(error.message().starts_with("`policy.like`: cannot read /nowhere/plan.json"), "{error}");
    }
}
