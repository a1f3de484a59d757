//! A base model, opened but not yet loaded: its dimensions, its inventory, its tokenizer, and a way to read each tensor.

pub mod inventory;
pub mod spec;
