//! Generation: logits of new tokens behind a cache of the keys and values before them.

use half::bf16;

use super::arena::Arena;
use super::attention;
use super::attention::{Documents, Kept};
use super::block::{Block, Pass};
use super::decoder::Decoder;
use super::memory::{Buffer, View};
use super::ops;
use super::profile::Kind;
use crate::error::{EngineError, Result};

/// Keys and values of the tokens so far.
#[derive(Debug)]
pub struct Cache {
    /// Of each block: keys and values, `[capacity, kv_heads·dim]` each.
    layers: Vec<[Buffer; 2]>,
    capacity: usize,
    cols: usize,
    tokens: usize,
}

impl Cache {
    /// How many tokens it holds.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Forgets everything after the first `tokens` tokens.
    pub fn truncate(&mut self, tokens: usize) {
        self.tokens = self.tokens.min(tokens);
    }

    fn views(&self, layer: usize) -> [View<bf16>; 2] {
        let [keys, values] = &self.layers[layer];
        [keys.view(self.capacity, self.cols), values.view(self.capacity, self.cols)]
    }
}

/// A cache starts with room for so many tokens, and doubles.
const FIRST_CAPACITY: usize = 256;

impl Decoder {
    /// An empty cache.
    pub fn cache(&self) -> Cache {
        let cols = self.shape().kv_heads * self.shape().dim;
        Cache { layers: Vec::new(), capacity: 0, cols, tokens: 0 }
    }

    fn grow(&self, cache: &mut Cache, tokens: usize) -> Result<()> {
        if tokens <= cache.capacity {
            return Ok(());
        }
        let capacity = tokens.next_power_of_two().max(FIRST_CAPACITY);
        let bytes = capacity * cache.cols * 2;
        let mut layers = Vec::with_capacity(self.shape().blocks);
        for layer in 0..self.shape().blocks {
            let fresh = [Buffer::new(self.context(), bytes)?, Buffer::new(self.context(), bytes)?];
            if cache.tokens > 0 {
                for (to, from) in fresh.iter().zip(cache.views(layer)) {
                    let to: View<bf16> = to.view(capacity, cache.cols);
                    self.context().copy(to.slice_rows(0, cache.tokens), from.slice_rows(0, cache.tokens))?;
                }
            }
            layers.push(fresh);
        }
        (cache.layers, cache.capacity) = (layers, capacity);
        Ok(())
    }

    /// Reads `ids` behind what the cache holds; gives the logits after each of them, `[ids, vocab]`, or with `last_only`
    /// after the last.
    ///
    /// # Errors
    /// When an id lies outside the vocabulary, there is none, or there is no memory.
    pub fn extend(&mut self, cache: &mut Cache, ids: &[u32], last_only: bool) -> Result<Vec<f32>> {
        let vocab = self.shape().vocab;
        if ids.is_empty() {
            return Err(EngineError::Shape {
                what: "tokens to read".into(),
                expected: "at least one".into(),
                found: "none".into(),
            });
        }
        if let Some((position, &id)) = ids.iter().enumerate().find(|(_, id)| **id as usize >= vocab) {
            return Err(EngineError::TokenId { id, position, vocab });
        }
        let (first, count) = (cache.tokens, ids.len());
        let positions: Vec<u32> = (first as u32..(first + count) as u32).collect();
        self.ensure_rope(&positions)?;
        self.grow(cache, first + count)?;
        let signed = |values: &[u32]| values.iter().map(|&x| x as i32).collect::<Vec<_>>();
        let (ids, positions) = (signed(ids), signed(&positions));
        let logits = self.within(|this, arena| {
            let id_view = arena.low::<i32>(1, count, 0)?;
            let position_view = arena.low::<i32>(1, count, 0)?;
            this.context.upload(id_view, &ids)?;
            this.context.upload(position_view, &positions)?;
            // A whole prompt is a document like any other; what comes behind a cache is none.
            let documents = if first == 0 && count > 1 {
                let starts = vec![0, count as u32];
                let words = Documents::words(&starts);
                let word_view = arena.low::<i32>(1, words.len(), 0)?;
                this.context.upload(word_view, &words)?;
                Documents::new(word_view, starts)
            } else {
                Documents::new(View::at(0, 1, 0, 0), Vec::new())
            };
            let pass = this.forward_pass(&documents, position_view, count);
            let x = arena.low::<bf16>(count, this.shape().hidden, 0)?;
            ops::embed(&this.context, x, this.embedding.view, id_view)?;
            for (layer, block) in this.blocks.iter().enumerate() {
                block.extend(&pass, arena, x, cache.views(layer), first)?;
            }
            let x = if last_only { x.slice_rows(count - 1, 1) } else { x };
            this.final_logits(arena, x)
        })?;
        cache.tokens = first + count;
        Ok(self.context.download(logits)?.into_iter().map(bf16::to_f32).collect())
    }
}

