//! A batch on the card: ids, positions, targets and documents in one copy, and the table of the rotary embedding.

use std::collections::BTreeMap;

use super::arena::Arena;
use super::attention::Documents;
use super::block::Piece;
use super::decoder::Decoder;
use super::memory::{Buffer, View};
use crate::batch::{Batch, IGNORE};
use crate::error::Result;

/// A batch on the card.
pub(crate) struct Inputs {
    pub ids: View<i32>,
    pub positions: View<i32>,
    /// Rows with a target, and the targets.
    pub rows: View<i32>,
    pub targets: View<i32>,
    pub scale: View<f32>,
    pub documents: Documents,
    /// Distinct ids, where each one's places start, and the places.
    pub places: Option<[View<i32>; 3]>,
    /// The documents in pieces.
    pub pieces: Vec<Piece>,
}

impl Decoder {
    pub(crate) fn upload(&self, arena: &mut Arena, batch: &Batch, grad_scale: f32, pieces: usize) -> Result<Inputs> {
        let rows: Vec<i32> = (0..batch.tokens()).filter(|&i| batch.targets[i] != IGNORE).map(|i| i as i32).collect();
        let targets: Vec<i32> = rows.iter().map(|&row| batch.targets[row as usize] as i32).collect();
        let signed = |values: &[u32]| values.iter().map(|&x| x as i32).collect::<Vec<_>>();
        let mut lists = vec![
            signed(&batch.ids),
            signed(&batch.positions),
            rows,
            targets,
            Documents::words(&batch.starts),
            vec![grad_scale.to_bits() as i32],
        ];
        let parts_of = pieces_of(&batch.starts, pieces);
        lists.extend(parts_of.iter().map(|starts| Documents::words(&relative(starts))));
        let fixed = lists.len();
        if self.embedding.trained.is_some() {
            let mut places = BTreeMap::<u32, Vec<i32>>::new();
            for (place, &id) in batch.ids.iter().enumerate() {
                places.entry(id).or_default().push(place as i32);
            }
            lists.push(places.keys().map(|&id| id as i32).collect());
            let mut starts = vec![0];
            for list in places.values() {
                starts.push(starts.last().copied().unwrap_or(0) + list.len() as i32);
            }
            lists.push(starts);
            lists.push(places.into_values().flatten().collect());
        }
        let mut all = Vec::new();
        let mut parts = Vec::new();
        for list in &lists {
            parts.push((all.len(), list.len()));
            all.extend_from_slice(list);
            // Lists whose length depends on the ids take as much room as they ever do, so that a batch's size alone
            // decides what its step takes.
            let room = if parts.len() > fixed { batch.tokens() + 1 } else { list.len() };
            all.resize((all.len() - list.len() + room).next_multiple_of(4), 0);
        }
        let whole = arena.low::<i32>(1, all.len(), 0)?;
        self.context.upload(whole, &all)?;
        let part = |i: usize| whole.slice_cols(parts[i].0, parts[i].1);
        let scale = part(5);
        Ok(Inputs {
            ids: part(0),
            positions: part(1),
            rows: part(2),
            targets: part(3),
            documents: Documents::new(part(4), batch.starts.clone()),
            scale: View::at(scale.ptr(), 1, 1, 1),
            places: (lists.len() > fixed).then(|| [part(fixed), part(fixed + 1), part(fixed + 2)]),
            pieces: parts_of
                .iter()
                .enumerate()
                .map(|(i, starts)| Piece {
                    first: starts.first().map_or(0, |&start| start as usize),
                    rows: relative(starts).last().map_or(0, |&end| end as usize),
                    documents: Documents::new(part(6 + i), relative(starts)),
                })
                .collect(),
        })
    }

    /// Bytes of the table for these positions, and how many positions it has.
    pub(crate) fn rope_bytes(&self, positions: &[u32]) -> (usize, usize) {
        let needed = positions.iter().max().map_or(1, |&last| last as usize + 1);
        let count = needed.next_power_of_two().max(1024);
        (count * 2 * self.shape.inverse_frequencies.len() * size_of::<f32>(), count)
    }

    pub(crate) fn ensure_rope(&mut self, positions: &[u32]) -> Result<()> {
        let (bytes, count) = self.rope_bytes(positions);
        if self.rope.as_ref().is_some_and(|(_, have)| *have >= count) || self.context.is_dry() {
            return Ok(());
        }
        let half = self.shape.inverse_frequencies.len();
        let mut table = Vec::with_capacity(count * 2 * half);
        for position in 0..count {
            // The angle is rounded to f32 before the functions are taken, as on the CPU.
            let angles = self.shape.inverse_frequencies.iter().map(|f| f64::from(position as f32 * f));
            table.extend(angles.clone().map(|angle| angle.cos() as f32));
            table.extend(angles.map(|angle| angle.sin() as f32));
        }
        let buffer = Buffer::new(&self.context, bytes)?;
        self.context.upload(buffer.view(1, table.len()), &table)?;
        self.rope = Some((buffer, count));
        Ok(())
    }

    pub(crate) fn rope_view(&self) -> View<f32> {
        let dim = self.shape.dim;
        self.rope.as_ref().map_or(View::at(0, 0, dim, dim), |(buffer, count)| buffer.view(*count, dim))
    }
}

/// The starts of documents, in about `pieces` groups of whole documents; each ends with where the next begins. Of one
/// group nothing is given.
fn pieces_of(starts: &[u32], pieces: usize) -> Vec<Vec<u32>> {
    let tokens = starts.last().copied().unwrap_or(0) as usize;
    if pieces < 2 || starts.len() < 3 {
        return Vec::new();
    }
    let most = tokens.div_ceil(pieces) as u32;
    let mut groups: Vec<Vec<u32>> = Vec::new();
    for pair in starts.windows(2) {
        match groups.last_mut() {
            Some(group) if pair[1] - group[0] <= most => group.push(pair[1]),
            _ => groups.push(pair.to_vec()),
        }
    }
    if groups.len() < 2 { Vec::new() } else { groups }
}

fn relative(starts: &[u32]) -> Vec<u32> {
    let first = starts.first().copied().unwrap_or(0);
    starts.iter().map(|start| start - first).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_hold_whole_documents() {
        assert_eq!(pieces_of(&[0, 4, 8, 12, 16], 2), [vec![0, 4, 8], vec![8, 12, 16]]);
        assert_eq!(pieces_of(&[0, 10, 11, 16], 2), [vec![0, 10], vec![10, 11, 16]]);
        assert!(pieces_of(&[0, 16], 4).is_empty());
        assert!(pieces_of(&[0, 4, 8], 1).is_empty());
        assert_eq!(relative(&[8, 12, 16]), [0, 4, 8]);
    }
}
