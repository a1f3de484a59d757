//! The pre-tokenizers that llama.cpp knows by name (`tokenizer.ggml.pre`), as the parts of a Hugging Face tokenizer.
//!
//! Each entry is the pipeline of the `tokenizer.json` of the model that llama.cpp named the entry after.

use serde_json::{Value, json};
use tokenizers::Tokenizer;

/// Llama 3's: contractions in any case, words with the mark before them, up to three digits, marks, white space.
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Qwen2's: as Llama 3's, but each digit by itself.
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Mistral Nemo's: words are cut where lower case is followed by upper case.
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// How text is cut before byte-pair encoding.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Cut {
    /// GPT-2's expression, inside the byte-level step.
    Gpt2,
    /// Each digit by itself, then GPT-2's expression.
    DigitsThenGpt2,
    /// By an expression of its own, then bytes.
    By(&'static str),
}

/// A pre-tokenizer and what goes with it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PreTokenizer {
    /// llama.cpp's name; of several names for the same thing, the one that its converter writes.
    pub name: &'static str,
    cut: Cut,
    /// Whether text is brought to Unicode's composed form first.
    nfc: bool,
    /// Whether a word that is a token is taken whole, without going through the merges.
    pub ignore_merges: bool,
    /// Whether the beginning-of-sequence token is put in front where the file doesn't say.
    pub adds_bos: bool,
}

const fn plain(name: &'static str, cut: Cut) -> PreTokenizer {
    PreTokenizer { name, cut, nfc: false, ignore_merges: false, adds_bos: false }
}

/// Each pre-tokenizer with the other names that llama.cpp gives it. Names under which llama.cpp only approximates the
/// original are left out: a model whose texts would get other ids than in training is better refused.
static KNOWN: [(PreTokenizer, &[&str]); 5] = [
    (plain("smollm", Cut::DigitsThenGpt2), &["starcoder", "refact"]),
    (
        PreTokenizer { ignore_merges: true, adds_bos: true, ..plain("llama-bpe", Cut::By(LLAMA3)) },
        &["llama3", "llama-v3"],
    ),
    (PreTokenizer { nfc: true, ..plain("qwen2", Cut::By(QWEN2)) }, &["deepseek-r1-qwen"]),
    (PreTokenizer { ignore_merges: true, adds_bos: true, ..plain("tekken", Cut::By(TEKKEN)) }, &[]),
    (plain("gpt-2", Cut::Gpt2), &["gpt2", "phi-2"]),
];

/// The pre-tokenizer that llama.cpp calls `name`.
pub fn by_name(name: &str) -> Option<PreTokenizer> {
    KNOWN.iter().find(|(known, others)| known.name == name || others.contains(&name)).map(|(known, _)| *known)
}

/// All names, for messages.
pub fn names() -> String {
    let names = KNOWN.iter().flat_map(|(known, others)| std::iter::once(known.name).chain(others.iter().copied()));
    names.collect::<Vec<_>>().join(", ")
}

/// llama.cpp's name for what a Hugging Face tokenizer does before byte-pair encoding, or `None` if it has none here.
pub fn name_of(tokenizer: &Tokenizer) -> Option<&'static str> {
    let value = serde_json::to_value(tokenizer.get_pre_tokenizer()?).ok()?;
    let cut = cut_of(&value)?;
    let normalised = serde_json::to_value(tokenizer.get_normalizer()).ok()?.to_string().contains("NFC");
    KNOWN
        .iter()
        .map(|(known, _)| known)
        .find(|known| known.cut == cut && known.nfc == normalised)
        .map(|known| known.name)
}

fn cut_of(pre_tokenizer: &Value) -> Option<Cut> {
    let steps = match pre_tokenizer["type"].as_str()? {
        "Sequence" => pre_tokenizer["pretokenizers"].as_array()?.as_slice(),
        _ => std::slice::from_ref(pre_tokenizer),
    };
    let is_byte_level = |step: &Value, with_expression: bool| {
        // Without a prefix space, and with `use_regex` as asked (it defaults to true).
        step["type"] == "ByteLevel"
            && step["add_prefix_space"] == false
            && step["use_regex"].as_bool().unwrap_or(true) == with_expression
    };
    match steps {
        [bytes] if is_byte_level(bytes, true) => Some(Cut::Gpt2),
        [digits, bytes]
            if digits["type"] == "Digits" && digits["individual_digits"] == true && is_byte_level(bytes, true) =>
        {
            Some(Cut::DigitsThenGpt2)
        }
        [split, bytes]
            if split["type"] == "Split" && split["behavior"] == "Isolated" && is_byte_level(bytes, false) =>
        {
            let expression = split["pattern"]["Regex"].as_str()?;
            [LLAMA3, QWEN2, TEKKEN].into_iter().find(|known| *known == expression).map(Cut::By)
        }
        _ => None,
    }
}

impl PreTokenizer {
    /// The `normalizer` of a `tokenizer.json`.
    pub(super) fn normalizer_json(&self) -> Value {
        if self.nfc { json!({ "type": "NFC" }) } else { Value::Null }
    }

    /// The `pre_tokenizer` of a `tokenizer.json`.
    pub(super) fn pre_tokenizer_json(&self) -> Value {
        let bytes = |use_regex: bool| json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex });
        let sequence = |first: Value, second: Value| json!({ "type": "Sequence", "pretokenizers": [first, second] });
        match self.cut {
            Cut::Gpt2 => bytes(true),
            Cut::DigitsThenGpt2 => sequence(json!({ "type": "Digits", "individual_digits": true }), bytes(true)),
            Cut::By(expression) => sequence(
                json!({ "type": "Split", "pattern": { "Regex": expression }, "behavior": "Isolated", "invert": false }),
                bytes(false),
            ),
        }
    }
}
