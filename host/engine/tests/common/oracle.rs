//! The same model written with candle's tensors, differentiated by its autograd.

use std::collections::BTreeMap;

use candle_core::{D, DType, Device, Result, Tensor, Var};
use liftplan_engine::{Batch, Decoder, IGNORE, Linear, Param};

use super::{EPS, SCALE, Shape, inverse_frequencies};

struct Vars(BTreeMap<String, Var>);

impl Vars {
    fn new(decoder: &Decoder) -> Result<Self> {
        let var = |param: &Param| {
            let values = param.value.as_f32().into_owned();
            let shape = if param.rows() == 1 { vec![param.cols()] } else { vec![param.rows(), param.cols()] };
            Ok((param.name().to_string(), Var::from_vec(values, shape, &Device::Cpu)?))
        };
        Ok(Self(decoder.params().map(var).collect::<Result<_>>()?))
    }

    fn get(&self, param: &Param) -> &Tensor {
        self.0[param.name()].as_tensor()
    }

    fn linear(&self, x: &Tensor, linear: &Linear) -> Result<Tensor> {
        let weight = self.get(&linear.weight);
        let mut y = x.matmul(&weight.t()?)?;
        if let Some(adapter) = &linear.adapter {
            let (a, b) = (self.get(&adapter.a), self.get(&adapter.b));
            y = (y + (x.matmul(&a.t()?)?.matmul(&b.t()?)? * f64::from(SCALE))?)?;
            if let Some(magnitude) = &adapter.magnitude {
                let merged = (weight + (b.matmul(a)? * f64::from(SCALE))?)?.detach();
                let norm = merged.sqr()?.sum(1)?.sqrt()?;
                y = y.broadcast_mul(&self.get(magnitude).div(&norm)?)?;
            }
        }
        match &linear.bias {
            Some(bias) => y.broadcast_add(self.get(bias)),
            None => Ok(y),
        }
    }

    fn norm(&self, x: &Tensor, norm: &Param) -> Result<Tensor> {
        let rms = (x.sqr()?.mean_keepdim(D::Minus1)? + f64::from(EPS))?.sqrt()?;
        x.broadcast_div(&rms)?.broadcast_mul(self.get(norm))
    }
}

/// Positions turned: `x[tokens, heads, dim]`.
fn turned(x: &Tensor, shape: &Shape, batch: &Batch) -> Result<Tensor> {
    let half = shape.head_dim / 2;
    let positions: Vec<f32> = batch.positions.iter().map(|&p| p as f32).collect();
    let positions = Tensor::from_vec(positions, (batch.tokens(), 1, 1), &Device::Cpu)?;
    let frequencies = Tensor::from_vec(inverse_frequencies(shape.head_dim), (1, 1, half), &Device::Cpu)?;
    let angles = positions.broadcast_mul(&frequencies)?;
    let (cos, sin) = (angles.cos()?, angles.sin()?);
    let (low, high) = (x.narrow(2, 0, half)?, x.narrow(2, half, half)?);
    let new_low = (low.broadcast_mul(&cos)? - high.broadcast_mul(&sin)?)?;
    let new_high = (high.broadcast_mul(&cos)? + low.broadcast_mul(&sin)?)?;
    Tensor::cat(&[new_low, new_high], 2)
}

/// 0 where a token sees another, minus infinity (nearly) elsewhere: `[tokens, tokens]`.
fn mask(shape: &Shape, batch: &Batch) -> Result<Tensor> {
    let document: Vec<usize> = batch
        .starts
        .windows(2)
        .enumerate()
        .flat_map(|(i, pair)| std::iter::repeat_n(i, (pair[1] - pair[0]) as usize))
        .collect();
    let n = batch.tokens();
    let window = shape.window.unwrap_or(usize::MAX);
    let sees = |q: usize, k: usize| k <= q && q - k < window && document[q] == document[k];
    let values: Vec<f32> = (0..n * n).map(|i| if sees(i / n, i % n) { 0.0 } else { -1e9 }).collect();
    Tensor::from_vec(values, (n, n), &Device::Cpu)
}

