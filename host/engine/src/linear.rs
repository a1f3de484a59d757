//! A linear layer: frozen, trained or adapted, with or without a bias.

use crate::adapter::Adapter;
use crate::error::{Result, expect_shape};
use crate::mat::Mat;
use crate::ops::matmul::{self, Into};
use crate::ops::{dropout, elementwise};
use crate::param::Param;
use crate::rng::Stream;

/// `y = x · Wᵀ + bias`, and what an adapter adds.
#[derive(Debug)]
pub struct Linear {
    /// `[out, in]`.
    pub weight: Param,
    /// `[1, out]`.
    pub bias: Option<Param>,
    /// What trains beside a frozen weight.
    pub adapter: Option<Adapter>,
}

/// What a forward pass keeps for the backward pass, beside the layer's input.
#[derive(Debug, Default)]
pub struct LinearKept {
    /// `drop(x) · Aᵀ`, `[tokens, rank]`.
    low: Option<Mat>,
    dora: Option<DoraKept>,
}

#[derive(Debug)]
struct DoraKept {
    /// `magnitude / norm` of each output.
    factor: Vec<f32>,
    norm: Vec<f32>,
    /// What `factor` multiplied, `[tokens, out]`.
    product: Mat,
}

/// How a pass treats dropout: `None` outside training; inside, the seed and the count of the forward pass, the same in
/// the backward pass.
pub type DropoutPass = Option<(u64, u64)>;

impl Linear {
    /// A layer without adapter.
    ///
    /// # Errors
    /// When the bias does not fit the weight.
    pub fn new(weight: Param, bias: Option<Param>) -> Result<Self> {
        if let Some(bias) = &bias {
            expect_shape(bias.name(), weight.rows(), bias.cols())?;
        }
        Ok(Self { weight, bias, adapter: None })
    }

    /// Number of inputs.
    pub fn inputs(&self) -> usize {
        self.weight.cols()
    }

    /// Number of outputs.
    pub fn outputs(&self) -> usize {
        self.weight.rows()
    }

    /// Whether anything in it trains.
    pub fn trains(&self) -> bool {
        self.params().any(Param::trains)
    }

    /// Whether its backward pass reads the layer's input.
    pub fn needs_input(&self) -> bool {
        self.weight.trains() || self.adapter.is_some()
    }

    /// Its parameters, in a fixed order.
    pub fn params(&self) -> impl Iterator<Item = &Param> {
        std::iter::once(&self.weight).chain(&self.bias).chain(self.adapter.iter().flat_map(Adapter::params))
    }

    /// Its parameters, in the same order.
    pub fn params_mut(&mut self) -> impl Iterator<Item = &mut Param> {
        let adapter = self.adapter.iter_mut().flat_map(Adapter::params_mut);
        std::iter::once(&mut self.weight).chain(&mut self.bias).chain(adapter)
    }

