//! Who comes first, and how many are kept.

/// The positions of `scores` from the highest score to the lowest. Equal scores keep their order, which is that of the
/// forward pass: the earlier block comes first. Python's stable sort, which Spectrum's script uses, does the same.
pub fn order(scores: &[f64]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]));
    order
}

/// How many of `count` the top `percent` are: rounded down, as Spectrum's script does (`int(count * percent / 100)`).
pub fn kept(count: usize, percent: f64) -> usize {
    ((count as f64 * percent / 100.0) as usize).min(count)
}
