//! Text with marked ranges in, token ids with their loss mask out.
//!
//! The tokenizer's post-processor is set aside, as it shortens the tokens' offsets by their white space; the tokens that
//! it puts around a text (such as a beginning-of-sequence token) are put there here.

use std::ops::Range;

use regex::Regex;
use tokenizers::{PostProcessorWrapper, Tokenizer};

use crate::model::TextTokenizer;
use crate::{Error, Result};

/// Where a token begins and ends in its text, in bytes.
type Offsets = (usize, usize);

/// Encodes texts for training.
pub struct Encoder {
    /// The tokenizer without its post-processor.
    bare: Tokenizer,
    /// What the tokenizer puts before and after a text.
    before: Vec<u32>,
    after: Vec<u32>,
    eos: Option<u32>,
    /// Finds any special token's text.
    special: Option<Regex>,
    /// Rows of the model's embedding.
    vocabulary: usize,
}

/// Token ids with their loss mask.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Encoded {
    /// Token ids.
    pub ids: Vec<u32>,
    /// Whether the loss counts each.
    pub is_target: Vec<bool>,
    /// Where each answer's tokens begin; ascending.
    pub answers: Vec<usize>,
    /// Whether prompt and completion share a token.
    pub shares_token: bool,
}

impl Encoder {
    /// An encoder with this tokenizer for a model whose embedding has `vocabulary` rows.
    ///
    /// # Errors
    /// The tokenizer cannot encode at all.
    pub fn new(tokenizer: &TextTokenizer, vocabulary: usize) -> Result<Self> {
        Self::of(tokenizer.inner(), tokenizer.eos().map(|token| token.id), vocabulary)
    }

    fn of(tokenizer: &Tokenizer, eos: Option<u32>, vocabulary: usize) -> Result<Self> {
        let probe =
            tokenizer.encode("a", true).map_err(|e| Error::model(format!("the tokenizer cannot encode: {e}")))?;
        let is_added = probe.get_special_tokens_mask();
        let leading = is_added.iter().take_while(|&&added| added == 1).count();
        let trailing = is_added.iter().rev().take_while(|&&added| added == 1).count().min(is_added.len() - leading);
        let before = probe.get_ids()[..leading].to_vec();
        let after = probe.get_ids()[is_added.len() - trailing..].to_vec();

        let mut bare = tokenizer.clone();
        bare.with_post_processor(None::<PostProcessorWrapper>);
        let added = tokenizer.get_added_tokens_decoder();
        let mut texts: Vec<&str> =
            added.values().filter(|t| t.special && !t.content.is_empty()).map(|t| t.content.as_str()).collect();
        // The longest first, as an alternation takes the first that fits.
        texts.sort_by_key(|text| (std::cmp::Reverse(text.len()), *text));
        let pattern = texts.iter().map(|text| regex::escape(text)).collect::<Vec<_>>().join("|");
        let special = match texts.is_empty() {
            true => None,
            false => {
                Some(Regex::new(&pattern).map_err(|e| Error::model(format!("the tokenizer's special tokens: {e}")))?)
            }
        };
        Ok(Self { bare, before, after, eos, special, vocabulary })
    }

