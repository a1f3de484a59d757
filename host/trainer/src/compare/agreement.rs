//! Which layers each method chose, and how far two choices agree.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::model::inventory::{Inventory, Kind, TensorInfo};
use crate::plan::{Plan, Treatment};

/// What a plan does in each block, by role.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerMap {
    /// The roles of linear layers, in the order of the forward pass.
    pub roles: Vec<String>,
    /// One text a role, one letter a block: `T` trained whole, `A` adapted, `.` frozen, and a space where the block has
    /// no such layer.
    pub rows: Vec<String>,
    /// What trains outside the blocks, and of norms and biases, by tensor role with how many.
    pub others: Vec<(String, usize)>,
}

impl LayerMap {
    /// Whether it shows a choice: of some role, some layers train and others don't.
    pub fn chooses(&self) -> bool {
        self.rows.iter().any(|row| row.contains('.') && row.contains(['T', 'A']))
    }
}

/// The map of a plan.
pub fn layer_map(plan: &Plan, inventory: &Inventory) -> LayerMap {
    let linear = |info: &TensorInfo| info.kind == Kind::Linear && info.block.is_some();
    let mut map = LayerMap { roles: Vec::new(), rows: Vec::new(), others: Vec::new() };
    let mut rows: Vec<Vec<char>> = Vec::new();
    for (entry, info) in plan.entries.iter().zip(&inventory.tensors) {
        let letter = match entry.treatment {
            Treatment::Frozen => '.',
            Treatment::Train => 'T',
            Treatment::Adapt(_) => 'A',
        };
        match info.block.filter(|_| linear(info)) {
            Some(block) => {
                let row = map.roles.iter().position(|role| *role == info.role).unwrap_or_else(|| {
                    map.roles.push(info.role.clone());
                    rows.push(vec![' '; inventory.blocks]);
                    rows.len() - 1
                });
                if let Some(slot) = rows[row].get_mut(block) {
                    *slot = letter;
                }
            }
            None if letter != '.' => {
                let role = if info.kind == Kind::Bias { format!("{} bias", info.role) } else { info.role.clone() };
                match map.others.iter_mut().find(|(name, _)| *name == role) {
                    Some((_, count)) => *count += 1,
                    None => map.others.push((role, 1)),
                }
            }
            None => {}
        }
    }
    map.rows = rows.into_iter().map(String::from_iter).collect();
    map
}

/// Whether the plan chooses: of some role, it treats some layers and leaves others.
pub fn is_selection(plan: &Plan, inventory: &Inventory) -> bool {
    layer_map(plan, inventory).chooses()
}

/// The linear layers that train or have an adapter.
pub fn chosen<'a>(plan: &Plan, inventory: &'a Inventory) -> BTreeSet<&'a str> {
    let of_blocks = |info: &&TensorInfo| info.kind == Kind::Linear && info.block.is_some();
    plan.entries
        .iter()
        .zip(&inventory.tensors)
        .filter(|(entry, info)| entry.treatment != Treatment::Frozen && of_blocks(info))
        .map(|(_, info)| info.name.as_str())
        .collect()
}

/// The share of what either chose that both chose (Jaccard); of nothing, 1.
pub fn jaccard(a: &BTreeSet<&str>, b: &BTreeSet<&str>) -> f64 {
    match a.union(b).count() {
        0 => 1.0,
        either => a.intersection(b).count() as f64 / either as f64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlap_by_hand() {
        let (a, b) = (BTreeSet::from(["q0", "q1", "k0"]), BTreeSet::from(["q1", "k0", "v0"]));
        assert_eq!(jaccard(&a, &b), 0.5);
        assert_eq!(jaccard(&a, &a), 1.0);
        assert_eq!(jaccard(&a, &BTreeSet::new()), 0.0);
        assert_eq!(jaccard(&BTreeSet::new(), &BTreeSet::new()), 1.0);
    }
}
