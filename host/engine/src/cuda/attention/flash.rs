//! Attention on the tensor cores. In: views of device memory. Out: kernels queued, with the tiles that suit the card.
//!
//! Every number is summed in one order, so the same inputs give the same bits. The backward pass has two ways: one kernel
//! of five products, whose blocks add to dQ in turns, and where that does not serve two kernels of seven, which write each
//! number once.

use half::bf16;

use super::documents::Of;
use super::{Documents, Kept, Shape};
use crate::cuda::context::{Context, Launch};
use crate::cuda::kernels::{Argument, Source, args};
use crate::cuda::memory::View;
use crate::error::Result;

/// A kernel file behind the text that all of attention's share.
macro_rules! source {
    ($file:literal, $hopper:literal, $($defines:expr),*) => {
        Source {
            name: $file,
            text: concat!(include_str!("../../../kernels/attention_tiles.cuh"), include_str!(concat!("../../../kernels/", $file))),
            hopper: $hopper,
            defines: &[$(&$defines),*],
        }
    };
}

const fn defines(
    dim: i64,
    groups: i64,
    tile: i64,
    stages: i64,
    hopper: i64,
    [split, writers]: [i64; 2],
) -> [(&'static str, i64); 9] {
    let registers = if groups == 3 { 160 } else { 240 };
    // A third stage is worth having only for warps that run ahead and fill it.
    let copiers = if stages > 2 { 128 } else { 0 };
    [
        ("D", dim),
        ("WGS", groups),
        ("TILE", tile),
        ("STAGES", stages),
        ("REGISTERS", registers),
        ("HOPPER", hopper),
        ("SPLIT", split),
        ("COPIERS", copiers),
        ("WRITERS", writers),
    ]
}

// The defines here are those that the test of compilation takes.
static FORWARD: Source =
    source!("attention_forward.cu", false, defines(128, 2, 64, 2, 0, [0, 0]), defines(256, 1, 32, 2, 0, [0, 0]));
static D_KEYS: Source =
    source!("attention_d_keys.cu", false, defines(128, 1, 32, 2, 0, [0, 0]), defines(256, 1, 16, 2, 0, [1, 0]));
static D_QUERIES: Source =
    source!("attention_d_queries.cu", false, defines(128, 1, 32, 2, 0, [0, 0]), defines(256, 1, 16, 2, 0, [0, 0]));
static FORWARD_HOPPER: Source = source!("attention_forward.cu", true, defines(128, 3, 64, 2, 1, [0, 0]));
static D_KEYS_HOPPER: Source = source!("attention_d_keys.cu", true, defines(128, 2, 64, 3, 1, [0, 0]));
static D_QUERIES_HOPPER: Source = source!("attention_d_queries.cu", true, defines(128, 3, 64, 3, 1, [0, 0]));
static BACKWARD: Source = source!(
    "attention_backward.cu",
    true,
    defines(128, 2, 64, 3, 1, [0, WRITERS as i64]),
    defines(80, 2, 64, 3, 1, [0, WRITERS as i64])
);
static ROWS: Source = Source {
    name: "attention_rows.cu",
    text: include_str!("../../../kernels/attention_rows.cu"),
    hopper: false,
    defines: &[&[("D", 128)], &[("D", 80)]],
};

/// Attention's kernel files on the tensor cores.
pub(super) static SOURCES: [&Source; 8] =
    [&FORWARD, &D_KEYS, &D_QUERIES, &FORWARD_HOPPER, &D_KEYS_HOPPER, &D_QUERIES_HOPPER, &BACKWARD, &ROWS];

/// Threads that take sums of dQ out of shared memory.
const WRITERS: usize = 64;

/// Which pass over the scores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pass {
    Forward,
    /// dK and dV.
    Keys,
    /// dQ.
    Queries,
    /// All three.
    Backward,
}

/// How a kernel is cut for a card and a head size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cut {
    dim: usize,
    /// Warpgroups of a block, 64 rows each.
    groups: usize,
    /// Rows of the tiles that a block walks over.
    tile: usize,
    /// Steps whose tiles are in shared memory.
    stages: usize,
    /// `wgmma` rather than `mma.sync`.
    hopper: bool,
    /// dK and dV in blocks of their own.
    split: bool,
    /// Threads that take sums out of shared memory.
    writers: usize,
}

