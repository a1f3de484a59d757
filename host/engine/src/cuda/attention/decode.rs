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
    defines: &[&[("LANES", 16)]],
};

/// Queues `out[new, heads·dim]` for `q[new, heads·dim]`, the queries at positions `past ..`, against `keys` and `values`
/// `[positions, kv_heads·dim]`, which hold those of the new tokens too. Rows may lie further apart.
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
) -> Result<()> {
    assert_eq!(keys.stride(), values.stride(), "keys and values lie alike");
    assert!(
        past + q.rows() <= keys.rows() && shape.dim <= 256 && shape.dim.is_multiple_of(8),
        "the cache holds the new tokens"
    );
    let Shape { heads, kv_heads, dim, window, scale, .. } = *shape;
    let lanes = (dim / 8).next_power_of_two().max(4);
    #[rustfmt::skip]
    let arguments = args![
        q, keys, values, out, heads, kv_heads, dim, past, scale, window.unwrap_or(1 << 30), q.stride(), keys.stride(),
        out.stride()
    ];
    let launch = Launch { grid: [heads as u32, q.rows() as u32, 1], block: 128, shared: 0 };
    context.launch(&DECODE, &[("LANES", lanes as i64)], "attention_decode", launch, arguments)
}
