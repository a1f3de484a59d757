//! salience: measures the untrained model on some of the training data, and trains the linear layers' weights that matter
//! most for it, as many as asked for and as fit into the run's memory.

use liftplan_plugin::{Calibration, Error, Model, Plan, Policy, Result, Settings, Tensor, log, plugin};

#[derive(Clone, Copy, Settings)]
#[serde(crate = "liftplan_plugin::serde", rename_all = "snake_case")]
enum By {
    WeightGradient,
    SquaredGradient,
    GradientNorm,
    Input,
    BlockChange,
    BlockLoss,
}

#[derive(Settings)]
#[serde(crate = "liftplan_plugin::serde")]
struct Salience {
    by: By,
    percent: f64,
    batches: u32,
}

impl Salience {
    fn score(&self, measured: &Calibration, weight: &Tensor) -> Result<f64> {
        // Sums over the elements are divided by their number, or large weights would always come first.
        let per_element = |sum: f64| sum / weight.elements().max(1) as f64;
        let score = match (self.by, weight.block()) {
            (By::WeightGradient, _) => per_element(measured.weight_gradient(weight.id())?),
            (By::SquaredGradient, _) => per_element(measured.squared_gradient(weight.id())?),
            (By::GradientNorm, _) => measured.gradient_norm(weight.id())?,
            (By::Input, _) => measured.input_moments(weight.id())?[2],
            (By::BlockChange, Some(block)) => 1.0 - measured.block_cosine(block)?,
            (By::BlockLoss, Some(block)) => measured.loss_without_block(block)? - measured.loss()?,
            (By::BlockChange | By::BlockLoss, None) => 0.0,
        };
        Ok(six_digits(score))
    }
}

/// The last digits of a measurement depend on the processor, and a plan must not.
fn six_digits(value: f64) -> f64 {
    format!("{value:.5e}").parse().unwrap_or(value)
}

impl Policy for Salience {
    fn make_plan(&self, model: &Model, plan: &mut Plan) -> Result<()> {
        let measured = model.calibrate(self.batches)?;
        let mut weights = Vec::new();
        for weight in model.linear() {
            let score = self.score(&measured, &weight)?;
            plan.score(weight.id(), score)?;
            weights.push((score, weight));
        }
        // Of equal scores the earlier weight's comes first.
        weights.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.id().cmp(&b.1.id())));
        let wanted = ((weights.len() as f64 * self.percent / 100.0) as usize).max(1);
        let budget = model.memory_budget();
        // What training one element more takes, known once the first one trains.
        let mut bytes_per_element = 0.0;
        let mut trained = 0;
        for (_, weight) in weights.iter().take(wanted) {
            let (before, elements) = (plan.memory_estimate(), weight.elements() as f64);
            let needs = before as f64 + bytes_per_element * elements;
            if trained > 0 && budget.is_some_and(|budget| needs > budget as f64) {
                continue;
            }
            plan.train(weight.id())?;
            let now = plan.memory_estimate();
            if let Some(budget) = budget.filter(|budget| now > *budget) {
                return Err(Error::plan(format!(
                    "the model and one trained weight take {now} bytes, and the run may use {budget}"
                )));
            }
            bytes_per_element = now.saturating_sub(before) as f64 / elements.max(1.0);
            trained += 1;
        }
        if trained < wanted {
            log::info(&format!("{trained} of {wanted} weights fit into the run's memory"));
        }
        Ok(())
    }
}

plugin! {
    policy: Salience,
    name: "salience",
    about: "Trains the weights that matter most for the training data, as many as fit into memory.",
    capabilities: ["calibration"],
    settings: include_str!("../settings.json"),
}
