//! Numbers: the operations, blocks and optimisers that carry out a plan.
//!
//! What flows in: weights as plain numbers, batches of token ids, gradients' scale. What flows out: losses, gradients,
//! updated weights, logits. Nothing here knows of files, model names, plans or policies.
//!
//! The decoder block is the unit of differentiation. Its forward pass says what it keeps, its backward pass writes
//! parameter gradients straight into their buffers and returns the gradient of its input. A frozen weight has no
//! gradient buffer and none is ever computed for it; the backward pass ends at the lowest weight that trains.

pub mod adapter;
pub mod batch;
pub mod block;
pub mod cache;
#[cfg(feature = "cuda")]
pub mod cuda;
pub mod decoder;
pub mod linear;
pub mod mat;
pub mod memory;
pub mod observe;
pub mod ops;
pub mod optim;
pub mod param;
pub mod pool;
pub mod rng;
pub mod storage;

mod error;

pub use adapter::{Adapter, AdapterOptions};
pub use batch::{Batch, IGNORE};
pub use block::{Block, BlockShape};
pub use cache::Cache;
pub use decoder::{Decoder, Keep, LossSum, Rope, StepOptions};
pub use error::{EngineError, Result};
pub use linear::Linear;
pub use param::Param;
pub use pool::Pool;
pub use storage::{Int8, Nf4, Nf4Options, Weight};
