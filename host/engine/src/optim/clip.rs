//! The norm of all gradients together.

use rayon::prelude::*;

use crate::error::{EngineError, Result};
use crate::param::Param;

/// Squares are added in stretches of this many elements, whose sums are added in order: the same result on any number
/// of cores.
const STRETCH: usize = 1 << 16;

/// The Euclidean norm of the gradients of all `params` that train.
///
/// # Errors
/// Naming the first tensor whose gradient is not finite.
pub fn grad_norm<'a>(params: impl Iterator<Item = &'a Param>) -> Result<f64> {
    let mut total = 0.0;
    for param in params {
        let Some(grad) = param.grad() else { continue };
        let sums: Vec<f64> =
            grad.par_chunks(STRETCH).map(|part| part.iter().map(|&g| f64::from(g) * f64::from(g)).sum()).collect();
        let squares: f64 = sums.iter().sum();
        if !squares.is_finite() {
            let value = grad.iter().find(|g| !g.is_finite()).map_or(squares, |&g| f64::from(g));
            return Err(EngineError::NotFinite { what: format!("the gradient of {}", param.name()), value });
        }
        total += squares;
    }
    Ok(total.sqrt())
}
