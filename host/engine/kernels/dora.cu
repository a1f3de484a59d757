// DoRA (arXiv 2402.09353): each output is its direction's product p = x·(W + s·B·A)ᵀ times a factor, its magnitude over the norm
// of its row of W + s·B·A; the norm is held constant in the backward pass.
//
// Products are kept, and whoever reads them multiplies by the factor in f32: rounding p and again f·p to 16 bits would undo
// every factor within 0.2 % of 1.
// Traffic: squares read a weight once, when it has changed; norms read what products with A gave, a rank's share of that. dora_add
// reads two matrices and writes one, where the product alone would read and write one less each. The rest reads and writes what its
// counterpart without DoRA does. Measured, H100, 8192 rows of 4096 (the activation of 12288), of 3.0 TB/s that a copy reaches: dora_add
// 2.9 TB/s, dora_scale 2.7, dora_mix 3.0, dora_swiglu 2.75 and backward 2.4, magnitudes' gradients 2.2, squares 2.95.

static __device__ __forceinline__ Eight zeros() { return {{0.f, 0.f, 0.f, 0.f, 0.f, 0.f, 0.f, 0.f}}; }

// square[row] = ‖w[row]‖². A warp a row; `inputs` is a multiple of 8.
extern "C" __global__ void __launch_bounds__(256) dora_squares(
    float* square, const bf16* w, int rows, int inputs, int stride) {
    int row = blockIdx.x * 8 + (threadIdx.x >> 5), lane = threadIdx.x & 31;
    if (row >= rows) return;
    const bf16* from = w + (u64)row * stride;
    float sum = 0.f;
#pragma unroll 4
    for (int c = lane * 8; c < inputs; c += 256) {
        Eight v = load8(from + c);
        EIGHT sum += v.x[i] * v.x[i];
    }
    sum = warp_sum(sum);
    if (lane == 0) square[row] = sum;
}

// norm[row] = ‖w[row] + b[row]·A‖ and factor[row] = magnitude[row] / norm[row], if there are magnitudes; square[row] = ‖w[row]‖²,
// cross[row] = w[row]·Aᵀ and gram = A·Aᵀ. A warp a row.
// Where b·A nearly cancels w, what is left of the f32 sum is its rounding: a norm is off by up to some 1e-3 of ‖w‖ then.
extern "C" __global__ void __launch_bounds__(256) dora_norms(
    float* norm, float* factor, const float* magnitude, const float* square, const bf16* b, const float* cross,
    const float* gram, int rows, int rank, int b_stride, int cross_stride, int gram_stride) {
    int row = blockIdx.x * 8 + (threadIdx.x >> 5), lane = threadIdx.x & 31;
    if (row >= rows) return;
    const bf16* of_row = b + (u64)row * b_stride;
    const float* along = cross + (u64)row * cross_stride;
    float sum = 0.f;
    for (int k = lane; k < rank; k += 32) {
        float of_k = 2.f * along[k];
        // Down a column of the symmetric gram, so that lanes read neighbours.
        for (int j = 0; j < rank; j++) of_k += gram[(u64)j * gram_stride + k] * f32_of(of_row[j]);
        sum += f32_of(of_row[k]) * of_k;
    }
    sum = warp_sum(sum);
    if (lane) return;
    sum += square[row];
    // What cancels may be below zero; what is no number stays none.
    float root = sqrtf(sum < 0.f ? 0.f : sum);
    norm[row] = root;
    // A row of zeros has no direction to give the magnitude to.
    if (magnitude) factor[row] = root == 0.f ? 1.f : magnitude[row] / root;
}

// y = add + factor · p + bias; a thread has eight neighbours, y may be add.
extern "C" __global__ void __launch_bounds__(256) dora_add(
    bf16* y, const bf16* add, const bf16* p, const float* factor, const float* bias, int n, int y_stride, int add_stride,
    int p_stride) {
    int c = (blockIdx.y * 256 + threadIdx.x) * 8;
    if (c >= n) return;
    u64 row = blockIdx.x;
    Eight v = load8(p + row * p_stride + c), f = load8f(factor + c), a = load8(add + row * add_stride + c);
    Eight b = bias ? load8f(bias + c) : zeros();
    EIGHT v.x[i] = a.x[i] + (f.x[i] * v.x[i] + b.x[i]);
    store8(y + row * y_stride + c, v);
}

// y = r + (factor - 1) · p + bias + add, r and p in f32: with dropout p is the product of another input than r.
extern "C" __global__ void __launch_bounds__(256) dora_mix(
    bf16* y, const float* r, const float* p, const float* factor, const float* bias, const bf16* add, int n, int y_stride,
    int r_stride, int p_stride, int add_stride) {
    int c = (blockIdx.y * 256 + threadIdx.x) * 8;
    if (c >= n) return;
    u64 row = blockIdx.x;
    Eight v = load8f(r + row * r_stride + c), q = load8f(p + row * p_stride + c), f = load8f(factor + c);
    Eight b = bias ? load8f(bias + c) : zeros(), a = add ? load8(add + row * add_stride + c) : zeros();
    EIGHT v.x[i] = a.x[i] + (v.x[i] + (f.x[i] - 1.f) * q.x[i] + b.x[i]);
    store8(y + row * y_stride + c, v);
}

