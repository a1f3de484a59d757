// Attention of a few new queries against a cache of keys and values, for generation.
//
// A block of 4 warps takes MEMBERS query heads of one key head, one query, and a stretch of the keys that it sees: a key's numbers
// are read once for all its heads. LANES lanes share a key, each with 8 of its numbers (16 bytes), four keys at a time, and keep a
// running maximum and sum. A block's parts are added in one order; with several stretches they are written to `parts`, which
// `attention_decode_parts` adds in the order of the keys.
//
// Traffic: the cache once a query and MEMBERS heads. Measured, H100, 32 + 8 heads of 128, one query behind 32,767: 2.2 TB/s with the
// second kernel, 73 % of what a copy reaches.
// LANES: the power of two that covers dim / 8, at least 4. MEMBERS divides heads / kv_heads.

#define AT_ONCE 4
#define KEYS (32 / LANES)  // keys of a warp, side by side
#define NOTHING (-INF)

// A sum of values weighted by exp2(score - most), and of the weights.
struct Part {
    float most, total;
    Eight sum;
};

// What sums relative to `most` are to be multiplied by, relative to `now`, which is not below.
static __device__ __forceinline__ float shrunk(float most, float now) { return most == now ? 1.f : exp2f(most - now); }

extern "C" __global__ void __launch_bounds__(128)
attention_decode(const bf16* __restrict__ q, const bf16* __restrict__ keys, const bf16* __restrict__ values, bf16* __restrict__ out,
                 float* __restrict__ parts, int heads, int kv_heads, int dim, int past, float scale, int window, int first_key,
                 int stretch, int q_stride, int key_stride, int out_stride) {
    const int head0 = blockIdx.x * MEMBERS, kv_head = head0 / (heads / kv_heads), query = blockIdx.z;
    const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, part = lane % LANES, slot = warp * KEYS + lane / LANES;
    const int position = past + query, begin = first_key + blockIdx.y * stretch;
    const int from = max(begin, position - window + 1), to = min(begin + stretch, position + 1);
    const bool holds = part * 8 < dim;
    const uint4 none = make_uint4(0, 0, 0, 0);
    const u64 column = kv_head * dim + part * 8;

    uint4 mine[MEMBERS];
    Part own[MEMBERS];
#pragma unroll
    for (int m = 0; m < MEMBERS; m++) {
        mine[m] = none;
        if (holds) mine[m] = *reinterpret_cast<const uint4*>(q + (u64)query * q_stride + (head0 + m) * dim + part * 8);
        own[m] = {NOTHING, 0.f, eight_of(none)};
    }
    for (int base = from + slot; base - slot < to; base += AT_ONCE * 4 * KEYS) {
        uint4 k[AT_ONCE], v[AT_ONCE];
#pragma unroll
        for (int j = 0; j < AT_ONCE; j++) {
            const int key = base + j * 4 * KEYS;
            k[j] = v[j] = none;
            if (holds && key < to) {
                k[j] = *reinterpret_cast<const uint4*>(keys + (u64)key * key_stride + column);
                v[j] = *reinterpret_cast<const uint4*>(values + (u64)key * key_stride + column);
            }
        }
#pragma unroll
        for (int m = 0; m < MEMBERS; m++) {
            const Eight y = eight_of(mine[m]);
            float score[AT_ONCE], now = own[m].most;
#pragma unroll
            for (int j = 0; j < AT_ONCE; j++) {
                Eight x = eight_of(k[j]);
                score[j] = 0.f;
                EIGHT score[j] += y.x[i] * x.x[i];
#pragma unroll
                for (int d = LANES / 2; d; d >>= 1) score[j] += __shfl_xor_sync(0xffffffffu, score[j], d);
                score[j] = base + j * 4 * KEYS < to ? score[j] * (scale * LOG2E) : NOTHING;
                now = fmaxf(now, score[j]);
            }
            const float shrink = shrunk(own[m].most, now);
            own[m].most = now;
            own[m].total *= shrink;
            EIGHT own[m].sum.x[i] *= shrink;
#pragma unroll
            for (int j = 0; j < AT_ONCE; j++) {
                const float weight = score[j] == NOTHING ? 0.f : exp2f(score[j] - now);
                Eight x = eight_of(v[j]);
                own[m].total += weight;
                EIGHT own[m].sum.x[i] += weight * x.x[i];
            }
        }
    }

    // Each slot of each warp holds a part.
    __shared__ __align__(16) float sums[4 * KEYS][MEMBERS][LANES * 8];
    __shared__ float ends[4 * KEYS][MEMBERS][2];
#pragma unroll
    for (int m = 0; m < MEMBERS; m++) {
        if (part == 0) ends[slot][m][0] = own[m].most, ends[slot][m][1] = own[m].total;
        store8f(&sums[slot][m][part * 8], own[m].sum);
    }
    __syncthreads();
    for (int at = threadIdx.x; at < MEMBERS * dim; at += 128) {
        const int m = at / dim, c = at - m * dim, head = head0 + m;
        float most = NOTHING, total = 0.f, value = 0.f;
#pragma unroll
        for (int i = 0; i < 4 * KEYS; i++) most = fmaxf(most, ends[i][m][0]);
#pragma unroll
        for (int i = 0; i < 4 * KEYS; i++) {
            const float shrink = shrunk(ends[i][m][0], most);
            total += ends[i][m][1] * shrink;
            value += sums[i][m][c] * shrink;
        }
        if (gridDim.y == 1) {
            out[(u64)query * out_stride + head * dim + c] = bf16_of(value / total);
            continue;
        }
        float* to_part = parts + (((u64)query * heads + head) * gridDim.y + blockIdx.y) * (dim + 2);
        to_part[2 + c] = value;
        if (c == 0) to_part[0] = most, to_part[1] = total;
    }
}

// out[query, head] = Σ over stretches of the keys, in their order: at most 128; parts[queries, heads, stretches, 2 + dim].
extern "C" __global__ void __launch_bounds__(128) attention_decode_parts(
    const float* __restrict__ parts, bf16* __restrict__ out, int stretches, int dim, int out_stride) {
    const int head = blockIdx.x, query = blockIdx.y, width = dim + 2, mine = threadIdx.x;
    const float* from = parts + ((u64)query * gridDim.x + head) * stretches * width;
    __shared__ float weights[128];
    const bool holds = mine < stretches;
    const float most = holds ? from[(u64)mine * width] : NOTHING, best = block_max(most);
    weights[mine] = holds ? shrunk(most, best) : 0.f;
    const float total = block_sum(holds ? from[(u64)mine * width + 1] * weights[mine] : 0.f);
    for (int c = mine; c < dim; c += 128) {
        float value = 0.f;
#pragma unroll 8
        for (int i = 0; i < stretches; i++) value += from[(u64)i * width + 2 + c] * weights[i];
        out[(u64)query * out_stride + head * dim + c] = bf16_of(value / total);
    }
}
