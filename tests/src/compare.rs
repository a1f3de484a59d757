//! How far two lists of numbers are apart, and a message that says where, when that is too far.

/// The distance of `ours` from `reference`.
#[derive(Clone, Copy, Debug)]
pub struct Distance {
    /// ‖ours − reference‖ / ‖reference‖; infinite when a number is not finite or the lengths differ.
    pub relative_norm: f64,
    /// The largest absolute difference, over the largest absolute value of the reference.
    pub relative_max: f64,
    /// Where the largest difference is.
    pub worst: usize,
}

/// Measures the distance, in `f64`.
pub fn distance(ours: &[f32], reference: &[f32]) -> Distance {
    let far = |worst| Distance { relative_norm: f64::INFINITY, relative_max: f64::INFINITY, worst };
    if ours.len() != reference.len() {
        return far(ours.len().min(reference.len()));
    }
    let (mut difference, mut norm, mut largest, mut worst, mut scale) = (0.0, 0.0, 0.0, 0, 0.0f64);
    for (index, (a, b)) in ours.iter().zip(reference).enumerate() {
        let (a, b) = (f64::from(*a), f64::from(*b));
        if !a.is_finite() || !b.is_finite() {
            return far(index);
        }
        let gap = (a - b).abs();
        if gap > largest {
            (largest, worst) = (gap, index);
        }
        difference += gap * gap;
        norm += b * b;
        scale = scale.max(b.abs());
    }
    // A reference of zeros is matched by zeros only.
    let over = |gap: f64, size: f64| if gap == 0.0 { 0.0 } else { gap / size };
    Distance { relative_norm: over(difference.sqrt(), norm.sqrt()), relative_max: over(largest, scale), worst }
}

/// Fails, naming `what`, unless both the norm of the difference and its maximum stay below `limit`, relatively.
#[track_caller]
pub fn assert_close(what: &str, ours: &[f32], reference: &[f32], limit: f64) {
    assert_eq!(ours.len(), reference.len(), "{what}: as many numbers as the reference has");
    let d = distance(ours, reference);
    assert!(
        d.relative_norm <= limit && d.relative_max <= limit,
        "{what}: relative distance {:.2e} by norm and {:.2e} at most, limit {limit:.0e}; at {} ours is {} and the reference {}",
        d.relative_norm,
        d.relative_max,
        d.worst,
        ours[d.worst],
        reference[d.worst],
    );
}

/// Fails, naming `what`, unless the two numbers agree within `limit`, relatively.
#[track_caller]
pub fn assert_number(what: &str, ours: f64, reference: f64, limit: f64) {
    let gap = (ours - reference).abs() / reference.abs().max(f64::MIN_POSITIVE);
    assert!(gap <= limit, "{what}: ours is {ours} and the reference {reference}, {gap:.2e} apart, limit {limit:.0e}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distance_sees_what_differs() {
        assert_eq!(distance(&[1.0, 2.0], &[1.0, 2.0]).relative_norm, 0.0);
        let d = distance(&[3.0, 4.5], &[3.0, 4.0]);
        assert!((d.relative_norm - 0.1).abs() < 1e-12 && (d.relative_max - 0.125).abs() < 1e-12 && d.worst == 1);
        assert!(distance(&[0.1], &[0.0]).relative_norm.is_infinite());
        assert!(distance(&[f32::NAN], &[1.0]).relative_norm.is_infinite());
        assert!(distance(&[1.0], &[1.0, 1.0]).relative_norm.is_infinite());
    }

    #[test]
    #[should_panic(expected = "q: relative distance")]
    fn assert_close_fails_when_apart() {
        assert_close("q", &[1.0, 1.1], &[1.0, 1.0], 1e-3);
    }
}
