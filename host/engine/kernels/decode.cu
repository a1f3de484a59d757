// Attention of new queries over a cache of keys and values, for generation.
//
// Traffic: reads the cache once a key head and query. One block a (query, head): its warps share the keys, and combine
// their sums at the end. Bound by memory with many keys, by latency with few.

// q[queries, stride] (heads·dim); keys, values[positions, kv_heads·dim]; query i stands at position first + i.
extern "C" __global__ void __launch_bounds__(256) attend_cache(
    bf16* out, const bf16* q, const bf16* keys, const bf16* values, int first, int heads, int kv_heads, int dim,
    int window, float scale, int stride, int out_stride) {
    __shared__ float sums[8][256];
    __shared__ float maxima[8], totals[8];
    int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, head = blockIdx.y, kv = head / (heads / kv_heads);
    int last = first + blockIdx.x, start = window > 0 ? max(0, last + 1 - window) : 0;
    float x[8], sum[8], top = -__int_as_float(0x7f800000), total = 0.f;
#pragma unroll
    for (int i = 0; i < 8; i++) {
        int c = lane + 32 * i;
        x[i] = c < dim ? f32_of(q[(u64)blockIdx.x * stride + head * dim + c]) * scale : 0.f;
        sum[i] = 0.f;
    }
    for (int key = start + warp; key <= last; key += 8) {
        const bf16 *k = keys + ((u64)key * kv_heads + kv) * dim, *v = values + ((u64)key * kv_heads + kv) * dim;
        float dot = 0.f;
#pragma unroll
        for (int i = 0; i < 8; i++) {
            int c = lane + 32 * i;
            if (c < dim) dot += x[i] * f32_of(k[c]);
        }
        dot = warp_sum(dot);
        float new_top = fmaxf(top, dot), shrink = __expf(top - new_top), p = __expf(dot - new_top);
        total = total * shrink + p;
        top = new_top;
#pragma unroll
        for (int i = 0; i < 8; i++) {
            int c = lane + 32 * i;
            if (c < dim) sum[i] = sum[i] * shrink + p * f32_of(v[c]);
        }
    }
#pragma unroll
    for (int i = 0; i < 8; i++)
        if (lane + 32 * i < dim) sums[warp][lane + 32 * i] = sum[i];
    if (lane == 0) maxima[warp] = top, totals[warp] = total;
    __syncthreads();
    float all_top = maxima[0];
    for (int w = 1; w < 8; w++) all_top = fmaxf(all_top, maxima[w]);
    for (int c = threadIdx.x; c < dim; c += 256) {
        float all = 0.f, weight = 0.f;
        for (int w = 0; w < 8; w++) {
            float factor = totals[w] > 0.f ? __expf(maxima[w] - all_top) : 0.f;
            all += sums[w][c] * factor, weight += totals[w] * factor;
        }
        out[(u64)blockIdx.x * out_stride + head * dim + c] = bf16_of(all / weight);
    }
}
