// Causal attention over packed documents, backward, first of two kernels: dK and dV. A block owns ROWS keys of one key
// head and walks the tiles of TILE queries that see them, of every head of its group, in one order: each number is written
// once, and the same inputs give the same bits. Scores are made again here and in attention_d_queries.cu, 7 products where
// attention_backward.cu needs 5; nothing goes through memory but inputs and gradients. For all cards but Hopper, other heads
// than 80 to 128, and where there is too little work for blocks that take all heads of a group.
//
// The scores are made turned (keys down, queries across), so that the probabilities leave the tensor cores in the very
// layout in which the product with d_out takes them, and so do their gradients for the product with q. With D = 256, dK
// and dV do not fit the registers together: SPLIT makes each in a block of its own.
// Operations: 8·D a visible score and head. Traffic: k, v, dK, dV once; q and d_out once a key tile (from L2 mostly).
// Measured shares are in host/docs/log.md.

#define Q_AT(step) (tiles_at + (step) % STAGES * 2 * TILE_BYTES(TILE))
#define DO_AT(step) (Q_AT(step) + TILE_BYTES(TILE))
#define ROWS_AT(step) (rows_at + (step) % STAGES * TILE * 8)

// {lse, Σ} of the thread's two queries in columns 2·i .. 2·i+7 of a turned tile.
static __device__ __forceinline__ float4 row_numbers(u32 at, int i) {
    float4 two;
    asm volatile("ld.shared.v4.f32 {%0,%1,%2,%3}, [%4];"
                 : "=f"(two.x), "=f"(two.y), "=f"(two.z), "=f"(two.w) : "r"(at + (i * 2 + (threadIdx.x & 3) * 2) * 8));
    return two;
}

template <bool KEYS, bool VALUES>
static __device__ __forceinline__ void
d_keys(const bf16* __restrict__ qkv, long long stride, int heads, int kv_heads, const int4* __restrict__ tiles,
       const bf16* __restrict__ d_out, long long out_stride, const float2* __restrict__ rows, bf16* __restrict__ d_qkv,
       long long d_stride, int tokens, float scale, int window, char* memory) {
    const int4 tile = tiles[blockIdx.y];
    const int end = tile.y, row0 = tile.z;
    if (row0 >= end) return;
    const int kv_head = blockIdx.x, members = heads / kv_heads;
    const u32 keys = shared_base(memory), values = keys + TILE_BYTES(ROWS), tiles_at = values + TILE_BYTES(ROWS);
    const u32 rows_at = tiles_at + 2 * STAGES * TILE_BYTES(TILE), barriers = rows_at + STAGES * TILE * 8;
    const bf16* k = qkv + (heads + kv_head) * D;
    const bf16* v = k + kv_heads * D;

    // Queries from the first key on, as far as the window of the last key reaches.
    const int n = ((int)min((long long)end, (long long)row0 + ROWS - 1 + window) - row0 + TILE - 1) / TILE;
    const int steps = n * members;
    const int group = threadIdx.x >> 7, lane = threadIdx.x & 31;
    const int group_row = row0 + group * 64;
    const int row = group_row + ((threadIdx.x >> 5) & 3) * 16 + (lane >> 2);  // the thread's keys: row and row + 8
    const float c = scale * LOG2E;

    auto load = [&](int step) {
        int head = kv_head * members + step / n, query = row0 + step % n * TILE;
        if (step == 0) {
            load_tile<ROWS>(keys, k, stride, row0, end);
            load_tile<ROWS>(values, v, stride, row0, end);
        }
        load_tile<TILE>(Q_AT(step), qkv + head * D, stride, query, end);
        load_tile<TILE>(DO_AT(step), d_out + head * D, out_stride, query, end);
        if (loader() < TILE) {
            bool inside = query + loader() < end;
            const float2* from = rows + (long long)head * tokens + (inside ? query + loader() : 0);
            asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;"
                         ::"r"(ROWS_AT(step) + loader() * 8), "l"(from), "r"(inside ? 8 : 0) : "memory");
        }
        commit_copies();
    };
    SPLIT_ROLES(steps, load);

    float dk[D / 2], dv[D / 2];
    float s[TILE / 2], dp[TILE / 2];
    u32 p[TILE / 4], ds[TILE / 4];