    /// `y[tokens, out]` of `x[tokens, in]`, and what the backward pass needs.
    pub fn forward(&self, x: &Mat, pass: DropoutPass) -> (Mat, LinearKept) {
        let (tokens, shape) = (x.rows(), [x.rows(), self.outputs(), self.inputs()]);
        let weight = (&self.weight.value, x.pool());
        let mut y = Mat::uninit(x.pool(), tokens, self.outputs());
        matmul::nt_weight(Into::Replace, &mut y, 1.0, x, weight, shape);
        let mut kept = LinearKept::default();
        if let Some(adapter) = &self.adapter {
            let rank = adapter.rank();
            let dropped = dropped(adapter, x, pass);
            let input = dropped.as_ref().unwrap_or(x);
            let mut low = Mat::uninit(x.pool(), tokens, rank);
            matmul::nt(Into::Replace, &mut low, 1.0, input, &adapter.a.value.as_f32(), [tokens, rank, self.inputs()]);
            let (b, scale) = (adapter.b.value.as_f32(), adapter.options.scale);
            let up = [tokens, self.outputs(), rank];
            match &adapter.magnitude {
                None => matmul::nt(Into::Add, &mut y, scale, &low, &b, up),
                Some(magnitude) => {
                    // Reference: PEFT's DoRA layer. y = x·Wᵀ + (f - 1)·(x'·Wᵀ) + f·scale·(x'·Aᵀ)·Bᵀ with x' the input
                    // after dropout and f = magnitude / norm; without dropout that is f·(x·Wᵀ + scale·(x·Aᵀ)·Bᵀ).
                    let norm = adapter.row_norms(&self.weight.value, x.pool());
                    let magnitude = magnitude.value.as_f32();
                    let factor: Vec<f32> = magnitude.iter().zip(&norm).map(|(m, n)| by_norm(*m, *n, 1.0)).collect();
                    let mut product = match &dropped {
                        None => y.duplicate(),
                        Some(dropped) => {
                            let mut product = Mat::uninit(x.pool(), tokens, self.outputs());
                            matmul::nt_weight(Into::Replace, &mut product, 1.0, dropped, weight, shape);
                            for (y, p) in y.iter_mut().zip(product.iter()) {
                                *y -= p;
                            }
                            product
                        }
                    };
                    matmul::nt(Into::Add, &mut product, scale, &low, &b, up);
                    let mut scaled = product.duplicate();
                    elementwise::scale_columns(&mut scaled, &factor);
                    if dropped.is_some() {
                        elementwise::add(&mut y, &scaled)
                    } else {
                        y = scaled
                    }
                    kept.dora = Some(DoraKept { factor, norm, product });
                }
            }
            kept.low = Some(low);
        }
        if let Some(bias) = &self.bias {
            elementwise::add_bias(&mut y, &bias.value.as_f32());
        }
        (y, kept)
    }

    /// Adds the parameters' gradients; if `dx` is given, writes or adds the gradient of the input there. `x` is the
    /// forward pass's input and may be left out when [`Linear::needs_input`] says so.
    pub fn backward(
        &mut self,
        dy: &Mat,
        x: Option<&Mat>,
        kept: &LinearKept,
        pass: DropoutPass,
        dx: Option<(Into, &mut Mat)>,
    ) {
        let (tokens, out, input) = (dy.rows(), self.outputs(), self.inputs());
        if let Some(d_bias) = self.bias.as_mut().and_then(Param::grad_mut) {
            elementwise::add_column_sums(d_bias, dy);
        }
        if let (Some(d_weight), Some(x)) = (self.weight.grad_mut(), x) {
            matmul::tn(Into::Add, d_weight, 1.0, dy, x, [out, input, tokens]);
        }
        let (Some(adapter), Some(x), Some(low)) = (&mut self.adapter, x, &kept.low) else {
            if let Some((into, dx)) = dx {
                let weight = (&self.weight.value, dy.pool());
                matmul::nn_weight(into, dx, 1.0, dy, weight, [tokens, input, out]);
            }
            return;
        };
        let rank = adapter.rank();
        let scale = adapter.options.scale;
        let dropped = dropped(adapter, x, pass);
        // The gradient of what DoRA's factor multiplied; of the output itself without DoRA.
        let d_product = kept.dora.as_ref().map(|dora| {
            if let Some(d_magnitude) = adapter.magnitude.as_mut().and_then(Param::grad_mut) {
                let mut dots = vec![0.0; out];
                elementwise::add_column_dots(&mut dots, dy, &dora.product);
                for ((d, dot), norm) in d_magnitude.iter_mut().zip(dots).zip(&dora.norm) {
                    *d += by_norm(dot, *norm, 0.0);
                }
            }
            let mut d_product = dy.duplicate();
            elementwise::scale_columns(&mut d_product, &dora.factor);
            d_product
        });
        let d_low_source = d_product.as_ref().unwrap_or(dy);
        let mut d_low = Mat::uninit(dy.pool(), tokens, rank);
        matmul::nn(Into::Replace, &mut d_low, scale, d_low_source, &adapter.b.value.as_f32(), [tokens, rank, out]);
        if let Some(d_b) = adapter.b.grad_mut() {
            matmul::tn(Into::Add, d_b, scale, d_low_source, low, [out, rank, tokens]);
        }
        if let Some(d_a) = adapter.a.grad_mut() {
            matmul::tn(Into::Add, d_a, 1.0, &d_low, dropped.as_ref().unwrap_or(x), [rank, input, tokens]);
        }
        let Some((into, dx)) = dx else { return };
        let (weight, a) = ((&self.weight.value, dy.pool()), adapter.a.value.as_f32());
        if dropped.is_none() {
            // Without dropout both products have the same input, so that with DoRA the base's gradient is d_product too.
            matmul::nn_weight(into, dx, 1.0, d_low_source, weight, [tokens, input, out]);
            matmul::nn(Into::Add, dx, 1.0, &d_low, &a, [tokens, input, rank]);
            return;
        }
        matmul::nn_weight(into, dx, 1.0, dy, weight, [tokens, input, out]);
        let mut d_dropped = Mat::uninit(dy.pool(), tokens, input);
        matmul::nn(Into::Replace, &mut d_dropped, 1.0, &d_low, &a, [tokens, input, rank]);
        if let Some(d_product) = &d_product {
            let mut beyond = d_product.duplicate();
            for (b, dy) in beyond.iter_mut().zip(dy.iter()) {
                *b -= dy;
            }
            matmul::nn_weight(Into::Add, &mut d_dropped, 1.0, &beyond, weight, [tokens, input, out]);
        }
        let mut d_masked = Mat::uninit(dy.pool(), tokens, input);
        if let Some(stream) = stream(adapter, pass) {
            dropout::apply(&mut d_masked, &d_dropped, adapter.options.dropout, stream);
        }
        elementwise::add(dx, &d_masked);
    }
}

