//! Statistics that depend on data: the untrained model, measured on a few batches.

use crate::Result;

/// Measurements of the model as it was before training. Each is made when it is first asked for.
pub trait Calibration {
    /// Target tokens that it is measured on.
    fn tokens(&self) -> u64;

    /// Mean loss of a target token, in nats.
    ///
    /// # Errors
    /// The model can't be run, as for everything below.
    fn loss(&self) -> Result<f64>;

    /// The same without one decoder block.
    ///
    /// # Errors
    /// There is no such block.
    fn loss_without_block(&self, block: usize) -> Result<f64>;

    /// Mean over the tokens of the cosine between a block's input and its output.
    ///
    /// # Errors
    /// There is no such block.
    fn block_cosine(&self, block: usize) -> Result<f64>;

    /// Norm of the gradient of the mean loss with respect to the tensor called `tensor`.
    ///
    /// # Errors
    /// There is no such tensor.
    fn gradient_norm(&self, tensor: &str) -> Result<f64>;

    /// Sum over the elements of the squared gradient, a mean over the batches.
    ///
    /// # Errors
    /// There is no such tensor.
    fn squared_gradient(&self, tensor: &str) -> Result<f64>;

    /// Sum over the elements of the magnitude of weight times gradient.
    ///
    /// # Errors
    /// There is no such tensor.
    fn weight_gradient(&self, tensor: &str) -> Result<f64>;

    /// Mean, mean square, mean magnitude and largest magnitude of a linear layer's input.
    ///
    /// # Errors
    /// The tensor called `tensor` is no linear layer's weight.
    fn input_moments(&self, tensor: &str) -> Result<[f64; 4]>;
}
