//! Text ↔ token ids, exactly as transformers does it, with the model's special tokens.
//!
//! In: a `tokenizers::Tokenizer`, from `tokenizer.json` (`hf`) or GGUF metadata (`gguf`). The special tokens' ids and
//! texts and the ids that end a generation are known here; chat templates are rendered elsewhere.

use tokenizers::Tokenizer;
use tokenizers::processors::template::TemplateProcessing;

use crate::{Error, Result};

/// A special token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpecialToken {
    /// Its id.
    pub id: u32,
    /// Its text, `<|im_end|>`.
    pub text: String,
}

/// A model's tokenizer.
#[derive(Clone)]
pub struct TextTokenizer {
    inner: Tokenizer,
    bos: Option<SpecialToken>,
    eos: Option<SpecialToken>,
    pad: Option<SpecialToken>,
    stop_ids: Vec<u32>,
    /// Rows of the model's embedding; an id at or beyond it can't be looked up.
    embedding_rows: usize,
}

/// What a tokenizer's own configuration says beyond `tokenizers::Tokenizer`.
#[derive(Default)]
pub(super) struct Specials {
    pub bos: Option<String>,
    pub eos: Option<String>,
    pub pad: Option<String>,
    /// Further ids that end a generation.
    pub stop_ids: Vec<u32>,
    /// Whether bos and eos are put around a text. `None` leaves the post-processor as it is.
    pub adds: Option<(bool, bool)>,
}

impl TextTokenizer {
    /// Puts a tokenizer and its special tokens together. A special token that the vocabulary lacks is left out.
    pub(super) fn new(mut inner: Tokenizer, specials: Specials, embedding_rows: usize) -> Result<Self> {
        let find =
            |text: Option<String>| text.and_then(|text| inner.token_to_id(&text).map(|id| SpecialToken { id, text }));
        let (bos, eos, pad) = (find(specials.bos), find(specials.eos), find(specials.pad));
        // Both would silently change what the data say; lengths are the trainer's business.
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|e| Error::model(format!("tokenizer: {e}")))?;
        if let Some((add_bos, add_eos)) = specials.adds {
            let template = template(bos.as_ref().filter(|_| add_bos), eos.as_ref().filter(|_| add_eos))?;
            inner.with_post_processor(Some(template));
        }
        let mut stop_ids: Vec<u32> = eos.iter().map(|token| token.id).collect();
        for id in specials.stop_ids {
            if !stop_ids.contains(&id) {
                stop_ids.push(id);
            }
        }
        Ok(Self { inner, bos, eos, pad, stop_ids, embedding_rows })
    }

    /// The ids of `text`. Texts of special tokens inside it become those tokens, as in transformers.
    /// `add_special_tokens` puts what the model expects around a text (such as the beginning-of-sequence token).
    ///
    /// # Errors
    /// The text holds a token that the model has no embedding for.
    pub fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>> {
        let encoding = self
            .inner
            .encode_fast(text, add_special_tokens)
            .map_err(|e| Error::data(format!("cannot tokenise the text: {e}")))?;
        let ids = encoding.get_ids().to_vec();
        match ids.iter().find(|&&id| id as usize >= self.embedding_rows) {
            None => Ok(ids),
            Some(&id) => Err(Error::data(format!(
                "token `{}` has id {id}, but the model's embedding has {} rows",
                self.inner.id_to_token(id).unwrap_or_default(),
                self.embedding_rows
            ))
            .help("the tokenizer has tokens that were never added to the model")),
        }
    }

    /// The text of `ids`; bytes that don't make up a character become U+FFFD.
    ///
    /// # Errors
    /// The tokenizer's decoder fails.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        self.inner
            .decode(ids, skip_special)
            .map_err(|e| Error::data(format!("cannot decode {} tokens: {e}", ids.len())))
    }

    /// The token that begins a sequence.
    pub fn bos(&self) -> Option<&SpecialToken> {
        self.bos.as_ref()
    }

    /// The token that ends a sequence, or a turn.
    pub fn eos(&self) -> Option<&SpecialToken> {
        self.eos.as_ref()
    }

    /// The padding token. Training never pads; chat templates may ask for it.
    pub fn pad(&self) -> Option<&SpecialToken> {
        self.pad.as_ref()
    }

    /// The ids that end a generation, the end-of-sequence token first.
    pub fn stop_ids(&self) -> Vec<u32> {
        self.stop_ids.clone()
    }

    /// Number of tokens, added ones included.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// The text of one token, or `None` for an id that isn't one.
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// The id of the token whose text is exactly `text`.
    pub fn id(&self, text: &str) -> Option<u32> {
        self.inner.token_to_id(text)
    }

    /// The tokenizer behind it, for exports and for decoding as a stream.
    pub fn inner(&self) -> &Tokenizer {
        &self.inner
    }

    /// The contents of a `tokenizer.json`.
    ///
    /// # Errors
    /// The tokenizer can't be serialised.
    pub fn to_json(&self) -> Result<String> {
        self.inner.to_string(false).map_err(|e| Error::internal(format!("cannot write the tokenizer: {e}")))
    }
}

/// A post-processor that puts the given tokens around a text.
fn template(bos: Option<&SpecialToken>, eos: Option<&SpecialToken>) -> Result<TemplateProcessing> {
    let piece = |token: &SpecialToken, sequence: u32| format!("{}:{sequence}", token.text);
    let around = |sequence: u32, text: &str| {
        let mut pieces: Vec<String> = bos.iter().map(|token| piece(token, sequence)).collect();
        pieces.push(format!("{text}:{sequence}"));
        pieces.extend(eos.iter().map(|token| piece(token, sequence)));
        pieces
    };
    let mut pair = around(0, "$A");
    pair.extend(around(1, "$B"));
    let tokens: Vec<(String, u32)> = bos.iter().chain(eos.iter()).map(|token| (token.text.clone(), token.id)).collect();
    let failed = |e: String| Error::model(format!("tokenizer: cannot add special tokens around a text: {e}"));
    TemplateProcessing::builder()
        .try_single(around(0, "$A"))
        .map_err(|e| failed(e.to_string()))?
        .try_pair(pair)
        .map_err(|e| failed(e.to_string()))?
        .special_tokens(tokens)
        .build()
        .map_err(|e| failed(e.to_string()))
}
