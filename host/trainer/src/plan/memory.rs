//! The memory that carrying out a plan takes, by kind, before anything is loaded.
//!
//! In: the plan, the model's dimensions, the optimiser's and the largest micro-batch's. Out: bytes. What lasts through
//! training is counted from the plan; what a pass holds is the engine's own account of its buffers.

use liftplan_engine::memory::{self, AdapterPart, BlockPart, LinearPart, ModelPart, PassPart};
use liftplan_engine::ops::attention::Heads;
use liftplan_engine::optim::{BLOCK, LEAST_FOR_BITS8, LEAST_FOR_PAGES};
use liftplan_engine::{BlockShape, Keep};
use serde::{Deserialize, Serialize};

use super::{Entry, Plan, Storage, Treatment};
use crate::config::{Bf16Update, Config, OptimizerName};
use crate::model::inventory::{Inventory, Kind, TensorInfo};
use crate::model::spec::ModelSpec;

/// Bytes by kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// The base model's weights, each in its storage.
    pub weights_bytes: u64,
    /// Adapters.
    pub adapters_bytes: u64,
    /// Gradients of what trains.
    pub gradients_bytes: u64,
    /// The optimiser's states, and master copies of weights.
    pub optimizer_bytes: u64,
    /// What a training pass holds beside all these.
    pub activations_bytes: u64,
    /// The program, the tokenizer and the data.
    pub process_bytes: u64,
}

impl Memory {
    /// All of it.
    pub fn total(&self) -> u64 {
        let lasting = self.weights_bytes + self.adapters_bytes + self.gradients_bytes + self.optimizer_bytes;
        lasting + self.activations_bytes + self.process_bytes
    }
}

/// The largest pass of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Work {
    /// Tokens computed at once.
    pub tokens: usize,
    /// Of these, tokens that count in the loss.
    pub targets: usize,
    /// Tokens of the longest example.
    pub longest: usize,
    /// Whether blocks are computed a second time instead of keeping their activations.
    pub recompute: bool,
}

/// How the optimiser keeps its states.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct States {
    /// Which optimiser.
    pub optimizer: OptimizerName,
    /// Whether bf16 weights that train have an f32 master copy.
    pub master: bool,
}

impl States {
    /// AdamW's two moments in f32.
    pub const ADAMW: Self = Self { optimizer: OptimizerName::Adamw, master: false };

    /// As the configuration sets them.
    pub fn of(config: &Config) -> Self {
        let master = config.train.bf16_update_or_default() == Bf16Update::Master;
        Self { optimizer: config.optimizer.name, master }
    }

    /// Bytes in memory for a parameter of so many numbers, kept as bf16 or not. Paged states are in files.
    fn bytes(self, len: usize, bf16: bool) -> u64 {
        let (bits8, paged) = match self.optimizer {
            OptimizerName::Adamw => (false, false),
            OptimizerName::Adamw8bit => (true, false),
            OptimizerName::PagedAdamw => (false, true),
            OptimizerName::PagedAdamw8bit => (true, true),
        };
        if paged && len >= LEAST_FOR_PAGES {
            return 0;
        }
        let moments = match bits8 && len >= LEAST_FOR_BITS8 {
            true => 2 * (len + 4 * len.div_ceil(BLOCK)),
            false => 8 * len,
        };
        (moments + if self.master && bf16 { 4 * len } else { 0 }) as u64
    }
}

/// What the program comes to hold once it trains: code that is read in when it first runs, and stacks of threads. Measured.
const LATER_BYTES: u64 = 12 << 20;

/// The memory of training `spec`'s model by `plan` on the CPU. `process_bytes` is what the program holds without it.
pub fn predict(
    plan: &Plan,
    inventory: &Inventory,
    spec: &ModelSpec,
    states: States,
    work: Work,
    process_bytes: u64,
) -> Memory {
    let mut memory = lasting(plan, inventory, states);
    let pass = PassPart {
        tokens: work.tokens,
        targets: work.targets,
        longest: work.longest,
        keep: if work.recompute { Keep::Inputs } else { Keep::Activations },
        threads: rayon::current_num_threads(),
    };
    memory.activations_bytes = memory::training_pass(&parts(plan, inventory, spec), pass).total as u64;
    memory.process_bytes = process_bytes + LATER_BYTES;
    memory
}

