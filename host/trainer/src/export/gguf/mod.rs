//! A merged model as one GGUF file, named and laid out as llama.cpp's converter does it.
//!
//! Matrices are F16 or Q8_0, vectors (norms, biases) F32. Llama's query and key rows are reordered, because llama.cpp
//! rotates neighbouring elements of a head where Hugging Face rotates its two halves against each other.

mod metadata;
mod quant;
mod tokenizer;
mod writer;

use super::merge::Merger;
use super::target::Target;
use super::{BaseWeights, Dtype, Made, Options};
use crate::model::gguf::names;
use crate::model::inventory::TensorInfo;
use crate::model::spec::{ModelSpec, RopeScaling};
use crate::report::{Event, Observer};
use crate::{Error, Result};
use quant::GgmlType;
use writer::{GgufTensor, GgufWriter};

/// Writes the file; answers what it can't carry.
pub(super) fn write(
    source: &Made<'_>,
    target: &Target,
    options: &Options,
    observer: &mut dyn Observer,
) -> Result<Vec<String>> {
    let base = source.base;
    let merger = Merger::new(source)?.over(options.base.unwrap_or(BaseWeights::Original));
    let matrices = if options.dtype == Some(Dtype::Q8_0) { GgmlType::Q8_0 } else { GgmlType::F16 };
    let metadata = metadata::model(source, matrices)?.into_iter().chain(tokenizer::metadata(base)?).collect();

    let infos: Vec<&TensorInfo> = base.inventory.tensors.iter().collect();
    let mut tensors = Vec::with_capacity(infos.len() + 1);
    let rope_factors = rope_factors(&base.spec);
    if let Some(factors) = &rope_factors {
        tensors.push(GgufTensor {
            name: "rope_freqs.weight".to_string(),
            shape: vec![factors.len()],
            kind: GgmlType::F32,
        });
    }
    for info in &infos {
        let name = names::llama_cpp(&info.name)
            .ok_or_else(|| Error::internal(format!("llama.cpp has no name for {}", info.name)))?;
        tensors.push(GgufTensor { name, shape: info.shape.clone(), kind: quant::type_of(&info.shape, matrices) });
    }

    let path = target.path(&format!("{}-{}.gguf", source.name, matrices.name()));
    let first = usize::from(rope_factors.is_some());
    let total = tensors.len() as u64;
    let writer = GgufWriter { metadata, tensors };
    writer.write(&path, &mut |index, tensor| {
        observer.on(&Event::Progress { unit: "tensors", done: index as u64 + 1, total });
        let values = match index.checked_sub(first) {
            None => rope_factors.clone().unwrap_or_default(),
            Some(index) => {
                let info = infos.get(index).ok_or_else(|| Error::internal(format!("there is no tensor {index}")))?;
                let values = merger.merged_f32(info)?;
                match rotated_heads(&base.spec, &info.name) {
                    Some(heads) => interleave(&values, info.shape.first().copied().unwrap_or(0), heads),
                    None => values,
                }
            }
        };
        quant::encode(&tensor.name, &values, tensor.kind)
    })?;

    let mut notes: Vec<String> = Vec::new();
    if base.spec.architecture == "mistral" && base.spec.windows.iter().any(Option::is_some) {
        let note = "llama.cpp reads Mistral as `llama`, without its sliding window: longer texts than it differ";
        notes.push(note.into());
    }
    if rope_factors.is_some() {
        let note = "Llama 3's rope scaling is stored as llama.cpp reads it; transformers' GGUF reader ignores it";
        notes.push(note.into());
    }
    Ok(notes)
}

/// The heads of a tensor whose rows llama.cpp wants reordered, if it is one.
fn rotated_heads(spec: &ModelSpec, name: &str) -> Option<usize> {
    if !matches!(spec.architecture.as_str(), "llama" | "mistral") {
        return None;
    }
    let is = |role: &str| name.ends_with(&format!(".{role}.weight")) || name.ends_with(&format!(".{role}.bias"));
    match () {
        () if is("q_proj") => Some(spec.heads),
        () if is("k_proj") => Some(spec.kv_heads),
        () => None,
    }
}

/// Puts the rows of each head's two halves alternately: row `half·d + i` of a head goes to row `2·i + half`, where `d`
/// is half of the head's width. `rows` is the first dimension of the tensor.
fn interleave(values: &[f32], rows: usize, heads: usize) -> Vec<f32> {
    let width = values.len() / rows.max(1);
    let head = rows / heads.max(1);
    let mut out = Vec::with_capacity(values.len());
    for row in 0..rows {
        let (in_head, start) = (row % head.max(1), row - row % head.max(1));
        let from = start + in_head % 2 * (head / 2) + in_head / 2;
        out.extend_from_slice(values.get(from * width..(from + 1) * width).unwrap_or_default());
    }
    out
}

/// Llama 3's divisors of the rotary frequencies, one for each pair of a head's elements, as llama.cpp wants them.
fn rope_factors(spec: &ModelSpec) -> Option<Vec<f32>> {
    let RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_positions } = spec.rope.scaling
    else {
        return None;
    };
    let context = original_max_positions as f64;
    let factors = (0..spec.head_dim / 2).map(|i| {
        let frequency = spec.rope.theta.powf(-2.0 * i as f64 / spec.head_dim as f64);
        let wavelength = 2.0 * std::f64::consts::PI / frequency;
        let divisor = if wavelength < context / high_freq_factor {
            1.0
        } else if wavelength > context / low_freq_factor {
            factor
        } else {
            let smooth = (context / wavelength - low_freq_factor) / (high_freq_factor - low_freq_factor);
            1.0 / ((1.0 - smooth) / factor + smooth)
        };
        divisor as f32
    });
    Some(factors.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_halves_of_a_head_are_interleaved() {
        // Two heads of four rows, one column.
        let rows: Vec<f32> = (0..8).map(|i| i as f32).collect();
        assert_eq!(interleave(&rows, 8, 2), [0.0, 2.0, 1.0, 3.0, 4.0, 6.0, 5.0, 7.0]);
        // One head of four rows, two columns.
        assert_eq!(interleave(&rows, 4, 1), [0.0, 1.0, 4.0, 5.0, 2.0, 3.0, 6.0, 7.0]);
    }
}
