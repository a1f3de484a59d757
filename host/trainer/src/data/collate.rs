//! Examples laid one after another in a batch, without padding.

use super::types::Example;

/// The target of a position whose next token does not count.
pub const IGNORE: u32 = u32::MAX;

/// Several documents one after another, without padding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// `[tokens]`
    pub ids: Vec<u32>,
    /// `[tokens]`, the next token or [`IGNORE`].
    pub targets: Vec<u32>,
    /// `[tokens]`, from 0 in each document.
    pub positions: Vec<u32>,
    /// `[documents + 1]`, where each begins, ending with the number of tokens.
    pub starts: Vec<u32>,
}

/// Lays examples one after another: `[tokens]` ids, for each position the next token of the same example if the loss
/// counts it and [`IGNORE`] otherwise, positions that restart with each example, and where each example starts,
/// ending with the number of tokens.
pub fn collate(examples: &[&Example]) -> Batch {
    let tokens = examples.iter().map(|example| example.ids.len()).sum();
    let mut ids = Vec::with_capacity(tokens);
    let mut targets = Vec::with_capacity(tokens);
    let mut positions = Vec::with_capacity(tokens);
    let mut starts = Vec::with_capacity(examples.len() + 1);
    for example in examples {
        starts.push(ids.len() as u32);
        let next = example.ids.iter().zip(&example.is_target).skip(1);
        targets.extend(next.map(|(&id, &is_target)| if is_target { id } else { IGNORE }));
        if !example.ids.is_empty() {
            targets.push(IGNORE);
        }
        positions.extend(0..example.ids.len() as u32);
        ids.extend_from_slice(&example.ids);
    }
    starts.push(ids.len() as u32);
    Batch { ids, targets, positions, starts }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::types::RowOrigin;

    fn example(ids: &[u32], is_target: &[bool]) -> Example {
        let source = RowOrigin { file: "a".into(), line: 1, is_row: false };
        let (ids, is_target) = (ids.to_vec(), is_target.to_vec());
        Example { ids, is_target, source, prompt_tokens: 0, reference: None, label: None }
    }

    #[test]
    fn documents_stay_apart() {
        let a = example(&[10, 11, 12], &[false, false, true]);
        let b = example(&[20, 21], &[true, true]);
        let batch = collate(&[&a, &b]);
        assert_eq!(batch.ids, [10, 11, 12, 20, 21]);
        // The last position of a document predicts nothing, and the first token of a document is predicted by nothing.
        assert_eq!(batch.targets, [IGNORE, 12, IGNORE, 21, IGNORE]);
        assert_eq!(batch.positions, [0, 1, 2, 0, 1]);
        assert_eq!(batch.starts, [0, 3, 5]);
    }

    #[test]
    fn an_empty_batch_has_one_boundary() {
        assert_eq!(collate(&[]).starts, [0]);
    }
}
