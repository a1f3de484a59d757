// Causal attention over packed documents with grouped heads and an optional window: the plainest correct form, for any
// head size up to 256, as a reference and where nothing faster serves.
//
// Traffic: each query reads all keys and values it sees (and the other way round in the backward pass), so that it runs
// at the rate of the caches; it uses no tensor cores. Measured share of the limit: not a kernel to be fast.
//
// One warp computes one query of one head (or, for dK and dV, one key of one key head); a lane holds every 32nd element.

#define LANES 8  // 256 / 32

// lse: see lse_place; qkv[tokens, stride], heads of q, then of k, then of v.
extern "C" __global__ void attention_plain_forward(
    bf16* out, float* lse, const bf16* qkv, const int* starts, int documents, int tokens, int heads, int kv_heads, int dim,
    int window, float scale, int stride, int out_stride) {
    int row = blockIdx.x * 4 + (threadIdx.x >> 5), head = blockIdx.y, lane = threadIdx.x & 31;
    if (row >= tokens) return;
    int document = document_of(starts, documents, row), start = starts[document];
    long long place = lse_place(start, starts[document + 1], heads, head, row);
    if (window > 0) start = max(start, row + 1 - window);
    int kv = head / (heads / kv_heads);
    float q[LANES], sum[LANES];
#pragma unroll
    for (int i = 0; i < LANES; i++) {
        int c = lane + 32 * i;
        q[i] = c < dim ? f32_of(qkv[(u64)row * stride + head * dim + c]) * scale : 0.f;
        sum[i] = 0.f;
    }
    float max_score = -INF, total = 0.f;
    for (int key = start; key <= row; key++) {
        const bf16* k = qkv + (u64)key * stride + (heads + kv) * dim;
        const bf16* v = k + kv_heads * dim;
        float dot = 0.f;
#pragma unroll
        for (int i = 0; i < LANES; i++) {
            int c = lane + 32 * i;
            if (c < dim) dot += q[i] * f32_of(k[c]);
        }
        dot = warp_sum(dot);
        float new_max = fmaxf(max_score, dot), shrink = __expf(max_score - new_max), p = __expf(dot - new_max);
        total = total * shrink + p;
        max_score = new_max;
#pragma unroll
        for (int i = 0; i < LANES; i++) {
            int c = lane + 32 * i;
            if (c < dim) sum[i] = sum[i] * shrink + p * f32_of(v[c]);
        }
    }
#pragma unroll
    for (int i = 0; i < LANES; i++) {
        int c = lane + 32 * i;
        if (c < dim) out[(u64)row * out_stride + head * dim + c] = bf16_of(sum[i] / total);
    }
    if (lane == 0) lse[place] = max_score + __logf(total);
}

