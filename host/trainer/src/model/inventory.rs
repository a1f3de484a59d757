//! The ordered list of a model's tensors: what policies see and plans speak of.

use serde::{Deserialize, Serialize};

/// What kind of weight a tensor is, which decides the treatments it can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// The token embedding, `[vocab, hidden]`.
    Embedding,
    /// A linear layer's weight, `[out, in]`. Only these can be adapted.
    Linear,
    /// A linear layer's bias, `[out]`.
    Bias,
    /// A normalisation's scale, one-dimensional.
    Norm,
    /// The output head, `[vocab, hidden]`.
    Head,
}

/// One tensor of the checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TensorInfo {
    /// Canonical Hugging Face name, `model.layers.3.mlp.up_proj.weight`.
    pub name: String,
    /// Its part in a block (`q_proj`, `up_proj`, `input_layernorm`, `q_norm`, …) or in the model (`embed_tokens`,
    /// `norm`, `lm_head`). A bias has its layer's role.
    pub role: String,
    /// What kind of weight it is.
    pub kind: Kind,
    /// The decoder block it belongs to, if any.
    pub block: Option<usize>,
    /// Its shape, outermost dimension first.
    pub shape: Vec<usize>,
    /// How the checkpoint stores it: `f32`, `f16`, `bf16`, or a GGUF type such as `q4_k`.
    pub dtype: String,
}

impl TensorInfo {
    /// The number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether the tensor has no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The tensors of a model, in the order of the forward pass: embedding, blocks from first to last, final norm, head.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inventory {
    /// The family's name, `llama`, `mistral`, `qwen2`, `qwen3`.
    pub architecture: String,
    /// Every tensor once. A tied head is not listed: it is the embedding (see `tied`).
    pub tensors: Vec<TensorInfo>,
    /// Whether the output head is the embedding.
    pub tied: bool,
    /// Number of decoder blocks.
    pub blocks: usize,
}

impl Inventory {
    /// The index of the tensor called `name`.
    pub fn position(&self, name: &str) -> Option<usize> {
        self.tensors.iter().position(|t| t.name == name)
    }

    /// The tensor called `name`.
    pub fn get(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.iter().find(|t| t.name == name)
    }
}
