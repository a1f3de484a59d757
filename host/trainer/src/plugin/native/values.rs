//! What passes between a plugin and its host, from C to messages and back: arguments of the plugin's calls become parts of
//! questions, and answers become what the functions hand out.

use super::abi::{Adapter, MaybeCount, MaybeNumber, MaybeText, Numbers, Shape, Tensors, Text, Texts};
use super::table::Inner;
use super::wire::Message;

/// The bytes of a text from the plugin.
pub(super) fn bytes(text: Text) -> Vec<u8> {
    if text.data.is_null() || text.length == 0 {
        return Vec::new();
    }
    // SAFETY: the plugin says that so many bytes lie there; if they don't, this process ends and not the host.
    unsafe { std::slice::from_raw_parts(text.data, text.length) }.to_vec()
}

/// The items of a list from the plugin.
fn items<T: Copy>(data: *const T, length: usize) -> Vec<T> {
    if data.is_null() || length == 0 {
        return Vec::new();
    }
    // SAFETY: as in `bytes`.
    unsafe { std::slice::from_raw_parts(data, length) }.to_vec()
}

/// An argument, as part of a question.
pub(super) trait Argument {
    fn put(self, question: &mut Message);
}

impl Argument for u32 {
    fn put(self, question: &mut Message) {
        question.numbers.push(u64::from(self));
    }
}

impl Argument for u64 {
    fn put(self, question: &mut Message) {
        question.numbers.push(self);
    }
}

impl Argument for f64 {
    fn put(self, question: &mut Message) {
        question.numbers.push(self.to_bits());
    }
}

impl Argument for Text {
    fn put(self, question: &mut Message) {
        question.texts.push(bytes(self));
    }
}

impl Argument for Texts {
    fn put(self, question: &mut Message) {
        let texts = items(self.data, self.length);
        question.numbers.push(texts.len() as u64);
        question.texts.extend(texts.into_iter().map(bytes));
    }
}

impl Argument for Numbers {
    fn put(self, question: &mut Message) {
        let numbers = items(self.data, self.length);
        question.numbers.push(numbers.len() as u64);
        question.numbers.extend(numbers.into_iter().map(f64::to_bits));
    }
}

impl Argument for Tensors {
    fn put(self, question: &mut Message) {
        let tensors = items(self.data, self.length);
        question.numbers.push(tensors.len() as u64);
        question.numbers.extend(tensors.into_iter().map(u64::from));
    }
}

impl Argument for *const Adapter {
    fn put(self, question: &mut Message) {
        // SAFETY: the plugin says that an adapter lies there; if none does, this process ends and not the host.
        let adapter = unsafe { self.read() };
        question.numbers.extend([
            u64::from(adapter.rank),
            u64::from(adapter.rank_stabilised),
            u64::from(adapter.dora),
            adapter.alpha.to_bits(),
            adapter.dropout.to_bits(),
        ]);
    }
}

/// What a function hands out, from the host's answer.
pub(super) trait Handed: Sized {
    fn take(answer: Message, inner: &mut Inner) -> Option<Self>;
}

impl Handed for u32 {
    fn take(answer: Message, _: &mut Inner) -> Option<Self> {
        answer.numbers.first().and_then(|number| u32::try_from(*number).ok())
    }
}

impl Handed for u64 {
    fn take(answer: Message, _: &mut Inner) -> Option<Self> {
        answer.numbers.first().copied()
    }
}

impl Handed for i64 {
    fn take(answer: Message, _: &mut Inner) -> Option<Self> {
        answer.numbers.first().map(|number| *number as i64)
    }
}

impl Handed for bool {
    fn take(answer: Message, _: &mut Inner) -> Option<Self> {
        answer.numbers.first().map(|number| *number != 0)
    }
}

impl Handed for f64 {
    fn take(answer: Message, _: &mut Inner) -> Option<Self> {
        answer.numbers.first().map(|number| f64::from_bits(*number))
    }
}

impl Handed for Text {
    fn take(answer: Message, inner: &mut Inner) -> Option<Self> {
        answer.texts.into_iter().next().map(|text| inner.keep_text(text))
    }
}

impl Handed for Numbers {
    fn take(answer: Message, inner: &mut Inner) -> Option<Self> {
        let (data, length) = inner.keep(answer.numbers.into_iter().map(f64::from_bits).collect());
        Some(Self { data, length })
    }
}

impl Handed for Tensors {
    fn take(answer: Message, inner: &mut Inner) -> Option<Self> {
        let (data, length) = inner.keep(answer.numbers.into_iter().map(|number| number as u32).collect());
        Some(Self { data, length })
    }
}

impl Handed for Shape {
    fn take(answer: Message, inner: &mut Inner) -> Option<Self> {
        let (data, length) = inner.keep(answer.numbers);
        Some(Self { data, length })
    }
}

impl Handed for MaybeNumber {
    fn take(answer: Message, _: &mut Inner) -> Option<Self> {
        let value = answer.numbers.first();
        Some(Self { value: value.map_or(0.0, |bits| f64::from_bits(*bits)), known: value.is_some() })
    }
}

impl Handed for MaybeCount {
    fn take(answer: Message, _: &mut Inner) -> Option<Self> {
        let value = answer.numbers.first();
        Some(Self { value: value.copied().unwrap_or(0), known: value.is_some() })
    }
}

impl Handed for MaybeText {
    fn take(answer: Message, inner: &mut Inner) -> Option<Self> {
        let text = answer.texts.into_iter().next();
        let known = text.is_some();
        Some(Self { value: inner.keep_text(text.unwrap_or_default()), known })
    }
}