impl Cut {
    /// `None` where the kernels do not serve: a head size that is no multiple of 16; for the whole backward pass at once
    /// all but Hopper's and heads of 80 to 128, of which a warpgroup has 64 columns of dQ.
    ///
    /// Chosen by measurement on an H100 (host/docs/log.md); without `wgmma`, by what fits the 99 KB of shared memory
    /// that consumer cards of every generation since Ampere have.
    fn new(capability: (u32, u32), dim: usize, pass: Pass) -> Option<Self> {
        if !dim.is_multiple_of(16) || dim == 0 || dim > 256 {
            return None;
        }
        let hopper = capability.0 == 9 && matches!(dim, 64 | 80 | 96 | 128 | 256);
        let wide = dim > 128;
        if pass == Pass::Backward && !(hopper && (80..=128).contains(&dim)) {
            return None;
        }
        let (groups, tile, stages) = match (pass, hopper, wide) {
            (Pass::Forward, true, false) => (3, 64, 2),
            (Pass::Keys | Pass::Backward, true, false) => (2, 64, 3),
            (Pass::Queries, true, false) => (3, 64, 3),
            (Pass::Forward, true, true) => (2, 64, 2),
            (_, true, true) => (1, 64, 2),
            (Pass::Forward, false, false) => (2, 64, 2),
            (Pass::Forward, false, true) => (1, 32, 2),
            (_, false, false) => (1, 32, 2),
            (_, false, true) => (1, 16, 2),
        };
        let writers = if pass == Pass::Backward { WRITERS } else { 0 };
        Some(Self { dim, groups, tile, stages, hopper, split: wide && pass == Pass::Keys, writers })
    }

