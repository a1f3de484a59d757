//! What the end-to-end tests share: reading golden numbers, and comparing with them.

pub mod command;
pub mod compare;
pub mod golden;
pub mod made_up;
pub mod plugins;
pub mod setup;
pub mod smollm2;
