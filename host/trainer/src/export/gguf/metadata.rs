//! What a GGUF file says of the model: its dimensions under the keys that llama.cpp reads.

use std::path::Path;

use super::quant::GgmlType;
use super::writer::Meta;
use crate::export::Made;
use crate::model::spec::RopeScaling;
use crate::{Error, Result};

/// The model's metadata, in the order in which llama.cpp's converter writes it.
pub(super) fn model(source: &Made<'_>, matrices: GgmlType) -> Result<Vec<(String, Meta)>> {
    let spec = &source.base.spec;
    // llama.cpp keeps Mistral's models as `llama`.
    let architecture = match spec.architecture.as_str() {
        "mistral" => "llama",
        other => other,
    };
    let number = |what: &str, value: usize| -> Result<Meta> {
        let value = u32::try_from(value).map_err(|_| Error::model(format!("{what} {value} doesn't fit GGUF")))?;
        Ok(Meta::U32(value))
    };
    let mut out = vec![
        ("general.architecture".to_string(), Meta::Text(architecture.to_string())),
        ("general.type".to_string(), Meta::Text("model".to_string())),
        ("general.name".to_string(), Meta::Text(name(source))),
        ("general.file_type".to_string(), Meta::U32(matrices.file_type())),
        ("general.quantization_version".to_string(), Meta::U32(2)),
    ];
    let mut put = |key: &str, value: Meta| out.push((format!("{architecture}.{key}"), value));
    put("block_count", number("the number of blocks", spec.blocks)?);
    put("context_length", number("the context length", spec.max_positions)?);
    put("embedding_length", number("the width", spec.hidden)?);
    put("feed_forward_length", number("the feed-forward width", spec.intermediate)?);
    put("attention.head_count", number("the number of heads", spec.heads)?);
    put("attention.head_count_kv", number("the number of key heads", spec.kv_heads)?);
    put("attention.key_length", number("the head width", spec.head_dim)?);
    put("attention.value_length", number("the head width", spec.head_dim)?);
    put("attention.layer_norm_rms_epsilon", Meta::F32(spec.rms_eps as f32));
    put("vocab_size", number("the vocabulary", spec.vocab)?);
    put("rope.dimension_count", number("the head width", spec.head_dim)?);
    put("rope.freq_base", Meta::F32(spec.rope.theta as f32));
    match spec.rope.scaling {
        RopeScaling::None => {}
        RopeScaling::Linear { factor } => {
            put("rope.scaling.type", Meta::Text("linear".to_string()));
            put("rope.scaling.factor", Meta::F32(factor as f32));
        }
        // Told by the tensor `rope_freqs.weight`.
        RopeScaling::Llama3 { .. } => {}
    }
    Ok(out)
}

/// The base's name and the run's. Readers that tell Mistral from Llama do so by this name.
fn name(source: &Made<'_>) -> String {
    let origin = Path::new(&source.base.origin);
    let base = match source.base.is_gguf() {
        true => origin.file_stem(),
        false => origin.file_name(),
    };
    let base = base.map_or_else(|| source.base.origin.clone(), |n| n.to_string_lossy().into_owned());
    let family = &source.base.spec.architecture;
    // A directory called `model` says nothing.
    let base = if base.to_lowercase().contains(family.as_str()) { base } else { format!("{base} ({family})") };
    format!("{base} {}", source.name)
}
