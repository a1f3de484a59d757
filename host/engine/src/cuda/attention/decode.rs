//! Attention of new queries against a cache of keys and values. In: views of device memory. Out: a kernel queued.

use half::bf16;

use super::Shape;
use crate::cuda::context::{Context, Launch};
use crate::cuda::kernels::{Source, args};
use crate::cuda::memory::View;
use crate::error::Result;

pub(super) static DECODE: Source = Source {
    name: "attention_decode.cu",
    text: include_str!("../../../kernels/attention_decode.cu"),
    hopper: false,
    defines: &[&[("LANES", 16), ("MEMBERS", 4)]],
};

/// How the work is cut into blocks.
struct Cut {
    /// Query heads of a block.
    members: usize,
    first_key: usize,
    /// Keys of a block, and blocks beside each other.
    stretch: usize,
    stretches: usize,
}

/// A multiprocessor's blocks, by their registers.
const BLOCKS: usize = 3;
/// Keys for which a block is not worth its start.
const FEW: usize = 64;
/// As many stretches as the second kernel has threads.
const STRETCHES: usize = 128;

impl Cut {
    fn new(context: &Context, shape: &Shape, queries: usize, past: usize) -> Self {
        let of_key_head = shape.heads / shape.kv_heads;
        let members = [4, 7, 5, 3, 2].into_iter().find(|members| of_key_head.is_multiple_of(*members)).unwrap_or(1);
        let first_key = shape.window.map_or(0, |window| (past + 1).saturating_sub(window));
        let seen = past + queries - first_key;
        let blocks = (shape.heads / members * queries).max(1);
        let wanted = (BLOCKS * context.multiprocessors() / blocks).clamp(1, seen.div_ceil(FEW)).min(STRETCHES);
        let stretch = seen.div_ceil(wanted);
        Self { members, first_key, stretch, stretches: seen.div_ceil(stretch) }
    }
}

/// Numbers that [`decode`] needs in between for `queries` queries behind `past` tokens.
pub fn decode_parts_len(context: &Context, shape: &Shape, queries: usize, past: usize) -> usize {
    match Cut::new(context, shape, queries, past).stretches {
        1 => 0,
        stretches => queries * shape.heads * stretches * (shape.dim + 2),
    }
}

/// Queues `out[new, heads·dim]` for `q[new, heads·dim]`, the queries at positions `past ..`, against `keys` and `values`
/// `[positions, kv_heads·dim]`, which hold those of the new tokens too. Rows may lie further apart. `parts` has
/// [`decode_parts_len`] numbers.
///
/// # Errors
/// When the kernel does not compile or the device fails.
pub fn decode(
    context: &Context,
    shape: &Shape,
    q: View<bf16>,
    [keys, values]: [View<bf16>; 2],
    past: usize,
    out: View<bf16>,
    parts: View<f32>,
) -> Result<()> {
    assert_eq!(keys.stride(), values.stride(), "keys and values lie alike");
    assert!(
        past + q.rows() <= keys.rows() && shape.dim <= 256 && shape.dim.is_multiple_of(8),
        "the cache holds the new tokens"
    );
    let Shape { heads, kv_heads, dim, window, scale, .. } = *shape;
    let Cut { members, first_key, stretch, stretches } = Cut::new(context, shape, q.rows(), past);
    assert!(parts.len() >= decode_parts_len(context, shape, q.rows(), past), "room for the parts");
    let lanes = (dim / 8).next_power_of_two().max(4);
    #[rustfmt::skip]
    let arguments = args![
        q, keys, values, out, parts, heads, kv_heads, dim, past, scale, window.unwrap_or(1 << 30), first_key, stretch,
        q.stride(), keys.stride(), out.stride()
    ];
    let defines = [("LANES", lanes as i64), ("MEMBERS", members as i64)];
    let grid = [(heads / members) as u32, stretches as u32, q.rows() as u32];
    context.launch(&DECODE, &defines, "attention_decode", Launch { grid, block: 128, shared: 0 }, arguments)?;
    if stretches == 1 {
        return Ok(());
    }
    let launch = Launch { grid: [heads as u32, q.rows() as u32, 1], block: 128, shared: 0 };
    context.launch(&DECODE, &defines, "attention_decode_parts", launch, args![parts, out, stretches, dim, out.stride()])
}
