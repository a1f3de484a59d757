// Attention of a few new queries against a cache of keys and values, for generation.
//
// One block of 4 warps computes one query of one head; a warp walks every fourth group of keys, LANES lanes a key, each
// with 8 of its numbers (16 bytes), and keeps a running maximum and sum; the warps' parts are added in one order at the
// end. Traffic: the cache once a query and group of heads (the rest from L2): generation is bound by the weights, not by
// this. LANES: the power of two that covers dim / 8, at least 4.

extern "C" __global__ void __launch_bounds__(128)
attention_decode(const bf16* __restrict__ q, const bf16* __restrict__ keys, const bf16* __restrict__ values,
                 bf16* __restrict__ out, int heads, int kv_heads, int dim, int past, float scale, int window, int q_stride,
                 int key_stride, int out_stride) {
    const int head = blockIdx.x, query = blockIdx.y, kv_head = head / (heads / kv_heads);
    const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, part = lane % LANES, slot = lane / LANES;
    const int position = past + query, first = max(position - window + 1, 0);
    const bool holds = part * 8 < dim;
    float x[8], sum[8], most = -__int_as_float(0x7f800000), total = 0.f;
    Eight zero = {{0.f, 0.f, 0.f, 0.f, 0.f, 0.f, 0.f, 0.f}};
    Eight mine = holds ? load8(q + (u64)query * q_stride + head * dim + part * 8) : zero;
#pragma unroll
    for (int i = 0; i < 8; i++) {
        x[i] = mine.x[i] * scale * 1.4426950408889634f;
        sum[i] = 0.f;
    }
    for (int base = first + warp * (32 / LANES); base <= position; base += 4 * (32 / LANES)) {
        int key = base + slot;
        bool seen = key <= position;
        u64 at = (u64)(seen ? key : position) * key_stride + kv_head * dim + part * 8;
        Eight k = holds ? load8(keys + at) : zero, v = holds ? load8(values + at) : zero;
        float score = 0.f;
#pragma unroll
        for (int i = 0; i < 8; i++) score += x[i] * k.x[i];
#pragma unroll
        for (int d = LANES / 2; d; d >>= 1) score += __shfl_xor_sync(0xffffffffu, score, d);
        if (seen) {
            float now = fmaxf(most, score), shrink = exp2f(most - now), weight = exp2f(score - now);
            most = now;
            total = total * shrink + weight;
#pragma unroll
            for (int i = 0; i < 8; i++) sum[i] = sum[i] * shrink + weight * v.x[i];
        }
    }
    // Every slot of every warp holds a part: {most, total, sums}.
    const int slots = 4 * (32 / LANES);
    __shared__ float parts[32][2], sums[32][LANES * 8];
    int row = warp * (32 / LANES) + slot;
    if (part == 0) {
        parts[row][0] = most;
        parts[row][1] = total;
    }
#pragma unroll
    for (int i = 0; i < 8; i++) sums[row][part * 8 + i] = sum[i];
    __syncthreads();
    float best = -__int_as_float(0x7f800000), all = 0.f;
    for (int i = 0; i < slots; i++) best = fmaxf(best, parts[i][0]);
    for (int i = 0; i < slots; i++) all += parts[i][1] * exp2f(parts[i][0] - best);
    for (int c = threadIdx.x; c < dim; c += 128) {
        float value = 0.f;
        for (int i = 0; i < slots; i++) value += sums[i][c] * exp2f(parts[i][0] - best);
        out[(u64)query * out_stride + head * dim + c] = bf16_of(value / all);
    }
}
