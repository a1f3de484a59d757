//! Numbers kept in 8 bits by the dynamic maps of bitsandbytes (arXiv 2110.02861, section 1.3): each block of numbers is
//! divided by its largest magnitude, and each quotient replaced by the nearest of 256 values, which are densest at zero.
//!
//! Rounding is that of bitsandbytes' portable backend: a value exactly between two of the map goes to the lower one.

use std::sync::LazyLock;

#[cfg(any(feature = "cuda", test))]
pub(crate) mod lines;

/// The smallest magnitude that blocks are divided by.
pub(super) const LEAST: f32 = 1e-38;

/// A map of 256 values, ascending, and the middles between them.
pub struct Map {
    /// What each code stands for, before it is multiplied by its block's largest magnitude.
    pub values: [f32; 256],
    middles: [f32; 255],
    /// For each upper half of an `f32`, the code of the lowest number that begins so: the search goes on from there.
    starts: Vec<u8>,
}

/// The map of numbers of either sign.
pub static SIGNED: LazyLock<Map> = LazyLock::new(|| Map::new(true));
/// The map of numbers that are never negative.
pub static UNSIGNED: LazyLock<Map> = LazyLock::new(|| Map::new(false));

const EXPONENTS: i32 = 7;

impl Map {
    /// One bit marks the end of the exponent, the rest is a linear fraction: with each further exponent twice as many values
    /// share a tenfold range. The arithmetic is in `f32`, in the order of `create_dynamic_map`.
    fn new(signed: bool) -> Self {
        let mut values = vec![0.0, 1.0];
        for exponent in 0..EXPONENTS {
            let fractions = 1usize << (exponent + i32::from(!signed));
            let scale = 10f64.powi(exponent - EXPONENTS + 1) as f32;
            for pair in linear(fractions + 1).windows(2) {
                let value = scale * ((pair[0] + pair[1]) / 2.0);
                values.push(value);
                if signed {
                    values.push(-value);
                }
            }
        }
        values.sort_by(f32::total_cmp);
        let values: [f32; 256] = std::array::from_fn(|i| values[i]);
        let middles: [f32; 255] = std::array::from_fn(|i| (values[i] + values[i + 1]) / 2.0);
        let start = |upper: u32| {
            // Of negative numbers the lowest is the one of the largest magnitude.
            let lowest = f32::from_bits(upper << 16 | if upper & 0x8000 == 0 { 0 } else { 0xffff });
            middles.partition_point(|middle| *middle < lowest) as u8
        };
        Self { values, middles, starts: (0..=0xffff).map(start).collect() }
    }

    /// The code of the value nearest to `x`, which lies in `[-1, 1]`.
    pub fn nearest(&self, x: f32) -> u8 {
        let start = self.starts[(x.to_bits() >> 16) as usize];
        let further = self.middles[usize::from(start)..].iter().take_while(|middle| **middle < x).count();
        start + further as u8
    }
}

/// `count` numbers from 0.1 to 1 at equal distances, each computed from the nearer end.
fn linear(count: usize) -> Vec<f32> {
    let step = (1.0f32 - 0.1f32) / (count - 1) as f32;
    let at = |i: usize| {
        if i < count / 2 { step.mul_add(i as f32, 0.1) } else { step.mul_add(-((count - 1 - i) as f32), 1.0) }
    };
    (0..count).map(at).collect()
}

/// Quantises `values`, in blocks of `block`: a code each, and each block's largest magnitude.
pub fn quantise(map: &Map, values: &[f32], block: usize, codes: &mut [u8], absmax: &mut [f32]) {
    let whole = values.len() / block;
    let blocks = values.chunks(block).zip(codes.chunks_mut(block)).zip(absmax).enumerate();
    for (i, ((values, codes), absmax)) in blocks {
        *absmax = largest(values);
        // The last block, if it is not a whole one, is divided, the others are multiplied by the inverse.
        let scaled = scaling(absmax, i < whole);
        for (code, value) in codes.iter_mut().zip(values) {
            *code = map.nearest(scaled(*value));
        }
    }
}

/// The inverse of [`quantise`], up to what the map could not hold.
pub fn dequantise(map: &Map, codes: &[u8], block: usize, absmax: &[f32], out: &mut [f32]) {
    for ((codes, absmax), out) in codes.chunks(block).zip(absmax).zip(out.chunks_mut(block)) {
        for (out, code) in out.iter_mut().zip(codes) {
            *out = map.values[usize::from(*code)] * absmax;
        }
    }
}

/// The largest magnitude of a block.
pub(super) fn largest(values: &[f32]) -> f32 {
    values.iter().fold(0.0, |largest: f32, value| largest.max(value.abs()))
}

/// How a block's values come into `[-1, 1]`. The last block of a tensor, when it isn't whole, keeps no magnitude below
/// [`LEAST`].
pub(super) fn scaling(absmax: &mut f32, whole: bool) -> impl Fn(f32) -> f32 + use<> {
    let at_least = absmax.max(LEAST);
    if !whole {
        *absmax = at_least;
    }
    let inverse = 1.0 / at_least;
    move |value| if whole { value * inverse } else { value / at_least }.clamp(-1.0, 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_code_is_that_of_a_search_through_all() {
        for map in [&*SIGNED, &*UNSIGNED] {
            let near = map.middles.iter().chain(&map.values).flat_map(|x| [*x, x.next_down(), x.next_up()]);
            let spread = (0..100_000).map(|i| (i as f32 / 50_000.0 - 1.0).powi(5));
            for x in near.chain(spread).chain([0.0, -0.0, 1e-45, -1e-45, 1.0, -1.0]) {
                let found = map.middles.partition_point(|middle| *middle < x);
                assert_eq!(usize::from(map.nearest(x)), found, "{x:e}");
            }
        }
    }
}
