//! What a model consists of, for `liftplan inspect`: one line a role, and totals.

use serde::{Deserialize, Serialize};

use super::BaseModel;
use super::inventory::Kind;

/// The tensors of one role.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RoleSummary {
    /// The role, `q_proj`.
    pub role: String,
    /// What kind of weight it is.
    pub kind: Kind,
    /// How many there are.
    pub count: usize,
    /// Their shape, outermost dimension first.
    pub shape: Vec<usize>,
    /// Their types; several where a checkpoint mixes them, in order of first use.
    pub dtypes: Vec<String>,
    /// Elements in all of them together.
    pub parameters: u64,
    /// Bytes that they take up in the checkpoint.
    pub bytes: u64,
}

/// A model in figures.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Where it came from.
    pub origin: String,
    /// Its family.
    pub architecture: String,
    /// Decoder blocks.
    pub blocks: usize,
    /// Whether the head is the embedding.
    pub tied: bool,
    /// Content hash of the weights.
    pub hash: String,
    /// One entry a role and kind, in the order of the forward pass.
    pub roles: Vec<RoleSummary>,
    /// Elements in all tensors.
    pub parameters: u64,
    /// Bytes that all tensors take up in the checkpoint.
    pub bytes: u64,
}

impl Summary {
    /// Counts the tensors of `model`.
    pub(super) fn of(model: &BaseModel) -> Self {
        let mut roles: Vec<RoleSummary> = Vec::new();
        for tensor in &model.inventory.tensors {
            // All tensors of one role and kind have the same shape: the specification gives it, and it was checked.
            let known = roles.iter_mut().find(|r| r.role == tensor.role && r.kind == tensor.kind);
            let (parameters, bytes) = (tensor.len() as u64, model.stored_bytes(&tensor.name) as u64);
            match known {
                Some(role) => {
                    role.count += 1;
                    role.parameters += parameters;
                    role.bytes += bytes;
                    if !role.dtypes.contains(&tensor.dtype) {
                        role.dtypes.push(tensor.dtype.clone());
                    }
                }
                None => roles.push(RoleSummary {
                    role: tensor.role.clone(),
                    kind: tensor.kind,
                    count: 1,
                    shape: tensor.shape.clone(),
                    dtypes: vec![tensor.dtype.clone()],
                    parameters,
                    bytes,
                }),
            }
        }
        Summary {
            origin: model.origin.clone(),
            architecture: model.spec.architecture.clone(),
            blocks: model.spec.blocks,
            tied: model.spec.tied,
            hash: model.hash.clone(),
            parameters: roles.iter().map(|role| role.parameters).sum(),
            bytes: roles.iter().map(|role| role.bytes).sum(),
            roles,
        }
    }
}
