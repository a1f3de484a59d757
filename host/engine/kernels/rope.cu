// Biases, the heads' norms (Qwen3) and rotary embedding in one pass, and their gradients.
//
// Traffic: forward reads and writes a row of queries and keys once (values too where the output is another buffer);
// backward reads the gradients and, with norms, the numbers before them, and writes the gradients in place.
// One block a token (eight warps), one warp a head; a lane holds pairs of neighbours in the lower half of the head and
// the pairs they turn with in the upper half.

#define PAIRS 2  // a head of up to 256: 64 pairs in each half over 32 lanes

struct Pair4 {
    float a0, a1, b0, b1;  // lower half, upper half
};

static __device__ __forceinline__ void split(u32 w, float& x, float& y) { x = low_of(w), y = high_of(w); }

// cos_sin[positions, 2, half].
extern "C" __global__ void __launch_bounds__(256) rope_forward(
    bf16* out, const bf16* in, const int* positions, const float* cos_sin, const float* q_norm, const float* k_norm,
    const float* bias, int heads, int kv_heads, int dim, int out_stride, int in_stride, float eps) {
    int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, half = dim >> 1, pairs = half >> 1;
    u64 token = blockIdx.x;
    const float *cos = cos_sin + (u64)positions[token] * dim, *sin = cos + half;
    for (int head = warp; head < heads + 2 * kv_heads; head += 8) {
        bool value = head >= heads + kv_heads;
        if (value && out == in && !bias) continue;
        const u32* from = reinterpret_cast<const u32*>(in + token * in_stride + head * dim);
        u32* to = reinterpret_cast<u32*>(out + token * out_stride + head * dim);
        Pair4 x[PAIRS];
        float squares = 0.f;
#pragma unroll
        for (int j = 0; j < PAIRS; j++) {
            int p = lane + 32 * j;
            if (p >= pairs) continue;
            split(from[p], x[j].a0, x[j].a1);
            split(from[p + pairs], x[j].b0, x[j].b1);
            if (bias) {
                const float* b = bias + head * dim + 2 * p;
                x[j].a0 += b[0], x[j].a1 += b[1], x[j].b0 += b[half], x[j].b1 += b[half + 1];
            }
            squares += x[j].a0 * x[j].a0 + x[j].a1 * x[j].a1 + x[j].b0 * x[j].b0 + x[j].b1 * x[j].b1;
        }
        const float* norm = value ? nullptr : head < heads ? q_norm : k_norm;
        float inverse = norm ? rsqrtf(warp_sum(squares) / dim + eps) : 1.f;
#pragma unroll
        for (int j = 0; j < PAIRS; j++) {
            int p = lane + 32 * j;
            if (p >= pairs) continue;
            if (norm) {
                x[j].a0 *= inverse * norm[2 * p], x[j].a1 *= inverse * norm[2 * p + 1];
                x[j].b0 *= inverse * norm[half + 2 * p], x[j].b1 *= inverse * norm[half + 2 * p + 1];
            }
            if (value) {
                to[p] = bf16x2_of(x[j].a0, x[j].a1);
                to[p + pairs] = bf16x2_of(x[j].b0, x[j].b1);
                continue;
            }
            float c0 = cos[2 * p], c1 = cos[2 * p + 1], s0 = sin[2 * p], s1 = sin[2 * p + 1];
            to[p] = bf16x2_of(x[j].a0 * c0 - x[j].b0 * s0, x[j].a1 * c1 - x[j].b1 * s1);
            to[p + pairs] = bf16x2_of(x[j].b0 * c0 + x[j].a0 * s0, x[j].b1 * c1 + x[j].a1 * s1);
        }
    }
}

