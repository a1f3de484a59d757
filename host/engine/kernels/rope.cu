// Biases, the heads' norms (Qwen3) and rotary embedding in one pass, and their gradients.
//
// Traffic: forward reads and writes a row of queries and keys once (values too where the output is another buffer);
// backward reads the gradients and, with norms, the numbers before them, and writes the gradients in place. Measured, H100,
// 32 + 8 heads of 128 with norms, 8192 tokens: 2.6 and 2.7 TB/s, 92 and 94 % of what a copy reaches.
// A block takes every gridDim.x-th token, with as many warps as take all its heads at once, and fetches the next token's
// numbers while it works on one's: with a token a block every load waited for the one before it (position, angles, numbers).
// A lane holds eight neighbours in the lower half of a head and the eight they turn with in the upper half; `lanes` lanes (a
// power of two) share a head, and a warp takes several heads at once.

#ifndef PARTS
#define PARTS 0  // 1: the norms' gradients are summed
#endif
#ifndef FACTORS
#define FACTORS 0  // 1: numbers are multiplied by `factor` before all else (DoRA)
#endif

static __device__ __forceinline__ float group_sum(float x, int lanes) {
    for (int d = lanes >> 1; d; d >>= 1) x += __shfl_xor_sync(0xffffffffu, x, d);
    return x;
}
static __device__ __forceinline__ void scale8(Eight& x, const Eight& y) {
#pragma unroll
    for (int i = 0; i < 8; i++) x.x[i] *= y.x[i];
}
static __device__ __forceinline__ void add8(Eight& x, const Eight& y) {
#pragma unroll
    for (int i = 0; i < 8; i++) x.x[i] += y.x[i];
}

// A lane's numbers of a head, as they lie in memory.
struct Raw {
    uint4 low, high;
};
static __device__ __forceinline__ Raw load_raw(const bf16* p, int half, bool here) {
    Raw raw = {make_uint4(0, 0, 0, 0), make_uint4(0, 0, 0, 0)};
    if (here) raw.low = *(const uint4*)p, raw.high = *(const uint4*)(p + half);
    return raw;
}

// What a warp works through: its heads of every gridDim.x-th token.
struct Walk {
    int token, head;  // of the lane's group
    __device__ __forceinline__ Walk next(int first, int stride, int total, int group) const {
        Walk to = {token, head + stride};
        if (to.head - group >= total) to = {token + (int)gridDim.x, first + group};
        return to;
    }
};

// cos_sin[positions, 2, half].
extern "C" __global__ void __launch_bounds__(384, 2) rope_forward(
    bf16* out, const bf16* in, const int* positions, const float* cos_sin, const float* q_norm, const float* k_norm,
    const float* bias, const float* factor, int tokens, int heads, int kv_heads, int dim, int out_stride, int in_stride,
    float eps, int lanes) {
    int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, half = dim >> 1;
    int group = lane / lanes, at = lane % lanes * 8, at_once = 32 / lanes;
    int first = warp * at_once, stride = (blockDim.x >> 5) * at_once;
    int rotated = heads + kv_heads, total = out == in && !bias && !FACTORS ? rotated : heads + 2 * kv_heads;
    float share = 1.0f / dim;
    if (first >= total) return;
    Walk now = {(int)blockIdx.x, first + group};
    auto inside = [&](Walk walk) { return walk.head < total && at < half; };
    auto fetch = [&](Walk walk) { return load_raw(in + (u64)walk.token * in_stride + walk.head * dim + at, half, inside(walk)); };
    Raw raw = fetch(now);
    int position = positions[now.token];
    while (true) {
        // The next numbers are on their way while these are worked on.
        Walk then = now.next(first, stride, total, group);
        bool more = then.token < tokens;
        Raw raw_then = raw;
        int position_then = 0;
        if (more) raw_then = fetch(then), position_then = positions[then.token];
        int head = now.head;
        bool here = inside(now), value = head >= rotated;
        Eight a = eight_of(raw.low), b = eight_of(raw.high);
        if (FACTORS && here) scale8(a, load8f(factor + head * dim + at)), scale8(b, load8f(factor + head * dim + half + at));
        if (here && bias) add8(a, load8f(bias + head * dim + at)), add8(b, load8f(bias + head * dim + half + at));
        const float* norm = value ? nullptr : head < heads ? q_norm : k_norm;
        if (q_norm || k_norm) {
            float squares = 0.f;
            EIGHT squares += a.x[i] * a.x[i] + b.x[i] * b.x[i];
            float inverse = rsqrtf(group_sum(squares, lanes) * share + eps);
            if (norm && here) {
                Eight wa = load8f(norm + at), wb = load8f(norm + half + at);
                EIGHT a.x[i] *= inverse * wa.x[i], b.x[i] *= inverse * wb.x[i];
            }
        }
        if (here) {
            Eight x = a, y = b;
            if (!value) {
                const float* table = cos_sin + (u64)position * dim + at;
                Eight cos = load8f(table), sin = load8f(table + half);
                EIGHT x.x[i] = a.x[i] * cos.x[i] - b.x[i] * sin.x[i], y.x[i] = b.x[i] * cos.x[i] + a.x[i] * sin.x[i];
            }
            bf16* to = out + (u64)now.token * out_stride + head * dim + at;
            store8(to, x), store8(to + half, y);
        }
        if (!more) return;
        now = then, raw = raw_then, position = position_then;
    }
}

