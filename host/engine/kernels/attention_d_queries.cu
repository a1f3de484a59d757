// Causal attention over packed documents, backward, second of two kernels: dQ. A block owns ROWS queries of one head and
// walks the tiles of TILE keys that they see, in one order. Operations: 6·D a visible score. Traffic: q, d_out, dQ once; k and v
// once a query tile (from L2 mostly). Measured shares are in host/docs/log.md.

#define KEYS_AT(step) (tiles_at + (step) % STAGES * 2 * TILE_BYTES(TILE))
#define VALUES_AT(step) (KEYS_AT(step) + TILE_BYTES(TILE))

extern "C" __global__ void __launch_bounds__(BLOCK_THREADS, 1)
attention_d_queries(const bf16* __restrict__ qkv, long long stride, int heads, int kv_heads, const int4* __restrict__ tiles,
                    const bf16* __restrict__ d_out, long long out_stride, const float2* __restrict__ rows,
                    bf16* __restrict__ d_qkv, long long d_stride, int tokens, float scale, int window) {
    extern __shared__ char memory[];
    const int4 tile = tiles[blockIdx.y];
    const int start = tile.x, end = tile.y, row0 = tile.z;
    if (row0 >= end) return;
    const int head = blockIdx.x, kv_head = head / (heads / kv_heads);
    const u32 queries = shared_base(memory), d_outs = queries + TILE_BYTES(ROWS), tiles_at = d_outs + TILE_BYTES(ROWS);
    const u32 barriers = tiles_at + 2 * STAGES * TILE_BYTES(TILE);
    const bf16* k = qkv + (heads + kv_head) * D;
    const bf16* v = k + kv_heads * D;

    const int last = min(row0 + ROWS, end) - 1;
    const int first_key = start + max(row0 - start + 1 - window, 0) / TILE * TILE;
    const int n = (last - first_key) / TILE + 1;
    const int group = threadIdx.x >> 7, lane = threadIdx.x & 31;
    const int group_row = row0 + group * 64;
    const int row = group_row + ((threadIdx.x >> 5) & 3) * 16 + (lane >> 2);
    const float c = scale * LOG2E;

    auto load = [&](int step) {
        if (step == 0) {
            load_tile<ROWS>(queries, qkv + head * D, stride, row0, end);
            load_tile<ROWS>(d_outs, d_out + head * D, out_stride, row0, end);
        }
        load_tile<TILE>(KEYS_AT(step), k, stride, first_key + step * TILE, end);
        load_tile<TILE>(VALUES_AT(step), v, stride, first_key + step * TILE, end);
        commit_copies();
    };
    SPLIT_ROLES(n, load);
    const float2* stats = rows + (long long)head * tokens;
    const float2 low = row < end ? stats[row] : make_float2(0.0f, 0.0f);
    const float2 high = row + 8 < end ? stats[row + 8] : make_float2(0.0f, 0.0f);

    float dq[D / 2], s[TILE / 2], dp[TILE / 2];
    u32 ds[TILE / 4];
#pragma unroll
    for (int i = 0; i < D / 2; i++) dq[i] = 0.0f;

    for (int step = 0; step < n; step++) {
        const int at = first_key + step * TILE;
        acquire(barriers, step, n, load);
        pin(s);
        pin(dp);
        fence_products();
        product_tiles<ROWS, TILE>(s, queries, group * 64, KEYS_AT(step));
        commit_products();
        product_tiles<ROWS, TILE>(dp, d_outs, group * 64, VALUES_AT(step));
        commit_products();
        wait_products<1>();
        pin(s);
#pragma unroll
        for (int i = 0; i < TILE / 2; i += 4) {
            s[i] = exp2_fast(s[i] * c - low.x);
            s[i + 1] = exp2_fast(s[i + 1] * c - low.x);
            s[i + 2] = exp2_fast(s[i + 2] * c - high.x);
            s[i + 3] = exp2_fast(s[i + 3] * c - high.x);
        }
        if (at + TILE - 1 > group_row || at <= group_row + 63 - window) {
#pragma unroll
            for (int i = 0; i < TILE / 2; i++) {
                int key = at + (i >> 2) * 8 + (lane & 3) * 2 + (i & 1), query = row + ((i & 2) << 2);
                if (key > query || query - key >= window) s[i] = 0.0f;
            }
        }
        wait_products<0>();
        pin(dp);
#pragma unroll
        for (int i = 0; i < TILE / 2; i += 4) {
            dp[i] = s[i] * (dp[i] - low.y);
            dp[i + 1] = s[i + 1] * (dp[i + 1] - low.y);
            dp[i + 2] = s[i + 2] * (dp[i + 2] - high.y);
            dp[i + 3] = s[i + 3] * (dp[i + 3] - high.y);
        }
        round_operand<TILE>(ds, dp);
        pin(dq);
        fence_products();
        product_columns<TILE>(dq, ds, KEYS_AT(step));
        commit_products();
        wait_products<0>();
        pin(dq);
        release(barriers, step);
    }
    write_rows(d_qkv + head * D, d_stride, row, end, dq, scale, scale);
}
