//! Where the documents of a batch lie, as attention's kernels read it. In: the starts of packed documents. Out: numbers
//! for the device: the starts, and lists of tiles of each height, the ones with the most work first.

use crate::cuda::context::Context;
use crate::cuda::memory::{Buffer, View};
use crate::error::Result;

/// Heights of the tiles that kernels own: 64 rows a warpgroup.
pub(super) const HEIGHTS: [usize; 3] = [64, 128, 192];

/// Numbers that describe a tile: the document's first row and end, the tile's first row, the document.
const TILE_WORDS: usize = 4;

/// Whether a kernel's tiles are of queries, which look back, or of keys, which are looked at by what follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Of {
    Queries,
    Keys,
}

/// Where the documents of a batch begin.
#[derive(Clone, Debug)]
pub struct Documents {
    /// `[documents + 1]`, on the device.
    pub starts: View<i32>,
    /// The same on the host.
    pub host: Vec<u32>,
    /// Tokens of the longest.
    pub longest: usize,
    words: View<i32>,
}

impl Documents {
    /// Documents whose [`Documents::words`] lie in `words` already, or will before the work that is queued runs.
    pub fn new(words: View<i32>, host: Vec<u32>) -> Self {
        let tokens = host.last().map_or(0, |&end| end as usize);
        let count = host.len().saturating_sub(1);
        let needed = if host.is_empty() { 0 } else { Self::word_count(tokens, count) };
        assert!(words.len() >= needed, "{count} documents take {needed} words (Documents::words), not {}", words.len());
        let words = View::at(words.ptr(), 1, needed, needed);
        let starts = View::at(words.ptr(), 1, host.len(), host.len());
        let longest = host.windows(2).map(|pair| (pair[1] - pair[0]) as usize).max().unwrap_or(0);
        Self { starts, host, longest, words }
    }

    /// How many numbers [`Documents::words`] gives: it depends on the batch's tokens and documents only, not on where
    /// they begin, so that a recorded step serves every batch of its size.
    pub fn word_count(tokens: usize, documents: usize) -> usize {
        let tiles: usize = HEIGHTS.iter().map(|&height| 2 * tile_count(tokens, documents, height)).sum();
        (documents + 1).next_multiple_of(TILE_WORDS) + tiles * TILE_WORDS
    }

    /// What the device must know about documents that begin at `starts` (`[documents + 1]`, from 0 to the tokens).
    pub fn words(starts: &[u32]) -> Vec<i32> {
        let tokens = starts.last().map_or(0, |&end| end as usize);
        let count = starts.len().saturating_sub(1);
        let mut words: Vec<i32> = starts.iter().map(|&start| start as i32).collect();
        words.resize((count + 1).next_multiple_of(TILE_WORDS), 0);
        for height in HEIGHTS {
            let mut tiles: Vec<[i32; TILE_WORDS]> = Vec::new();
            for (document, pair) in starts.windows(2).enumerate() {
                let tile = |row: u32| [pair[0] as i32, pair[1] as i32, row as i32, document as i32];
                tiles.extend((pair[0]..pair[1]).step_by(height).map(tile));
            }
            let padding = tile_count(tokens, count, height) - tiles.len();
            for of in [Of::Queries, Of::Keys] {
                tiles.sort_by_key(|&[start, end, row, _]| {
                    std::cmp::Reverse(if of == Of::Keys { end - row } else { row - start })
                });
                words.extend(tiles.iter().flatten());
                words.extend(std::iter::repeat_n(0, padding * TILE_WORDS));
            }
        }
        words
    }

    /// Copies the words to the device.
    ///
    /// # Errors
    /// When there is no memory.
    pub fn upload(context: &Context, host: Vec<u32>) -> Result<(Buffer, Self)> {
        let words = Self::words(&host);
        let buffer = Buffer::new(context, words.len() * size_of::<i32>())?;
        let view = buffer.view::<i32>(1, words.len());
        context.upload(view, &words)?;
        Ok((buffer, Self::new(view, host)))
    }

    /// Number of documents.
    pub fn count(&self) -> usize {
        self.host.len().saturating_sub(1)
    }

    /// Number of tokens.
    pub fn tokens(&self) -> usize {
        self.host.last().map_or(0, |&end| end as usize)
    }

    /// The list of tiles of `height` rows and its length; tiles that fill it up have no rows.
    pub(super) fn tiles(&self, height: usize, of: Of) -> (View<i32>, usize) {
        let (tokens, documents) = (self.tokens(), self.count());
        let mut at = (documents + 1).next_multiple_of(TILE_WORDS);
        for other in HEIGHTS.iter().take_while(|&&other| other != height) {
            at += 2 * tile_count(tokens, documents, *other) * TILE_WORDS;
        }
        let count = tile_count(tokens, documents, height);
        let at = if of == Of::Keys { at + count * TILE_WORDS } else { at };
        (self.words.slice_cols(at, count * TILE_WORDS), count)
    }
}

/// At least as many as any documents of so many tokens in all have.
fn tile_count(tokens: usize, documents: usize, height: usize) -> usize {
    tokens / height + documents
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_cover_each_row_once_and_the_heaviest_come_first() {
        let starts = [0, 1, 1, 65, 400];
        let words = Documents::words(&starts);
        assert_eq!(words.len(), Documents::word_count(400, 4));
        assert_eq!(words[..5], [0, 1, 1, 65, 400]);
        let documents = Documents::new(View::at(0, 1, words.len(), words.len()), starts.to_vec());
        for height in HEIGHTS {
            for of in [Of::Queries, Of::Keys] {
                let (view, count) = documents.tiles(height, of);
                let at = view.ptr() as usize / size_of::<i32>();
                let tiles = words[at..at + count * TILE_WORDS].chunks(TILE_WORDS);
                let mut seen = [0; 400];
                let mut before = i32::MAX;
                for tile in tiles {
                    let (start, end, row) = (tile[0], tile[1], tile[2]);
                    for row in row..end.min(row + height as i32) {
                        assert!(start <= row);
                        seen[row as usize] += 1;
                    }
                    let work = if of == Of::Keys { end - row } else { row - start };
                    assert!(work <= before || end == 0);
                    before = work;
                }
                assert_eq!(seen, [1; 400], "{height} {of:?}");
            }
        }
    }
}
