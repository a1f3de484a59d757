//! Adapters begin block by block, from the top block down, beside attention's weights. The block whose turn it is has its linear
//! layers in a storage of their own; those of the feed-forward part go back to that of the waiting ones with the next turn.

use liftplan_plugin::{Adapter, Kind, Model, Moment, Plan, Policy, Result, Settings, Tensor, plugin};

#[derive(Settings)]
#[serde(crate = "liftplan_plugin::serde")]
struct Ladder {
    every: u64,
    rank: u32,
    dora: bool,
    storage: String,
    waiting: String,
}

/// Whether an adapter is to stand beside it, once it is its block's turn.
fn is_of_attention(tensor: &Tensor) -> bool {
    matches!(tensor.role(), "q_proj" | "k_proj" | "v_proj" | "o_proj")
}

/// The linear layers of the block whose turn is number `turn`, from 0; none when all blocks had theirs.
fn of_turn(model: &Model, turn: u64) -> Vec<Tensor> {
    let left = u64::from(model.blocks()).checked_sub(turn + 1);
    let block = left.and_then(|block| u32::try_from(block).ok());
    let tensors = model.tensors().into_iter().filter(|tensor| *tensor.kind() == Kind::Linear);
    tensors.filter(|tensor| block.is_some() && tensor.block() == block).collect()
}

impl Ladder {
    fn begin(&self, model: &Model, plan: &mut Plan, turn: u64) -> Result<()> {
        for tensor in of_turn(model, turn) {
            plan.storage(tensor.id(), &self.storage)?;
            if is_of_attention(&tensor) {
                let mut adapter = Adapter::new(self.rank);
                adapter.dora = self.dora;
                plan.adapt(tensor.id(), adapter)?;
            }
        }
        Ok(())
    }
}

impl Policy for Ladder {
    fn make_plan(&self, model: &Model, plan: &mut Plan) -> Result<()> {
        plan.pick_every(self.every)?;
        self.begin(model, plan, 0)?;
        for turn in 1..u64::from(model.blocks()) {
            for tensor in of_turn(model, turn) {
                plan.storage(tensor.id(), &self.waiting)?;
            }
        }
        Ok(())
    }

    fn revise(&self, model: &Model, moment: &Moment, plan: &mut Plan) -> Result<()> {
        let turn = (moment.step() - 1) / self.every;
        self.begin(model, plan, turn)?;
        for tensor in of_turn(model, turn - 1).iter().filter(|tensor| !is_of_attention(tensor)) {
            plan.storage(tensor.id(), &self.waiting)?;
        }
        Ok(())
    }
}

plugin! {
    policy: Ladder,
    name: "ladder",
    about: "Adapters begin block by block from the top; the block whose turn it is is kept in a storage of its own.",
    capabilities: ["revise"],
    settings: include_str!("../settings.json"),
}