fn stream(adapter: &Adapter, pass: DropoutPass) -> Option<Stream> {
    let (seed, count) = pass.filter(|_| adapter.options.dropout > 0.0)?;
    Some(Stream::new(seed, count, adapter.options.dropout_stream))
}

/// The adapter's input after dropout, if there is any.
fn dropped(adapter: &Adapter, x: &Mat, pass: DropoutPass) -> Option<Mat> {
    let stream = stream(adapter, pass)?;
    let mut dropped = Mat::uninit(x.pool(), x.rows(), x.cols());
    dropout::apply(&mut dropped, x, adapter.options.dropout, stream);
    Some(dropped)
}

/// `x / norm`; `otherwise` for a row of zeros, which has no direction to give a magnitude to.
fn by_norm(x: f32, norm: f32, otherwise: f32) -> f32 {
    if norm == 0.0 { otherwise } else { x / norm }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::adapter::AdapterOptions;
    use crate::pool::Pool;
    use crate::storage::Weight;

    #[test]
    fn dora_leaves_a_row_of_zeros_as_it_is() {
        let trained = |name: &str, [rows, cols]: [usize; 2], values: &[f32]| {
            Param::trained(name, rows, cols, Weight::F32(values.to_vec())).unwrap()
        };
        // The second row is dead, and B is zero as it is at first: its norm is 0, and so is its magnitude.
        let mut linear =
            Linear::new(Param::frozen("w", 2, 2, Weight::F32(vec![3.0, 4.0, 0.0, 0.0])).unwrap(), None).unwrap();
        let (a, b) = (trained("a", [1, 2], &[1.0, 2.0]), trained("b", [2, 1], &[0.0, 0.0]));
        let magnitude = Some(trained("m", [1, 2], &[5.0, 0.0]));
        let options = AdapterOptions { scale: 1.0, dropout: 0.0, dropout_stream: 0 };
        linear.adapter = Some(Adapter::new([2, 2], a, b, magnitude, options).unwrap());
        let pool = Pool::new();
        let (x, dy) = (Mat::from_slice(&pool, 2, &[1.0, 1.0]), Mat::from_slice(&pool, 2, &[1.0, 1.0]));
        let (y, kept) = linear.forward(&x, None);
        assert_eq!(y.to_vec(), [7.0, 0.0]);
        let mut dx = Mat::uninit(&pool, 1, 2);
        linear.backward(&dy, Some(&x), &kept, None, Some((Into::Replace, &mut dx)));
        assert_eq!(dx.to_vec(), [3.0, 4.0]);
        // The first magnitude's: dy · p / norm; the second's row has no direction.
        let grads: Vec<Vec<f32>> = linear.params().filter_map(Param::grad).map(<[f32]>::to_vec).collect();
        assert_eq!(grads.last().unwrap()[..], [7.0 / 5.0, 0.0]);
        assert!(grads.concat().iter().all(|grad| grad.is_finite()));
    }
}
