//! The token embedding: a row of the table for each id.

use super::parallel::by_rows;
use crate::storage::Weight;

/// `y[tokens, hidden] = table[ids]`.
pub fn forward(y: &mut [f32], table: &Weight, ids: &[u32]) {
    let hidden = y.len() / ids.len().max(1);
    by_rows(y, hidden, |first, y| {
        for (row, &id) in y.chunks_exact_mut(hidden.max(1)).zip(&ids[first..]) {
            table.read(id as usize * hidden, row);
        }
    });
}

/// `d_table[ids] += dy`, in the order of the tokens.
pub fn backward(d_table: &mut [f32], dy: &[f32], ids: &[u32]) {
    let hidden = dy.len() / ids.len().max(1);
    for (row, &id) in dy.chunks_exact(hidden.max(1)).zip(ids) {
        let target = &mut d_table[id as usize * hidden..][..hidden];
        for (d, g) in target.iter_mut().zip(row) {
            *d += g;
        }
    }
}
