//! AdamW and the norm of all gradients, each in one launch over all tensors.

use std::collections::BTreeMap;
use std::ops::Range;

use super::context::Launch;
use super::decoder::Decoder;
use super::kernels::{args, sources::ADAMW};
use super::memory::{Buffer, View};
use super::profile::Kind;
use super::trainable::{Grad, MomentFormat, Moments, Trainable};
use super::watched::{Watched, tables_sums};
use crate::error::{EngineError, Result};
use crate::optim::AdamWOptions;
use crate::storage::dynamic8::{SIGNED, UNSIGNED, lines::lines};

/// Elements of a chunk, as the kernels have it.
pub(super) const CHUNK: usize = 8192;

/// A tensor as the kernels read it; `struct Tensor` of `adamw.cu`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Descriptor {
    master: u64,
    copy: u64,
    grad: u64,
    first: u64,
    second: u64,
    first_max: u64,
    second_max: u64,
    elements: u64,
    cols: u32,
    copy_stride: u32,
    copy_scale: f32,
    flags: u32,
    shrink: f32,
    step_size: f32,
    inverse_root_correction2: f32,
    beta2: f32,
    eps: f32,
    rest1: f32,
    rest2: f32,
    purpose: u32,
    updates: u32,
    padding: u32,
}

/// The optimiser's tables on the card: one for all gradients, one for each format of moments.
#[derive(Debug, Default)]
pub(crate) struct Optimizer {
    pub(super) tables: Vec<Tables>,
    /// Not zero once an update inside a pass is to change nothing more.
    stop: Option<Buffer>,
    /// What is told of each tensor's update, if somebody wants to know.
    pub(super) watched: Option<Watched>,
}

impl Optimizer {
    /// Bytes of the tables.
    pub(crate) fn bytes(&self) -> usize {
        let of = |tables: &Tables| {
            let buffers = [&tables.descriptors, &tables.chunks, &tables.sums, &tables.maps, &tables.factor];
            buffers.iter().map(|buffer| buffer.bytes()).sum::<usize>()
        };
        let stop = self.stop.as_ref().map_or(0, Buffer::bytes);
        self.tables.iter().map(of).sum::<usize>() + stop + self.watched.as_ref().map_or(0, Watched::bytes)
    }
}

#[derive(Debug)]
pub(super) struct Tables {
    pub descriptors: Buffer,
    pub chunks: Buffer,
    /// How many chunks, and of which trainables.
    pub count: usize,
    of: Vec<usize>,
    /// Which chunks are a block's; without one, those of what is in none.
    blocks: BTreeMap<Option<usize>, Range<usize>>,
    pub sums: Buffer,
    maps: Buffer,
    pub factor: Buffer,
}

impl Tables {
    /// The chunks of a block, or of what is in none.
    pub fn of_block(&self, block: Option<usize>) -> Range<usize> {
        self.blocks.get(&block).cloned().unwrap_or(0..0)
    }

    pub(super) fn all(&self) -> Range<usize> {
        0..self.count
    }
}

/// One tensor's settings for an update.
#[derive(Clone, Copy, Debug)]
pub struct Update {
    /// Which trainable.
    pub index: usize,
    /// Learning rate.
    pub lr: f64,
    /// Decoupled decay.
    pub weight_decay: f64,
}

pub(super) fn descriptor(trainable: &Trainable) -> Descriptor {
    let (grad, narrow) = match trainable.grad {
        Grad::Wide(view) => (view.ptr(), 0),
        Grad::Narrow(view) => (view.ptr(), 1),
    };
    let (first, second, first_max, second_max) = match trainable.moments {
        Some(Moments::Wide([m, v])) => (m.ptr(), v.ptr(), 0, 0),
        Some(Moments::Bf16([m, v])) => (m.ptr(), v.ptr(), 0, 0),
        Some(Moments::EightBit([m, v], [max1, max2])) => (m.ptr(), v.ptr(), max1.ptr(), max2.ptr()),
        None => (0, 0, 0, 0),
    };
    // The same purpose as on the CPU, for the same rounding.
    let purpose =
        trainable.name.bytes().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    Descriptor {
        master: trainable.master.map_or(0, |view| view.ptr()),
        copy: trainable.copy.map_or(0, |view| view.ptr()),
        grad,
        first,
        second,
        first_max,
        second_max,
        elements: trainable.len() as u64,
        cols: trainable.cols as u32,
        copy_stride: trainable.copy.map_or(0, |view| view.stride() as u32),
        copy_scale: trainable.scale,
        flags: narrow
            | if trainable.on_bf16_grid { 2 } else { 0 }
            | if trainable.value_is_copy { 4 } else { 0 }
            | if trainable.in_window { 8 } else { 0 },
        purpose,
        ..Descriptor::default()
    }
}

