//! What planning takes, measured once for all methods whose planning is the same work. In: the methods. Out: what each one's plan
//! takes to make, and, of those that choose among layers, the random counterparts.
//!
//! Planning is the same work where nothing differs that the policy can see of a run: the policy itself, its settings and files, the
//! model, the data, the seed, the device, the memory that a run may take. No policy sees optimiser and schedule. Storage and
//! what else belongs to training it may see ([`Policy::heeds_storage`](crate::policy::Policy::heeds_storage)): where it does
//! not, it plans once over the default storage, and each method's plan is that choice over its own.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::agreement::is_selection;
use super::config::{Method, control_name};
use super::job::PlanCost;
use super::meter::Meter;
use super::queue;
use super::site::Site;
use super::store::{Cell, Failure};
use crate::config::{Config, PolicyConfig};
use crate::plan::{self, Plan};
use crate::report::{Event, Observer};
use crate::{Error, Result, policy};

/// What making a method's plan takes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Selection {
    /// Time and memory, and the method's own plan's hash.
    #[serde(flatten)]
    pub cost: PlanCost,
    /// The other methods whose planning is the same work, for all of which it was measured once.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shared_with: Vec<String>,
}

/// A method, and what making its plan took; none for a control.
pub(super) type Planned = (Method, Option<std::result::Result<Selection, Failure>>);

/// A planning, and the methods whose planning it is.
struct Planning {
    cell: Cell,
    config: Config,
    over_any_storage: bool,
    /// Their positions among the comparison's.
    methods: Vec<usize>,
}

impl Planning {
    fn names<'a>(&'a self, site: &'a Site<'_>) -> impl Iterator<Item = &'a str> {
        self.methods.iter().filter_map(|i| Some(site.comparison.methods.get(*i)?.name.as_str()))
    }

    /// For the progress.
    fn title(&self, site: &Site<'_>) -> String {
        let names: Vec<&str> = self.names(site).collect();
        match names[..] {
            [] => "planning".into(),
            [one] => format!("planning for {one}"),
            [one, other] => format!("planning for {one} and {other}"),
            [one, ref others @ ..] => format!("planning for {one} and {} more", others.len()),
        }
    }
}

/// Measures what planning takes, and adds the random counterparts, each behind its method.
///
/// # Errors
/// When something fails that is no cell's own, or the user stops it.
pub(super) fn run(site: &Site<'_>, observer: &mut dyn Observer) -> Result<Vec<Planned>> {
    observer.on(&Event::Phase("measuring what planning costs"));
    let plannings = plannings(site)?;
    // One at a time, so that they do not disturb each other.
    let at_once = 1;
    let mut meter = Meter::new(site, observer, plannings.len() as u64, at_once);
    let plan = |planning: &Planning| site.plan(&planning.cell, &planning.config);
    let costs = queue::run(&plannings, at_once, &site.options.stop, plan, |i, cost| {
        let words = cost.map(|cost| match cost {
            Ok(cost) => cost.in_words(),
            Err(failure) => format!("failed: {}", failure.reason),
        });
        meter.done += u64::from(words.is_some());
        meter.tell(&plannings[i].title(site), words.as_deref());
    })?;

    let mut planned: Vec<Planned> = Vec::new();
    for (i, method) in site.comparison.methods.iter().enumerate() {
        let of_method = |(planning, _): &(&Planning, _)| planning.methods.contains(&i);
        let (planning, cost) = plannings
            .iter()
            .zip(&costs)
            .find(of_method)
            .ok_or_else(|| Error::internal(format!("nobody planned for {}", method.name)))?;
        let made = match cost {
            Ok(cost) => own(site, method, planning, cost)?,
            Err(failure) => Err(failure.clone()),
        };
        let (selection, control) = match made {
            Ok((cost, plan, file)) => {
                let shared_with = planning.names(site).filter(|name| *name != method.name).map(str::to_string);
                let selection = Selection { cost, shared_with: shared_with.collect() };
                (Ok(selection), site.comparison.controls.then(|| control(site, method, &plan, &file)).flatten())
            }
            Err(failure) => (Err(failure), None),
        };
        planned.push((method.clone(), Some(selection)));
        planned.extend(control.map(|control| (control, None)));
    }
    Ok(planned)
}

/// The plannings that the comparison needs, each once, in the order of the methods.
fn plannings(site: &Site<'_>) -> Result<Vec<Planning>> {
    let mut plannings: Vec<Planning> = Vec::new();
    for (i, method) in site.comparison.methods.iter().enumerate() {
        let config = first_run(site, method);
        let policy = policy::open(&config)?;
        let over_any_storage = !policy.heeds_storage() && !policy.needs_data();
        let config = match over_any_storage {
            true => config.with_defaults(&["optimizer", "schedule", "storage", "train"])?,
            false => config.with_defaults(&["optimizer", "schedule"])?,
        };
        let cell = site.planning_cell(&config)?;
        match plannings.iter_mut().find(|planning| planning.cell.dir == cell.dir) {
            Some(planning) => planning.methods.push(i),
            None => plannings.push(Planning { cell, config, over_any_storage, methods: vec![i] }),
        }
    }
    Ok(plannings)
}

/// The run for which a method's plan is made: its first.
fn first_run(site: &Site<'_>, method: &Method) -> Config {
    let seed = site.comparison.seeds.first().copied().unwrap_or(0);
    site.as_run(&method.run(method.config.optimizer.lr, seed))
}

/// The method's own plan, of the planning that it shares: its cost, itself, and its file.
fn own(
    site: &Site<'_>,
    method: &Method,
    planning: &Planning,
    cost: &PlanCost,
) -> Result<std::result::Result<(PlanCost, Plan, PathBuf), Failure>> {
    let file = planning.cell.dir.join("plan.json");
    let made = plan::file::read(&file)?;
    if !planning.over_any_storage {
        return Ok(Ok((cost.clone(), made, file)));
    }
    let plan = match policy::kept_otherwise(&first_run(site, method), &site.base.inventory, &made) {
        Ok(plan) => plan,
        Err(error) => return Ok(Err(Failure::new(error.message()))),
    };
    let cost = PlanCost { plan_hash: plan.hash(), ..cost.clone() };
    let file = match cost.plan_hash == made.hash() {
        true => file,
        false => {
            let short = cost.plan_hash.get(..8).unwrap_or(&cost.plan_hash);
            let file = planning.cell.dir.join(format!("plan-{short}.json"));
            plan::file::write(&plan, &file)?;
            file
        }
    };
    Ok(Ok((cost, plan, file)))
}

/// The random counterpart of a method with this plan, if that chooses among layers.
fn control(site: &Site<'_>, method: &Method, plan: &Plan, file: &Path) -> Option<Method> {
    if method.config.policy.name == policy::CONTROL || !is_selection(plan, &site.base.inventory) {
        return None;
    }
    let settings = Map::from_iter([("like".to_string(), Value::String(file.display().to_string()))]);
    let mut config = method.config.clone();
    config.policy = PolicyConfig { name: policy::CONTROL.into(), plugin: None, project: None, settings };
    Some(Method {
        name: control_name(&method.name),
        config,
        learning_rates: method.learning_rates.clone(),
        control_of: Some(method.name.clone()),
    })
}
