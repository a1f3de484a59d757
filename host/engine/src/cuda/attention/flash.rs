//! Attention on the tensor cores. In: views of device memory. Out: kernels queued, with the tiles that suit the card.
//!
//! Every number is written once and summed in one order, so the same inputs give the same bits.

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

const fn defines(dim: i64, groups: i64, tile: i64, stages: i64, hopper: i64, split: i64) -> [(&'static str, i64); 8] {
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
    ]
}

// The defines here are those that the test of compilation takes.
static FORWARD: Source =
    source!("attention_forward.cu", false, defines(128, 2, 64, 2, 0, 0), defines(256, 1, 32, 2, 0, 0));
static D_KEYS: Source =
    source!("attention_d_keys.cu", false, defines(128, 1, 32, 2, 0, 0), defines(256, 1, 16, 2, 0, 1));
static D_QUERIES: Source =
    source!("attention_d_queries.cu", false, defines(128, 1, 32, 2, 0, 0), defines(256, 1, 16, 2, 0, 0));
static FORWARD_HOPPER: Source = source!("attention_forward.cu", true, defines(128, 3, 64, 2, 1, 0));
static D_KEYS_HOPPER: Source = source!("attention_d_keys.cu", true, defines(128, 2, 64, 3, 1, 0));
static D_QUERIES_HOPPER: Source = source!("attention_d_queries.cu", true, defines(128, 3, 64, 3, 1, 0));

/// Attention's kernel files on the tensor cores.
pub(super) static SOURCES: [&Source; 6] =
    [&FORWARD, &D_KEYS, &D_QUERIES, &FORWARD_HOPPER, &D_KEYS_HOPPER, &D_QUERIES_HOPPER];

/// Which of the three passes over the scores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pass {
    Forward,
    Keys,
    Queries,
}

/// How a kernel is cut for a card and a head size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cut {
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
}

impl Cut {
    /// `None` where the kernels do not serve: a head size that is no multiple of 16.
    ///
    /// Chosen by measurement on an H100 (host/docs/log.md); without `wgmma`, by what fits the 99 KB of shared memory
    /// that consumer cards of every generation since Ampere have.
    fn new(capability: (u32, u32), dim: usize, pass: Pass) -> Option<Self> {
        if !dim.is_multiple_of(16) || dim == 0 || dim > 256 {
            return None;
        }
        let hopper = capability.0 == 9 && matches!(dim, 64 | 80 | 96 | 128 | 256);
        let wide = dim > 128;
        let (groups, tile, stages) = match (pass, hopper, wide) {
            (Pass::Forward, true, false) => (3, 64, 2),
            (Pass::Keys, true, false) => (2, 64, 3),
            (Pass::Queries, true, false) => (3, 64, 3),
            (Pass::Forward, true, true) => (2, 64, 2),
            (Pass::Keys | Pass::Queries, true, true) => (1, 64, 2),
            (Pass::Forward, false, false) => (2, 64, 2),
            (Pass::Forward, false, true) => (1, 32, 2),
            (Pass::Keys | Pass::Queries, false, false) => (1, 32, 2),
            (Pass::Keys | Pass::Queries, false, true) => (1, 16, 2),
        };
        Some(Self { dim, groups, tile, stages, hopper, split: wide && pass == Pass::Keys })
    }

    fn defines(&self) -> [(&'static str, i64); 8] {
        let number = |value: usize| value as i64;
        defines(
            number(self.dim),
            number(self.groups),
            number(self.tile),
            number(self.stages),
            i64::from(self.hopper),
            i64::from(self.split),
        )
    }

    fn rows(&self) -> usize {
        64 * self.groups
    }

    fn tile_bytes(&self, rows: usize) -> usize {
        rows * 128 * self.dim.div_ceil(64)
    }

    /// Shared memory with `own` tiles of the block's rows, and a pair of walked tiles, two numbers a query of them and
    /// two barriers for each stage.
    fn shared_bytes(&self, own: usize) -> usize {
        let stage = 2 * self.tile_bytes(self.tile) + 8 * self.tile + 16;
        own * self.tile_bytes(self.rows()) + self.stages * stage + 1024
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

/// {lse, Σ out·d_out} of each row and head.
pub(super) fn workspace_bytes(shape: &Shape, documents: &Documents) -> usize {
    shape.heads * documents.tokens() * 2 * size_of::<f32>()
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
    let cut = |pass| Cut::new(context.capability(), shape.dim, pass);
    let (Some(keys), Some(queries)) = (cut(Pass::Keys), cut(Pass::Queries)) else { return Ok(()) };
    let (tokens, rows) = (documents.tokens(), workspace);
    let window = shape.window.unwrap_or(NO_WINDOW);
    let Shape { heads, kv_heads, scale, .. } = *shape;

    #[rustfmt::skip]
    let arguments = args![
        out, out.stride() as u64, d_out, d_out.stride() as u64, lse, documents.starts, documents.count(), rows, heads, tokens
    ];
    let source = if queries.hopper { &D_QUERIES_HOPPER } else { &D_QUERIES };
    let launch = Launch::new((tokens * heads).div_ceil(8), 256);
    context.launch(source, &queries.defines(), "attention_rows", launch, arguments)?;

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
            for (pass, own) in [(Pass::Forward, 1), (Pass::Keys, 2), (Pass::Queries, 2)] {
                for (capability, most) in [((8, 0), 99), ((8, 6), 99), ((9, 0), 227), ((12, 0), 99)] {
                    let cut = Cut::new(capability, dim, pass).expect("a multiple of 16");
                    assert!(cut.shared_bytes(own) <= most << 10, "{cut:?} takes {} bytes", cut.shared_bytes(own));
                    assert!(super::super::documents::HEIGHTS.contains(&cut.rows()));
                }
            }
        }
        assert_eq!(Cut::new((8, 0), 8, Pass::Forward), None);
    }
}
