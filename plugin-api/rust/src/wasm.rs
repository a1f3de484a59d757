//! The host, as a WebAssembly component imports it.

pub use crate::bindings::liftplan::policy::calibration::{Session, open};
pub use crate::bindings::liftplan::policy::log::{debug, info, warn};
pub use crate::bindings::liftplan::policy::model::{Tensor, View};
pub use crate::bindings::liftplan::policy::plan::{Adapter, Builder};
pub use crate::bindings::liftplan::policy::run::{Moment, get_state, set_state};
pub use crate::bindings::liftplan::policy::types::Error;

pub use crate::bindings::exports::liftplan::policy::policy::Guest;
pub use crate::policy::{make_plan, revise};

/// Tells the host of a panic before it ends the plugin.
pub fn report_panics() {
    std::panic::set_hook(Box::new(|panic| warn(&panic.to_string())));
}
