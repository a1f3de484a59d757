//! How far each tensor's update went, for those who choose what trains by it. In: an update under way. Out: squares of
//! gradients and of distances, by trainable.

use super::context::Launch;
use super::decoder::Decoder;
use super::kernels::{args, sources::ADAMW};
use super::memory::{Buffer, View};
use super::optim::CHUNK;
use super::profile::Kind;
use super::trainable::Trainable;
use crate::error::Result;

/// What is told of the last update.
#[derive(Debug, Default)]
pub(crate) struct Watched {
    /// The values before it, chunk by chunk.
    before: Option<Buffer>,
    /// The squared norm of each trainable's gradient.
    pub gradients: Vec<(usize, f64)>,
    /// The squared distance that each trainable moved.
    distances: Vec<(usize, f64)>,
}

impl Watched {
    pub(crate) fn bytes(&self) -> usize {
        self.before.as_ref().map_or(0, Buffer::bytes)
    }
}

/// Sums of chunks by trainable, in the order of `of`.
pub(super) fn tables_sums(trainables: &[Trainable], of: &[usize], parts: &[f64]) -> Vec<(usize, f64)> {
    let mut parts = parts.iter();
    let sum = |&index: &usize| (index, parts.by_ref().take(trainables[index].len().div_ceil(CHUNK)).sum());
    of.iter().map(sum).collect()
}

const DEFINES: &[(&str, i64)] = &[("MOMENTS", 32)];

impl Decoder {
    /// Whether [`Decoder::squares`] is to tell of each update; it takes 4 bytes for every number that trains.
    pub fn watch(&mut self, watch: bool) {
        self.optimizer.watched = watch.then(Watched::default);
    }

    /// Of the last update, each trainable's squares: of its gradient's norm, and of the distance that it moved.
    pub fn squares(&self) -> Vec<(usize, [f64; 2])> {
        let Some(watched) = &self.optimizer.watched else { return Vec::new() };
        let pairs = watched.gradients.iter().zip(&watched.distances);
        pairs.map(|(&(index, gradient), &(_, moved))| (index, [gradient, moved])).collect()
    }

    /// Makes the memory for the values before an update.
    pub(super) fn make_watched(&mut self) -> Result<()> {
        let chunks: usize = self.active().iter().map(|&index| self.trainables[index].len().div_ceil(CHUNK)).sum();
        let bytes = chunks * CHUNK * size_of::<f32>();
        if let Some(watched) = &mut self.optimizer.watched
            // As much as a run that goes on from here takes.
            && watched.before.as_ref().is_none_or(|before| before.bytes() != bytes)
        {
            watched.before = None;
            watched.before = Some(Buffer::new(&self.context, bytes)?);
        }
        Ok(())
    }

    /// Before an update: notes the values of what trains.
    pub(super) fn keep_values(&mut self) -> Result<()> {
        if self.optimizer.watched.is_none() {
            return Ok(());
        }
        self.make_watched()?;
        let (_, place) = self.describe_active()?;
        let tables = &self.optimizer.tables[place];
        let Some(before) = self.optimizer.watched.as_ref().and_then(|watched| watched.before.as_ref()) else {
            return Ok(());
        };
        self.context.kind(Kind::Optimizer);
        let [tensors, chunks] = [tables.descriptors.view::<u8>(1, 1), tables.chunks.view::<u8>(1, 1)];
        let launch = Launch::new(tables.count, 256);
        let arguments = args![before.view::<f32>(1, 1), tensors, chunks];
        self.context.launch(&ADAMW, DEFINES, "keep_values", launch, arguments)
    }

    /// After it: how far they moved. What trains is as it was before.
    pub(super) fn measure_distances(&mut self) -> Result<()> {
        if self.optimizer.watched.is_none() {
            return Ok(());
        }
        let all = self.active();
        let place = self.tables(&all)?;
        let tables = &self.optimizer.tables[place];
        let Some(before) = self.optimizer.watched.as_ref().and_then(|watched| watched.before.as_ref()) else {
            return Ok(());
        };
        // The tables may have been those of the update, whose descriptors say the same of values.
        let [tensors, chunks] = [tables.descriptors.view::<u8>(1, 1), tables.chunks.view::<u8>(1, 1)];
        let sums: View<f64> = tables.sums.view(1, tables.count);
        let arguments = args![sums, before.view::<f32>(1, 1), tensors, chunks];
        self.context.launch(&ADAMW, DEFINES, "distances", Launch::new(tables.count, 256), arguments)?;
        let sums = tables_sums(&self.trainables, &all, &self.context.download(sums)?);
        if let Some(watched) = &mut self.optimizer.watched {
            watched.distances = sums;
        }
        Ok(())
    }
}
