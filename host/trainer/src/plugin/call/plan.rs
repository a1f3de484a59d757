//! What a plugin plans. The builder checks each call.

use super::{Answer, Call, PLAN, refused};
use crate::Error;
use crate::plan::{AdapterSpec, Storage};

impl Call<'_, '_> {
    /// The tensor stays as it is.
    ///
    /// # Errors
    /// Those of [`crate::plan::PlanBuilder::freeze`], as for the functions below.
    pub fn freeze(&mut self, id: u32) -> Answer<()> {
        let name = &self.tensor(id)?.name;
        Ok(self.builder.freeze(name)?)
    }

    /// The tensor trains whole.
    ///
    /// # Errors
    /// It is treated already.
    pub fn train(&mut self, id: u32) -> Answer<()> {
        let name = &self.tensor(id)?.name;
        Ok(self.builder.train(name)?)
    }

    /// An adapter trains beside the tensor.
    ///
    /// # Errors
    /// The adapter doesn't fit.
    pub fn adapt(&mut self, id: u32, adapter: AdapterSpec) -> Answer<()> {
        let name = &self.tensor(id)?.name;
        Ok(self.builder.adapt(name, adapter)?)
    }

    /// Says how the tensor is kept.
    ///
    /// # Errors
    /// The storage is unknown or set twice.
    pub fn storage(&mut self, id: u32, storage: &str) -> Answer<()> {
        let name = &self.tensor(id)?.name;
        let storage = match storage {
            "f32" => Storage::F32,
            "bf16" => Storage::Bf16,
            // As QLoRA has it.
            "nf4" => Storage::Nf4 { block_size: 64, double_quantization: true },
            "int8" => Storage::Int8,
            other => {
                let other = crate::plugin::escaped(other, 80);
                return Err(Error::plan(format!("`{name}` cannot be kept as `{other}`"))
                    .help("it can be f32, bf16, nf4 or int8")
                    .into());
            }
        };
        Ok(self.builder.storage(name, storage)?)
    }

    /// A factor on the learning rate.
    ///
    /// # Errors
    /// It is not above 0, is set twice, or has no effect.
    pub fn lr_scale(&mut self, id: u32, factor: f64) -> Answer<()> {
        let name = &self.tensor(id)?.name;
        Ok(self.builder.lr_scale(name, factor)?)
    }

    /// A further factor for an adapter's B.
    ///
    /// # Errors
    /// It is not above 0, is set twice, or has no effect.
    pub fn lr_scale_b(&mut self, id: u32, factor: f64) -> Answer<()> {
        let name = &self.tensor(id)?.name;
        Ok(self.builder.lr_scale_b(name, factor)?)
    }

    /// A score, for reports.
    ///
    /// # Errors
    /// It is not finite.
    pub fn score(&mut self, id: u32, score: f64) -> Answer<()> {
        let name = &self.tensor(id)?.name;
        Ok(self.builder.score(name, score)?)
    }

    /// Asks for a revision after every so many steps.
    ///
    /// # Errors
    /// The number is 0.
    pub fn pick_every(&mut self, steps: u64) -> Answer<()> {
        self.may_pick()?;
        Ok(self.builder.pick_every(steps)?)
    }

    /// Asks for a revision before a step.
    ///
    /// # Errors
    /// The step is before 2, or there are too many.
    pub fn pick_at(&mut self, step: u64) -> Answer<()> {
        const MOST_PICKS: usize = 100_000;
        self.may_pick()?;
        if self.builder.picks().at.len() >= MOST_PICKS {
            return refused(format!("a plan is revised at no more than {MOST_PICKS} steps"));
        }
        Ok(self.builder.pick_at(step)?)
    }

    fn may_pick(&self) -> Answer<()> {
        if self.may_revise {
            return Ok(());
        }
        Err(super::Fault::Refused(super::Refusal {
            code: PLAN,
            message: "the plugin's metadata does not name the capability `revise`, and it asked for picks".into(),
            help: "add it to `capabilities`".into(),
        }))
    }

    /// What happens to the tensor as things stand: `frozen`, `train` or `adapt`.
    ///
    /// # Errors
    /// There is no such tensor.
    pub fn treatment(&self, id: u32) -> Answer<&'static str> {
        Ok(self.builder.treatment_now(&self.tensor(id)?.name)?)
    }

    /// Parameters that train as things stand.
    pub fn trainable_parameters(&self) -> u64 {
        self.builder.needs_now().0
    }

    /// An estimate of the bytes of weights, gradients and optimiser states as things stand.
    pub fn memory_estimate(&self) -> u64 {
        self.builder.needs_now().1
    }
}
