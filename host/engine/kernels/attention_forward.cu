// Causal attention over packed documents, forward: out = softmax(scale · q kᵀ) v, and each row's log-sum-exp.
//
// One block takes ROWS queries of one head and walks the tiles of TILE keys that they see, from the diagonal back, with the
// running maximum and sum of FlashAttention (arXiv 2205.14135, 2407.08608). The scores of the next tile are queued
// on the tensor cores together with the product with v of this one. Key tiles above the diagonal
// or outside the window are never touched. Traffic: q and out once, k and v once a query tile (from L2 mostly).
// Operations: 4·D a visible score. Measured shares are in host/docs/log.md.

// A step's tiles: keys `step`, and values `step` - 1.
#define K_AT(step) (tiles_at + (step) % STAGES * 2 * TILE_BYTES(TILE))
#define V_AT(step) (K_AT(step) + TILE_BYTES(TILE))

extern "C" __global__ void __launch_bounds__(BLOCK_THREADS, 1)
attention_forward(const bf16* __restrict__ qkv, long long stride, int heads, int kv_heads, const int4* __restrict__ tiles,
                  bf16* __restrict__ out, long long out_stride, float* __restrict__ lse, float scale, int window) {
    extern __shared__ char memory[];
    const int4 tile = tiles[blockIdx.y];   // first row and end of the document, first row of the tile
    const int start = tile.x, end = tile.y, row0 = tile.z;
    if (row0 >= end) return;               // the list is padded
    const int head = blockIdx.x, kv_head = head / (heads / kv_heads);
    const u32 queries = shared_base(memory), tiles_at = queries + TILE_BYTES(ROWS);
    const u32 barriers = tiles_at + 2 * STAGES * TILE_BYTES(TILE);
    const bf16* q = qkv + head * D;
    const bf16* k = qkv + (heads + kv_head) * D;
    const bf16* v = k + kv_heads * D;

    const int last = min(row0 + ROWS, end) - 1;
    const int first_key = start + max(row0 - start + 1 - window, 0) / TILE * TILE;
    const int n = (last - first_key) / TILE + 1;
    const int top = first_key + (n - 1) * TILE;  // first key of the first tile

    const int group = threadIdx.x >> 7, lane = threadIdx.x & 31;
    const int group_row = row0 + group * 64;
    const int row = group_row + ((threadIdx.x >> 5) & 3) * 16 + (lane >> 2);  // and row + 8
    const float c = scale * LOG2E;

    auto load = [&](int step) {
        if (step == 0) load_tile<ROWS>(queries, q, stride, row0, end);
        if (step < n) load_tile<TILE>(K_AT(step), k, stride, top - step * TILE, end);
        if (step > 0) load_tile<TILE>(V_AT(step), v, stride, top - (step - 1) * TILE, end);
        commit_copies();
    };
    SPLIT_ROLES(n + 1, load);

    float o[D / 2], s[TILE / 2];
    u32 p[TILE / 4];
    float max_low = -INF, max_high = -INF, sum_low = 0.0f, sum_high = 0.0f, shrink_low = 0.0f, shrink_high = 0.0f;
#pragma unroll
    for (int i = 0; i < D / 2; i++) o[i] = 0.0f;

    // Scores of the keys from `at` on become exponentials; maxima, sums and the factors for what was summed so far follow.
    auto soften = [&](int at) {
        if (at + TILE - 1 > group_row || at <= group_row + 63 - window) {
#pragma unroll
            for (int i = 0; i < TILE / 2; i++) {
                int key = at + (i >> 2) * 8 + (lane & 3) * 2 + (i & 1), query = row + ((i & 2) << 2);
                if (key > query || query - key >= window) s[i] = -INF;
            }
        }
        float low = max_low, high = max_high;
#pragma unroll
        for (int i = 0; i < TILE / 2; i += 4) {
            low = fmaxf(low, fmaxf(s[i], s[i + 1]));
            high = fmaxf(high, fmaxf(s[i + 2], s[i + 3]));
        }
        low = fmaxf(low, __shfl_xor_sync(~0u, low, 1));
        high = fmaxf(high, __shfl_xor_sync(~0u, high, 1));
        low = fmaxf(low, __shfl_xor_sync(~0u, low, 2));
        high = fmaxf(high, __shfl_xor_sync(~0u, high, 2));
        float base_low = low == -INF ? 0.0f : low * c, base_high = high == -INF ? 0.0f : high * c;
        shrink_low = exp2_fast(max_low * c - base_low);
        shrink_high = exp2_fast(max_high * c - base_high);
        max_low = low;
        max_high = high;
        sum_low *= shrink_low;
        sum_high *= shrink_high;
#pragma unroll
        for (int i = 0; i < TILE / 2; i += 4) {
            s[i] = exp2_fast(s[i] * c - base_low);
            s[i + 1] = exp2_fast(s[i + 1] * c - base_low);
            s[i + 2] = exp2_fast(s[i + 2] * c - base_high);
            s[i + 3] = exp2_fast(s[i + 3] * c - base_high);
            sum_low += s[i] + s[i + 1];
            sum_high += s[i + 2] + s[i + 3];
        }
    };

    acquire(barriers, 0, n + 1, load);
    fence_products();
    product_tiles<ROWS, TILE>(s, queries, group * 64, K_AT(0));
    commit_products();
    wait_products<0>();
    pin(s);
    release(barriers, 0);
    soften(top);
    round_operand<TILE>(p, s);

    for (int step = 1; step < n; step++) {
        acquire(barriers, step, n + 1, load);
        pin(o);
        pin(s);
        fence_products();
        product_tiles<ROWS, TILE>(s, queries, group * 64, K_AT(step));
        commit_products();
        product_columns<TILE>(o, p, V_AT(step));
        commit_products();
        wait_products<1>();
        pin(s);
        soften(top - step * TILE);
        wait_products<0>();
        pin(o);
        release(barriers, step);
#pragma unroll
        for (int i = 0; i < D / 2; i += 4) {
            o[i] *= shrink_low;
            o[i + 1] *= shrink_low;
            o[i + 2] *= shrink_high;
            o[i + 3] *= shrink_high;
        }
        round_operand<TILE>(p, s);
    }
    acquire(barriers, n, n + 1, load);
    pin(o);
    fence_products();
    product_columns<TILE>(o, p, V_AT(n));
    commit_products();
    wait_products<0>();
    pin(o);

    sum_low += __shfl_xor_sync(~0u, sum_low, 1);
    sum_high += __shfl_xor_sync(~0u, sum_high, 1);
    sum_low += __shfl_xor_sync(~0u, sum_low, 2);
    sum_high += __shfl_xor_sync(~0u, sum_high, 2);
    write_rows(out + head * D, out_stride, row, end, o, 1.0f / sum_low, 1.0f / sum_high);
    if ((lane & 3) == 0) {
        float* to = lse + lse_place(start, end, heads, head, row);
        if (row < end) to[0] = max_low * scale + log2_fast(sum_low) * (1.0f / LOG2E);
        if (row + 8 < end) to[8] = max_high * scale + log2_fast(sum_high) * (1.0f / LOG2E);
    }
}
