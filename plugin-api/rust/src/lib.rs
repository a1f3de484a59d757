//! The SDK for Liftplan's plugins.
//!
//! A plugin is a **policy**: it decides which weights of a language model train, in which form (whole, or by a low-rank
//! adapter), and when. It never sees a weight; it asks the host for statistics and speaks to a plan that checks each
//! call. The same source builds a WebAssembly component, which runs fenced in, and a native library.
//!
//! ```
//! use liftplan_plugin::{Model, Plan, Policy, Result, Settings, plugin};
//!
//! #[derive(Settings)]
//! #[serde(crate = "liftplan_plugin::serde")]
//! struct TopNorm {
//!     percent: f64,
//! }
//!
//! impl Policy for TopNorm {
//!     fn make_plan(&self, model: &Model, plan: &mut Plan) -> Result<()> {
//!         let mut weights = model.linear();
//!         weights.sort_by_cached_key(|weight| std::cmp::Reverse(weight.norm("l2").map_or(0, f64::to_bits)));
//!         let kept = (weights.len() as f64 * self.percent / 100.0).ceil() as usize;
//!         for weight in weights.iter().take(kept) {
//!             plan.train(weight.id())?;
//!         }
//!         Ok(())
//!     }
//! }
//!
//! plugin! {
//!     policy: TopNorm,
//!     name: "top-norm",
//!     version: "1.0.0",
//!     author: "A. Weaver",
//!     license: "MIT",
//!     about: "Trains the weights with the largest norm.",
//!     capabilities: ["statistics"],
//!     settings: r#"{
//!         "type": "object",
//!         "properties": { "percent": { "type": "number", "minimum": 0, "maximum": 100, "default": 25 } }
//!     }"#,
//! }
//! ```
//!
//! The settings reach the policy checked against the schema, defaults filled in. What a policy keeps between two picks
//! goes through [`state`]; nothing else lives from one call to the next.

mod describe;
mod model;
mod plan;
mod policy;
mod run;

#[cfg(target_family = "wasm")]
#[doc(hidden)]
#[allow(clippy::all)]
pub mod bindings;
#[cfg(not(target_family = "wasm"))]
#[doc(hidden)]
#[allow(missing_docs)]
pub mod native;
#[cfg(target_family = "wasm")]
#[doc(hidden)]
pub mod wasm;

/// What stands behind the SDK's types: the host, by way of a component's imports or a library's table of functions. Both
/// have the same types with the same methods.
#[cfg(not(target_family = "wasm"))]
pub(crate) use native as host;
#[cfg(target_family = "wasm")]
pub(crate) use wasm as host;

pub use model::{Calibration, Kind, Model, Moments, Tensor};
pub use plan::{Adapter, Plan};
pub use policy::{Error, Policy, Result};
pub use run::{Moment, log, state};
pub use serde::{self, Deserialize as Settings};
pub use serde_json;

#[doc(hidden)]
pub use describe::{bytes, check_word};
