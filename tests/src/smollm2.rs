//! SmolLM2-135M-Instruct: where the tests find it, and the golden numbers of `tests/golden/smollm2/make.py`.

use std::collections::HashMap;
use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use candle_core::{Device, Tensor};
use serde::Deserialize;

use crate::golden::folder;

/// The model's file, which `examples/get-smollm2.sh` fetches first when it is absent. `None`, with a line that says so,
/// when it is absent and `LIFTPLAN_OFFLINE=1` is set. A failed download fails the test.
pub fn model_or_skip() -> Option<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let path = root.join("examples/models/SmolLM2-135M-Instruct.Q4_1.gguf");
    if path.exists() {
        return Some(path);
    }
    if env::var("LIFTPLAN_OFFLINE").is_ok_and(|value| value == "1") {
        eprintln!("skipped: {} is absent, and LIFTPLAN_OFFLINE=1", path.display());
        return None;
    }
    let script = root.join("examples/get-smollm2.sh");
    let status = Command::new(&script).status().unwrap_or_else(|e| panic!("cannot run {}: {e}", script.display()));
    assert!(status.success() && path.exists(), "{} did not fetch the model: {status}", script.display());
    Some(path)
}

/// A text and its ids.
#[derive(Debug, Deserialize)]
pub struct Tokens {
    /// The text.
    pub text: String,
    /// Its token ids.
    pub ids: Vec<u32>,
}

/// A prompt and what the model makes of it.
#[derive(Debug, Deserialize)]
pub struct Prompt {
    /// Text, rendered from the chat template where it is a chat.
    pub text: String,
    /// Its token ids.
    pub ids: Vec<u32>,
    /// Mean loss over all tokens but the first.
    pub loss: f64,
    /// The positions whose logits are recorded.
    pub positions: Vec<Position>,
}

/// The logits of one position, in short.
#[derive(Debug, Deserialize)]
pub struct Position {
    /// Which one.
    pub position: usize,
    /// The ten most likely tokens, descending.
    pub top_ids: Vec<usize>,
    /// Their logits.
    pub top_logits: Vec<f32>,
    /// Mean of all logits.
    pub mean: f64,
    /// Euclidean norm of all logits.
    pub norm: f64,
}

/// `logits.json` and `logits.safetensors`.
#[derive(Debug, Deserialize)]
pub struct Logits {
    /// Every so many tokens, the logit is recorded.
    pub stride: usize,
    /// The prompts; the last one is a chat.
    pub prompts: Vec<Prompt>,
    /// The chat behind the last prompt, as messages.
    pub chat: serde_json::Value,
    /// `PROMPT.POSITION` → the logits of every `stride`th token.
    #[serde(skip)]
    pub sampled: HashMap<String, Tensor>,
}

/// The strings with their ids.
pub fn tokens() -> Vec<Tokens> {
    #[derive(Deserialize)]
    struct File {
        strings: Vec<Tokens>,
    }
    crate::golden::read_json::<File>(&folder().join("smollm2/tokens.json")).strings
}

/// The prompts with their logits.
pub fn logits() -> Logits {
    let mut logits: Logits = crate::golden::read_json(&folder().join("smollm2/logits.json"));
    let path = folder().join("smollm2/logits.safetensors");
    logits.sampled = candle_core::safetensors::load(&path, &Device::Cpu)
        .unwrap_or_else(|e| panic!("cannot read {}: {e}", path.display()));
    logits
}
