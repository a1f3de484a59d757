//! Parity with transformers, PEFT and PyTorch: Liftplan's numbers against those committed in `tests/golden`, which the
//! scripts beside them made.
#![allow(clippy::unwrap_used)]

mod families;
mod schedules;
mod smollm2;
