//! A small made-up model: four decoder blocks, whose weights are drawn from counter-based random numbers, so that they are
//! the same on every machine. Each weight is noise plus a few strong directions, more in some than in others, so that
//! rules that rank by statistics have something to find.

use std::rc::Rc;
use std::sync::Arc;

use faer::Par;
use liftplan_engine::rng::philox;
use serde_json::json;

use crate::Result;
use crate::model::inventory::{Inventory, TensorInfo};
use crate::model::shapes;
use crate::stats::{Calibration, ElementStatistics, Statistics, quantiles, singular_values};

/// The model.
pub struct FakeModel {
    /// Its tensors.
    pub inventory: Inventory,
}

impl FakeModel {
    /// The model, which is always the same: a Llama of four small blocks.
    ///
    /// # Errors
    /// None that an author could cause.
    pub fn new() -> Result<Self> {
        let config = json!({"model_type": "llama", "vocab_size": 256, "hidden_size": 64, "intermediate_size": 160,
            "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": false});
        let mut inventory = shapes::of_config("the made-up model", &config)?.inventory;
        for tensor in &mut inventory.tensors {
            tensor.dtype = "bf16".into();
        }
        Ok(Self { inventory })
    }

    /// The elements of a weight, outermost dimension first.
    fn elements_of(&self, info: &TensorInfo) -> Vec<f32> {
        let number = self.inventory.position(&info.name).unwrap_or(0) as u64;
        // Between -1 and 1; with few bits, so that sums are exact in any order.
        let draw = |what: u64, at: u64| {
            let [word, ..] = philox(number, [at as u32, (at >> 32) as u32, what as u32, 0]);
            f64::from((word >> 20) as i32 - 2048) / 2048.0
        };
        let [rows, cols] = match info.shape[..] {
            [rows, cols] => [rows, cols],
            _ => [1, info.len()],
        };
        let directions = 1 + number % 5;
        let mut elements = Vec::with_capacity(rows * cols);
        for row in 0..rows as u64 {
            for col in 0..cols as u64 {
                let noise = draw(0, row * cols as u64 + col);
                let signal: f64 = (1..=directions).map(|d| draw(2 * d, row) * draw(2 * d + 1, col)).sum();
                elements.push((0.125 * noise + 0.0625 * signal) as f32);
            }
        }
        elements
    }
}

impl Statistics for FakeModel {
    fn singular_values(&self, tensors: &[&TensorInfo]) -> Result<Vec<Arc<[f64]>>> {
        let one = |info: &&TensorInfo| match info.shape[..] {
            [rows, cols] => Ok(singular_values(self.elements_of(info), rows, cols, Par::Seq)?.into()),
            _ => Err(crate::Error::plan(format!("`{}` has no singular values: it has one dimension", info.name))),
        };
        tensors.iter().map(one).collect()
    }

    fn elements(&self, tensors: &[&TensorInfo]) -> Result<Vec<ElementStatistics>> {
        tensors.iter().map(|info| ElementStatistics::of(&self.elements_of(info))).collect()
    }

    fn quantiles(&self, tensor: &TensorInfo, parts: &[f64], of_magnitudes: bool) -> Result<Vec<f64>> {
        quantiles(self.elements_of(tensor), parts, of_magnitudes)
    }

    fn calibration(&self, _: usize) -> Result<Rc<dyn Calibration>> {
        Err(crate::Error::plan("the made-up model has no data to measure on")
            .help("try the plugin with a configuration: liftplan plan CONFIG"))
    }
}