#pragma unroll
    for (int i = 0; i < D / 2; i++) dk[i] = dv[i] = 0.0f;

    for (int step = 0; step < steps; step++) {
        const int query = row0 + step % n * TILE;
        acquire(barriers, step, steps, load);
        pin(s);
        pin(dp);
        fence_products();
        product_tiles<ROWS, TILE>(s, keys, group * 64, Q_AT(step));
        commit_products();
        if (KEYS) {
            product_tiles<ROWS, TILE>(dp, values, group * 64, DO_AT(step));
            commit_products();
        }
        wait_products<KEYS>();
        pin(s);
        // s[key, query] → probabilities. Rows past the document are zeros in every operand and add nothing.
#pragma unroll
        for (int i = 0; i < TILE / 2; i += 4) {
            float4 two = row_numbers(ROWS_AT(step), i);
            s[i] = exp2_fast(s[i] * c - two.x);
            s[i + 1] = exp2_fast(s[i + 1] * c - two.z);
            s[i + 2] = exp2_fast(s[i + 2] * c - two.x);
            s[i + 3] = exp2_fast(s[i + 3] * c - two.z);
        }
        if (query < group_row + 63 || query + TILE - 1 - group_row >= window) {
#pragma unroll
            for (int i = 0; i < TILE / 2; i++) {
                int at = query + (i >> 2) * 8 + (lane & 3) * 2 + (i & 1), key = row + ((i & 2) << 2);
                if (key > at || at - key >= window) s[i] = 0.0f;
            }
        }
        if (VALUES) {
            round_operand<TILE>(p, s);
            pin(dv);
            fence_products();
            product_columns<TILE>(dv, p, DO_AT(step));
            commit_products();
        }
        if (KEYS) {
            wait_products<VALUES>();
            pin(dp);
#pragma unroll
            for (int i = 0; i < TILE / 2; i += 4) {
                float4 two = row_numbers(ROWS_AT(step), i);
                dp[i] = s[i] * (dp[i] - two.y);
                dp[i + 1] = s[i + 1] * (dp[i + 1] - two.w);
                dp[i + 2] = s[i + 2] * (dp[i + 2] - two.y);
                dp[i + 3] = s[i + 3] * (dp[i + 3] - two.w);
            }
            round_operand<TILE>(ds, dp);
            pin(dk);
            fence_products();
            product_columns<TILE>(dk, ds, Q_AT(step));
            commit_products();
        }
        wait_products<0>();
        if (KEYS) pin(dk);
        if (VALUES) pin(dv);
        release(barriers, step);
    }
    bf16* to = d_qkv + (heads + kv_head) * D;
    if (KEYS) write_rows(to, d_stride, row, end, dk, scale, scale);
    if (VALUES) write_rows(to + kv_heads * D, d_stride, row, end, dv, 1.0f, 1.0f);
}

extern "C" __global__ void __launch_bounds__(BLOCK_THREADS, 1)
attention_d_keys(const bf16* __restrict__ qkv, long long stride, int heads, int kv_heads, const int4* __restrict__ tiles,
                 const bf16* __restrict__ d_out, long long out_stride, const float2* __restrict__ rows,
                 bf16* __restrict__ d_qkv, long long d_stride, int tokens, float scale, int window) {
    extern __shared__ char memory[];
#define ALL qkv, stride, heads, kv_heads, tiles, d_out, out_stride, rows, d_qkv, d_stride, tokens, scale, window, memory
#if SPLIT
    if (blockIdx.z == 0)
        d_keys<true, false>(ALL);
    else
        d_keys<false, true>(ALL);
#else
    d_keys<true, true>(ALL);
#endif
}