// to = (factor - less) · dy; `to` may be dy.
extern "C" __global__ void __launch_bounds__(256) dora_scale(
    bf16* to, const bf16* dy, const float* factor, float less, int n, int to_stride, int dy_stride) {
    int c = (blockIdx.y * 256 + threadIdx.x) * 8;
    if (c >= n) return;
    u64 row = blockIdx.x;
    Eight v = load8(dy + row * dy_stride + c), f = load8f(factor + c);
    EIGHT v.x[i] *= f.x[i] - less;
    store8(to + row * to_stride + c, v);
}

// parts[chunk, n] = Σ over the chunk's rows of dy · p.
extern "C" __global__ void __launch_bounds__(128) dora_sums(
    float* parts, const bf16* dy, const bf16* p, int n, int count, int chunk, int dy_stride, int p_stride) {
    int c = (blockIdx.x * 128 + threadIdx.x) * 8;
    if (c >= n) return;
    int first = blockIdx.y * chunk, last = min(first + chunk, count);
    Eight sum = zeros();
#pragma unroll 4
    for (int row = first; row < last; row++) {
        Eight d = load8(dy + (u64)row * dy_stride + c), v = load8(p + (u64)row * p_stride + c);
        EIGHT sum.x[i] += d.x[i] * v.x[i];
    }
    store8f(parts + (u64)blockIdx.y * n + c, sum);
}

// grad[n] += (Σ over chunks of parts[chunk · stride + c]) / norm[n].
extern "C" __global__ void __launch_bounds__(128) dora_magnitude(
    float* grad, const float* parts, const float* norm, int n, int stride, int chunks) {
    int c = blockIdx.x * 128 + threadIdx.x;
    if (c >= n) return;
    float sum = 0.f;
#pragma unroll 8
    for (int i = 0; i < chunks; i++) sum += parts[(u64)i * stride + c];
    grad[c] += norm[c] == 0.f ? 0.f : sum / norm[c];
}

// y = silu(gate) · up, where gate_up[rows, 2 · n] are products: gate = factor · p + bias, and up likewise.
extern "C" __global__ void __launch_bounds__(256) dora_swiglu(
    bf16* y, const bf16* gate_up, const float* factor, const float* bias, int n, int y_stride, int stride) {
    int c = (blockIdx.y * 256 + threadIdx.x) * 8;
    if (c >= n) return;
    const bf16* row = gate_up + (u64)blockIdx.x * stride;
    Eight g = load8(row + c), u = load8(row + n + c), fg = load8f(factor + c), fu = load8f(factor + n + c);
    Eight bg = bias ? load8f(bias + c) : zeros(), bu = bias ? load8f(bias + n + c) : zeros();
    EIGHT {
        float x = fg.x[i] * g.x[i] + bg.x[i];
        g.x[i] = x * sigmoid(x) * (fu.x[i] * u.x[i] + bu.x[i]);
    }
    store8(y + (u64)blockIdx.x * y_stride + c, g);
}

// Replaces the products by their gradients, factor · d; parts[chunk, 2 · n] = Σ over the chunk's rows of d · p, and bias_parts,
// if it is given, Σ of d, where d is the gradient of gate and up themselves. With `again`, dy becomes y.
extern "C" __global__ void __launch_bounds__(128) dora_swiglu_backward(
    bf16* gate_up, bf16* dy, float* parts, float* bias_parts, const float* factor, const float* bias, int n, int count,
    int chunk, int stride, int dy_stride, int again) {
    int c = (blockIdx.x * 128 + threadIdx.x) * 8;
    if (c >= n) return;
    int first = blockIdx.y * chunk, last = min(first + chunk, count);
    Eight fg = load8f(factor + c), fu = load8f(factor + n + c);
    Eight bg = bias ? load8f(bias + c) : zeros(), bu = bias ? load8f(bias + n + c) : zeros();
    Eight sum_g = zeros(), sum_u = zeros(), plain_g = zeros(), plain_u = zeros();
    for (int at = first; at < last; at++) {
        bf16 *row = gate_up + (u64)at * stride + c, *dy_row = dy + (u64)at * dy_stride + c;
        Eight g = load8(row), u = load8(row + n), d = load8(dy_row), y;
        EIGHT {
            float x = fg.x[i] * g.x[i] + bg.x[i], up = fu.x[i] * u.x[i] + bu.x[i], s = sigmoid(x), silu = x * s;
            float du = d.x[i] * silu, dg = d.x[i] * up * s * (1.f + x * (1.f - s));
            y.x[i] = silu * up;
            sum_g.x[i] += dg * g.x[i], sum_u.x[i] += du * u.x[i];
            plain_g.x[i] += dg, plain_u.x[i] += du;
            g.x[i] = fg.x[i] * dg, u.x[i] = fu.x[i] * du;
        }
        store8(row, g), store8(row + n, u);
        if (again) store8(dy_row, y);
    }
    u64 part = (u64)blockIdx.y * 2 * n + c;
    store8f(parts + part, sum_g), store8f(parts + part + n, sum_u);
    if (bias_parts) store8f(bias_parts + part, plain_g), store8f(bias_parts + part + n, plain_u);
}
