//! The run at a pick, what a policy keeps between picks, and messages to the user.

use crate::{Result, host};

/// A pick: between two steps.
pub struct Moment<'a> {
    moment: &'a host::Moment,
}

impl<'a> Moment<'a> {
    pub(crate) fn new(moment: &'a host::Moment) -> Self {
        Self { moment }
    }

    /// The step about to be done, from 1.
    pub fn step(&self) -> u64 {
        self.moment.step()
    }

    /// Steps planned in all.
    pub fn total_steps(&self) -> u64 {
        self.moment.total_steps()
    }

    /// The first step after the last pick, or 1.
    pub fn since(&self) -> u64 {
        self.moment.since()
    }

    /// The losses of up to `count` steps from `first` on, in nats a target token, as far as they are done.
    pub fn losses(&self, first: u64, count: u32) -> Vec<f64> {
        self.moment.losses(first, count)
    }

    /// Root mean square over the steps since the last pick of the norm of the tensor's gradient, that of its adapter if
    /// it has one. `None` if it did not train.
    ///
    /// # Errors
    /// There is no such tensor.
    pub fn gradient_norm(&self, tensor: u32) -> Result<Option<f64>> {
        Ok(self.moment.gradient_norm(tensor)?)
    }

    /// The same of the change that each step made.
    ///
    /// # Errors
    /// There is no such tensor.
    pub fn update_norm(&self, tensor: u32) -> Result<Option<f64>> {
        Ok(self.moment.update_norm(tensor)?)
    }

    /// The `draw`-th random number of this pick: it depends on seed, step and `draw` alone.
    pub fn random(&self, draw: u64) -> u64 {
        self.moment.random(draw)
    }
}

/// What a policy keeps between picks. It is part of every checkpoint, so that a resumed run goes on exactly.
pub mod state {
    use crate::{Result, host};

    /// What was kept under `key`.
    pub fn get(key: &str) -> Option<Vec<u8>> {
        host::get_state(key)
    }

    /// Keeps `value` under `key`; an empty one removes it.
    ///
    /// # Errors
    /// It is more than a policy may keep.
    pub fn set(key: &str, value: &[u8]) -> Result<()> {
        Ok(host::set_state(key, value)?)
    }
}

/// Messages to the user.
pub mod log {
    use crate::host;

    /// For the policy's author.
    pub fn debug(message: &str) {
        host::debug(message)
    }

    /// Good to know.
    pub fn info(message: &str) {
        host::info(message)
    }

    /// The user should know it.
    pub fn warn(message: &str) {
        host::warn(message)
    }
}
