//! What there is to say of a loss that is not finite: which weight was not finite before it, and which rows it is of.

use liftplan_engine::{Decoder, Weight};

use crate::Error;
use crate::data::RowOrigin;

/// Rows that are listed.
const SHOWN: usize = 4;

/// The error, with another way out where a weight of the decoder has numbers that are not finite.
pub(super) fn by_weights(error: Error, decoder: &Decoder) -> Error {
    let Some(param) = decoder.params().find(|param| is_damaged(&param.value)) else { return error };
    let what = format!("`{}` has numbers that are not finite", param.name());
    error.help(match param.has_trained() {
        true => format!("{what} by now: lower optimizer.lr, or set train.max_grad_norm"),
        false => format!("{what}: the base model is damaged; fetch or make it again"),
    })
}

/// The error, with the rows that its loss is of: the first few.
pub(super) fn among<'a>(error: Error, rows: impl ExactSizeIterator<Item = &'a RowOrigin>) -> Error {
    let more = rows.len().saturating_sub(SHOWN);
    let mut list: Vec<String> = rows.take(SHOWN).map(ToString::to_string).collect();
    if more > 0 {
        list.push(format!("{more} more"));
    }
    let help = error.help_text().unwrap_or_default().to_string();
    error.help(format!("{help}; it was computed on {}", list.join(", ")))
}

/// Whether some of a weight's numbers are not finite. Packed ones always are: nothing else is packed.
fn is_damaged(weight: &Weight) -> bool {
    match weight {
        Weight::F32(values) => values.iter().any(|value| !value.is_finite()),
        Weight::Bf16(values) => values.iter().any(|value| !value.is_finite()),
        Weight::Nf4(_) | Weight::Int8(_) => false,
    }
}
