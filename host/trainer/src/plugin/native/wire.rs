//! What passes between the host and the process of a native plugin: messages of a tag, numbers and texts, each message
//! behind its length.
//!
//! ```text
//! host → plugin: START, then an ANSWER to each question
//! plugin → host: LOADED or REFUSED, then a question (its tag is the function's place in the ABI) …, at last DONE
//! ```

use std::io::{self, Read, Write};

/// To the plugin: the library, the name of the call, the settings.
pub(super) const START: u16 = 0xff00;
/// To the plugin: the answer to its question. Its first number is 0, or the code of a refusal.
pub(super) const ANSWER: u16 = 0xff01;
/// From the plugin: it is loaded, and the call begins.
pub(super) const LOADED: u16 = 0xff02;
/// From the plugin: it can't be loaded, and why.
pub(super) const UNFIT: u16 = 0xff03;
/// From the plugin: the call is over. Its first number is 0, or the code of a failure.
pub(super) const DONE: u16 = 0xff04;

/// One message.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Message {
    pub tag: u16,
    pub numbers: Vec<u64>,
    pub texts: Vec<Vec<u8>>,
}

impl Message {
    pub fn new(tag: u16) -> Self {
        Self { tag, ..Self::default() }
    }

    pub fn number(mut self, number: u64) -> Self {
        self.numbers.push(number);
        self
    }

    pub fn text(mut self, text: impl Into<Vec<u8>>) -> Self {
        self.texts.push(text.into());
        self
    }

    /// Bytes of numbers and texts.
    pub fn len(&self) -> usize {
        8 * self.numbers.len() + self.texts.iter().map(Vec::len).sum::<usize>()
    }

    /// Writes the message, and all of it at once.
    pub fn write(&self, to: &mut impl Write) -> io::Result<()> {
        let mut bytes = vec![0; 4];
        bytes.extend(self.tag.to_le_bytes());
        bytes.extend((self.numbers.len() as u32).to_le_bytes());
        bytes.extend(self.numbers.iter().flat_map(|number| number.to_le_bytes()));
        bytes.extend((self.texts.len() as u32).to_le_bytes());
        for text in &self.texts {
            bytes.extend((text.len() as u32).to_le_bytes());
            bytes.extend(text);
        }
        let length = u32::try_from(bytes.len() - 4).map_err(|_| io::Error::other("a message of more than 4 GiB"))?;
        bytes[..4].copy_from_slice(&length.to_le_bytes());
        to.write_all(&bytes)?;
        to.flush()
    }

    /// Reads a message of at most `limit` bytes; `None` at the end of the stream.
    pub fn read(from: &mut impl Read, limit: usize) -> io::Result<Option<Self>> {
        let mut length = [0; 4];
        match from.read_exact(&mut length) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            other => other?,
        }
        let length = u32::from_le_bytes(length) as usize;
        if length > limit {
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, "a message above the limit"));
        }
        // Read bit by bit, so that a length alone takes no memory.
        let mut bytes = Vec::new();
        from.take(length as u64).read_to_end(&mut bytes)?;
        if bytes.len() < length {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Self::decode(&bytes)
            .map(Some)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "a message that makes no sense"))
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (tag, mut rest) = bytes.split_first_chunk::<2>()?;
        let mut message = Self::new(u16::from_le_bytes(*tag));
        for _ in 0..take_u32(&mut rest)? {
            let (number, after) = rest.split_first_chunk::<8>()?;
            message.numbers.push(u64::from_le_bytes(*number));
            rest = after;
        }
        for _ in 0..take_u32(&mut rest)? {
            let length = take_u32(&mut rest)? as usize;
            let (text, after) = rest.split_at_checked(length)?;
            message.texts.push(text.to_vec());
            rest = after;
        }
        rest.is_empty().then_some(message)
    }
}

fn take_u32(rest: &mut &[u8]) -> Option<u32> {
    let (number, after) = rest.split_first_chunk::<4>()?;
    *rest = after;
    Some(u32::from_le_bytes(*number))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn messages_read_back_as_they_were_written() {
        let message = Message::new(7).number(u64::MAX).number(f64::NAN.to_bits()).text("größer").text(vec![0, 255]);
        let mut bytes = Vec::new();
        message.write(&mut bytes).unwrap();
        Message::new(DONE).write(&mut bytes).unwrap();
        let mut stream = &bytes[..];
        assert_eq!(Message::read(&mut stream, 1000).unwrap(), Some(message));
        assert_eq!(Message::read(&mut stream, 1000).unwrap(), Some(Message::new(DONE)));
        assert_eq!(Message::read(&mut stream, 1000).unwrap(), None);
    }

    #[test]
    fn what_is_no_message_is_an_error() {
        let mut bytes = Vec::new();
        Message::new(7).number(1).text("abc").write(&mut bytes).unwrap();
        for length in 4..bytes.len() {
            assert!(Message::read(&mut &bytes[..length], 1000).is_err(), "{length}");
        }
        assert!(Message::read(&mut &bytes[..], 5).is_err(), "above the limit");
        assert!(Message::read(&mut &[255; 64][..], usize::MAX).is_err(), "shorter than it says");
        let mut counts = bytes.clone();
        counts[6] = 200;
        assert!(Message::read(&mut &counts[..], 1000).is_err(), "more numbers than there are bytes");
    }
}
