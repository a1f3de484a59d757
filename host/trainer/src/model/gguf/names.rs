//! llama.cpp's tensor names ↔ Hugging Face's.

/// llama.cpp's part of a block's tensor name, and Hugging Face's.
const IN_BLOCK: [(&str, &str); 11] = [
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_q_norm", "self_attn.q_norm"),
    ("attn_k_norm", "self_attn.k_norm"),
    ("attn_output", "self_attn.o_proj"),
    ("ffn_norm", "post_attention_layernorm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
];

/// The same outside the blocks.
const OUTSIDE: [(&str, &str); 3] =
    [("token_embd", "model.embed_tokens"), ("output_norm", "model.norm"), ("output", "lm_head")];

/// The canonical name of llama.cpp's tensor `name`, or `None` where there is none.
pub fn canonical(name: &str) -> Option<String> {
    let (stem, kind) = name.rsplit_once('.')?;
    if !matches!(kind, "weight" | "bias") {
        return None;
    }
    if let Some((_, canonical)) = OUTSIDE.iter().find(|(theirs, _)| *theirs == stem) {
        return Some(format!("{canonical}.{kind}"));
    }
    let (block, part) = stem.strip_prefix("blk.")?.split_once('.')?;
    let block: usize = block.parse().ok()?;
    let (_, canonical) = IN_BLOCK.iter().find(|(theirs, _)| *theirs == part)?;
    Some(format!("model.layers.{block}.{canonical}.{kind}"))
}

/// llama.cpp's name of the tensor that is canonically called `name`, or `None` where there is none.
pub fn llama_cpp(name: &str) -> Option<String> {
    let (stem, kind) = name.rsplit_once('.')?;
    if let Some((theirs, _)) = OUTSIDE.iter().find(|(_, canonical)| *canonical == stem) {
        return Some(format!("{theirs}.{kind}"));
    }
    let (block, part) = stem.strip_prefix("model.layers.")?.split_once('.')?;
    let (theirs, _) = IN_BLOCK.iter().find(|(_, canonical)| *canonical == part)?;
    Some(format!("blk.{block}.{theirs}.{kind}"))
}

/// Which of the two rotated projections a tensor belongs to.
#[derive(Debug, PartialEq)]
pub(super) enum Rotated {
    Query,
    Key,
}

/// Whether the canonical `name` is of a projection whose output is rotated.
pub(super) fn rotated(name: &str) -> Option<Rotated> {
    if name.contains(".q_proj.") {
        Some(Rotated::Query)
    } else if name.contains(".k_proj.") {
        Some(Rotated::Key)
    } else {
        None
    }
}