fn loss(decoder: &Decoder, vars: &Vars, shape: &Shape, batch: &Batch) -> Result<Tensor> {
    let n = batch.tokens();
    let ids = Tensor::from_vec(batch.ids.clone(), n, &Device::Cpu)?;
    let mask = mask(shape, batch)?;
    let mut x = vars.get(&decoder.embedding).index_select(&ids, 0)?;
    for block in &decoder.blocks {
        let normed = vars.norm(&x, &block.input_norm)?;
        let mut q = vars.linear(&normed, &block.q)?.reshape((n, shape.heads, shape.head_dim))?;
        let mut k = vars.linear(&normed, &block.k)?.reshape((n, shape.kv_heads, shape.head_dim))?;
        let v = vars.linear(&normed, &block.v)?.reshape((n, shape.kv_heads, shape.head_dim))?;
        if let (Some(q_norm), Some(k_norm)) = (&block.q_norm, &block.k_norm) {
            (q, k) = (vars.norm(&q, q_norm)?, vars.norm(&k, k_norm)?);
        }
        let (q, k) = (turned(&q, shape, batch)?, turned(&k, shape, batch)?);
        let mut heads = Vec::new();
        for head in 0..shape.heads {
            let key_head = head / (shape.heads / shape.kv_heads);
            let q = q.narrow(1, head, 1)?.squeeze(1)?.contiguous()?;
            let k = k.narrow(1, key_head, 1)?.squeeze(1)?.contiguous()?;
            let v = v.narrow(1, key_head, 1)?.squeeze(1)?.contiguous()?;
            let scores = (q.matmul(&k.t()?)? / (shape.head_dim as f64).sqrt())?;
            let weights = candle_nn::ops::softmax(&(scores + &mask)?, 1)?;
            heads.push(weights.matmul(&v)?);
        }
        let attended = Tensor::cat(&heads, 1)?;
        x = (x + vars.linear(&attended, &block.o)?)?;
        let normed = vars.norm(&x, &block.post_norm)?;
        let gate = vars.linear(&normed, &block.gate)?;
        // silu as x / (1 + e^-x): candle's own is not differentiable twice over, this is plain.
        let silu = gate.div(&(gate.neg()?.exp()? + 1.0)?)?;
        x = (x + vars.linear(&(silu * vars.linear(&normed, &block.up)?)?, &block.down)?)?;
    }
    let head = vars.get(decoder.head.as_ref().unwrap_or(&decoder.embedding));
    let logits = vars.norm(&x, &decoder.norm)?.matmul(&head.t()?)?;
    let log_probabilities = candle_nn::ops::log_softmax(&logits, 1)?;
    let rows: Vec<u32> = (0..n as u32).filter(|&row| batch.targets[row as usize] != IGNORE).collect();
    let targets: Vec<u32> = rows.iter().map(|&row| batch.targets[row as usize]).collect();
    let count = rows.len();
    let chosen = log_probabilities.index_select(&Tensor::from_vec(rows, count, &Device::Cpu)?, 0)?;
    let targets = Tensor::from_vec(targets, (count, 1), &Device::Cpu)?;
    chosen.gather(&targets, 1)?.sum_all()?.neg()?.to_dtype(DType::F32)
}

/// The sum of losses, and the gradient of `grad_scale` times it for every parameter it depends on.
pub fn gradients(
    decoder: &Decoder,
    shape: &Shape,
    batch: &Batch,
    grad_scale: f32,
) -> (f64, BTreeMap<String, Vec<f32>>) {
    let vars = Vars::new(decoder).unwrap();
    let loss = loss(decoder, &vars, shape, batch).unwrap();
    let grads = (&loss * f64::from(grad_scale)).unwrap().backward().unwrap();
    let flat = |var: &Var| {
        let grad = grads.get(var)?;
        grad.flatten_all().and_then(|grad| grad.to_vec1::<f32>()).ok()
    };
    let by_name = vars.0.iter().filter_map(|(name, var)| Some((name.clone(), flat(var)?))).collect();
    (f64::from(loss.to_scalar::<f32>().unwrap()), by_name)
}