/// What lasts through training.
pub fn lasting(plan: &Plan, inventory: &Inventory, states: States) -> Memory {
    let mut memory = Memory::default();
    for (entry, info) in plan.entries.iter().zip(&inventory.tensors) {
        memory.weights_bytes += entry.storage.bytes(&info.shape);
        let mut trains = |len: usize, bf16: bool| {
            memory.gradients_bytes += 4 * len as u64;
            memory.optimizer_bytes += states.bytes(len, bf16);
        };
        match &entry.treatment {
            Treatment::Frozen => {}
            Treatment::Train => trains(info.len(), entry.storage == Storage::Bf16),
            Treatment::Adapt(adapter) => {
                let (out, input) = (info.shape.first().unwrap_or(&0), info.shape.last().unwrap_or(&0));
                trains(adapter.rank * input, false);
                trains(adapter.rank * out, false);
                if adapter.dora {
                    trains(*out, false);
                }
                memory.adapters_bytes += 4 * adapter.parameters(&info.shape);
            }
        }
    }
    memory
}

/// The model as the engine's account sees it.
fn parts(plan: &Plan, inventory: &Inventory, spec: &ModelSpec) -> ModelPart {
    let mut blocks: Vec<BlockPart> = (0..spec.blocks).map(|index| empty_block(spec, index)).collect();
    let mut model = ModelPart {
        vocab: spec.vocab,
        hidden: spec.hidden,
        blocks: Vec::new(),
        embedding_trains: false,
        norm_trains: false,
        head_converted: false,
    };
    for (entry, info) in plan.entries.iter().zip(&inventory.tensors) {
        let trains = entry.treatment == Treatment::Train;
        match info.block.and_then(|index| blocks.get_mut(index)) {
            Some(block) => add_to_block(block, entry, info, trains),
            None => match info.kind {
                Kind::Embedding => {
                    model.embedding_trains = trains;
                    model.head_converted |= spec.tied && entry.storage != Storage::F32;
                }
                Kind::Head => model.head_converted |= entry.storage != Storage::F32,
                _ => model.norm_trains |= trains,
            },
        }
    }
    model.blocks = blocks;
    model
}

/// The linear layers of a block, in the engine's order.
const ROLES: [&str; 7] = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];

fn empty_block(spec: &ModelSpec, index: usize) -> BlockPart {
    let window = spec.windows.get(index).copied().flatten();
    let heads = Heads { queries: spec.heads, keys: spec.kv_heads, dim: spec.head_dim, window };
    BlockPart {
        shape: BlockShape { hidden: spec.hidden, intermediate: spec.intermediate, heads, rms_eps: spec.rms_eps as f32 },
        linears: [LinearPart::default(); 7],
        input_norm_trains: false,
        post_norm_trains: false,
        head_norms_train: spec.qk_norm.then_some(false),
    }
}

fn add_to_block(block: &mut BlockPart, entry: &Entry, info: &TensorInfo, trains: bool) {
    if let Some(index) = ROLES.iter().position(|role| *role == info.role) {
        let linear = &mut block.linears[index];
        match info.shape[..] {
            [outputs, inputs] => {
                *linear = LinearPart {
                    outputs,
                    inputs,
                    trains,
                    converted: entry.storage != Storage::F32,
                    adapter: match &entry.treatment {
                        Treatment::Adapt(adapter) => {
                            Some(AdapterPart { rank: adapter.rank, dora: adapter.dora, dropout: adapter.dropout > 0.0 })
                        }
                        _ => None,
                    },
                    ..*linear
                }
            }
            _ => linear.bias_trains = trains,
        }
        return;
    }
    match info.role.as_str() {
        "input_layernorm" => block.input_norm_trains = trains,
        "post_attention_layernorm" => block.post_norm_trains = trains,
        _ => block.head_norms_train = block.head_norms_train.map(|already| already || trains),
    }
}
