//! What a model on the card is made of: its dimensions, and what becomes of each weight.

use super::trainable::MomentFormat;
use crate::error::{EngineError, Result, expect_shape};

/// A model's dimensions.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelShape {
    /// Rows of the embedding.
    pub vocab: usize,
    /// Width of the residual stream; a multiple of 8.
    pub hidden: usize,
    /// Width inside the feed-forward layer; a multiple of 8.
    pub intermediate: usize,
    /// Number of blocks.
    pub blocks: usize,
    /// Query heads.
    pub heads: usize,
    /// Key heads.
    pub kv_heads: usize,
    /// Width of a head; a multiple of 16, up to 256.
    pub dim: usize,
    /// Each block's sliding window.
    pub windows: Vec<Option<usize>>,
    /// Epsilon of all norms.
    pub rms_eps: f32,
    /// Whether the head is the embedding.
    pub tied: bool,
    /// Rotary embedding's inverse frequencies, `[dim / 2]`.
    pub inverse_frequencies: Vec<f32>,
}

impl ModelShape {
    /// Whether the kernels can compute with it, which read eight numbers at a time.
    ///
    /// # Errors
    /// Names the first width that they can't.
    pub fn check(&self) -> Result<()> {
        let widths =
            [("hidden size", self.hidden, 8), ("intermediate size", self.intermediate, 8), ("head size", self.dim, 16)];
        for (what, width, step) in widths {
            if !width.is_multiple_of(step) || width == 0 {
                return Err(EngineError::Shape {
                    what: what.into(),
                    expected: format!("a multiple of {step} on a GPU"),
                    found: width.to_string(),
                });
            }
        }
        if self.dim > 256 {
            let found = self.dim.to_string();
            return Err(EngineError::Shape { what: "head size".into(), expected: "up to 256 on a GPU".into(), found });
        }
        expect_shape("inverse frequencies", self.dim / 2, self.inverse_frequencies.len())?;
        expect_shape("windows", self.blocks, self.windows.len())
    }
}

/// A weight's part in the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum Role {
    Embedding,
    InputNorm,
    Q,
    K,
    V,
    QBias,
    KBias,
    VBias,
    QNorm,
    KNorm,
    O,
    PostNorm,
    Gate,
    Up,
    Down,
    FinalNorm,
    Head,
    OBias,
    GateBias,
    UpBias,
    DownBias,
}

impl Role {
    /// The weight whose bias it is, if it is one.
    pub fn biases(self) -> Option<Self> {
        Some(match self {
            Self::QBias => Self::Q,
            Self::KBias => Self::K,
            Self::VBias => Self::V,
            Self::OBias => Self::O,
            Self::GateBias => Self::Gate,
            Self::UpBias => Self::Up,
            Self::DownBias => Self::Down,
            _ => return None,
        })
    }
}

/// A weight's place: its block, if it is in one, and its part.
pub type Slot = (Option<usize>, Role);

/// How a weight is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Storage {
    /// bf16. What trains is rounded stochastically.
    #[default]
    Bf16,
    /// `f32`; products read a bf16 copy. A frozen matrix keeps that copy alone.
    F32,
    /// 4-bit NormalFloat; `double` keeps the blocks' maxima in 8 bits.
    Nf4 {
        /// Elements of a block, one of [`crate::storage::nf4::BLOCK_SIZES`].
        block: usize,
        /// Double quantisation.
        double: bool,
    },
    /// 8 bits and a scale a row.
    Int8,
}

impl Storage {
    /// Whether it takes fewer bits than products read.
    pub fn is_packed(self) -> bool {
        matches!(self, Self::Nf4 { .. } | Self::Int8)
    }
}

/// An adapter beside a frozen weight.
#[derive(Clone, Debug, PartialEq)]
pub struct AdapterSpec {
    /// Rank.
    pub rank: usize,
    /// Factor on `B·A`.
    pub scale: f32,
    /// Probability that an input of the adapter is dropped while training.
    pub dropout: f32,
    /// Tells this adapter's dropout from every other's.
    pub dropout_stream: u32,
    /// Name of A.
    pub a: String,
    /// Name of B.
    pub b: String,
    /// With DoRA, the name of the magnitudes, `[1, outputs]`.
    pub magnitude: Option<String>,
}

/// What becomes of a weight.
#[derive(Clone, Debug, PartialEq)]
pub enum Treatment {
    /// It stays as it is.
    Frozen,
    /// It trains.
    Train,
    /// An adapter trains beside it.
    Adapt(AdapterSpec),
}

/// One weight.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorSpec {
    /// Where it goes.
    pub slot: Slot,
    /// Its name.
    pub name: String,
    /// What becomes of it.
    pub treatment: Treatment,
    /// How it is kept.
    pub storage: Storage,
}

/// What holds for the whole model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// How the optimiser's moments are kept.
    pub moments: MomentFormat,
    /// Whether gradients of weights (not of adapters, norms and the embedding) are kept in bf16.
    pub narrow_grads: bool,
    /// Whether bf16 weights that train keep an `f32` copy that is changed, instead of being rounded stochastically.
    pub masters: bool,
    /// Ranks beside each other are padded to a multiple of this (0: 64, a tile of the products).
    pub rank_multiple: usize,
    /// Whether sums may be made in an order that differs from run to run, where that is faster: the last bits of
    /// gradients then differ too.
    pub unordered: bool,
    /// Whether the embedding, frozen and not the head too, lies in the host's memory, where the card reads a row a token.
    pub embedding_on_host: bool,
    /// Whether blocks' gradients of matrices share one place among a step's activations, since
    /// [`super::Decoder::accumulate_and_update`] is all that is done with them.
    pub update_in_backward: bool,
    /// The most bytes of the host's memory that activations may wait in; without it, as many as a step's plan likes.
    pub waiting_limit: Option<usize>,
}

impl ModelShape {
    /// Rows and columns of a weight; a vector has one row.
    pub fn shape_of(&self, role: Role) -> [usize; 2] {
        let (q, kv) = (self.heads * self.dim, self.kv_heads * self.dim);
        match role {
            Role::Embedding | Role::Head => [self.vocab, self.hidden],
            Role::InputNorm | Role::PostNorm | Role::FinalNorm => [1, self.hidden],
            Role::Q => [q, self.hidden],
            Role::K | Role::V => [kv, self.hidden],
            Role::QBias => [1, q],
            Role::KBias | Role::VBias => [1, kv],
            Role::OBias | Role::DownBias => [1, self.hidden],
            Role::GateBias | Role::UpBias => [1, self.intermediate],
            Role::QNorm | Role::KNorm => [1, self.dim],
            Role::O => [self.hidden, q],
            Role::Gate | Role::Up => [self.intermediate, self.hidden],
            Role::Down => [self.hidden, self.intermediate],
        }
    }
}
