// Biases, the heads' norms (Qwen3) and rotary embedding in one pass, and their gradients.
//
// Traffic: forward reads and writes a row of queries and keys once (values too where the output is another buffer);
// backward reads the gradients and, with norms, the numbers before them, and writes the gradients in place. Measured, H100,
// 40 heads of 128 with norms: 1.9 TB/s, 65 % of what a copy reaches.
// One block a token, of as many warps as take all heads at once, so that all loads are in flight together. A lane holds
// eight neighbours in the lower half of a head and the eight they turn with in the upper half; `lanes` lanes (a power of
// two) share a head, and a warp takes several heads at once.

#ifndef PARTS
#define PARTS 0  // 1: the norms' gradients are summed
#endif

static __device__ __forceinline__ float group_sum(float x, int lanes) {
    for (int d = lanes >> 1; d; d >>= 1) x += __shfl_xor_sync(0xffffffffu, x, d);
    return x;
}
static __device__ __forceinline__ Eight load8f(const float* p) {
    float4 a = reinterpret_cast<const float4*>(p)[0], b = reinterpret_cast<const float4*>(p)[1];
    return {{a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w}};
}
static __device__ __forceinline__ void add8(Eight& x, const Eight& y) {
#pragma unroll
    for (int i = 0; i < 8; i++) x.x[i] += y.x[i];
}
#define EIGHT _Pragma("unroll") for (int i = 0; i < 8; i++)

// cos_sin[positions, 2, half].
extern "C" __global__ void __launch_bounds__(384, 3) rope_forward(
    bf16* out, const bf16* in, const int* positions, const float* cos_sin, const float* q_norm, const float* k_norm,
    const float* bias, int heads, int kv_heads, int dim, int out_stride, int in_stride, float eps, int lanes) {
    int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, half = dim >> 1;
    int group = lane / lanes, at = lane % lanes * 8, at_once = 32 / lanes;
    u64 token = blockIdx.x;
    const float* table = cos_sin + (u64)positions[token] * dim;
    int rotated = heads + kv_heads, total = out == in && !bias ? rotated : heads + 2 * kv_heads;
    Eight cos, sin;
    if (at < half) cos = load8f(table + at), sin = load8f(table + half + at);
    for (int first = warp * at_once; first < total; first += (blockDim.x >> 5) * at_once) {
        int head = first + group;
        bool here = head < total && at < half, value = head >= rotated;
        const bf16* from = in + token * in_stride + head * dim + at;
        Eight a, b;
        EIGHT a.x[i] = b.x[i] = 0.f;
        if (here) {
            a = load8(from), b = load8(from + half);
            if (bias) add8(a, load8f(bias + head * dim + at)), add8(b, load8f(bias + head * dim + half + at));
        }
        const float* norm = value ? nullptr : head < heads ? q_norm : k_norm;
        if (q_norm || k_norm) {
            float squares = 0.f;
            EIGHT squares += a.x[i] * a.x[i] + b.x[i] * b.x[i];
            float inverse = rsqrtf(group_sum(squares, lanes) / dim + eps);
            if (norm && here) {
                Eight wa = load8f(norm + at), wb = load8f(norm + half + at);
                EIGHT a.x[i] *= inverse * wa.x[i], b.x[i] *= inverse * wb.x[i];
            }
        }
        if (!here) continue;
        Eight x = a, y = b;
        if (!value) EIGHT x.x[i] = a.x[i] * cos.x[i] - b.x[i] * sin.x[i], y.x[i] = b.x[i] * cos.x[i] + a.x[i] * sin.x[i];
        bf16* to = out + token * out_stride + head * dim + at;
        store8(to, x), store8(to + half, y);
    }
}

// d[tokens] in place; `before` are the numbers before the norms (with the biases still to be added). A block takes every
// gridDim.x-th token. parts[block, 2, dim] takes the norms' gradients.
extern "C" __global__ void __launch_bounds__(PARTS ? 256 : 384, 2) rope_backward(
    bf16* d, float* parts, const bf16* before, const int* positions, const float* cos_sin, const float* q_norm,
    const float* k_norm, const float* bias, int tokens, int heads, int kv_heads, int dim, int d_stride,
    int before_stride, float eps, int lanes) {
    int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, half = dim >> 1;
    int group = lane / lanes, at = lane % lanes * 8, at_once = 32 / lanes, total = heads + kv_heads;
#if PARTS
    Eight dw[2][2];
    EIGHT dw[0][0].x[i] = dw[0][1].x[i] = dw[1][0].x[i] = dw[1][1].x[i] = 0.f;
#endif
    for (u64 token = blockIdx.x; token < tokens; token += gridDim.x) {
        const float* table = cos_sin + (u64)positions[token] * dim;
        Eight cos, sin;
        if (at < half) cos = load8f(table + at), sin = load8f(table + half + at);
        for (int first = warp * at_once; first < total; first += (blockDim.x >> 5) * at_once) {
            int head = first + group;
            bool here = head < total && at < half, query = head < heads;
            bf16* place = d + token * d_stride + head * dim + at;
            Eight a, b, xa, xb;
            EIGHT a.x[i] = b.x[i] = xa.x[i] = xb.x[i] = 0.f;
            if (here) {
                Eight y = load8(place), z = load8(place + half);
                EIGHT a.x[i] = y.x[i] * cos.x[i] + z.x[i] * sin.x[i], b.x[i] = z.x[i] * cos.x[i] - y.x[i] * sin.x[i];
            }
            const float* norm = query ? q_norm : k_norm;
            if (q_norm || k_norm) {
                Eight wa, wb;
                EIGHT wa.x[i] = wb.x[i] = 1.f;
                if (here && norm) {
                    const bf16* from = before + token * before_stride + head * dim + at;
                    xa = load8(from), xb = load8(from + half);
                    if (bias) add8(xa, load8f(bias + head * dim + at)), add8(xb, load8f(bias + head * dim + half + at));
                    wa = load8f(norm + at), wb = load8f(norm + half + at);
                }
                float squares = 0.f, along = 0.f;
                EIGHT {
                    squares += xa.x[i] * xa.x[i] + xb.x[i] * xb.x[i];
                    along += a.x[i] * wa.x[i] * xa.x[i] + b.x[i] * wb.x[i] * xb.x[i];
                }
                float inverse = rsqrtf(group_sum(squares, lanes) / dim + eps);
                along = group_sum(along, lanes) * inverse * inverse * inverse / dim;
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
            if (here) store8(place, a), store8(place + half, b);
        }
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