impl Decoder {
    /// The place of the tables for these trainables, made if there are none.
    pub(super) fn tables(&mut self, of: &[usize]) -> Result<usize> {
        if let Some(place) = self.optimizer.tables.iter().position(|tables| tables.of == of) {
            return Ok(place);
        }
        let mut chunks = Vec::<u32>::new();
        let mut blocks = BTreeMap::<Option<usize>, Range<usize>>::new();
        for (place, &index) in of.iter().enumerate() {
            let (first, count) = (chunks.len() / 2, self.trainables[index].len().div_ceil(CHUNK));
            blocks.entry(self.trainables[index].key.0.0).or_insert(first..first).end = first + count;
            for chunk in 0..count {
                chunks.extend([place as u32, chunk as u32]);
            }
        }
        let count = chunks.len() / 2;
        let context = &self.context;
        let buffer = |bytes: usize| Buffer::new(context, bytes);
        let lines = [lines(&SIGNED, true), lines(&UNSIGNED, false)].concat().concat();
        let values = [&SIGNED.values[..], &UNSIGNED.values, &lines].concat();
        let maps = buffer(values.len() * 4)?;
        context.upload(maps.view(1, values.len()), &values)?;
        let tables = Tables {
            descriptors: buffer(of.len() * size_of::<Descriptor>())?,
            chunks: buffer(chunks.len() * 4)?,
            count,
            of: of.to_vec(),
            blocks,
            sums: buffer((count + 1) * 8)?,
            maps,
            factor: buffer(4)?,
        };
        context.upload(tables.chunks.view(1, chunks.len()), &chunks)?;
        if self.optimizer.tables.len() > MomentFormat::ALL.len() {
            // What trains has changed.
            self.optimizer.tables.clear();
        }
        self.optimizer.tables.push(tables);
        Ok(self.optimizer.tables.len() - 1)
    }

    /// The numbers of `of`, by the format that their moments are kept in.
    pub(super) fn by_format(&self, of: &[usize]) -> Vec<(MomentFormat, Vec<usize>)> {
        let format_of = |index: &usize| self.options.moments.of(self.trainables[*index].len());
        let split = MomentFormat::ALL
            .map(|format| (format, of.iter().copied().filter(|index| format_of(index) == format).collect::<Vec<_>>()));
        split.into_iter().filter(|(_, of)| !of.is_empty()).collect()
    }

    pub(super) fn upload_descriptors(&self, tables: &Tables, descriptors: &[Descriptor]) -> Result<()> {
        // SAFETY: plain numbers without padding: eight of 8 bytes and fourteen of 4.
        let bytes = unsafe {
            std::slice::from_raw_parts(descriptors.as_ptr().cast::<u8>(), std::mem::size_of_val(descriptors))
        };
        self.context.upload(tables.descriptors.view(1, bytes.len()), bytes)
    }

    /// Tells the card of all that trains now: their numbers, and the place of their tables.
    pub(super) fn describe_active(&mut self) -> Result<(Vec<usize>, usize)> {
        let all = self.active();
        let place = self.tables(&all)?;
        let descriptors: Vec<Descriptor> = all.iter().map(|&index| descriptor(&self.trainables[index])).collect();
        self.upload_descriptors(&self.optimizer.tables[place], &descriptors)?;
        Ok((all, place))
    }

    /// Gradients that no pass has written since they were cleared.
    pub(super) fn settle_grads(&mut self) -> Result<()> {
        if std::mem::take(&mut self.fresh) {
            for trainable in self.trainables.iter().filter(|trainable| trainable.trains) {
                trainable.clear_grad(&self.context)?;
            }
        }
        Ok(())
    }

