//! The predicted memory of a pass is what the pool counts.

#![allow(clippy::unwrap_used)]

mod common;

use common::{Shape, Trained, batch, model};
use liftplan_engine::memory::{self, AdapterPart, BlockPart, LinearPart, ModelPart, PassPart};
use liftplan_engine::{Block, Decoder, Keep, Linear, Param, StepOptions};

fn linear(linear: &Linear) -> LinearPart {
    let adapter = linear.adapter.as_ref().map(|adapter| AdapterPart {
        rank: adapter.rank(),
        dora: adapter.magnitude.is_some(),
        dropout: adapter.options.dropout > 0.0,
    });
    LinearPart {
        outputs: linear.outputs(),
        inputs: linear.inputs(),
        trains: linear.weight.trains(),
        bias_trains: linear.bias.as_ref().is_some_and(Param::trains),
        converted: false,
        adapter,
    }
}

fn block(block: &Block) -> BlockPart {
    let linears = [&block.q, &block.k, &block.v, &block.o, &block.gate, &block.up, &block.down];
    let head_norms = block.q_norm.iter().chain(&block.k_norm);
    BlockPart {
        shape: block.shape,
        linears: linears.map(linear),
        input_norm_trains: block.input_norm.trains(),
        post_norm_trains: block.post_norm.trains(),
        head_norms_train: block.q_norm.is_some().then(|| head_norms.into_iter().any(Param::trains)),
    }
}

fn parts(decoder: &Decoder) -> ModelPart {
    ModelPart {
        vocab: decoder.vocab(),
        hidden: decoder.embedding.cols(),
        blocks: decoder.blocks.iter().map(block).collect(),
        embedding_trains: decoder.embedding.trains(),
        norm_trains: decoder.norm.trains(),
        head_converted: false,
    }
}

/// Buffers far from each other in size, so that none is handed out in place of another.
fn shape() -> Shape {
    Shape {
        vocab: 1501,
        hidden: 48,
        intermediate: 136,
        blocks: 4,
        heads: 4,
        kv_heads: 2,
        head_dim: 16,
        ..Shape::default()
    }
}

#[test]
fn the_pools_peak_is_the_one_that_dimensions_predict() {
    let with_head_norms = Shape { head_norms: true, biases: true, ..shape() };
    let with_dropout = Shape { dropout: 0.1, ..shape() };
    let only = |name: &str| Trained::Only(name.into());
    let cases = [
        ("lora", shape(), Trained::Lora { dora: false }),
        ("lora with dropout", with_dropout.clone(), Trained::Lora { dora: false }),
        ("dora", shape(), Trained::Lora { dora: true }),
        ("dora with dropout", with_dropout, Trained::Lora { dora: true }),
        ("full", shape(), Trained::Everything),
        ("full with norms of heads", with_head_norms.clone(), Trained::Everything),
        ("lora with norms of heads", with_head_norms, Trained::Lora { dora: false }),
        ("one weight in the middle", shape(), only("2.down.weight")),
        ("one norm", shape(), only("1.post_norm")),
        ("the output of attention", shape(), only("3.o.weight")),
        ("the head", shape(), only("head")),
    ];
    for (name, shape, trained) in cases {
        for keep in [Keep::Activations, Keep::Inputs] {
            let mut decoder = model(&shape, trained.clone(), 5);
            let batch = batch(&shape, &[37, 150, 1, 70]);
            let options = StepOptions { grad_scale: 1.0, keep, dropout: Some((1, 1)) };
            decoder.accumulate(&batch, options).unwrap();
            let pass =
                PassPart { tokens: batch.tokens(), targets: batch.target_count(), longest: 150, keep, threads: 2 };
            let predicted = memory::training_pass(&parts(&decoder), pass);
            let measured = decoder.pool.peak_bytes();
            let off = (predicted.pool as f64 / measured as f64 - 1.0).abs();
            assert!(off < 0.02, "{name}, {keep:?}: {} predicted, {measured} counted", predicted.pool);
            assert!(predicted.total >= predicted.pool);
        }
    }
}

#[test]
fn inference_holds_what_was_predicted() {
    let shape = shape();
    let decoder = model(&shape, Trained::Nothing, 5);
    let batch = batch(&shape, &[37, 150]);
    decoder.loss(&batch).unwrap();
    let keep = Keep::Activations;
    let pass = PassPart { tokens: batch.tokens(), targets: batch.target_count(), longest: 150, keep, threads: 2 };
    let (predicted, measured) = (memory::inference(&parts(&decoder), pass), decoder.pool.peak_bytes());
    let off = (predicted.pool as f64 / measured as f64 - 1.0).abs();
    assert!(off < 0.02, "{} predicted, {measured} counted", predicted.pool);
}
