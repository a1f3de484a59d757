//! The nearest code by arithmetic, for a card, whose lanes hinder each other when each searches a table.
//!
//! From middle to middle the codes count up, and the middles of a decade lie at equal distances, five times as far apart as in the
//! decade below. Between its last middle and the first of the next decade, the middle where the decades meet has a distance of its
//! own on either side. So the places of the middles are those where a line passes a whole number: one line for each decade, and a
//! flatter one through where it begins; the lesser of the two is right from the end of the decade below on. A magnitude's decade may
//! thus be told too early by a little, as from a rough logarithm, but not too late.
//!
//! What lies at a middle to within the rounding of this arithmetic must still be compared with it: `nearest` in
//! `host/engine/kernels/adamw.cu` does both, and the test below does the same.

use super::Map;

/// Decades, and two entries behind them for what is as good as one, or more than it by a rounding.
pub const ENTRIES: usize = 9;

const DECADES: i32 = 7;

/// For each decade of magnitudes, from `1e-7..1e-6` on, two lines `[slope, at zero, slope, at zero]`: the lesser, rounded to the
/// nearest, is how many entries lie between zero and the nearest one; that of one itself is left out.
pub fn lines(map: &Map, signed: bool) -> [[f32; 4]; ENTRIES] {
    let zero = if signed { 127 } else { 0 };
    let last = (254 - zero) as f32;
    std::array::from_fn(|decade| {
        if decade >= DECADES as usize {
            return [0.0, last, 0.0, last];
        }
        let count = 1 << (decade + usize::from(!signed));
        // The first entry of the decade, counted from zero, and the middle below it.
        let first = if signed { count } else { count - 1 };
        let middle = |of: usize| f64::from(map.middles[zero + of - 1]);
        if decade == 0 {
            // The last middle alone, up from zero: with a sign nothing is negative, without one nothing above zero rounds to it.
            let of = first + count - 1;
            let (at_zero, of) = (of as f64 - 0.25, of);
            let slope = 0.25 / middle(of);
            return [slope as f32, (at_zero - 0.5) as f32, slope as f32, (at_zero - 0.5) as f32];
        }
        let begins = 10f64.powi(decade as i32 - DECADES);
        let slope = count as f64 / (9.0 * begins);
        let flatter = slope * 5.0 / 3.0;
        let (first, middle) = (first as f64, middle(first));
        let at_zero = first - slope * begins;
        [slope as f32, (at_zero - 0.5) as f32, flatter as f32, (first - flatter * middle - 0.5) as f32]
    })
}

#[cfg(test)]
mod tests {
    use super::super::{SIGNED, UNSIGNED};
    use super::*;

    /// The kernel's arithmetic, for a logarithm that errs by `error`: the code, or none where the middles must decide.
    fn nearest(map: &Map, lines: &[[f32; 4]; ENTRIES], signed: bool, x: f32, error: f64) -> Option<u8> {
        let whole = 12_582_912.0 + if signed { 127.0 } else { 0.0 };
        let size = x.abs();
        let logarithm = if size < f32::MIN_POSITIVE { f64::NEG_INFINITY } else { f64::from(size).log2() };
        let logarithm = (logarithm + error * logarithm.abs().max(1.0)) as f32;
        let eighth = logarithm.mul_add(0.037_628_75, 0.875_000_6).clamp(0.0, 1.0);
        let [slope, at_zero, flatter, at_zero_too] = lines[(eighth * 8.0) as usize];
        let mut at = size.mul_add(slope, at_zero).min(size.mul_add(flatter, at_zero_too));
        if signed {
            assert!(at >= 0.0);
            at = f32::from_bits(at.to_bits() | x.to_bits() & 0x8000_0000);
        }
        let mut code = at + whole;
        let doubt = (at - (code - whole)).abs();
        if x > map.middles[254] {
            code += 1.0;
        }
        (doubt <= 0.49996).then_some(code.to_bits() as u8)
    }

    #[test]
    fn lines_give_the_nearest_code_of_all_but_what_lies_at_a_middle() {
        for (map, signed) in [(&*SIGNED, true), (&*UNSIGNED, false)] {
            let lines = lines(map, signed);
            let around = |x: &f32| {
                let bits = x.to_bits();
                (bits.saturating_sub(3000)..bits + 3000).map(f32::from_bits).collect::<Vec<_>>()
            };
            let tens = (0..9).map(|i| 10f32.powi(-i)).collect::<Vec<_>>();
            let near = map.middles.iter().chain(&map.values).chain(&tens).map(|x| x.abs());
            let near = near.flat_map(|x| around(&x.max(1e-40)));
            let spread = (0..0x3f80_0001_u32).step_by(997).map(f32::from_bits);
            let mut doubtful = 0;
            for size in near.chain(spread).chain([0.0]).filter(|x| *x <= 1.0f32.next_up()) {
                for x in if signed { [size, -size] } else { [size, size] } {
                    let code = map.middles.partition_point(|middle| *middle < x) as u8;
                    // Without a sign, nothing but zero has its code, which the kernel sees to itself.
                    let expected = if signed { code } else { code.max(1) };
                    // Twice and more of what the card's logarithm may err.
                    for error in [-5e-7, 0.0, 5e-7] {
                        match nearest(map, &lines, signed, x, error) {
                            Some(found) => assert_eq!(found, expected, "{x:e}"),
                            None => doubtful += 1,
                        }
                    }
                }
            }
            assert!(doubtful > 0);
        }
    }
}