impl Block {
    /// Reads new tokens behind what the cache holds: `x` becomes the block's output.
    pub fn extend(
        &self,
        pass: &Pass<'_>,
        arena: &mut Arena,
        x: View<bf16>,
        [keys, values]: [View<bf16>; 2],
        first: usize,
    ) -> Result<()> {
        let (context, tokens, shape) = (pass.context, x.rows(), &self.attention);
        let mark = arena.mark();
        let normed = self.normed(pass, arena, false, x, self.input_norm, self.qkv.rank)?;
        let qkv = arena.high::<bf16>(tokens, self.qkv.outputs, 0)?;
        let weight = self.ready(pass, arena, &self.qkv)?;
        self.qkv.lower(context, arena, weight, normed, None)?;
        self.qkv.forward(context, arena, weight, normed, qkv, (None, None), None)?;
        ops::rope(context, &self.heads(None), qkv, qkv, pass.positions, pass.table)?;
        let (q_cols, kv_cols) = (shape.heads * shape.dim, shape.kv_heads * shape.dim);
        context.copy(keys.slice_rows(first, tokens), qkv.slice_cols(q_cols, kv_cols))?;
        context.copy(values.slice_rows(first, tokens), qkv.slice_cols(q_cols + kv_cols, kv_cols))?;
        let out = arena.high::<bf16>(tokens, q_cols, self.o.rank)?;
        context.kind(Kind::Attention);
        if pass.documents.count() > 0 {
            let kept = Kept { qkv, out, lse: arena.high(shape.heads, tokens, 0)? };
            attention::forward_once(context, shape, pass.documents, kept)?;
        } else {
            let parts = arena.high(1, attention::decode_parts_len(context, shape, tokens, first), 0)?;
            attention::decode(context, shape, qkv.slice_cols(0, q_cols), [keys, values], first, out, parts)?;
        }
        let weight = self.ready(pass, arena, &self.o)?;
        self.o.lower(context, arena, weight, out, None)?;
        self.o.forward(context, arena, weight, out, x, (Some(x), None), None)?;
        arena.release_high(mark);
        let normed = self.normed(pass, arena, false, x, self.post_norm, self.gate_up.rank)?;
        let gate_up = arena.high::<bf16>(tokens, self.gate_up.outputs, 0)?;
        let weight = self.ready(pass, arena, &self.gate_up)?;
        self.gate_up.lower(context, arena, weight, normed, None)?;
        self.gate_up.forward(context, arena, weight, normed, gate_up, (None, None), None)?;
        let activation = arena.high::<bf16>(tokens, self.intermediate, self.down.rank)?;
        self.activate(context, activation, gate_up, None)?;
        let weight = self.ready(pass, arena, &self.down)?;
        self.down.lower(context, arena, weight, activation, None)?;
        self.down.forward(context, arena, weight, activation, x, (Some(x), None), None)?;
        arena.release_high(mark);
        Ok(())
    }
}
