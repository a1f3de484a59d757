//! Which methods fit: the memory that each would take for a model that need not be here, at several lengths.
//!
//! In: a shape, a machine's memory, and for each plan an account of what it takes there. Out: a row a method. Selections by
//! statistics need weights; here every fourth or second layer of each role stands for them, from the first block on, which is the
//! most that such a selection can take. The processor's account is [`super::memory`]'s; a GPU's is `train::card_fit`'s.

use std::fmt;

use serde::Serialize;

use super::memory::{Memory, States, Work, predict};
use super::{AdapterSpec, Origin, Plan, PlanBuilder, Storage, StorageRule, Treatment};
use crate::Result;
use crate::config::OptimizerName;
use crate::model::inventory::{Inventory, Kind, TensorInfo};
use crate::model::shapes::Shape;
use crate::report::text::{grouped, memory};
use crate::stats::kept;

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Question {
    /// Bytes that the machine has, if the answer is to say what fits.
    pub available_bytes: Option<u64>,
    /// Bytes that the program takes beside all else.
    pub process_bytes: u64,
    /// Whether blocks are computed a second time instead of keeping their activations.
    pub recompute: bool,
    /// The optimiser.
    pub optimizer: OptimizerName,
}

/// What each method takes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Fit {
    /// The model's name.
    pub model: String,
    /// Its parameters.
    pub parameters: u64,
    /// The machine's memory, if given.
    pub available_bytes: Option<u64>,
    /// The lengths of the columns, in tokens: one sequence at a time.
    pub lengths: Vec<usize>,
    /// One row a method.
    pub methods: Vec<MethodFit>,
    /// What one must know to read it right.
    pub notes: Vec<String>,
}

/// What one method takes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct MethodFit {
    /// Its name.
    pub method: String,
    /// Parameters that train.
    pub trainable_parameters: u64,
    /// By kind, at each of the lengths.
    pub memory: Vec<Memory>,
    /// The longest sequence that fits, a multiple of 64, up to the model's own limit; `None` if not even 64 tokens do,
    /// or if no memory was given.
    pub longest_tokens: Option<usize>,
}

const LENGTHS: [usize; 5] = [512, 2048, 4096, 8192, 16_384];
/// The rank of adapters; more adds little.
pub(crate) const RANK: usize = 16;

/// Answers for a shape, computed in f32 on the CPU.
///
/// # Errors
/// When no plan can be made for the shape.
pub fn fit(shape: &Shape, question: Question) -> Result<Fit> {
    let states = States { optimizer: question.optimizer, master: false };
    let note = format!(
        "weights and adapters in f32, nf4 in blocks of 64 with quantised scales; AdamW in {} bits; adapters of rank {RANK}{}",
        if question.optimizer.is_8bit() { 8 } else { 32 },
        if question.recompute { "; blocks computed a second time" } else { "" }
    );
    answer(shape, question.available_bytes, Storage::F32, note, |plan, tokens| {
        let work = Work { tokens, targets: tokens, longest: tokens, recompute: question.recompute };
        Ok(predict(plan, &shape.inventory, &shape.spec, states, work, question.process_bytes))
    })
}

/// Answers where a plan's weights are `kept` so if they are not in 4 bits, and `account` says what one sequence of so many tokens
/// takes.
///
/// # Errors
/// When no plan can be made for the shape, or an account fails.
pub fn answer(
    shape: &Shape,
    available_bytes: Option<u64>,
    kept: Storage,
    note: String,
    account: impl Fn(&Plan, usize) -> Result<Memory>,
) -> Result<Fit> {
    let mut methods = Vec::new();
    for (name, plan) in plans(shape, kept)? {
        let at = |tokens: usize| account(&plan, tokens);
        // In steps of 64 tokens, by halving: memory grows with the tokens.
        let (mut low, mut high) = (0, shape.spec.max_positions / 64 + 1);
        while let (Some(available), true) = (available_bytes, high - low > 1) {
            let middle = (low + high) / 2;
            if at(64 * middle)?.total() <= available { low = middle } else { high = middle }
        }
        methods.push(MethodFit {
            method: name.to_string(),
            trainable_parameters: plan.summary(&shape.inventory).trainable_parameters,
            memory: LENGTHS.into_iter().map(at).collect::<Result<_>>()?,
            longest_tokens: (low > 0).then_some(64 * low),
        });
    }
    let mut notes = vec![note];
    if shape.experts.is_some() {
        notes.push(
            "a mixture of experts: this version plans for such models but does not train them; adapters are on the \
             attention, and the experts count as frozen unless their weights are selected"
                .to_string(),
        );
    }
    Ok(Fit {
        model: shape.name.clone(),
        parameters: shape.inventory.tensors.iter().map(|tensor| tensor.len() as u64).sum(),
        available_bytes,
        lengths: LENGTHS.to_vec(),
        methods,
        notes,
    })
}

