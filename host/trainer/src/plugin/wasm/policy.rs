//! A component as a [`Policy`]: what passes between the two.

use serde_json::Value;

use super::WasmPlugin;
use crate::plan::PlanBuilder;
use crate::plugin::call::Call;
use crate::plugin::metadata::Capability;
use crate::plugin::settings;
use crate::policy::{ModelView, Moment, Policy, PolicyInfo};
use crate::{Error, Result};

impl Policy for WasmPlugin {
    fn describe(&self) -> PolicyInfo {
        self.metadata.policy_info()
    }

    fn resolve(&self, settings: &Value) -> Result<Value> {
        settings::resolve(&self.metadata.settings, settings)
    }

    fn reads_weights(&self) -> bool {
        self.metadata.capabilities.contains(&Capability::Statistics)
    }

    fn needs_data(&self) -> bool {
        self.metadata.capabilities.contains(&Capability::Calibration)
    }

    fn plugin_sha256(&self) -> Option<&str> {
        Some(&self.sha256)
    }

    fn seconds(&self) -> f64 {
        self.seconds.get()
    }

    fn make_plan(&self, settings: &Value, view: &ModelView<'_>, builder: &mut PlanBuilder<'_>) -> Result<()> {
        let mut call = Call::new(view, None, builder, &self.limits, &self.metadata.capabilities);
        WasmPlugin::make_plan(self, &text(settings)?, &mut call)
    }

    fn revise(&self, moment: &Moment<'_>, builder: &mut PlanBuilder<'_>) -> Result<()> {
        let mut call = Call::new(moment.view, Some(moment), builder, &self.limits, &self.metadata.capabilities);
        WasmPlugin::revise(self, &text(moment.settings)?, &mut call)
    }
}

fn text(settings: &Value) -> Result<String> {
    serde_json::to_string(settings).map_err(|error| Error::internal(format!("settings as JSON: {error}")))
}
