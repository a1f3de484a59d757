//! LISA (arXiv 2403.17919): every so many steps a few decoder blocks are drawn at random; only they train until the next
//! draw, beside embedding, output head and norms where the settings say so.

use liftplan_plugin::{Error, Kind, Model, Moment, Plan, Policy, Result, Settings, plugin};

#[derive(Settings)]
#[serde(crate = "liftplan_plugin::serde")]
struct Lisa {
    blocks: u32,
    every: u64,
    embeddings: bool,
    head: bool,
    norms: bool,
}

impl Lisa {
    /// Draws blocks without replacement, by random numbers from `draw`: the first steps of Fisher and Yates' shuffle.
    fn draw(&self, all: u32, random: impl Fn(u64) -> u64) -> Vec<u32> {
        let mut blocks: Vec<u32> = (0..all).collect();
        for place in 0..self.blocks.min(all) {
            // The high half of the product is uniform enough: its bias is the number of blocks over 2⁶⁴.
            let left = u64::from(all - place);
            let at = place + ((u128::from(random(u64::from(place))) * u128::from(left)) >> 64) as u32;
            blocks.swap(place as usize, at as usize);
        }
        blocks.truncate(self.blocks as usize);
        blocks
    }

    fn treat(&self, model: &Model, plan: &mut Plan, drawn: &[u32]) -> Result<()> {
        let tied = model.tied();
        for tensor in model.tensors() {
            let trains = match (tensor.block(), tensor.kind()) {
                // Norms that train always do so in every block.
                (_, Kind::Norm) if self.norms => true,
                (Some(block), _) => drawn.contains(&block),
                (None, Kind::Embedding) => self.embeddings || tied && self.head,
                (None, Kind::Head) => self.head,
                (None, _) => false,
            };
            if trains { plan.train(tensor.id())? } else { plan.freeze(tensor.id())? }
        }
        Ok(())
    }
}

impl Policy for Lisa {
    fn make_plan(&self, model: &Model, plan: &mut Plan) -> Result<()> {
        if self.blocks > model.blocks() {
            return Err(Error::settings(format!(
                "`policy.blocks` = {}, and the model has {} blocks",
                self.blocks,
                model.blocks()
            )));
        }
        plan.pick_every(self.every)?;
        self.treat(model, plan, &self.draw(model.blocks(), |draw| model.random(draw)))
    }

    fn revise(&self, model: &Model, moment: &Moment, plan: &mut Plan) -> Result<()> {
        self.treat(model, plan, &self.draw(model.blocks(), |draw| moment.random(draw)))
    }
}

plugin! {
    policy: Lisa,
    name: "lisa",
    about: "Every so many steps other decoder blocks train, drawn at random.",
    capabilities: ["revise"],
    settings: include_str!("../settings.json"),
}
