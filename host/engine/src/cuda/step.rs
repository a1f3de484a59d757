//! A training pass: forward through the blocks, the loss, and backward to the lowest weight that trains; with the updates, if
//! they are made on the way.

use half::bf16;

use super::arena::{Arena, Mark};
use super::block::{Block, Kept, Level, Pass};
use super::decoder::Decoder;
use super::group::Dropping;
use super::in_backward::{Gradients, Grads};
use super::memory::View;
use super::offload::RING;
use super::ops;
use super::plan::StepPlan;
use super::trainable::Grad;
use crate::batch::Batch;
use crate::error::Result;

impl Decoder {
    /// Queues a training pass; the losses of the rows with targets will lie in the view.
    pub(crate) fn step(
        &self,
        arena: &mut Arena,
        batch: &Batch,
        plan: &StepPlan,
        grad_scale: f32,
        gradients: Gradients<'_>,
    ) -> Result<View<f32>> {
        let first = !matches!(gradients, Gradients::Added);
        let inputs = self.upload(arena, batch, grad_scale, plan.pieces)?;
        let losses = arena.low::<f32>(1, inputs.rows.cols(), 0)?;
        let (context, hidden, tokens) = (&self.context, self.shape.hidden, batch.tokens());
        let pass = Pass {
            context,
            documents: &inputs.documents,
            pieces: &inputs.pieces,
            positions: inputs.positions,
            table: self.rope_view(),
            mlp_rows: plan.mlp_rows,
            first,
            dropping: Some(Dropping { pass: self.dropout, first_row: 0 }),
            factors: true,
        };
        let lowest = self.lowest();
        // The first blocks, whose inputs wait on the host, with what attention gave where that is kept; two buffers take turns.
        let away = self.away(plan);
        let mut ring = Vec::with_capacity(RING);
        let mut attended_ring = Vec::with_capacity(RING);
        for _ in 0..if away > 0 { RING } else { 0 } {
            ring.push(arena.low::<bf16>(tokens, hidden, 0)?);
            attended_ring.push(arena.low::<u8>(1, self.attended_slot_bytes(plan, tokens), 0)?);
        }
        let mut x = match ring.first() {
            Some(&first) if lowest == 0 => first,
            _ => arena.low::<bf16>(tokens, hidden, 0)?,
        };
        ops::embed(context, x, self.embedding.view, inputs.ids)?;
        // Below the lowest block that trains two buffers take turns.
        let mut other = if lowest > 0 { Some(arena.low::<bf16>(tokens, hidden, 0)?) } else { None };
        let mut kept: Vec<(Kept, Mark)> = Vec::with_capacity(self.blocks.len() - lowest);
        for (i, block) in self.blocks.iter().enumerate() {
            if i < lowest {
                let Some(out) = other.replace(x) else { break };
                block.forward(&pass, arena, x, out, None, None)?;
                x = out;
            } else {
                let (mark, at) = (arena.mark(), i - lowest);
                if at == 0 && away > 0 && lowest > 0 {
                    context.copy(ring[0], x)?;
                    x = ring[0];
                }
                if at < away {
                    self.inputs_away.after_write(context, at, x.as_bytes())?;
                }
                let out = if at + 1 < away {
                    self.inputs_away.before_write(context, at + 1)?;
                    ring[(at + 1) % RING]
                } else {
                    arena.low::<bf16>(tokens, hidden, 0)?
                };
                let level = plan.levels.get(at).copied().unwrap_or(Level::Input);
                let attended = match level {
                    Level::Attended if at < away => {
                        self.attended_away.before_write(context, at)?;
                        Some(attended_ring[at % RING])
                    }
                    Level::Attended => Some(arena.low::<u8>(1, block.attended_bytes(tokens), 0)?),
                    _ => None,
                };
                kept.push((block.forward(&pass, arena, x, out, Some(level), attended)?, mark));
                if let Some(attended) = attended.filter(|_| at < away) {
                    self.attended_away.after_write(context, at, attended)?;
                }
                x = out;
            }
        }
        let need_dx = self.embedding.trained.is_some() || lowest < self.blocks.len();
        let room = self.blocks.iter().map(Block::residual_room).max().unwrap_or(0);
        let d = need_dx.then(|| arena.high::<bf16>(tokens, hidden, room)).transpose()?;
        self.head_loss(arena, plan, &inputs, x, losses, d, first)?;
        if let Gradients::Used(_) = gradients {
            self.stop_if_not_finite(losses)?;
        }
        if let Some(d) = d {
            // Those of the way forward, however much is made again.
            let pass = Pass { factors: false, ..pass };
            let count = kept.len();
            for (i, block) in self.blocks.iter().enumerate().rev().take(count) {
                let Some((block_kept, mark)) = kept.pop() else { break };
                let need_below = self.embedding.trained.is_some() || i > lowest;
                let at = i - lowest;
                let is_attended = |at: usize| plan.levels.get(at) == Some(&Level::Attended);
                if at < away {
                    self.inputs_away.before_backward(context, at, away)?;
                    if is_attended(at) {
                        self.attended_away.before_backward(context, at, away)?;
                    }
                }
                let before = arena.mark();
                let window = match block.window_bytes {
                    0 => 0,
                    bytes => arena.high::<u8>(1, bytes, 0)?.ptr(),
                };
                let grads = Grads { trainables: &self.trainables, window };
                let goes_on = block.backward(&pass, arena, grads, d, &block_kept, need_below)?;
                if let Gradients::Used(underway) = gradients {
                    underway.update(self, Some(i), grads.window)?;
                }
                arena.release_high(before);
                if !goes_on {
                    break;
                }
                arena.release_low(mark);
                if at < away {
                    self.inputs_away.after_backward(context, at, ring[at % RING].as_bytes())?;
                    if at >= RING && is_attended(at - RING) {
                        self.attended_away.after_backward(context, at, attended_ring[at % RING])?;
                    }
                }
            }
            if let (Some(index), Some(places)) = (self.embedding.trained, inputs.places)
                && let Grad::Wide(grad) = self.trainables[index].grad
            {
                ops::embed_backward(context, grad, d, places)?;
            }
        }
        if let Gradients::Used(underway) = gradients {
            underway.update(self, None, 0)?;
        }
        Ok(losses)
    }

    /// How many of the first blocks leave on the host what is kept of them: none if they are too few to take turns.
    fn away(&self, plan: &StepPlan) -> usize {
        let again = plan.again().min(self.blocks.len() - self.lowest());
        if plan.offload && again > 2 * RING { again } else { 0 }
    }

    /// Bytes of what the first blocks keep of attention, the largest of them.
    fn attended_slot_bytes(&self, plan: &StepPlan, tokens: usize) -> usize {
        let levels = self.blocks.iter().skip(self.lowest()).zip(&plan.levels);
        let attended = levels.filter(|(_, level)| **level == Level::Attended);
        attended.map(|(block, _)| block.attended_bytes(tokens)).max().unwrap_or(0)
    }

    /// How many blocks leave something on the host in a pass over so many tokens, and the bytes of each: its input, and what
    /// attention gave.
    pub(crate) fn waiting(&self, plan: &StepPlan, tokens: usize) -> (usize, [usize; 2]) {
        (self.away(plan), [tokens * self.shape.hidden * size_of::<bf16>(), self.attended_slot_bytes(plan, tokens)])
    }
}
