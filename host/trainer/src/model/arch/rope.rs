//! `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (before it) → [`RopeSpec`].

use serde_json::{Map, Value};

use super::Config;
use crate::Result;
use crate::model::spec::{RopeScaling, RopeSpec};

const SUPPORTED: &str = "supported rope types: default, linear, llama3";

/// Reads the rotary embedding. Where a file has both forms, the older one wins, as in transformers.
///
/// # Errors
/// A rope type that isn't supported, or parameters that are missing, not positive, or contradict each other.
pub(super) fn read(config: &Config, max_positions: usize) -> Result<RopeSpec> {
    let empty = Map::new();
    let scaling = config.opt_object("rope_scaling")?.filter(|scaling| !scaling.is_empty());
    let (key, parameters) = match (scaling, config.opt_object("rope_parameters")?) {
        (Some(scaling), _) => ("rope_scaling", scaling),
        (None, Some(parameters)) => ("rope_parameters", parameters),
        (None, None) => ("rope_scaling", &empty),
    };
    if parameters.values().any(Value::is_object) {
        return Err(config.error(format!("`{key}` differs by layer type, which is not supported")).help(SUPPORTED));
    }
    let number = |name: &str| -> Result<Option<f64>> {
        match parameters.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => match value.as_f64() {
                Some(number) if number.is_finite() && number > 0.0 => Ok(Some(number)),
                _ => Err(config.error(format!("`{key}.{name}` is {value}; expected a positive number"))),
            },
        }
    };
    let required =
        |name: &str| -> Result<f64> { number(name)?.ok_or_else(|| config.error(format!("`{key}.{name}` is missing"))) };

    let theta = match number("rope_theta")? {
        Some(theta) => theta,
        None => config.opt_f64("rope_theta")?.unwrap_or(10_000.0),
    };
    if !(theta.is_finite() && theta > 1.0) {
        return Err(config.error(format!("`rope_theta` is {theta}; expected a number above 1")));
    }
    let partial = match number("partial_rotary_factor")? {
        Some(partial) => partial,
        None => config.opt_f64("partial_rotary_factor")?.unwrap_or(1.0),
    };
    if partial != 1.0 {
        return Err(config.error(format!("`partial_rotary_factor` {partial} is not supported")).help("supported: 1"));
    }
    let kind = match parameters.get("rope_type").or_else(|| parameters.get("type")) {
        None | Some(Value::Null) => "default",
        Some(Value::String(kind)) => kind,
        Some(other) => return Err(config.error(format!("`{key}.rope_type` is {other}; expected a string"))),
    };
    let scaling = match kind {
        "default" => RopeScaling::None,
        "linear" => RopeScaling::Linear { factor: required("factor")? },
        "llama3" => {
            let (low, high) = (required("low_freq_factor")?, required("high_freq_factor")?);
            if high <= low {
                return Err(config
                    .error(format!("`{key}.high_freq_factor` {high} must be above `{key}.low_freq_factor` {low}")));
            }
            let original = number("original_max_position_embeddings")?.unwrap_or(max_positions as f64);
            RopeScaling::Llama3 {
                factor: required("factor")?,
                low_freq_factor: low,
                high_freq_factor: high,
                original_max_positions: original as usize,
            }
        }
        other => return Err(config.error(format!("rope type `{other}` is not supported")).help(SUPPORTED)),
    };
    Ok(RopeSpec { theta, scaling })
}
