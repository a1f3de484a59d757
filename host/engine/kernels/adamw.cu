// AdamW for all tensors that train in one launch, and the square of their gradients' norm.
//
// Traffic, bytes an element: gradient 2 or 4, value 2 or 4 read and written (and a bf16 copy of 2 written for the
// products), moments 8, 4 or 2 read and written, all in words of 16 bytes a lane where rows allow it. Measured, H100: 2.9
// TB/s with f32 moments, 2.8 with bf16 ones, of 3.0 that a copy reaches; 1.4 with 8 bits, held up by their codes. The squares: 3.0.
//
// A block takes a chunk of 8192 elements of one tensor; `chunks` says which. A warp takes 256 elements at a time, eight
// neighbours a lane, which is one block of the 8-bit moments.
//
// MOMENTS: 32 (f32), 16 (bf16, rounded stochastically), 8 (bitsandbytes' dynamic maps, a maximum for 256 elements).

#ifndef MOMENTS
#define MOMENTS 32
#endif

// The elements that a lane has, of eight; unrolled, so that they stay in registers.
#define EACH _Pragma("unroll") for (int i = 0; i < 8; i++) if (i < count)

struct Tensor {
    u64 master;        // f32 values, or 0: the copy is the value
    u64 copy;          // bf16 values as the products read them, or 0
    u64 grad;          // f32 or bf16
    u64 first, second; // moments
    u64 first_max, second_max;
    u64 elements;
    u32 cols, copy_stride;
    float copy_scale;
    // 1: bf16 gradient; 2: the master is kept at numbers that bf16 can hold; 4: the value is the copy; 8: the gradient lies so
    // far behind the launch's window
    u32 flags;
    float shrink, step_size, inverse_root_correction2, beta2, eps;
    float rest1, rest2;  // 1 - beta, rounded once
    u32 purpose, updates, padding;
};

// The exact root and quotient take more instructions than all the rest; these err by two units of the last place. What is
// too small for a normal number is rounded up: its root is nothing beside epsilon.
static __device__ __forceinline__ float fast_sqrt(float x) {
    float y;
    asm("sqrt.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(fmaxf(x, 1.17549435e-38f)));
    return y;
}
// By a root, which is a normal number.
static __device__ __forceinline__ float fast_quotient(float x, float root) {
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(root));
    return x * y;
}

static __device__ __forceinline__ u32 word(const uint4& w, int i) { return i == 0 ? w.x : i == 1 ? w.y : i == 2 ? w.z : w.w; }

// x with 16 random bits added below the last bit that bf16 keeps; the upper half is the rounded number. What is not
// finite, or would no longer be, stays.
static __device__ __forceinline__ u32 stir(float x, u32 random) {
    u32 bits = __float_as_uint(x), low = random & 0xffffu;
    return (bits & 0x7fffffffu) + low < 0x7f800000u ? bits + low : bits;
}
// The upper halves of two words.
static __device__ __forceinline__ u32 upper_halves(u32 low, u32 high) { return __byte_perm(low, high, 0x7632); }

// Eight numbers rounded stochastically: four words.
static __device__ __forceinline__ uint4 round8(const Eight& x, const u32 (&random)[8]) {
    return make_uint4(upper_halves(stir(x.x[0], random[0]), stir(x.x[1], random[1])),
                      upper_halves(stir(x.x[2], random[2]), stir(x.x[3], random[3])),
                      upper_halves(stir(x.x[4], random[4]), stir(x.x[5], random[5])),
                      upper_halves(stir(x.x[6], random[6]), stir(x.x[7], random[7])));
}
// Element i of eight in four words.
static __device__ __forceinline__ bf16 half_of(const uint4& w, int i) { return (bf16)(word(w, i >> 1) >> (16 * (i & 1))); }

#if MOMENTS == 8
// The nearest entry of a map by storage/dynamic8/lines.rs, which says why: the lesser of two lines, chosen by the decade, rounded
// to the next whole number. Gives the code in the low byte; `doubt` becomes at least the distance from what it was rounded to.
template <bool SIGNED>
static __device__ __forceinline__ u32 nearest(const float4* lines, float top, float x, float& doubt) {
    const float whole = 12582912.f + (SIGNED ? 127.f : 0.f);  // 1.5 · 2²³: its low bits count ones
    float size = fabsf(x), log;
    asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(log) : "f"(size));
    // Of the eight decades up to one; a few millionths early, never late.
    float eighth = __saturatef(fmaf(log, 0.03762875f, 0.8750006f));
    // The decade, from 0 to 8, in the low bits; only its 16 bytes an entry remain of the shifted word.
    u32 place = __float_as_uint(__fmaf_rd(eighth, 1.9073486328125e-6f, 2.f)) << 4;
    float4 line = *reinterpret_cast<const float4*>(reinterpret_cast<const char*>(lines) + place);
    float at = fminf(fmaf(size, line.x, line.y), fmaf(size, line.z, line.w));
    if (SIGNED) at = __uint_as_float(__float_as_uint(at) | (__float_as_uint(x) & 0x80000000u));  // it is not negative
    float code = at + whole;
    doubt = fmaxf(doubt, fabsf(at - (code - whole)));
    return __float_as_uint(x > top ? code + 1.f : code);
}