    fn defines(&self) -> [(&'static str, i64); 9] {
        let number = |value: usize| value as i64;
        defines(
            number(self.dim),
            number(self.groups),
            number(self.tile),
            number(self.stages),
            i64::from(self.hopper),
            [i64::from(self.split), number(self.writers)],
        )
    }

    fn rows(&self) -> usize {
        64 * self.groups
    }

    fn tile_bytes(&self, rows: usize) -> usize {
        rows * 128 * self.dim.div_ceil(64)
    }

    /// Shared memory with `own` tiles of the block's rows, and a pair of walked tiles, two numbers a query of them and
    /// two barriers for each stage; with writers, scores' gradients twice, a tile of sums and their barriers.
    fn shared_bytes(&self, own: usize) -> usize {
        let stage = 2 * self.tile_bytes(self.tile) + 8 * self.tile + 16;
        let sums = if self.writers > 0 { 2 * self.rows() * 128 + SLOT_BYTES + 64 } else { 0 };
        own * self.tile_bytes(self.rows()) + self.stages * stage + sums + 1024
    }

    fn launch(&self, heads: usize, tiles: usize, own: usize) -> Launch {
        let grid = [heads as u32, tiles as u32, 1 + u32::from(self.split)];
        Launch {
            grid,
            block: 128 * (self.groups + usize::from(self.stages > 2)) as u32,
            shared: self.shared_bytes(own) as u32,
        }
    }
}

/// Whether the kernels serve heads of this size.
pub(super) fn serves(context: &Context, shape: &Shape) -> bool {
    Cut::new(context.capability(), shape.dim, Pass::Forward).is_some()
}

/// More than any distance between tokens, and far enough from overflow.
const NO_WINDOW: usize = 1 << 30;

pub(super) fn forward(context: &Context, shape: &Shape, documents: &Documents, kept: Kept) -> Result<()> {
    let Kept { qkv, out, lse } = kept;
    let Some(cut) = Cut::new(context.capability(), shape.dim, Pass::Forward) else { return Ok(()) };
    let (tiles, count) = documents.tiles(cut.rows(), Of::Queries);
    #[rustfmt::skip]
    let arguments = args![
        qkv, qkv.stride() as u64, shape.heads, shape.kv_heads, tiles, out, out.stride() as u64, lse, shape.scale,
        shape.window.unwrap_or(NO_WINDOW)
    ];
    let source = if cut.hopper { &FORWARD_HOPPER } else { &FORWARD };
    context.launch(source, &cut.defines(), "attention_forward", cut.launch(shape.heads, count, 1), arguments)
}

/// A tile of dQ in `f32`: 64 queries, twice 64 columns.
const SLOT_BYTES: usize = 64 * 128 * size_of::<f32>();

/// What the backward pass keeps in its workspace, and where: {lse, Σ out·d_out} of each row and head; with the kernel
/// that does it in one pass, a counter for each tile of queries and head and one more, and those tiles' sums.
struct Workspace {
    /// Tiles of queries of a head, counted so that each document's begin at `start / 64 + document`.
    slots: usize,
    counters: usize,
    counters_at: usize,
    sums_at: usize,
    bytes: usize,
}

impl Workspace {
    fn new(shape: &Shape, documents: &Documents, one_pass: bool) -> Self {
        let slots = if one_pass { documents.tokens() / 64 + documents.count() } else { 0 };
        let counters = if one_pass { shape.heads * slots + 1 } else { 0 };
        let counters_at = (shape.heads * documents.tokens() * 2 * size_of::<f32>()).next_multiple_of(256);
        let sums_at = (counters_at + counters * size_of::<i32>()).next_multiple_of(256);
        Self { slots, counters, counters_at, sums_at, bytes: sums_at + shape.heads * slots * SLOT_BYTES }
    }
}

/// The cut of the kernel that makes all gradients in one pass, where it serves and no block has more than twice a
/// multiprocessor's share: a block of keys takes its group's heads one after another.
pub(super) fn one_pass(context: &Context, shape: &Shape, documents: &Documents) -> Option<Cut> {
    let cut = Cut::new(context.capability(), shape.dim, Pass::Backward)?;
    let steps = |tokens: usize| tokens.div_ceil(cut.rows()) * 2;
    let work: usize =
        documents.host.windows(2).map(|pair| steps((pair[1] - pair[0]) as usize)).map(|n| n * (n + 2) / 4).sum();
    let longest = steps(documents.longest) * (shape.heads / shape.kv_heads);
    (longest * context.multiprocessors() <= 2 * work * shape.heads).then_some(cut)
}

pub(super) fn workspace_bytes(context: &Context, shape: &Shape, documents: &Documents) -> usize {
    Workspace::new(shape, documents, one_pass(context, shape, documents).is_some()).bytes
}

pub(super) fn backward(
    context: &Context,
    shape: &Shape,
    documents: &Documents,
    kept: Kept,
    [d_out, d_qkv]: [View<bf16>; 2],
    workspace: View<u8>,
) -> Result<()> {
    let Kept { qkv, out, lse } = kept;
    let one_pass = one_pass(context, shape, documents);
    let (tokens, rows) = (documents.tokens(), workspace);
    let window = shape.window.unwrap_or(NO_WINDOW);
    let Shape { heads, kv_heads, scale, .. } = *shape;
    let places = Workspace::new(shape, documents, one_pass.is_some());
    let place = |at: usize| workspace.ptr() + at as u64;

    #[rustfmt::skip]
    let arguments = args![
        out, out.stride() as u64, d_out, d_out.stride() as u64, lse, documents.starts, documents.count(), rows, heads,
        tokens, place(places.counters_at), places.counters
    ];
    // A row's pieces of 16 bytes, a lane each; rows in eights.
    let lanes = (shape.dim / 8).next_power_of_two().max(4);
    let launch = Launch::new((tokens.next_multiple_of(8) * heads * lanes).div_ceil(256), 256);
    context.launch(&ROWS, &[("D", shape.dim as i64)], "attention_rows", launch, arguments)?;

    if let Some(cut) = one_pass {
        let (tiles, count) = documents.tiles(cut.rows(), Of::Keys);
        // As many key heads as give each multiprocessor two blocks: with all at once what the blocks under way add to
        // leaves the L2 cache, with fewer they wait for each other.
        let together = (2 * context.multiprocessors() + count / 2) / count.max(1);
        let together = together.clamp(1, kv_heads);
        #[rustfmt::skip]
        let arguments = args![
            qkv, qkv.stride() as u64, heads, kv_heads, tiles, d_out, d_out.stride() as u64, rows, d_qkv,
            d_qkv.stride() as u64, tokens, scale, window, place(places.sums_at), places.slots, place(places.counters_at),
            count, together
        ];
        let launch = cut.launch(kv_heads * count, 1, 2);
        return context.launch(&BACKWARD, &cut.defines(), "attention_backward", launch, arguments);
    }
    let cut = |pass| Cut::new(context.capability(), shape.dim, pass);
    let (Some(keys), Some(queries)) = (cut(Pass::Keys), cut(Pass::Queries)) else { return Ok(()) };
    let (key_tiles, key_count) = documents.tiles(keys.rows(), Of::Keys);
    let (query_tiles, query_count) = documents.tiles(queries.rows(), Of::Queries);
    let arguments = |tiles: View<i32>| {
        [
            qkv.slot(),
            (qkv.stride() as u64).slot(),
            heads.slot(),
            kv_heads.slot(),
            tiles.slot(),
            d_out.slot(),
            (d_out.stride() as u64).slot(),
            rows.slot(),
            d_qkv.slot(),
            (d_qkv.stride() as u64).slot(),
            tokens.slot(),
            scale.slot(),
            window.slot(),
        ]
    };
    let source = if queries.hopper { &D_QUERIES_HOPPER } else { &D_QUERIES };
    let keys_source = if keys.hopper { &D_KEYS_HOPPER } else { &D_KEYS };
    // Beside each other: with few documents the one leaves many multiprocessors idle at its end.
    context.side_by_side(
        |stream| {
            let launch = keys.launch(kv_heads, key_count, 2);
            let arguments = arguments(key_tiles);
            context.launch_on(stream, keys_source, &keys.defines(), "attention_d_keys", launch, &arguments)
        },
        |stream| {
            let launch = queries.launch(heads, query_count, 2);
            let arguments = arguments(query_tiles);
            context.launch_on(stream, source, &queries.defines(), "attention_d_queries", launch, &arguments)
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_fit_the_shared_memory_of_their_cards() {
        for dim in (16..=256).step_by(16) {
            for (pass, own) in [(Pass::Forward, 1), (Pass::Keys, 2), (Pass::Queries, 2), (Pass::Backward, 2)] {
                for (capability, most) in [((8, 0), 99), ((8, 6), 99), ((9, 0), 227), ((12, 0), 99)] {
                    let Some(cut) = Cut::new(capability, dim, pass) else {
                        assert_eq!(pass, Pass::Backward, "a multiple of 16");
                        continue;
                    };
                    assert!(cut.shared_bytes(own) <= most << 10, "{cut:?} takes {} bytes", cut.shared_bytes(own));
                    assert!(super::super::documents::HEIGHTS.contains(&cut.rows()));
                }
            }
        }
        assert_eq!(Cut::new((8, 0), 8, Pass::Forward), None);
        assert!([80, 96, 128].map(|dim| Cut::new((9, 0), dim, Pass::Backward)).iter().all(Option::is_some));
    }

    #[test]
    fn each_tile_of_queries_has_sums_of_its_own() {
        let shape = Shape { heads: 3, kv_heads: 1, dim: 128, window: None, scale: 1.0, unordered: false };
        for starts in [&[0, 1, 1, 65, 400][..], &[0, 64, 128, 129], &[0, 63, 64, 190, 2048], &[0, 1]] {
            let words = Documents::words(starts);
            let documents = Documents::new(View::at(0, 1, words.len(), words.len()), starts.to_vec());
            let places = Workspace::new(&shape, &documents, true);
            let mut taken = vec![false; places.slots];
            for (document, pair) in starts.windows(2).enumerate() {
                for tile in 0..(pair[1] - pair[0]).div_ceil(64) {
                    let slot = (pair[0] / 64 + tile) as usize + document;
                    assert!(!std::mem::replace(&mut taken[slot], true), "{starts:?}: {slot} is taken twice");
                }
            }
            assert!(places.counters == 3 * places.slots + 1 && places.counters_at >= 3 * documents.tokens() * 8);
            assert!(places.sums_at >= places.counters_at + places.counters * 4 && places.sums_at.is_multiple_of(256));
            assert_eq!(places.bytes, places.sums_at + 3 * places.slots * 64 * 128 * 4);
        }
    }
}
