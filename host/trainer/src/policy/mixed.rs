//! The policy `mixed`: several policies for one model, one after another. Each treats what those before it left alone, so
//! that adapters and whole weights train in one run: Spectrum's top layers whole and LoRA beside all others, or LoRA on some
//! roles and full training of others.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{ModelView, Policy, PolicyInfo, find, read_settings, resolved, setting_infos};
use crate::plan::{Origin, PlanBuilder, Storage, Treatment};
use crate::{Error, Result};

/// The policy.
pub(super) struct Mixed;

const NAME: &str = "mixed";

const SETTINGS: [(&str, &str); 1] = [(
    "parts",
    "list of policies, each a table with `name` and that policy's own settings; of a tensor that several would treat, the first decides",
)];

#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Settings {
    parts: Vec<Map<String, Value>>,
}

/// One of the policies.
struct Part {
    name: String,
    policy: Box<dyn Policy>,
    settings: Value,
}

impl Part {
    fn read(index: usize, mut settings: Map<String, Value>) -> Result<Self> {
        let name = match settings.shift_remove("name") {
            Some(Value::String(name)) => name,
            _ => return Err(Error::config(format!("`policy.parts`: part {} has no `name`", index + 1))),
        };
        let wrong = |error: Error| error.at(format!("`policy.parts`: part {}, `{name}`", index + 1));
        if name == NAME {
            return Err(wrong(Error::config("a part cannot itself be mixed")).help("list its parts here"));
        }
        let policy = find(&name).map_err(wrong)?;
        let settings = policy.resolve(&Value::Object(settings)).map_err(wrong)?;
        Ok(Self { name, policy, settings })
    }

    fn into_settings(self) -> Result<Map<String, Value>> {
        let Value::Object(settings) = self.settings else {
            return Err(Error::internal(format!("policy {}: its settings are no table", self.name)));
        };
        let mut all = Map::from_iter([("name".to_string(), Value::String(self.name))]);
        all.extend(settings);
        Ok(all)
    }
}

fn parts(settings: &Value) -> Result<Vec<Part>> {
    let settings: Settings = read_settings(NAME, settings)?;
    if settings.parts.len() < 2 {
        return Err(Error::config(format!(
            "`policy.parts` must list at least two policies, not {}",
            settings.parts.len()
        ))
        .help("add tables [[policy.parts]] with name = \"spectrum\", name = \"lora\" …, or set policy.name to the only one"));
    }
    settings.parts.into_iter().enumerate().map(|(index, part)| Part::read(index, part)).collect()
}

impl Policy for Mixed {
    fn describe(&self) -> PolicyInfo {
        PolicyInfo {
            name: NAME.into(),
            version: "1.0.0".into(),
            about: "Several policies one after another, each for what those before it left alone.".into(),
            settings: setting_infos(&SETTINGS),
        }
    }

    fn resolve(&self, settings: &Value) -> Result<Value> {
        let parts = parts(settings)?.into_iter().map(Part::into_settings).collect::<Result<Vec<_>>>()?;
        resolved(NAME, &Settings { parts })
    }

    fn reads_weights(&self) -> bool {
        true
    }

    fn heeds_storage(&self) -> bool {
        false
    }

    fn make_plan(&self, settings: &Value, view: &ModelView<'_>, builder: &mut PlanBuilder<'_>) -> Result<()> {
        let mut is_treated = vec![false; view.tensors().len()];
        for (index, part) in parts(settings)?.into_iter().enumerate() {
            let place = || format!("`policy.parts`: part {}, `{}`", index + 1, part.name);
            let mut own = PlanBuilder::new(view.inventory, Storage::F32);
            part.policy.make_plan(&part.settings, view, &mut own).map_err(|error| error.at(place()))?;
            let origin = Origin { policy: part.name.clone(), version: String::new(), settings: Value::Null };
            let plan = own.build(origin).map_err(|error| error.at(place()))?;
            let mut has_effect = false;
            for (entry, is_treated) in plan.entries.iter().zip(&mut is_treated) {
                if *is_treated || entry.treatment == Treatment::Frozen {
                    continue;
                }
                (*is_treated, has_effect) = (true, true);
                builder.treat_like(&entry.tensor, entry)?;
            }
            for (tensor, score) in &plan.scores {
                builder.score(tensor, *score)?;
            }
            if !has_effect {
                return Err(Error::plan(format!(
                    "{} has no effect: the parts before it treat all that it would",
                    place()
                ))
                .help("leave it out, or put it first"));
            }
        }
        Ok(())
    }
}