// The nearest entry, given that or one beside it: the middles between them decide.
static __device__ __forceinline__ u32 settled(const float* map, u32 code, float x) {
    code &= 0xff;
    bool below = code > 0 && !(x > 0.5f * (map[max(code, 1u) - 1] + map[code]));
    bool above = code < 255 && x > 0.5f * (map[code] + map[min(code, 254u) + 1]);
    return code - below + above;
}

static __device__ __forceinline__ u32 byte_of(u32 word, int i) { return __byte_perm(word, 0, 0x4440 | i); }
// The low bytes of eight words.
static __device__ __forceinline__ uint2 packed8(const u32 (&x)[8]) {
    u32 pairs[4];
#pragma unroll
    for (int i = 0; i < 4; i++) pairs[i] = __byte_perm(x[2 * i], x[2 * i + 1], 0x40);
    return make_uint2(__byte_perm(pairs[0], pairs[1], 0x5410), __byte_perm(pairs[2], pairs[3], 0x5410));
}
#endif

static __device__ __forceinline__ u64 gradient_of(const Tensor& t, u64 window) { return t.grad + (t.flags & 8 ? window : 0); }

// A lane's `count` neighbours from `at` on, and zeros.
static __device__ __forceinline__ Eight gradients(const Tensor& t, u64 gradient, u64 at, int count) {
    Eight g;
#pragma unroll
    for (int i = 0; i < 8; i++) g.x[i] = 0.f;
    if (t.flags & 1) {
        const bf16* p = reinterpret_cast<const bf16*>(gradient) + at;
        if (count == 8) g = load8(p); else EACH g.x[i] = f32_of(p[i]);
    } else {
        const float* p = reinterpret_cast<const float*>(gradient) + at;
        if (count == 8) g = load8f(p); else EACH g.x[i] = p[i];
    }
    return g;
}

// Blocks at once on a multiprocessor: as many as there are registers for.
#define BLOCKS (MOMENTS == 16 ? 4 : 3)

