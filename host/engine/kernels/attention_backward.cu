// Causal attention over packed documents, backward in one pass: dQ, dK and dV with 5 products (Hopper, D of 80 to 128).
//
// A block owns ROWS keys of one key head and walks the tiles of TILE queries that see them, of all heads of its group,
// from the document's last tile down to the diagonal. dK and dV stay in registers; the scores are made turned, as in
// attention_d_keys.cu. Their gradient goes through shared memory to the product with the keys, and a tile of dQ from
// there to f32 sums in global memory, by bulk additions of two threads that compute nothing.
//
// **The order of additions is fixed**: to a tile of queries the blocks add in the order of their keys. A counter a tile
// and head says whose turn it is; the first stores instead of adding, so nothing is cleared. Blocks with earlier keys
// have more work and start earlier, and all walk downwards, so each finds its turn come one tile after its predecessor,
// and next to nobody waits. Blocks take their tiles by a ticket: who waits, waits for one that runs, whatever order the
// blocks are started in. Who adds last to a tile, the block at the diagonal, rounds it into its place at its end. Two
// writers take steps in turn: while one waits for an addition to end and gives the turn, the other begins the next.
//
// Operations: 10·D a visible score. Traffic: k, v, dK, dV once; q, d_out and twice the f32 sums of dQ once a key tile,
// from L2 mostly if few enough heads are worked on at a time (`together`). Measured, H100, D = 128: 370 TFLOP/s over
// the visible half at 4 × 2048 tokens, 490 at 1 × 16384; what holds it up is in host/docs/log.md.

#define Q_AT(step) (tiles_at + (step) % STAGES * 2 * TILE_BYTES(TILE))
#define DO_AT(step) (Q_AT(step) + TILE_BYTES(TILE))
#define ROWS_AT(step) (rows_at + (step) % STAGES * TILE * 8)
// Gradients of scores: rows of keys, one column block of TILE queries.
#define DS_AT(step) (scores_at + ((step) & 1) * ROWS * 128)
// dQ of 64 columns, rows of 256 bytes, in whose number the 32-byte pieces are permuted: [TILE, 64] f32.
#define SUM_BYTES (TILE * 256)
#define SUMS_AT(half) (sums_at + (half) * SUM_BYTES)
#define SUMS_EMPTY(half) (sum_barriers + (half) * 8)
#define SUMS_DONE (sum_barriers + 16)
#define SUMS_FULL(half, writer) (sum_barriers + 24 + ((half) + 2 * (writer)) * 8)
#define TURNS (WRITERS / 32)  // writers, who take steps in turn

// {lse, Σ} of the thread's two queries in columns 2·i .. 2·i+7 of a turned tile.
static __device__ __forceinline__ float4 row_numbers(u32 at, int i) {
    float4 two;
    asm volatile("ld.shared.v4.f32 {%0,%1,%2,%3}, [%4];"
                 : "=f"(two.x), "=f"(two.y), "=f"(two.z), "=f"(two.w) : "r"(at + (i * 2 + (threadIdx.x & 3) * 2) * 8));
    return two;
}

template <int N>
struct Number {
    static constexpr int value = N;
};

// ---- sums in global memory ----

static __device__ __forceinline__ int read_turn(const int* turn) {
    int value;
    asm volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(value) : "l"(turn) : "memory");
    return value;
}
static __device__ __forceinline__ void give_turn(int* turn, int value) {
    asm volatile("st.release.gpu.global.s32 [%0], %1;" ::"l"(turn), "r"(value) : "memory");
}
// Between what bulk copies and what ordinary accesses do.
static __device__ __forceinline__ void order_copies() { asm volatile("fence.proxy.async;" ::: "memory"); }