// d[tokens] in place; `before` are the numbers before the norms (with factors and biases still to be applied). A block takes every
// gridDim.x-th token. parts[block, 2, dim] takes the norms' gradients.
extern "C" __global__ void __launch_bounds__(PARTS ? 256 : 320, 2) rope_backward(
    bf16* d, float* parts, const bf16* before, const int* positions, const float* cos_sin, const float* q_norm,
    const float* k_norm, const float* bias, const float* factor, int tokens, int heads, int kv_heads, int dim, int d_stride,
    int before_stride, float eps, int lanes) {
    int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, half = dim >> 1;
    int group = lane / lanes, at = lane % lanes * 8, at_once = 32 / lanes, total = heads + kv_heads;
    int first = warp * at_once, stride = (blockDim.x >> 5) * at_once;
    float share = 1.0f / dim;
#if PARTS
    Eight dw[2][2];
    EIGHT dw[0][0].x[i] = dw[0][1].x[i] = dw[1][0].x[i] = dw[1][1].x[i] = 0.f;
#endif
    Walk now = {(int)blockIdx.x, first + group};
    auto inside = [&](Walk walk) { return walk.head < total && at < half; };
    auto normed = [&](Walk walk) { return walk.head < heads ? q_norm : k_norm; };
    auto fetch = [&](Walk walk) { return load_raw(d + (u64)walk.token * d_stride + walk.head * dim + at, half, inside(walk)); };
    auto fetch_before = [&](Walk walk) {
        return load_raw(before + (u64)walk.token * before_stride + walk.head * dim + at, half, inside(walk) && normed(walk));
    };
    Raw raw, raw_before;
    int position;
    bool more = first < total && now.token < tokens;
    if (more) raw = fetch(now), raw_before = fetch_before(now), position = positions[now.token];
    while (more) {
        // The next numbers are on their way while these are worked on.
        Walk then = now.next(first, stride, total, group);
        more = then.token < tokens;
        Raw raw_then = raw, before_then = raw_before;
        int position_then = 0;
        if (more) raw_then = fetch(then), before_then = fetch_before(then), position_then = positions[then.token];
        int head = now.head;
        bool here = inside(now), query = head < heads;
        Eight a, b;
        EIGHT a.x[i] = b.x[i] = 0.f;
        if (here) {
            const float* table = cos_sin + (u64)position * dim + at;
            Eight cos = load8f(table), sin = load8f(table + half), y = eight_of(raw.low), z = eight_of(raw.high);
            EIGHT a.x[i] = y.x[i] * cos.x[i] + z.x[i] * sin.x[i], b.x[i] = z.x[i] * cos.x[i] - y.x[i] * sin.x[i];
        }
        const float* norm = normed(now);
        if (q_norm || k_norm) {
            Eight wa, wb, xa = eight_of(raw_before.low), xb = eight_of(raw_before.high);
            EIGHT wa.x[i] = wb.x[i] = 1.f;
            if (here && norm) {
                if (FACTORS) scale8(xa, load8f(factor + head * dim + at)), scale8(xb, load8f(factor + head * dim + half + at));
                if (bias) add8(xa, load8f(bias + head * dim + at)), add8(xb, load8f(bias + head * dim + half + at));
                wa = load8f(norm + at), wb = load8f(norm + half + at);
            }
            float squares = 0.f, along = 0.f;
            EIGHT {
                squares += xa.x[i] * xa.x[i] + xb.x[i] * xb.x[i];
                along += a.x[i] * wa.x[i] * xa.x[i] + b.x[i] * wb.x[i] * xb.x[i];
            }
            float inverse = rsqrtf(group_sum(squares, lanes) * share + eps);
            along = group_sum(along, lanes) * inverse * inverse * inverse * share;
            if (norm) {
#if PARTS
                float for_q = query ? inverse : 0.f, for_k = query ? 0.f : inverse;
                EIGHT {
                    dw[0][0].x[i] += a.x[i] * xa.x[i] * for_q, dw[0][1].x[i] += b.x[i] * xb.x[i] * for_q;
                    dw[1][0].x[i] += a.x[i] * xa.x[i] * for_k, dw[1][1].x[i] += b.x[i] * xb.x[i] * for_k;
                }
#endif
                EIGHT a.x[i] = a.x[i] * wa.x[i] * inverse - xa.x[i] * along;
                EIGHT b.x[i] = b.x[i] * wb.x[i] * inverse - xb.x[i] * along;
            }
        }
        if (here) {
            bf16* place = d + (u64)now.token * d_stride + head * dim + at;
            store8(place, a), store8(place + half, b);
        }
        now = then, raw = raw_then, raw_before = before_then, position = position_then;
    }
#if PARTS
    __shared__ float sums[8][256];
#pragma unroll
    for (int which = 0; which < 2; which++) {
        __syncthreads();
#pragma unroll
        for (int side = 0; side < 2; side++)
            EIGHT {
                float sum = dw[which][side].x[i];
                for (int step = lanes; step < 32; step <<= 1) sum += __shfl_xor_sync(0xffffffffu, sum, step);
                if (group == 0 && at < half) sums[warp][side * half + at + i] = sum;
            }
        __syncthreads();
        for (int c = threadIdx.x; c < dim; c += 256) {
            float sum = 0.f;
            for (int w = 0; w < 8; w++) sum += sums[w][c];
            parts[((u64)blockIdx.x * 2 + which) * dim + c] = sum;
        }
    }
#endif
}
