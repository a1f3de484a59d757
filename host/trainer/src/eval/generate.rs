//! Text from a model, token by token.

use candle_core::{Device, Tensor};
use candle_transformers::generation::{LogitsProcessor, Sampling as Candle};
use liftplan_engine::EngineError;

use crate::model::TextTokenizer;
use crate::train::Model;
use crate::train::model::Cache;
use crate::{Error, Result};

/// How the next token is chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// 0 takes the likeliest token; higher is more random.
    pub temperature: f64,
    /// Only the likeliest tokens that together have this probability.
    pub top_p: Option<f64>,
    /// Only so many likeliest tokens.
    pub top_k: Option<usize>,
    /// Seed of the choice.
    pub seed: u64,
}

impl Sampling {
    /// Always the likeliest token.
    pub fn greedy() -> Self {
        Self { temperature: 0.0, top_p: None, top_k: None, seed: 0 }
    }

    fn check(&self) -> Result<()> {
        if !(self.temperature.is_finite() && self.temperature >= 0.0) {
            return Err(Error::config(format!("the temperature must be 0 or more, not {}", self.temperature)));
        }
        if let Some(p) = self.top_p.filter(|p| !(*p > 0.0 && *p <= 1.0)) {
            return Err(Error::config(format!("top-p must be in (0, 1], not {p}")));
        }
        if self.top_k == Some(0) {
            return Err(Error::config("top-k must be at least 1"));
        }
        if self.temperature == 0.0 && (self.top_p.is_some() || self.top_k.is_some()) {
            return Err(Error::config("top-p and top-k have no effect at temperature 0")
                .help("set a temperature above 0, or leave them out"));
        }
        Ok(())
    }

    fn processor(&self) -> LogitsProcessor {
        let temperature = self.temperature;
        let sampling = match (temperature > 0.0, self.top_k, self.top_p) {
            (false, ..) => Candle::ArgMax,
            (true, None, None) => Candle::All { temperature },
            (true, Some(k), None) => Candle::TopK { k, temperature },
            (true, None, Some(p)) => Candle::TopP { p, temperature },
            (true, Some(k), Some(p)) => Candle::TopKThenTopP { k, p, temperature },
        };
        LogitsProcessor::from_sampling(self.seed, sampling)
    }
}

/// A generation under way.
pub struct Generator<'a> {
    decoder: Model<'a>,
    tokenizer: &'a TextTokenizer,
    processor: LogitsProcessor,
    greedy: bool,
    stop_ids: Vec<u32>,
    cache: Cache,
}

impl<'a> Generator<'a> {
    /// A generation that has read nothing yet.
    ///
    /// # Errors
    /// When the sampling's settings are out of range or have no effect.
    pub fn new(decoder: impl Into<Model<'a>>, tokenizer: &'a TextTokenizer, sampling: &Sampling) -> Result<Self> {
        let decoder = decoder.into();
        sampling.check()?;
        Ok(Self {
            decoder,
            tokenizer,
            processor: sampling.processor(),
            greedy: sampling.temperature == 0.0,
            stop_ids: tokenizer.stop_ids(),
            cache: decoder.cache(),
        })
    }

    /// The answer to a prompt, without special tokens: at most `most` tokens, ended by a stop token.
    ///
    /// # Errors
    /// When the prompt is empty or the tokens are no text.
    pub fn answer(&mut self, prompt: &[u32], most: usize) -> Result<String> {
        let mut ids = Vec::new();
        self.stream(prompt, most, |id| {
            ids.push(id);
            Ok(true)
        })?;
        self.tokenizer.decode(&ids, true)
    }

    /// Calls `each` with every token of the answer until it says `false`, a stop token comes, or there are `most`.
    /// Gives how many tokens there were.
    ///
    /// # Errors
    /// When the prompt is empty, or `each` fails.
    pub fn stream(&mut self, prompt: &[u32], most: usize, mut each: impl FnMut(u32) -> Result<bool>) -> Result<usize> {
        let mut logits = self.decoder.extend(&mut self.cache, prompt, true).map_err(failed)?;
        for count in 0..most {
            let id = self.choose(&logits)?;
            if self.stop_ids.contains(&id) {
                return Ok(count);
            }
            if !each(id)? {
                return Ok(count + 1);
            }
            if count + 1 < most {
                logits = self.decoder.extend(&mut self.cache, &[id], true).map_err(failed)?;
            }
        }
        Ok(most)
    }

    fn choose(&mut self, logits: &[f32]) -> Result<u32> {
        if self.greedy {
            let mut best = 0;
            for (i, logit) in logits.iter().enumerate() {
                if *logit > logits[best] {
                    best = i;
                }
            }
            return Ok(best as u32);
        }
        Tensor::from_slice(logits, logits.len(), &Device::Cpu)
            .and_then(|logits| self.processor.sample(&logits))
            .map_err(|error| Error::train(format!("no token could be chosen: {error}")))
    }
}

/// Turns a stream of tokens into a stream of text: some tokens are parts of a character, or join with those before.
pub struct TextStream<'a> {
    tokenizer: &'a TextTokenizer,
    ids: Vec<u32>,
    /// How many of `ids` were written out, and where the text that could still change begins.
    shown_len: usize,
    start: usize,
}

impl<'a> TextStream<'a> {
    /// An empty stream.
    pub fn new(tokenizer: &'a TextTokenizer) -> Self {
        Self { tokenizer, ids: Vec::new(), shown_len: 0, start: 0 }
    }

    /// The text that the next token adds; empty while a character is unfinished.
    ///
    /// # Errors
    /// When the tokens can't be decoded.
    pub fn push(&mut self, id: u32) -> Result<String> {
        self.ids.push(id);
        let text = self.tokenizer.decode(&self.ids[self.start..], true)?;
        if text.ends_with('\u{fffd}') {
            return Ok(String::new());
        }
        let new = text.get(self.shown_len..).unwrap_or_default().to_string();
        self.shown_len = text.len();
        // Start anew at line ends, so that long answers don't decode everything again for each token.
        if text.ends_with('\n') {
            self.start = self.ids.len();
            self.shown_len = 0;
        }
        Ok(new)
    }

    /// What is left at the end, an unfinished character as its replacement.
    ///
    /// # Errors
    /// When the tokens can't be decoded.
    pub fn finish(self) -> Result<String> {
        let text = self.tokenizer.decode(&self.ids[self.start..], true)?;
        Ok(text.get(self.shown_len..).unwrap_or_default().to_string())
    }
}

fn failed(error: EngineError) -> Error {
    Error::train(format!("generation: {error}"))
}