// What the next block will soon add to stays in L2 rather than what streams by.
static __device__ __forceinline__ u64 keeping() {
    u64 policy;
    asm volatile("createpolicy.fractional.L2::evict_last.b64 %0, 1.0;" : "=l"(policy));
    return policy;
}
static __device__ __forceinline__ void bulk_store(float* to, u32 from, u64 policy) {
    asm volatile("cp.async.bulk.global.shared::cta.bulk_group.L2::cache_hint [%0], [%1], %2, %3;"
                 ::"l"(to), "r"(from), "n"(SUM_BYTES), "l"(policy) : "memory");
}
static __device__ __forceinline__ void bulk_add(float* to, u32 from, u64 policy) {
    asm volatile("cp.reduce.async.bulk.global.shared::cta.bulk_group.L2::cache_hint.add.f32 [%0], [%1], %2, %3;"
                 ::"l"(to), "r"(from), "n"(SUM_BYTES), "l"(policy) : "memory");
}
static __device__ __forceinline__ void commit_bulk() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
template <int N>
static __device__ __forceinline__ void wait_bulk_read() { asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(N) : "memory"); }
static __device__ __forceinline__ void wait_bulk() { asm volatile("cp.async.bulk.wait_group 0;" ::: "memory"); }

static __device__ __forceinline__ float4 read_sums(const float* from) {
    float4 four;
    asm volatile("ld.global.cg.v4.f32 {%0,%1,%2,%3}, [%4];"
                 : "=f"(four.x), "=f"(four.y), "=f"(four.z), "=f"(four.w) : "l"(from) : "memory");
    return four;
}

