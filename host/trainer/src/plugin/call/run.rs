//! What a plugin asks of the run at a pick, and what it keeps between picks.

use super::{Answer, Call, refused};
use crate::policy::Moment;

/// Most bytes of a key.
const MOST_KEY_BYTES: usize = 256;
/// Most losses asked for at once.
const MOST_LOSSES: u32 = 1 << 20;

impl<'c> Call<'c, '_> {
    /// The moment of a revision.
    ///
    /// # Errors
    /// A first plan is being made.
    pub fn moment(&self) -> Answer<&'c Moment<'c>> {
        match self.moment {
            Some(moment) => Ok(moment),
            None => refused("a first plan is made before the run: there is no moment to ask".into()),
        }
    }

    /// The losses of up to `count` steps from `first` on, as far as they are done.
    ///
    /// # Errors
    /// As [`Call::moment`].
    pub fn losses(&self, first: u64, count: u32) -> Answer<Vec<f64>> {
        let losses = self.moment()?.losses;
        let start = usize::try_from(first.saturating_sub(1)).unwrap_or(usize::MAX).min(losses.len());
        let end = start.saturating_add(count.min(MOST_LOSSES) as usize).min(losses.len());
        Ok(losses[start..end].to_vec())
    }

    /// Root mean square of the tensor's gradient norms since the last pick, if it trained.
    ///
    /// # Errors
    /// There is no such tensor, or no moment.
    pub fn moment_gradient_norm(&self, id: u32) -> Answer<Option<f64>> {
        let name = &self.tensor(id)?.name;
        Ok(self.moment()?.norms.gradient(name))
    }

    /// The same of the changes that the steps made.
    ///
    /// # Errors
    /// There is no such tensor, or no moment.
    pub fn moment_update_norm(&self, id: u32) -> Answer<Option<f64>> {
        let name = &self.tensor(id)?.name;
        Ok(self.moment()?.norms.update(name))
    }

    /// What the policy kept under `key`.
    pub fn get_state(&self, key: &str) -> Option<Vec<u8>> {
        self.view.state().get(key).cloned()
    }

    /// Keeps `value` under `key`; an empty one removes it.
    ///
    /// # Errors
    /// It is too much, or the key is too long.
    pub fn set_state(&mut self, key: String, value: Vec<u8>) -> Answer<()> {
        if key.len() > MOST_KEY_BYTES {
            return refused(format!("a key of {} bytes is too long: at most {MOST_KEY_BYTES}", key.len()));
        }
        let mut state = self.view.state_mut();
        let before: usize = state.iter().filter(|(other, _)| **other != key).map(|(k, v)| k.len() + v.len()).sum();
        let limit = self.meter.limits().state_kib;
        if (before + key.len() + value.len()) as u64 > limit << 10 {
            return refused(format!("a policy keeps at most {limit} KiB between picks (`plugins.state_kib`)"));
        }
        if value.is_empty() {
            state.remove(&key);
        } else {
            state.insert(key, value);
        }
        Ok(())
    }
}