/// The plan of each method; what is not in 4 bits is `kept` so.
fn plans(shape: &Shape, kept: Storage) -> Result<Vec<(&'static str, Plan)>> {
    let nf4 = Storage::Nf4 { block_size: 64, double_quantization: true };
    let inventory = &shape.inventory;
    let adapted = |info: &TensorInfo| match info.kind == Kind::Linear && !is_of_experts(info) {
        true => Treatment::Adapt(AdapterSpec { rank: RANK, alpha: 16.0, dropout: 0.0, rslora: false, dora: false }),
        false => Treatment::Frozen,
    };
    let everything = |_: &TensorInfo| Treatment::Train;
    let part = |percent: f64| move |info: &TensorInfo| selected(inventory, info, percent);
    Ok(vec![
        ("lora", plan(inventory, [kept, kept], adapted)?),
        ("qlora", plan(inventory, [kept, nf4], adapted)?),
        ("spectrum-25", plan(inventory, [kept, kept], part(25.0))?),
        ("spectrum-50", plan(inventory, [kept, kept], part(50.0))?),
        ("qspectrum-25", plan(inventory, [kept, nf4], part(25.0))?),
        ("full", plan(inventory, [kept, kept], everything)?),
    ])
}

fn is_of_experts(info: &TensorInfo) -> bool {
    info.role.starts_with("experts.") || info.role == "router"
}

/// Of each role the given part of its tensors, evenly spread from the first on.
fn selected(inventory: &Inventory, info: &TensorInfo, percent: f64) -> Treatment {
    if info.kind != Kind::Linear || info.role == "router" {
        return Treatment::Frozen;
    }
    let of_role = || inventory.tensors.iter().filter(|other| other.role == info.role && other.kind == info.kind);
    let count = of_role().count();
    let top = kept(count, percent);
    let place = of_role().position(|other| other.name == info.name).unwrap_or(0);
    let chosen = (0..top).any(|i| i * count / top == place);
    if chosen { Treatment::Train } else { Treatment::Frozen }
}

/// A plan that treats each tensor as `treatment` says; frozen linear layers are kept as `frozen`, all else as `kept`.
fn plan(
    inventory: &Inventory,
    [kept, frozen]: [Storage; 2],
    treatment: impl Fn(&TensorInfo) -> Treatment,
) -> Result<Plan> {
    let others = inventory.tensors.iter().filter(|info| info.kind != Kind::Linear);
    let exceptions = others.map(|info| (info.name.clone(), kept)).collect();
    let mut builder = PlanBuilder::new(inventory, StorageRule { trained: kept, frozen, exceptions });
    for info in &inventory.tensors {
        match treatment(info) {
            Treatment::Frozen => {}
            Treatment::Train => builder.train(&info.name)?,
            Treatment::Adapt(adapter) => builder.adapt(&info.name, adapter)?,
        }
    }
    builder.build(Origin { policy: "shape".into(), version: String::new(), settings: serde_json::Value::Null })
}

impl fmt::Display for Fit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{}: {} parameters; peak memory by tokens computed at once\n",
            self.model,
            grouped(self.parameters)
        )?;
        write!(f, "{:12}  {:>15}", "method", "trainable")?;
        for length in &self.lengths {
            write!(f, "  {:>9}", grouped(*length as u64))?;
        }
        match self.available_bytes {
            Some(available) => writeln!(f, "   longest in {}", memory(available))?,
            None => writeln!(f)?,
        }
        for method in &self.methods {
            write!(f, "{:12}  {:>15}", method.method, grouped(method.trainable_parameters))?;
            for at in &method.memory {
                write!(f, "  {:>9}", memory(at.total()))?;
            }
            match (self.available_bytes, method.longest_tokens) {
                (None, _) => writeln!(f)?,
                (Some(_), Some(tokens)) => writeln!(f, "   {:>9} tokens", grouped(tokens as u64))?,
                (Some(_), None) => writeln!(f, "   does not fit")?,
            }
        }
        for note in &self.notes {
            write!(f, "\n{note}")?;
        }
        Ok(())
    }
}