extern "C" __global__ void __launch_bounds__(BLOCK_THREADS, 1)
attention_backward(const bf16* __restrict__ qkv, long long stride, int heads, int kv_heads, const int4* __restrict__ tiles,
                   const bf16* __restrict__ d_out, long long out_stride, const float2* __restrict__ rows,
                   bf16* __restrict__ d_qkv, long long d_stride, int tokens, float scale, int window,
                   float* __restrict__ sums, int slots, int* turns, int tile_count, int together) {
    extern __shared__ char memory[];
    __shared__ int ticket;
    if (threadIdx.x == 0) ticket = atomicAdd(turns + (long long)heads * slots, 1);
    __syncthreads();
    // So many key heads at a time that what the blocks under way read and add to stays in L2.
    const int section = ticket / (together * tile_count), inside = ticket % (together * tile_count);
    const int width = min(together, kv_heads - section * together), kv_head = section * together + inside % width;
    const int4 tile = tiles[inside / width];  // first row and end of the document, first row of the tile, document
    const int start = tile.x, end = tile.y, row0 = tile.z;
    if (row0 >= end) return;
    const int members = heads / kv_heads;
    const u32 keys = shared_base(memory), values = keys + TILE_BYTES(ROWS), tiles_at = values + TILE_BYTES(ROWS);
    const u32 scores_at = tiles_at + 2 * STAGES * TILE_BYTES(TILE), sums_at = scores_at + 2 * ROWS * 128;
    const u32 rows_at = sums_at + 2 * SUM_BYTES, barriers = rows_at + STAGES * TILE * 8, sum_barriers = barriers + BARRIER_BYTES;

    // Tiles of queries, counted in their document: up to where the window of the last key reaches.
    const int first = (row0 - start) / TILE;
    const int last = ((int)min((long long)end, (long long)row0 + ROWS - 1 + window) - 1 - start) / TILE;
    const int steps = (last - first + 1) * members;
    const long long slot0 = start / TILE + tile.w;  // the place of the document's first tile among all

    if (threadIdx.x == 0) {
        for (int writer = 0; writer < TURNS; writer++) {
            make_barrier(SUMS_FULL(0, writer), 4);
            make_barrier(SUMS_FULL(1, writer), 4);
        }
        make_barrier(SUMS_EMPTY(0), 1);
        make_barrier(SUMS_EMPTY(1), 1);
        make_barrier(SUMS_DONE, TURNS);
    }
    make_barriers(barriers);

    if (threadIdx.x >= THREADS + LOADERS) {
        give_registers();
        if (threadIdx.x & 31) return;
        const int writer = (threadIdx.x - THREADS - LOADERS) / 32;
        const u64 policy = keeping();
        int* before = nullptr;  // the counter of the addition under way
        int given = 0;
        auto finish = [&] {
            wait_bulk();
            order_copies();
            give_turn(before, given);
        };
        for (int step = writer; step < steps; step += TURNS) {
            const int at = last - step / members;
            const long long slot = (long long)(kv_head * members + step % members) * slots + slot0 + at;
            // Of those that see this tile, blocks of earlier keys.
            const int turn = (row0 - start) / ROWS - (max(at * TILE - (ROWS - 2) - window, 0) + ROWS - 1) / ROWS;
            bool mine = turn == 0 || read_turn(turns + slot) == turn;
            if (step >= TURNS) finish();
            while (!mine) mine = read_turn(turns + slot) == turn;
            order_copies();
            float* to = sums + slot * (2 * SUM_BYTES / 4);
#pragma unroll
            for (int half = 0; half < 2; half++) {
                wait_barrier(SUMS_FULL(half, writer), step / TURNS & 1);
                if (turn == 0)
                    bulk_store(to + half * (SUM_BYTES / 4), SUMS_AT(half), policy);
                else
                    bulk_add(to + half * (SUM_BYTES / 4), SUMS_AT(half), policy);
                commit_bulk();
            }
            wait_bulk_read<1>();
            arrive(SUMS_EMPTY(0));
            wait_bulk_read<0>();
            arrive(SUMS_EMPTY(1));
            before = turns + slot;
            given = turn + 1;
        }
        if (writer < steps) finish();
        arrive(SUMS_DONE);
        return;
    }
    if (threadIdx.x >= THREADS) {
        give_registers();
        int query = start + last * TILE, member = 0;
        produce(barriers, steps, [&](int step) {
            const int head = kv_head * members + member;
            if (step == 0) {
                const bf16* k = qkv + (heads + kv_head) * D;
                load_tile<ROWS>(keys, k, stride, row0, end);
                load_tile<ROWS>(values, k + kv_heads * D, stride, row0, end);
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
            if (++member == members) member = 0, query -= TILE;
        });
        return;
    }
    take_registers();

    const int group = threadIdx.x >> 7, lane = threadIdx.x & 31, warp_row = ((threadIdx.x >> 5) & 3) * 16;
    const int group_row = row0 + group * 64;
    const int row = group_row + warp_row + (lane >> 2);  // the thread's keys: row and row + 8
    const float c = scale * LOG2E;

    float dk[D / 2], dv[D / 2];
    u32 p[TILE / 4], ds[TILE / 4];
#pragma unroll
    for (int i = 0; i < D / 2; i++) dk[i] = dv[i] = 0.0f;
    // Where the thread's parts of the scores' gradients and of dQ lie.
    const int score_row = group * 64 + warp_row + (lane & 15), sum_row = warp_row + (lane >> 2);
    const u32 sum_at = SUMS_AT(group) + sum_row * 256 + ((sum_row & 7) << 5) + (lane & 3) * 8;

    int query = start + last * TILE, member = 0;
    // dQ's columns of this warpgroup, of the first R keys, and to the writers with them.
    auto make_queries = [&](float (&dq)[32], int step, auto r) {
        product_turned<decltype(r)::value>(dq, DS_AT(step), keys + group * (ROWS * 128));
        commit_products();
    };
    auto hand_over = [&](float (&dq)[32], int step) {
        wait_barrier(SUMS_EMPTY(group), (step & 1) ^ 1);
#pragma unroll
        for (int i = 0; i < 8; i++) {
            u32 to = sum_at ^ (i << 5);
            asm volatile("st.shared.v2.f32 [%0], {%1,%2};" ::"r"(to), "f"(dq[4 * i]), "f"(dq[4 * i + 1]) : "memory");
            asm volatile("st.shared.v2.f32 [%0], {%1,%2};" ::"r"(to + 8 * 256), "f"(dq[4 * i + 2]), "f"(dq[4 * i + 3]) : "memory");
        }
        show_shared();
        arrive_warp(SUMS_FULL(group, step % TURNS));
    };
    auto work = [&](int step, auto r) {
        float s[TILE / 2], dp[TILE / 2], dq[32];
        acquire(barriers, step);
        fence_products();
        product_tiles<ROWS, TILE>(s, keys, group * 64, Q_AT(step));
        commit_products();
        product_tiles<ROWS, TILE>(dp, values, group * 64, DO_AT(step));
        commit_products();
        wait_products<1>();
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
        round_operand<TILE>(p, s);
        pin(dv);
        fence_products();
        product_columns<TILE>(dv, p, DO_AT(step));
        commit_products();
        wait_products<1>();
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
#pragma unroll
        for (int k = 0; k < TILE / 16; k++) {
            u32 to = DS_AT(step) + score_row * 128 + (((2 * k + (lane >> 4)) ^ (score_row & 7)) << 4);
            asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1,%2,%3,%4};"
                         ::"r"(to), "r"(ds[4 * k]), "r"(ds[4 * k + 1]), "r"(ds[4 * k + 2]), "r"(ds[4 * k + 3]) : "memory");
        }
        show_shared();
        asm volatile("bar.sync 1, %0;" ::"n"(THREADS) : "memory");
        pin(dk);
        fence_products();
        make_queries(dq, step, r);
        product_columns<TILE>(dk, ds, Q_AT(step));
        commit_products();
        wait_products<1>();
        pin(dv);
        pin(dq);
        hand_over(dq, step);
        wait_products<0>();
        pin(dk);
        release(barriers, step);
        if (++member == members) member = 0, query -= TILE;
    };
    int step = 0;
    for (; step < steps - members; step++) work(step, Number<ROWS>());
    // The tile at the diagonal sees the first half of the keys only.
    for (; step < steps; step++) {
        if (group == 0) {
            work(step, Number<ROWS / 2>());
        } else {
            float dq[32];
            acquire(barriers, step);
            asm volatile("bar.sync 1, %0;" ::"n"(THREADS) : "memory");
            fence_products();
            make_queries(dq, step, Number<ROWS / 2>());
            wait_products<0>();
            pin(dq);
            hand_over(dq, step);
            release(barriers, step);
        }
    }
    bf16* to = d_qkv + (heads + kv_head) * D;
    write_rows(to, d_stride, row, end, dk, scale, scale);
    write_rows(to + kv_heads * D, d_stride, row, end, dv, 1.0f, 1.0f);

    // To the tiles at the diagonal nobody adds any more.
    wait_barrier(SUMS_DONE, 0);
    const int piece = threadIdx.x & 7;
    for (int m = 0; m < members; m++) {
        const int head = kv_head * members + m;
        const float* from = sums + ((long long)head * slots + slot0 + first) * (2 * SUM_BYTES / 4);
#pragma unroll 4
        for (int i = threadIdx.x >> 3; i < ROWS * 2; i += THREADS / 8) {
            const int at = i / (2 * TILE) * TILE + i % TILE, half = i / TILE & 1, column = half * 64 + piece * 8;
            if (row0 + at >= end || column >= D) continue;
            const float* eight = from + i * 64 + ((piece ^ (i & 7)) << 3);
            float4 a = read_sums(eight), b = read_sums(eight + 4);
            Eight x = {{a.x * scale, a.y * scale, a.z * scale, a.w * scale, b.x * scale, b.y * scale, b.z * scale, b.w * scale}};
            store8(d_qkv + (row0 + at) * d_stride + head * D + column, x);
        }
    }
}