// maps: 256 entries for the first moments, 256 for the second, 9 pairs of lines for each. Nothing changes once *stop is not zero.
extern "C" __global__ void __launch_bounds__(256, BLOCKS) adamw(
    const Tensor* tensors, const uint2* chunks, const float* maps, const float* grad_factor, u64 seed,
    u64 window, const u32* stop) {
    if (stop && *stop) return;
#if MOMENTS == 8
    __shared__ __align__(16) float map[512 + 72];
    for (int i = threadIdx.x; i < 512 + 72; i += 256) map[i] = maps[i];
    __syncthreads();
    const float4 *lines1 = reinterpret_cast<const float4*>(map + 512), *lines2 = lines1 + 9;
    // The middles below the last entries, one.
    float top1 = 0.5f * (map[254] + map[255]), top2 = 0.5f * (map[510] + map[511]);
#endif
    uint2 chunk = chunks[blockIdx.x];
    const Tensor t = tensors[chunk.x];
    u64 gradient = gradient_of(t, window);
    float factor = *grad_factor;
    int lane = threadIdx.x & 31;
    bool aligned = t.cols % 8 == 0;
    for (int part = threadIdx.x >> 5; part < 32; part += 8) {
        u64 at = (u64)chunk.y * 8192 + part * 256 + lane * 8;
        if (at - lane * 8 >= t.elements) break;
        int count = at >= t.elements ? 0 : (int)min((u64)8, t.elements - at);
        bool whole = count == 8;
        Eight g = gradients(t, gradient, at, count), m, v, w;
#pragma unroll
        for (int i = 0; i < 8; i++) m.x[i] = v.x[i] = w.x[i] = 0.f;
        // Tensors have fewer than 2³² elements, and division of 32 bits is far cheaper.
        u32 row = count ? (u32)at / t.cols : 0;
        bf16* copy = t.copy ? reinterpret_cast<bf16*>(t.copy) : nullptr;
        float* master = t.master ? reinterpret_cast<float*>(t.master) + at : nullptr;
        // Where element i of this lane's eight lies in the strided copy.
        auto place = [&](int i) -> u64 {
            u32 e = (u32)at + i, r = aligned ? row : e / t.cols;
            return (u64)r * t.copy_stride + (e - r * t.cols);
        };
        if (master) {
            if (whole) w = load8f(master); else EACH w.x[i] = master[i];
        } else if (whole && aligned) {
            w = load8(copy + place(0));
        } else {
            EACH w.x[i] = f32_of(copy[place(i)]);
        }
#if MOMENTS == 32
        float *pm = reinterpret_cast<float*>(t.first) + at, *pv = reinterpret_cast<float*>(t.second) + at;
        if (whole) m = load8f(pm), v = load8f(pv);
        else EACH m.x[i] = pm[i], v.x[i] = pv[i];
#elif MOMENTS == 16
        bf16 *pm = reinterpret_cast<bf16*>(t.first) + at, *pv = reinterpret_cast<bf16*>(t.second) + at;
        if (whole) m = load8(pm), v = load8(pv);
        else EACH m.x[i] = f32_of(pm[i]), v.x[i] = f32_of(pv[i]);
#else
        u8 *pm = reinterpret_cast<u8*>(t.first) + at, *pv = reinterpret_cast<u8*>(t.second) + at;
        u64 block = (u64)chunk.y * 32 + part;
        float *max1 = reinterpret_cast<float*>(t.first_max) + block, *max2 = reinterpret_cast<float*>(t.second_max) + block;
        float old1 = *max1, old2 = *max2;
        // The codes of zero, where there is no element.
        uint2 codes1 = make_uint2(0x7f7f7f7fu, 0x7f7f7f7fu), codes2 = make_uint2(0, 0);
        if (whole) {
            codes1 = *reinterpret_cast<const uint2*>(pm), codes2 = *reinterpret_cast<const uint2*>(pv);
        } else {
            EACH {
                u32 &to1 = i < 4 ? codes1.x : codes1.y, &to2 = i < 4 ? codes2.x : codes2.y;
                to1 ^= (pm[i] ^ 0x7fu) << (8 * (i & 3)), to2 |= (u32)pv[i] << (8 * (i & 3));
            }
        }
#pragma unroll
        for (int i = 0; i < 8; i++) {
            u32 from1 = i < 4 ? codes1.x : codes1.y, from2 = i < 4 ? codes2.x : codes2.y;
            m.x[i] = map[byte_of(from1, i & 3)] * old1, v.x[i] = map[256 + byte_of(from2, i & 3)] * old2;
        }
#endif
        u32 random[8];
        if (MOMENTS == 16 || !master || (t.flags & 2)) {
#pragma unroll
            for (int half = 0; half < 2; half++) {
                u64 group = at / 4 + half;
                uint4 words = philox(seed, (u32)group, (u32)(group >> 32), t.purpose, t.updates);
#pragma unroll
                for (int i = 0; i < 4; i++) random[4 * half + i] = word(words, i);
            }
        }
#pragma unroll
        for (int i = 0; i < 8; i++) {
            float x = g.x[i] * factor;
            m.x[i] += t.rest1 * (x - m.x[i]);
            v.x[i] = t.beta2 * v.x[i] + t.rest2 * x * x;
            float root = fast_sqrt(v.x[i]) * t.inverse_root_correction2 + t.eps;
            w.x[i] = w.x[i] * t.shrink - fast_quotient(t.step_size * m.x[i], root);
        }
#if MOMENTS == 32
        if (whole) store8f(pm, m), store8f(pv, v);
        else EACH pm[i] = m.x[i], pv[i] = v.x[i];
#elif MOMENTS == 16
        // The bits that rounding the value leaves over.
        u32 random1[8], random2[8];
#pragma unroll
        for (int i = 0; i < 8; i++) random1[i] = random[i] >> 16, random2[i] = (random[i] * 0x9E3779B1u) >> 16;
        uint4 rounded1 = round8(m, random1), rounded2 = round8(v, random2);
        if (whole) *reinterpret_cast<uint4*>(pm) = rounded1, *reinterpret_cast<uint4*>(pv) = rounded2;
        else EACH pm[i] = half_of(rounded1, i), pv[i] = half_of(rounded2, i);
#else
        float new1 = 0.f, new2 = 0.f;
#pragma unroll
        for (int i = 0; i < 8; i++) new1 = fmaxf(new1, fabsf(m.x[i])), new2 = fmaxf(new2, v.x[i]);
        new1 = warp_max(new1), new2 = warp_max(new2);
        if (lane == 0) *max1 = new1, *max2 = new2;
        // As the processor has it: what is smaller is as good as nothing.
        float by1 = 1.f / fmaxf(new1, 1e-38f), by2 = 1.f / fmaxf(new2, 1e-38f), doubt = 0.f;
        u32 code1[8], code2[8];
#pragma unroll
        for (int i = 0; i < 8; i++) {
            code1[i] = nearest<true>(lines1, top1, m.x[i] * by1, doubt);
            code2[i] = nearest<false>(lines2, top2, v.x[i] * by2, doubt);
        }
        // So near to a middle that arithmetic could err: 8 numbers in 100,000.
        if (doubt > 0.49996f) {
#pragma unroll
            for (int i = 0; i < 8; i++) {
                code1[i] = settled(map, code1[i], m.x[i] * by1);
                code2[i] = max(settled(map + 256, code2[i], v.x[i] * by2), 1u);
            }
        }
        // A second moment that rounds to zero would let its element leap: the smallest entry instead, which the lines give.
#pragma unroll
        for (int i = 0; i < 8; i++) code2[i] = v.x[i] > 0.f ? code2[i] : 0;
        codes1 = packed8(code1), codes2 = packed8(code2);
        if (whole) {
            *reinterpret_cast<uint2*>(pm) = codes1, *reinterpret_cast<uint2*>(pv) = codes2;
        } else {
            EACH {
                u32 from1 = i < 4 ? codes1.x : codes1.y, from2 = i < 4 ? codes2.x : codes2.y;
                pm[i] = (u8)(from1 >> (8 * (i & 3))), pv[i] = (u8)(from2 >> (8 * (i & 3)));
            }
        }
#endif
        if (master) {
            if (t.flags & 2) {
#pragma unroll
                for (int i = 0; i < 8; i++) w.x[i] = __uint_as_float(stir(w.x[i], random[i]) & 0xffff0000u);
            }
            if (whole) store8f(master, w); else EACH master[i] = w.x[i];
            if (copy) {
#pragma unroll
                for (int i = 0; i < 8; i++) w.x[i] *= t.copy_scale;
                if (whole && aligned) store8(copy + place(0), w);
                else EACH copy[place(i)] = bf16_of(w.x[i]);
            }
        } else {
            uint4 rounded = round8(w, random);
            if (whole && aligned) *reinterpret_cast<uint4*>(copy + place(0)) = rounded;
            else EACH copy[place(i)] = half_of(rounded, i);
        }
    }
}