// dq, and delta[heads, tokens] = Σ d_out · out.
extern "C" __global__ void attention_plain_backward_q(
    bf16* d_qkv, float* delta, const bf16* d_out, const bf16* out, const float* lse, const bf16* qkv, const int* starts,
    int documents, int tokens, int heads, int kv_heads, int dim, int window, float scale, int stride, int out_stride,
    int d_out_stride, int d_stride) {
    int row = blockIdx.x * 4 + (threadIdx.x >> 5), head = blockIdx.y, lane = threadIdx.x & 31;
    if (row >= tokens) return;
    int document = document_of(starts, documents, row), start = starts[document];
    long long place = lse_place(start, starts[document + 1], heads, head, row);
    if (window > 0) start = max(start, row + 1 - window);
    int kv = head / (heads / kv_heads);
    float q[LANES], dy[LANES], dq[LANES], dot_out = 0.f;
#pragma unroll
    for (int i = 0; i < LANES; i++) {
        int c = lane + 32 * i;
        bool in = c < dim;
        q[i] = in ? f32_of(qkv[(u64)row * stride + head * dim + c]) : 0.f;
        dy[i] = in ? f32_of(d_out[(u64)row * d_out_stride + head * dim + c]) : 0.f;
        dot_out += in ? dy[i] * f32_of(out[(u64)row * out_stride + head * dim + c]) : 0.f;
        dq[i] = 0.f;
    }
    dot_out = warp_sum(dot_out);
    float row_lse = lse[place];
    if (lane == 0) delta[(u64)head * tokens + row] = dot_out;
    for (int key = start; key <= row; key++) {
        const bf16* k = qkv + (u64)key * stride + (heads + kv) * dim;
        const bf16* v = k + kv_heads * dim;
        float dot = 0.f, dp = 0.f;
#pragma unroll
        for (int i = 0; i < LANES; i++) {
            int c = lane + 32 * i;
            if (c < dim) dot += q[i] * f32_of(k[c]), dp += dy[i] * f32_of(v[c]);
        }
        dot = warp_sum(dot), dp = warp_sum(dp);
        float ds = __expf(dot * scale - row_lse) * (dp - dot_out) * scale;
#pragma unroll
        for (int i = 0; i < LANES; i++) {
            int c = lane + 32 * i;
            if (c < dim) dq[i] += ds * f32_of(k[c]);
        }
    }
#pragma unroll
    for (int i = 0; i < LANES; i++) {
        int c = lane + 32 * i;
        if (c < dim) d_qkv[(u64)row * d_stride + head * dim + c] = bf16_of(dq[i]);
    }
}

extern "C" __global__ void attention_plain_backward_kv(
    bf16* d_qkv, const float* delta, const bf16* d_out, const float* lse, const bf16* qkv, const int* starts,
    int documents, int tokens, int heads, int kv_heads, int dim, int window, float scale, int stride, int d_out_stride,
    int d_stride) {
    int key = blockIdx.x * 4 + (threadIdx.x >> 5), kv = blockIdx.y, lane = threadIdx.x & 31;
    if (key >= tokens) return;
    int document = document_of(starts, documents, key), start = starts[document], stop = starts[document + 1], end = stop;
    if (window > 0) end = min(end, key + window);
    const bf16* k_row = qkv + (u64)key * stride + (heads + kv) * dim;
    float k[LANES], v[LANES], dk[LANES], dv[LANES];
#pragma unroll
    for (int i = 0; i < LANES; i++) {
        int c = lane + 32 * i;
        k[i] = c < dim ? f32_of(k_row[c]) : 0.f;
        v[i] = c < dim ? f32_of(k_row[kv_heads * dim + c]) : 0.f;
        dk[i] = dv[i] = 0.f;
    }
    int group = heads / kv_heads;
    for (int head = kv * group; head < (kv + 1) * group; head++)
        for (int row = key; row < end; row++) {
            const bf16* q = qkv + (u64)row * stride + head * dim;
            const bf16* dy = d_out + (u64)row * d_out_stride + head * dim;
            float dot = 0.f, dp = 0.f;
#pragma unroll
            for (int i = 0; i < LANES; i++) {
                int c = lane + 32 * i;
                if (c < dim) dot += k[i] * f32_of(q[c]), dp += v[i] * f32_of(dy[c]);
            }
            dot = warp_sum(dot), dp = warp_sum(dp);
            float p = __expf(dot * scale - lse[lse_place(start, stop, heads, head, row)]);
            float ds = p * (dp - delta[(u64)head * tokens + row]) * scale;
#pragma unroll
            for (int i = 0; i < LANES; i++) {
                int c = lane + 32 * i;
                if (c < dim) dk[i] += ds * f32_of(q[c]), dv[i] += p * f32_of(dy[c]);
            }
        }
    bf16* d_row = d_qkv + (u64)key * d_stride + (heads + kv) * dim;
#pragma unroll
    for (int i = 0; i < LANES; i++) {
        int c = lane + 32 * i;
        if (c < dim) d_row[c] = bf16_of(dk[i]), d_row[kv_heads * dim + c] = bf16_of(dv[i]);
    }
}