    /// The Euclidean norm of all gradients.
    ///
    /// # Errors
    /// Naming the first tensor whose gradient is not finite, or when the device fails.
    pub fn grad_norm(&mut self) -> Result<f64> {
        self.expect_own_gradients()?;
        self.context.bind()?;
        self.settle_grads()?;
        let (all, place) = self.describe_active()?;
        let tables = &self.optimizer.tables[place];
        self.queue_squares(tables, tables.all(), None)?;
        let norm = self.norm_of(tables, &all)?;
        if let Some(watched) = &mut self.optimizer.watched {
            let parts = self.optimizer.tables[place].sums.view(1, self.optimizer.tables[place].count);
            watched.gradients = tables_sums(&self.trainables, &all, &self.context.download(parts)?);
        }
        norm.map_err(|(bad, value)| {
            let name = bad.first().map_or("?", |&index| &self.trainables[index].name);
            EngineError::NotFinite { what: format!("the gradient of {name}"), value }
        })
    }

    /// Queues the squares of some chunks' gradients. Inside a pass, blocks' gradients of matrices begin at `window` if they share
    /// a place, and what is not finite stops the updates.
    pub(super) fn queue_squares(&self, tables: &Tables, chunks: Range<usize>, window: Option<u64>) -> Result<()> {
        self.context.kind(Kind::Optimizer);
        let count = chunks.len();
        let sums: View<f64> = tables.sums.part(8 * chunks.start, 1, count);
        let list: View<u32> = tables.chunks.part(8 * chunks.start, 1, 2 * count);
        let stop = window.map_or(0, |_| self.stop());
        let arguments = args![sums, tables.descriptors.view::<u8>(1, 1), list, window.unwrap_or(0), stop];
        let defines = &[("MOMENTS", 32)];
        self.context.launch(&ADAMW, defines, "grad_squares", Launch::new(count, 256), arguments)
    }

    /// The norm of what the squares of all chunks are of; or else whose gradients are not finite, in the model's order, and the
    /// sum.
    pub(super) fn norm_of(
        &self,
        tables: &Tables,
        all: &[usize],
    ) -> Result<std::result::Result<f64, (Vec<usize>, f64)>> {
        if tables.count == 0 {
            return Ok(Ok(0.0));
        }
        let sums: View<f64> = tables.sums.view(1, tables.count + 1);
        let (parts, total) = (sums.slice_cols(0, tables.count), sums.slice_cols(tables.count, 1));
        self.context.kind(Kind::Optimizer);
        let arguments = args![total, parts, tables.count];
        self.context.launch(&ADAMW, &[("MOMENTS", 32)], "sum_doubles", Launch::new(1, 1024), arguments)?;
        let squares = self.context.download(total)?.first().copied().unwrap_or(0.0);
        if squares.is_finite() {
            return Ok(Ok(squares.sqrt()));
        }
        let sums = tables_sums(&self.trainables, all, &self.context.download(parts)?);
        Ok(Err((sums.iter().filter(|(_, sum)| !sum.is_finite()).map(|(index, _)| *index).collect(), squares)))
    }

    /// The number on the card that stops updates, if there is one.
    fn stop(&self) -> u64 {
        self.optimizer.stop.as_ref().map_or(0, |stop| stop.view::<u32>(1, 1).ptr())
    }

    /// Lets updates inside the next pass change what they are to.
    pub(super) fn clear_stop(&mut self) -> Result<()> {
        self.make_stop()?;
        self.optimizer.stop.as_ref().map_or(Ok(()), |stop| self.context.fill_bytes(stop.view::<u32>(1, 1), 0))
    }

    fn make_stop(&mut self) -> Result<()> {
        if self.optimizer.stop.is_none() {
            self.optimizer.stop = Some(Buffer::new(&self.context, size_of::<u32>())?);
        }
        Ok(())
    }

    /// Queues what stops the updates if one of the losses is not finite.
    pub(super) fn stop_if_not_finite(&self, losses: View<f32>) -> Result<()> {
        self.context.kind(Kind::Loss);
        let arguments = args![self.stop(), losses, losses.cols()];
        self.context.launch(&ADAMW, &[("MOMENTS", 32)], "stop_if_not_finite", Launch::new(1, 1024), arguments)
    }