static __device__ __forceinline__ bool not_finite(float x) { return (__float_as_uint(x) & 0x7f800000u) == 0x7f800000u; }

// Calls each(at) for those of a chunk's elements that are this thread's.
template <typename Each>
static __device__ __forceinline__ void walk(const Tensor& t, uint2 chunk, Each each) {
    u64 first = (u64)chunk.y * 8192, last = min(first + 8192, t.elements);
    for (u64 at = first + threadIdx.x; at < last; at += 256) each(at);
}

static __device__ __forceinline__ float gradient_at(const Tensor& t, u64 gradient, u64 at) {
    return t.flags & 1 ? f32_of(reinterpret_cast<const bf16*>(gradient)[at]) : reinterpret_cast<const float*>(gradient)[at];
}

// sums[chunk] = Σ g² over the chunk. A sum that is not finite sets *stop, if it is given.
extern "C" __global__ void __launch_bounds__(256) grad_squares(
    double* sums, const Tensor* tensors, const uint2* chunks, u64 window, u32* stop) {
    uint2 chunk = chunks[blockIdx.x];
    const Tensor& t = tensors[chunk.x];
    u64 gradient = gradient_of(t, window);
    float sum = 0.f;
#pragma unroll
    for (int part = 0; part < 4; part++) {
        u64 at = (u64)chunk.y * 8192 + part * 2048 + threadIdx.x * 8;
        Eight g = gradients(t, gradient, at, at >= t.elements ? 0 : (int)min((u64)8, t.elements - at));
#pragma unroll
        for (int i = 0; i < 8; i++) sum += g.x[i] * g.x[i];
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) {
        sums[blockIdx.x] = sum;
        if (stop && not_finite(sum)) *stop = 1;
    }
}

// *stop = 1 if one of n numbers is not finite.
extern "C" __global__ void __launch_bounds__(1024) stop_if_not_finite(u32* stop, const float* x, int n) {
    for (int i = threadIdx.x; i < n; i += 1024)
        if (not_finite(x[i])) *stop = 1;
}