// d[tokens] in place; `before` are the numbers before the norms (with the biases still to be added). A block takes every
// gridDim.x-th token. parts[block, 2, dim] takes the norms' gradients if it is not null.
extern "C" __global__ void __launch_bounds__(256) rope_backward(
    bf16* d, float* parts, const bf16* before, const int* positions, const float* cos_sin, const float* q_norm,
    const float* k_norm, const float* bias, int tokens, int heads, int kv_heads, int dim, int d_stride,
    int before_stride, float eps) {
    __shared__ float sums[8][256];
    int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, half = dim >> 1, pairs = half >> 1;
    Pair4 dw[2][PAIRS];
#pragma unroll
    for (int which = 0; which < 2; which++)
#pragma unroll
        for (int j = 0; j < PAIRS; j++) dw[which][j] = {0.f, 0.f, 0.f, 0.f};
    for (u64 token = blockIdx.x; token < tokens; token += gridDim.x) {
        const float *cos = cos_sin + (u64)positions[token] * dim, *sin = cos + half;
        for (int head = warp; head < heads + kv_heads; head += 8) {
            u32* at = reinterpret_cast<u32*>(d + token * d_stride + head * dim);
            bool query = head < heads;
            const float* norm = query ? q_norm : k_norm;
            Pair4 g[PAIRS], x[PAIRS];
            float squares = 0.f, along = 0.f;
#pragma unroll
            for (int j = 0; j < PAIRS; j++) {
                int p = lane + 32 * j;
                if (p >= pairs) continue;
                Pair4 y;
                split(at[p], y.a0, y.a1);
                split(at[p + pairs], y.b0, y.b1);
                float c0 = cos[2 * p], c1 = cos[2 * p + 1], s0 = sin[2 * p], s1 = sin[2 * p + 1];
                g[j] = {y.a0 * c0 + y.b0 * s0, y.a1 * c1 + y.b1 * s1, y.b0 * c0 - y.a0 * s0, y.b1 * c1 - y.a1 * s1};
                if (!norm) continue;
                const u32* from = reinterpret_cast<const u32*>(before + token * before_stride + head * dim);
                split(from[p], x[j].a0, x[j].a1);
                split(from[p + pairs], x[j].b0, x[j].b1);
                if (bias) {
                    const float* b = bias + head * dim + 2 * p;
                    x[j].a0 += b[0], x[j].a1 += b[1], x[j].b0 += b[half], x[j].b1 += b[half + 1];
                }
                squares += x[j].a0 * x[j].a0 + x[j].a1 * x[j].a1 + x[j].b0 * x[j].b0 + x[j].b1 * x[j].b1;
                const float* w = norm + 2 * p;
                along += g[j].a0 * w[0] * x[j].a0 + g[j].a1 * w[1] * x[j].a1 + g[j].b0 * w[half] * x[j].b0 +
                         g[j].b1 * w[half + 1] * x[j].b1;
            }
            float inverse = 1.f;
            if (norm) {
                inverse = rsqrtf(warp_sum(squares) / dim + eps);
                along = warp_sum(along) * inverse * inverse * inverse / dim;
            }
#pragma unroll
            for (int j = 0; j < PAIRS; j++) {
                int p = lane + 32 * j;
                if (p >= pairs) continue;
                if (norm) {
                    if (parts) {
                        float for_q = query ? inverse : 0.f, for_k = query ? 0.f : inverse;
                        dw[0][j].a0 += g[j].a0 * x[j].a0 * for_q, dw[0][j].a1 += g[j].a1 * x[j].a1 * for_q;
                        dw[0][j].b0 += g[j].b0 * x[j].b0 * for_q, dw[0][j].b1 += g[j].b1 * x[j].b1 * for_q;
                        dw[1][j].a0 += g[j].a0 * x[j].a0 * for_k, dw[1][j].a1 += g[j].a1 * x[j].a1 * for_k;
                        dw[1][j].b0 += g[j].b0 * x[j].b0 * for_k, dw[1][j].b1 += g[j].b1 * x[j].b1 * for_k;
                    }
                    const float* w = norm + 2 * p;
                    g[j].a0 = g[j].a0 * w[0] * inverse - x[j].a0 * along;
                    g[j].a1 = g[j].a1 * w[1] * inverse - x[j].a1 * along;
                    g[j].b0 = g[j].b0 * w[half] * inverse - x[j].b0 * along;
                    g[j].b1 = g[j].b1 * w[half + 1] * inverse - x[j].b1 * along;
                }
                at[p] = bf16x2_of(g[j].a0, g[j].a1);
                at[p + pairs] = bf16x2_of(g[j].b0, g[j].b1);
            }
        }
    }
    if (!parts) return;
#pragma unroll
    for (int which = 0; which < 2; which++) {
        __syncthreads();
#pragma unroll
        for (int j = 0; j < PAIRS; j++) {
            int p = lane + 32 * j;
            if (p >= pairs) continue;
            sums[warp][2 * p] = dw[which][j].a0, sums[warp][2 * p + 1] = dw[which][j].a1;
            sums[warp][half + 2 * p] = dw[which][j].b0, sums[warp][half + 2 * p + 1] = dw[which][j].b1;
        }
        __syncthreads();
        for (int c = threadIdx.x; c < dim; c += 256) {
            float sum = 0.f;
            for (int w = 0; w < 8; w++) sum += sums[w][c];
            parts[((u64)blockIdx.x * 2 + which) * dim + c] = sum;
        }
    }
}
