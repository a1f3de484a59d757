//! "Did you mean": the known word nearest to one that isn't known.

/// The candidate nearest to `word`, if one is near enough to be what was meant.
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let lower = word.to_lowercase();
    candidates
        .into_iter()
        .map(|candidate| (distance(&lower, &candidate.to_lowercase()), candidate))
        .filter(|(far, _)| *far < 0.34)
        .min_by(|(a, _), (b, _)| a.total_cmp(b))
        .map(|(_, candidate)| candidate)
}

/// Several candidates near `word`, nearest first, at most `count`, and none that is much further than the nearest.
pub fn near<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>, count: usize) -> Vec<&'a str> {
    let lower = word.to_lowercase();
    let mut found: Vec<_> =
        candidates.into_iter().map(|candidate| (distance(&lower, &candidate.to_lowercase()), candidate)).collect();
    let nearest = found.iter().map(|(far, _)| *far).fold(f64::INFINITY, f64::min);
    found.retain(|(far, _)| *far < 0.45 && *far <= nearest + 0.1);
    found.sort_by(|(a, x), (b, y)| a.total_cmp(b).then(x.cmp(y)));
    found.dedup_by(|(_, x), (_, y)| x == y);
    found.into_iter().take(count).map(|(_, candidate)| candidate).collect()
}

/// From 0 (the same) to 1 (nothing in common): edits as a share of the longer word, and a word of which the other is
/// the beginning or the end counts as near.
fn distance(a: &str, b: &str) -> f64 {
    let edits = 1.0 - strsim::normalized_damerau_levenshtein(a, b);
    let (short, long) = if a.len() < b.len() { (a, b) } else { (b, a) };
    let part = short.len() >= 3 && (long.starts_with(short) || long.ends_with(short));
    if part { edits.min(0.3) } else { edits }
}

/// Names in a sentence: `a, b and c`.
pub fn list<S: AsRef<str>>(names: &[S]) -> String {
    match names {
        [] => "nothing".to_string(),
        [one] => one.as_ref().to_string(),
        [first @ .., last] => {
            let first: Vec<_> = first.iter().map(AsRef::as_ref).collect();
            format!("{} and {}", first.join(", "), last.as_ref())
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn finds_typing_errors_and_parts_but_not_strangers() {
        let known = ["steps", "epochs", "batch_size", "max_grad_norm"];
        assert_eq!(nearest("setps", known), Some("steps"));
        assert_eq!(nearest("batchsize", known), Some("batch_size"));
        assert_eq!(nearest("grad_norm", known), Some("max_grad_norm"));
        assert_eq!(nearest("temperature", known), None);
    }

    #[test]
    fn lists_read_as_sentences() {
        assert_eq!(list(&["a"]), "a");
        assert_eq!(list(&["a", "b", "c"]), "a, b and c");
    }
}