// A tensor's value: the master, or the copy that products read.
static __device__ __forceinline__ float value_of(const Tensor& t, u64 at) {
    if (t.master && !(t.flags & 4)) return reinterpret_cast<const float*>(t.master)[at];
    u32 row = (u32)at / t.cols;
    return f32_of(reinterpret_cast<const bf16*>(t.copy)[(u64)row * t.copy_stride + ((u32)at - row * t.cols)]);
}

// sums[chunk] = Σ |g · value| over the chunk.
extern "C" __global__ void __launch_bounds__(256) weighted_gradients(double* sums, const Tensor* tensors, const uint2* chunks) {
    uint2 chunk = chunks[blockIdx.x];
    const Tensor t = tensors[chunk.x];
    float sum = 0.f;
    walk(t, chunk, [&](u64 at) { sum += fabsf(gradient_at(t, t.grad, at) * value_of(t, at)); });
    sum = block_sum(sum);
    if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

// out[0] = Σ of n numbers, in one block.
extern "C" __global__ void __launch_bounds__(1024) sum_doubles(double* out, const double* in, int n) {
    __shared__ double parts[1024];
    double sum = 0.;
    for (int i = threadIdx.x; i < n; i += 1024) sum += in[i];
    parts[threadIdx.x] = sum;
    for (int half = 512; half; half >>= 1) {
        __syncthreads();
        if (threadIdx.x < half) parts[threadIdx.x] += parts[threadIdx.x + half];
    }
    if (threadIdx.x == 0) out[0] = parts[0];
}

// copy[rows, cols] with a stride = bf16(master · scale): what the products read of an adapter.
extern "C" __global__ void scaled_copy(bf16* copy, const float* master, u64 elements, int cols, int stride, float scale) {
    u64 at = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= elements) return;
    u64 row = at / cols;
    copy[row * stride + (at - row * cols)] = bf16_of(master[at] * scale);
}

// wide = narrow[rows, cols] with a stride: the optimiser's finer numbers before the first step.
extern "C" __global__ void widened(float* wide, const bf16* narrow, u64 elements, int cols, int stride) {
    u64 at = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= elements) return;
    u64 row = at / cols;
    wide[at] = f32_of(narrow[row * stride + (at - row * cols)]);
}

// Standard normal numbers times `spread` (Box and Muller), into f32 or bf16.
extern "C" __global__ void random_normal(
    float* wide, bf16* narrow, u64 elements, int cols, int stride, float spread, u64 seed, u32 purpose) {
    u64 group = (u64)blockIdx.x * blockDim.x + threadIdx.x, at = group * 2;
    if (at >= elements) return;
    uint4 r = philox(seed, (u32)group, (u32)(group >> 32), purpose, 0);
    float radius = sqrtf(-2.f * __logf(((r.x >> 8) + 1) * (1.f / 16777216.f))) * spread, angle = (r.y >> 8) * (6.2831853f / 16777216.f);
    float pair[2] = {radius * __cosf(angle), radius * __sinf(angle)};
    for (int i = 0; i < 2 && at + i < elements; i++) {
        u64 row = (at + i) / cols, place = row * stride + (at + i - row * cols);
        if (wide) wide[place] = pair[i];
        if (narrow) narrow[place] = bf16_of(pair[i]);
    }
}

// before[chunk][8192] = the values of the chunk.
extern "C" __global__ void __launch_bounds__(256) keep_values(float* before, const Tensor* tensors, const uint2* chunks) {
    uint2 chunk = chunks[blockIdx.x];
    const Tensor t = tensors[chunk.x];
    walk(t, chunk, [&](u64 at) { before[(u64)blockIdx.x * 8192 + at % 8192] = value_of(t, at); });
}

// sums[chunk] = the squared distance of the chunk's values from those before.
extern "C" __global__ void __launch_bounds__(256) distances(
    double* sums, const float* before, const Tensor* tensors, const uint2* chunks) {
    __shared__ double parts[256];
    uint2 chunk = chunks[blockIdx.x];
    const Tensor t = tensors[chunk.x];
    double sum = 0.;
    walk(t, chunk, [&](u64 at) {
        double moved = (double)value_of(t, at) - (double)before[(u64)blockIdx.x * 8192 + at % 8192];
        sum += moved * moved;
    });
    parts[threadIdx.x] = sum;
    for (int half = 128; half; half >>= 1) {
        __syncthreads();
        if (threadIdx.x < half) parts[threadIdx.x] += parts[threadIdx.x + half];
    }
    if (threadIdx.x == 0) sums[blockIdx.x] = parts[0];
}
