//! Examples laid one after another in a batch, without padding.

use liftplan_engine::Batch;

use super::types::Example;

/// Lays examples one after another: see [`Batch::pack`].
pub fn collate(examples: &[&Example]) -> Batch {
    Batch::pack(examples.iter().map(|example| (example.ids.as_slice(), example.is_target.as_slice())))
}

#[cfg(test)]
mod tests {
    use liftplan_engine::IGNORE;

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
