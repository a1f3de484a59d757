//! Rotary position embedding (arXiv 2104.09864), in the half-split layout of Hugging Face: element `i` of a head turns
//! together with element `i + d/2`.

use super::parallel::by_rows;

/// Cosines and sines for each position, `[positions, head_dim / 2]` each.
#[derive(Clone, Debug, Default)]
pub struct Table {
    cos: Vec<f32>,
    sin: Vec<f32>,
    half: usize,
}

impl Table {
    /// The table for positions `0..positions` with the given inverse frequencies, `[head_dim / 2]`.
    pub fn new(inverse_frequencies: &[f32], positions: usize) -> Self {
        let mut table = Self { half: inverse_frequencies.len(), ..Self::default() };
        for position in 0..positions {
            for frequency in inverse_frequencies {
                // The angle is rounded to f32 before the functions are taken, as the reference does.
                let (sin, cos) = f64::from(position as f32 * frequency).sin_cos();
                table.cos.push(cos as f32);
                table.sin.push(sin as f32);
            }
        }
        table
    }

    /// How many positions it covers.
    pub fn positions(&self) -> usize {
        self.cos.len() / self.half.max(1)
    }
}

/// Turns each head of `x[tokens, heads · head_dim]` in place by its token's position.
pub fn forward(x: &mut [f32], table: &Table, positions: &[u32]) {
    turn(x, table, positions, 1.0);
}

/// Turns gradients back in place: the inverse of a rotation is its transpose.
pub fn backward(dx: &mut [f32], table: &Table, positions: &[u32]) {
    turn(dx, table, positions, -1.0);
}

fn turn(x: &mut [f32], table: &Table, positions: &[u32], direction: f32) {
    let cols = x.len() / positions.len().max(1);
    let half = table.half;
    by_rows(x, cols, |first, x| {
        for (row, &position) in x.chunks_exact_mut(cols.max(1)).zip(&positions[first..]) {
            let at = position as usize * half;
            let (cos, sin) = (&table.cos[at..at + half], &table.sin[at..at + half]);
            for head in row.chunks_exact_mut(2 * half) {
                let (low, high) = head.split_at_mut(half);
                for (((low, high), cos), sin) in low.iter_mut().zip(high).zip(cos).zip(sin) {
                    let (a, b, sin) = (*low, *high, sin * direction);
                    *low = a * cos - b * sin;
                    *high = b * cos + a * sin;
                }
            }
        }
    });
}