    /// The first special token's text inside `text`, and where it stands.
    pub fn find_special<'t>(&self, text: &'t str) -> Option<(&'t str, Range<usize>)> {
        self.special.as_ref()?.find(text).map(|found| (found.as_str(), found.range()))
    }

    /// The length of `turn` without the white space that follows its last special token, if nothing else does. That
    /// token ends the turn, and nobody asks the model for what a template puts behind it.
    pub fn end_of_turn(&self, turn: &str) -> usize {
        let last = self.special.as_ref().and_then(|special| special.find_iter(turn).last());
        match last {
            Some(found) if turn[found.end()..].trim().is_empty() => found.end(),
            _ => turn.len(),
        }
    }

    /// Whether there is a token that ends a text.
    pub fn has_eos(&self) -> bool {
        self.eos.is_some() || !self.after.is_empty()
    }

    /// Plain text: all of it counts, the ending token included.
    pub fn text(&self, text: &str) -> Result<Encoded> {
        let (ids, _) = self.ids(text)?;
        let is_target = vec![true; ids.len()];
        Ok(self.surround(Encoded { ids, is_target, ..Default::default() }))
    }

    /// Plain text to go on with: what the tokenizer puts before a text, and the text, without an end.
    pub fn prompt(&self, text: &str) -> Result<Vec<u32>> {
        let (ids, _) = self.ids(text)?;
        Ok(self.before.iter().copied().chain(ids).collect())
    }

    /// A prompt and what the model is to say after it: the latter counts, the ending token included.
    ///
    /// The prompt's tokens are those that it has on its own, as the model will be given it so. Where encoding both at
    /// once would merge across the border, the completion is encoded on its own too, unless the tokenizer writes it
    /// differently then; in that case the shared token counts.
    pub fn pair(&self, prompt: &str, completion: &str) -> Result<Encoded> {
        let (whole, offsets) = self.ids(&format!("{prompt}{completion}"))?;
        let (mut ids, _) = self.ids(prompt)?;
        let mut border = ids.len();
        let mut shares_token = false;
        if whole.starts_with(&ids) {
            ids = whole;
        } else {
            let (rest, _) = self.ids(completion)?;
            ids.extend(rest);
            if self.words(&ids)? != self.words(&whole)? {
                shares_token = true;
                ids = whole;
                border = offsets.iter().position(|(_, end)| *end > prompt.len()).unwrap_or(ids.len());
            }
        }
        let is_target = (0..ids.len()).map(|i| i >= border).collect();
        Ok(self.surround(Encoded { ids, is_target, answers: vec![border], shares_token }))
    }

    /// A rendered conversation, in which the tokens that touch the given ranges (in bytes, ascending) count.
    pub fn conversation(&self, text: &str, ranges: &[Range<usize>]) -> Result<Encoded> {
        let (ids, offsets) = self.ids(text)?;
        let mut encoded = Encoded { is_target: vec![false; ids.len()], ids, ..Default::default() };
        for range in ranges {
            let inside = |&i: &usize| offsets[i].1 > range.start && offsets[i].0 < range.end;
            let tokens: Vec<usize> = (0..offsets.len()).filter(inside).collect();
            encoded.answers.extend(tokens.first());
            for token in tokens {
                encoded.is_target[token] = true;
            }
        }
        if let Some(first) = encoded.is_target.first_mut() {
            *first = false;
        }
        Ok(encoded)
    }

    fn words(&self, ids: &[u32]) -> Result<String> {
        self.bare.decode(ids, false).map_err(|e| Error::data(format!("cannot decode tokens: {e}")))
    }

    /// Ids, and where each stands in the text, in bytes.
    fn ids(&self, text: &str) -> Result<(Vec<u32>, Vec<Offsets>)> {
        let encoding =
            self.bare.encode(text, false).map_err(|e| Error::data(format!("the tokenizer cannot encode it: {e}")))?;
        if let Some(id) = encoding.get_ids().iter().find(|&&id| id as usize >= self.vocabulary) {
            return Err(Error::data(format!(
                "token `{}` has id {id}, but the model's embedding has {} rows",
                self.bare.id_to_token(*id).unwrap_or_default(),
                self.vocabulary
            )));
        }
        Ok((encoding.get_ids().to_vec(), encoding.get_offsets().to_vec()))
    }

    /// Puts around a text what the tokenizer puts there, and the ending token, which counts, if it is not there yet.
    fn surround(&self, inner: Encoded) -> Encoded {
        let mut ids = self.before.clone();
        let mut is_target = vec![false; ids.len()];
        ids.extend(inner.ids);
        is_target.extend(inner.is_target);
        match (self.eos, self.after.is_empty()) {
            (_, false) => ids.extend(&self.after),
            (Some(eos), true) if ids.last() != Some(&eos) => ids.push(eos),
            _ => {}
        }
        is_target.resize(ids.len(), true);
        if let Some(first) = is_target.first_mut() {
            *first = false;
        }
        let answers = inner.answers.iter().map(|start| start + self.before.len()).collect();
        Encoded { ids, is_target, answers, shares_token: inner.shares_token }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub mod tests {
    use tokenizers::processors::template::TemplateProcessing;

    use super::*;
    use crate::data::template::tests::{directory, golden};

    pub fn tokenizer() -> Tokenizer {
        Tokenizer::from_file(directory().join("tokenizer.json")).unwrap()
    }

    /// An encoder with the small tokenizer of tests/golden/chat and the given ending token.
    pub fn encoder(eos: &str) -> Encoder {
        let tokenizer = tokenizer();
        Encoder::of(&tokenizer, tokenizer.token_to_id(eos), 1000).unwrap()
    }

    /// The texts of the tokens that count, in runs.
    pub fn counted(encoder: &Encoder, encoded: &Encoded) -> Vec<String> {
        let mut runs: Vec<Vec<u32>> = Vec::new();
        for (i, &id) in encoded.ids.iter().enumerate().filter(|(i, _)| encoded.is_target[*i]) {
            match runs.last_mut().filter(|_| i > 0 && encoded.is_target[i - 1]) {
                Some(run) => run.push(id),
                None => runs.push(vec![id]),
            }
        }
        runs.iter().map(|run| encoder.words(run).unwrap()).collect()
    }

    #[test]
    fn conversations_encode_as_in_transformers() {
        let golden = golden();
        for case in golden.cases.iter().filter(|case| case.ids.is_some()) {
            let eos = golden.special(&case.template, "eos").unwrap();
            let encoded = encoder(&eos).conversation(case.text.as_ref().unwrap(), &[]).unwrap();
            assert_eq!(Some(encoded.ids), case.ids, "{}", case.name);
        }
    }

    #[test]
    fn what_the_template_marks_counts_as_in_transformers() {
        let golden = golden();
        let mut masked = 0;
        for case in &golden.cases {
            let Some(expected) = &case.assistant else { continue };
            let template = golden.template(&case.template, &case.variables);
            let rendered = template.render(&case.messages, None, case.add_generation_prompt).unwrap();
            let encoded = encoder("</s>").conversation(&rendered.text, &rendered.generated).unwrap();
            let expected: Vec<bool> = expected.iter().map(|&m| m == 1).collect();
            assert_eq!(encoded.is_target, expected, "{}", case.name);
            masked += 1;
        }
        assert_eq!(masked, 2);
    }

    #[test]
    fn text_counts_from_its_second_token_to_its_end() {
        let encoder = encoder("</s>");
        let encoded = encoder.text("What is it?").unwrap();
        assert_eq!(encoder.words(&encoded.ids).unwrap(), "What is it?</s>");
        assert_eq!(encoded.is_target.iter().filter(|t| !**t).count(), 1);
        assert!(!encoded.is_target[0]);
        assert_eq!(encoder.text("end</s>").unwrap().ids.iter().filter(|&&id| Some(id) == encoder.eos).count(), 1);
    }

    #[test]
    fn a_pair_keeps_the_tokens_that_its_prompt_has_alone() {
        let encoder = encoder("</s>");
        // "capital of" is frequent, so " of" is one token: the border stands before, after, and inside it.
        for (prompt, completion) in [("capital", " of x"), ("capital ", "of x"), ("capital of", " x"), ("", "of")] {
            let encoded = encoder.pair(prompt, completion).unwrap();
            assert_eq!(encoder.words(&encoded.ids).unwrap(), format!("{prompt}{completion}</s>"));
            let border = encoded.answers[0];
            assert_eq!(encoded.ids[..border], encoder.ids(prompt).unwrap().0, "{prompt:?}");
            assert!(encoded.is_target[border.max(1)..].iter().all(|t| *t) && !encoded.shares_token);
        }
    }

    #[test]
    fn what_the_tokenizer_puts_around_a_text_stays_there() {
        let mut tokenizer = tokenizer();
        let (bos, eos) = (tokenizer.token_to_id("<s>").unwrap(), tokenizer.token_to_id("</s>").unwrap());
        let template = TemplateProcessing::builder()
            .try_single("<s> $A")
            .unwrap()
            .special_tokens(vec![("<s>", bos)])
            .build()
            .unwrap();
        tokenizer.with_post_processor(Some(template));
        let encoder = Encoder::of(&tokenizer, Some(eos), 1000).unwrap();
        let encoded = encoder.pair("user", " model").unwrap();
        assert_eq!(encoder.words(&encoded.ids).unwrap(), "<s>user model</s>");
        assert_eq!(counted(&encoder, &encoded), [" model</s>"]);
        assert_eq!(encoder.words(&encoded.ids[..encoded.answers[0]]).unwrap(), "<s>user");
        assert_eq!(encoder.text("user").unwrap().is_target[..2], [false, true]);
    }

    #[test]
    fn special_tokens_are_found_in_text_and_ids_beyond_the_model_refused() {
        let encoder = encoder("</s>");
        assert_eq!(encoder.find_special("a <|im_end|> b"), Some(("<|im_end|>", 2..12)));
        assert_eq!(encoder.find_special("a <think> b"), None);
        let small = Encoder::of(&tokenizer(), None, 3).unwrap();
        let error = small.text("hello").unwrap_err();
        assert!(error.message().contains("but the model's embedding has 3 rows"), "{error}");
        assert!(!small.has_eos());
    }
}
