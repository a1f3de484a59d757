//! The sum of `f32` numbers in the order in which PyTorch adds them on a processor, on one thread.
//!
//! Double quantisation stores block scales as differences from their mean, so that the last bit of the mean decides about
//! the last bit of what is stored. PyTorch adds eight interleaved sums, each of four, each cascaded over levels.

/// Numbers that PyTorch adds side by side: an AVX2 register, which it also uses on wider machines.
const LANES: usize = 8;
/// Registers that it adds side by side.
const REGISTERS: usize = 4;
const LEVELS: usize = 4;

/// The sum of `values`.
fn sum(values: &[f32]) -> f32 {
    if values.len() < LANES {
        // Too few for a register: single numbers take the registers' place.
        return cascade(values.as_chunks::<1>().0)[0];
    }
    let (rows, rest) = values.as_chunks::<LANES>();
    let total = cascade(rows);
    // The numbers that fill no register come first.
    let rest = rest.iter().fold(0.0, |sum: f32, value| sum + value);
    total.iter().fold(rest, |sum, lane| sum + lane)
}

/// The sum of `values` over their number.
pub(super) fn mean(values: &[f32]) -> f32 {
    sum(values) / values.len() as f32
}

fn cascade<const N: usize>(rows: &[[f32; N]]) -> [f32; N] {
    let groups = rows.len() / REGISTERS;
    let mut sums = [[[0.0f32; N]; REGISTERS]; LEVELS];
    let power = (ceil_log2(groups) / LEVELS).max(4);
    let (step, mask) = (1 << power, (1 << power) - 1);
    let mut done = 0;
    let add_group = |sums: &mut [[f32; N]; REGISTERS], group: usize| {
        for (sum, row) in sums.iter_mut().zip(&rows[group * REGISTERS..]) {
            add(sum, row);
        }
    };
    while done + step <= groups {
        for _ in 0..step {
            add_group(&mut sums[0], done);
            done += 1;
        }
        for level in 1..LEVELS {
            let below = std::mem::replace(&mut sums[level - 1], [[0.0; N]; REGISTERS]);
            sums[level].iter_mut().zip(&below).for_each(|(sum, below)| add(sum, below));
            if done & (mask << (level * power)) != 0 {
                break;
            }
        }
    }
    for group in done..groups {
        add_group(&mut sums[0], group);
    }
    let [mut total, above @ ..] = sums;
    for level in above {
        total.iter_mut().zip(&level).for_each(|(sum, level)| add(sum, level));
    }
    let [mut first, others @ ..] = total;
    for row in &rows[groups * REGISTERS..] {
        add(&mut first, row);
    }
    for other in &others {
        add(&mut first, other);
    }
    first
}

fn add<const N: usize>(sum: &mut [f32; N], row: &[f32; N]) {
    sum.iter_mut().zip(row).for_each(|(sum, value)| *sum += value);
}

fn ceil_log2(value: usize) -> usize {
    value.max(1).next_power_of_two().trailing_zeros() as usize
}
