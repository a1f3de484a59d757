//! The learning rate over time, as a factor on the configured rate. The curves are those of transformers'
//! `get_*_schedule_with_warmup`, so that runs can be compared step by step.

use crate::config::{ScheduleConfig, ScheduleName};

/// A schedule over a known number of steps.
#[derive(Clone, Copy, Debug)]
pub struct Schedule {
    name: ScheduleName,
    warmup: u64,
    decay: u64,
    total: u64,
    min_ratio: f64,
}

impl Schedule {
    /// The schedule of a run of `total` optimiser steps.
    pub fn new(config: &ScheduleConfig, total: u64) -> Self {
        let share = |ratio: f64| (ratio * total as f64).ceil() as u64;
        Self {
            name: config.name,
            warmup: config.warmup_steps.unwrap_or_else(|| share(config.warmup_ratio.unwrap_or(0.0))),
            decay: share(config.decay_ratio.unwrap_or(0.0)),
            total,
            min_ratio: config.min_lr_ratio.unwrap_or(0.0),
        }
    }

    /// The factor for the step after `done` steps.
    pub fn factor(&self, done: u64) -> f64 {
        if done < self.warmup {
            return done as f64 / self.warmup as f64;
        }
        let falling = (self.total.saturating_sub(self.warmup)).max(1) as f64;
        let progress = ((done - self.warmup) as f64 / falling).min(1.0);
        let left = match self.name {
            ScheduleName::Constant => return 1.0,
            ScheduleName::Linear => 1.0 - progress,
            ScheduleName::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * progress).cos()),
            ScheduleName::Wsd => {
                let start = self.total.saturating_sub(self.decay).max(self.warmup);
                if done < start {
                    return 1.0;
                }
                1.0 - (((done - start) as f64) / (self.total - start).max(1) as f64).min(1.0)
            }
        };
        self.min_ratio + (1.0 - self.min_ratio) * left
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn factors(name: ScheduleName, config: ScheduleConfig, total: u64) -> Vec<f64> {
        let schedule = Schedule::new(&ScheduleConfig { name, ..config }, total);
        (0..total).map(|done| schedule.factor(done)).collect()
    }

    const PLAIN: ScheduleConfig = ScheduleConfig {
        name: ScheduleName::Constant,
        warmup_steps: None,
        warmup_ratio: None,
        min_lr_ratio: None,
        decay_ratio: None,
    };

    #[test]
    fn warms_up_then_falls_in_a_line() {
        let config = ScheduleConfig { warmup_steps: Some(2), ..PLAIN };
        assert_eq!(factors(ScheduleName::Linear, config, 6), [0.0, 0.5, 1.0, 0.75, 0.5, 0.25]);
    }

    #[test]
    fn falls_along_half_a_cosine_to_its_floor() {
        let config = ScheduleConfig { min_lr_ratio: Some(0.1), ..PLAIN };
        let factors = factors(ScheduleName::Cosine, config, 4);
        assert_eq!(factors[0], 1.0);
        assert!((factors[2] - 0.55).abs() < 1e-12);
    }

    #[test]
    fn stays_and_then_falls() {
        let config = ScheduleConfig { warmup_ratio: Some(0.2), decay_ratio: Some(0.4), ..PLAIN };
        let factors = factors(ScheduleName::Wsd, config, 10);
        assert_eq!(factors, [0.0, 0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 0.75, 0.5, 0.25]);
    }
}
