//! BAdam (arXiv 2404.02827): the decoder blocks train one after the other, each for so many steps, in an order that is
//! ascending, descending, or shuffled anew for each round.

use liftplan_plugin::{Error, Kind, Model, Moment, Plan, Policy, Result, Settings, plugin, state};

#[derive(Settings)]
#[serde(crate = "liftplan_plugin::serde", rename_all = "lowercase")]
enum Order {
    Ascending,
    Descending,
    Random,
}

#[derive(Settings)]
#[serde(crate = "liftplan_plugin::serde")]
struct Badam {
    every: u64,
    order: Order,
    embeddings: bool,
    head: bool,
}

/// Where the policy keeps the rest of the round's order, a block a four bytes.
const LEFT: &str = "left";

impl Badam {
    /// The order of a round, by random numbers.
    fn round(&self, blocks: u32, random: impl Fn(u64) -> u64) -> Vec<u32> {
        let mut order: Vec<u32> = (0..blocks).collect();
        match self.order {
            Order::Ascending => {}
            Order::Descending => order.reverse(),
            Order::Random => {
                for place in (1..order.len()).rev() {
                    let at = (u128::from(random(place as u64)) * (place as u128 + 1)) >> 64;
                    order.swap(place, at as usize);
                }
            }
        }
        order
    }

    /// Trains the next block of the round, and begins another one when it is over.
    fn next(&self, model: &Model, plan: &mut Plan, random: impl Fn(u64) -> u64) -> Result<()> {
        let kept = state::get(LEFT).unwrap_or_default();
        let mut left: Vec<u32> =
            kept.chunks_exact(4).map(|bytes| u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])).collect();
        if left.is_empty() {
            left = self.round(model.blocks(), random);
            // The next one is taken from the end.
            left.reverse();
        }
        let block = left.pop().ok_or_else(|| Error::plan("the model has no blocks"))?;
        let bytes: Vec<u8> = left.iter().flat_map(|block| block.to_le_bytes()).collect();
        state::set(LEFT, &bytes)?;
        let tied = model.tied();
        for tensor in model.tensors() {
            let trains = match (tensor.block(), tensor.kind()) {
                (Some(of), _) => of == block,
                (None, Kind::Embedding) => self.embeddings || tied && self.head,
                (None, Kind::Head) => self.head,
                (None, _) => false,
            };
            if trains { plan.train(tensor.id())? } else { plan.freeze(tensor.id())? }
        }
        Ok(())
    }
}

impl Policy for Badam {
    fn make_plan(&self, model: &Model, plan: &mut Plan) -> Result<()> {
        plan.pick_every(self.every)?;
        self.next(model, plan, |draw| model.random(draw))
    }

    fn revise(&self, model: &Model, moment: &Moment, plan: &mut Plan) -> Result<()> {
        self.next(model, plan, |draw| moment.random(draw))
    }
}

plugin! {
    policy: Badam,
    name: "badam",
    about: "The decoder blocks train one after the other, each for so many steps.",
    capabilities: ["revise"],
    settings: include_str!("../settings.json"),
}
