//! Full fine-tuning as a plugin: chosen tensors train whole, by default all of them. The same plan as the built-in policy
//! `full`, for the settings that both have.

use liftplan_plugin::{Error, Kind, Model, Plan, Policy, Result, Settings, plugin};

#[derive(Settings)]
#[serde(crate = "liftplan_plugin::serde")]
struct Full {
    targets: Vec<String>,
    exclude: Vec<String>,
    blocks: Option<Vec<u32>>,
    embeddings: Option<bool>,
    head: Option<bool>,
}

impl Full {
    /// Whether the tensor is chosen, after all that the settings say of kinds.
    fn switch(&self, kind: &Kind, tied: bool) -> Option<bool> {
        match kind {
            Kind::Embedding if tied => self.embeddings.or(self.head),
            Kind::Embedding => self.embeddings,
            Kind::Head => self.head,
            _ => None,
        }
    }
}

impl Policy for Full {
    fn make_plan(&self, model: &Model, plan: &mut Plan) -> Result<()> {
        let tied = model.tied();
        if let (true, Some(embeddings), Some(head)) = (tied, self.embeddings, self.head)
            && embeddings != head
        {
            return Err(Error::plan(format!(
                "`policy.head` = {head} contradicts policy.embeddings = {embeddings}: this model's output head is its embedding"
            ))
            .help("leave one of them out, or set both the same"));
        }
        let mut chosen = model.choose("policy.targets", &self.targets, &[])?;
        if let Some(blocks) = &self.blocks {
            let in_blocks = |id: &u32| {
                model.tensor(*id).is_ok_and(|tensor| tensor.block().is_some_and(|block| blocks.contains(&block)))
            };
            chosen.retain(in_blocks);
        }
        if !self.exclude.is_empty() {
            let excluded = model.matching("policy.exclude", &self.exclude, &chosen)?;
            chosen.retain(|id| !excluded.contains(id));
        }
        let mut trains = false;
        for tensor in model.tensors() {
            if self.switch(tensor.kind(), tied).unwrap_or(chosen.contains(&tensor.id())) {
                plan.train(tensor.id())?;
                trains = true;
            }
        }
        if trains {
            return Ok(());
        }
        Err(Error::plan("`policy` leaves nothing to train")
            .help("widen policy.targets or policy.blocks, or narrow policy.exclude"))
    }
}

plugin! {
    policy: Full,
    name: "full",
    about: "The model's own weights train: all of them, or those chosen by pattern.",
    capabilities: [],
    settings: include_str!("../settings.json"),
}