    /// Makes the moments and tables that [`Decoder::update`] of these trainables, in the model's order, needs, so that their
    /// memory is known before the first step.
    ///
    /// # Errors
    /// When there is no memory.
    pub fn prepare(&mut self, of: &[usize]) -> Result<()> {
        self.context.bind()?;
        for &index in of {
            self.trainables[index].make_moments(&mut self.slab, self.options.moments)?;
        }
        let all = self.active();
        self.tables(&all)?;
        self.make_watched()?;
        if self.options.update_in_backward {
            self.make_stop()?;
        }
        for (_, of) in self.by_format(of) {
            self.tables(&of)?;
        }
        Ok(())
    }

    /// Changes what `updates` names by its gradient times `grad_factor`, in the form of PyTorch's AdamW.
    ///
    /// # Errors
    /// When there is no memory for the moments, or the device fails.
    pub fn update(&mut self, options: &AdamWOptions, updates: &[Update], grad_factor: f32) -> Result<()> {
        self.expect_own_gradients()?;
        self.context.bind()?;
        self.settle_grads()?;
        let of = order(&self.trainables, updates);
        self.lower_updated(updates);
        self.prepare(&of)?;
        self.keep_values()?;
        let settings: BTreeMap<usize, Update> = updates.iter().map(|update| (update.index, *update)).collect();
        for (format, of) in self.by_format(&of) {
            let mut descriptors = Vec::with_capacity(of.len());
            for update in of.iter().filter_map(|index| settings.get(index)) {
                self.trainables[update.index].updates += 1;
                descriptors.push(self.advanced(options, *update, self.trainables[update.index].updates));
            }
            let place = self.tables(&of)?;
            let tables = &self.optimizer.tables[place];
            self.upload_descriptors(tables, &descriptors)?;
            self.context.upload(tables.factor.view(1, 1), &[grad_factor])?;
            self.queue_update(tables, tables.all(), format.bits(), options.seed, None)?;
        }
        self.measure_distances()
    }

    /// Queues the update of some chunks, inside a pass with its `window` as in [`Decoder::queue_squares`].
    pub(super) fn queue_update(
        &self,
        tables: &Tables,
        chunks: Range<usize>,
        bits: i64,
        seed: u64,
        window: Option<u64>,
    ) -> Result<()> {
        self.context.kind(Kind::Optimizer);
        let list: View<u32> = tables.chunks.part(8 * chunks.start, 1, 2 * chunks.len());
        let (maps, factor) = (tables.maps.view::<f32>(1, 1), tables.factor.view::<f32>(1, 1));
        let (stop, window) = (window.map_or(0, |_| self.stop()), window.unwrap_or(0));
        let arguments = args![tables.descriptors.view::<u8>(1, 1), list, maps, factor, seed, window, stop];
        self.context.launch(&ADAMW, &[("MOMENTS", bits)], "adamw", Launch::new(chunks.len(), 256), arguments)
    }

    /// How the kernel is to make a tensor's update of this number, from 1.
    pub(super) fn advanced(&self, options: &AdamWOptions, update: Update, updates: u64) -> Descriptor {
        let (beta1, beta2) = options.betas;
        let correction = |beta: f64| 1.0 - beta.powf(updates as f64);
        Descriptor {
            shrink: (1.0 - update.lr * update.weight_decay) as f32,
            step_size: (update.lr / correction(beta1)) as f32,
            inverse_root_correction2: (1.0 / correction(beta2).sqrt()) as f32,
            beta2: beta2 as f32,
            rest1: (1.0 - beta1) as f32,
            rest2: (1.0 - beta2) as f32,
            eps: options.eps as f32,
            updates: updates as u32,
            ..descriptor(&self.trainables[update.index])
        }
    }
}

/// What updates name, in the model's order.
pub(super) fn order(trainables: &[Trainable], updates: &[Update]) -> Vec<usize> {
    let mut of: Vec<usize> = updates.iter().map(|update| update.index).collect();
    of.sort_by_key(|&index| trainables[index].key);
    of
}
