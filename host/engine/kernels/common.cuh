// What every kernel may use. NVRTC compiles without CUDA's headers: bf16 is `unsigned short`, converted here.
#pragma nv_diag_suppress 177  // not every file uses every helper
typedef unsigned short bf16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef unsigned char u8;

static __device__ __forceinline__ float f32_of(bf16 x) { return __uint_as_float((u32)x << 16); }
static __device__ __forceinline__ bf16 bf16_of(float x) {
    bf16 y;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y) : "f"(x));
    return y;
}
// Two numbers in one word, `low` in the lower half.
static __device__ __forceinline__ u32 bf16x2_of(float low, float high) {
    u32 y;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
    return y;
}
static __device__ __forceinline__ float low_of(u32 x) { return __uint_as_float(x << 16); }
static __device__ __forceinline__ float high_of(u32 x) { return __uint_as_float(x & 0xffff0000u); }

#define INF __int_as_float(0x7f800000)
#define LOG2E 1.4426950408889634f

// Unrolled, so that they stay in registers.
#define EIGHT _Pragma("unroll") for (int i = 0; i < 8; i++)

// Eight bf16 numbers, 16 bytes.
struct Eight {
    float x[8];
};
static __device__ __forceinline__ Eight eight_of(const uint4& w) {
    return {{low_of(w.x), high_of(w.x), low_of(w.y), high_of(w.y), low_of(w.z), high_of(w.z), low_of(w.w), high_of(w.w)}};
}
static __device__ __forceinline__ Eight load8(const bf16* p) { return eight_of(*reinterpret_cast<const uint4*>(p)); }
static __device__ __forceinline__ void store8(bf16* p, const Eight& v) {
    *reinterpret_cast<uint4*>(p) = make_uint4(bf16x2_of(v.x[0], v.x[1]), bf16x2_of(v.x[2], v.x[3]),
                                              bf16x2_of(v.x[4], v.x[5]), bf16x2_of(v.x[6], v.x[7]));
}

// Eight f32 numbers, 32 bytes.
static __device__ __forceinline__ Eight load8f(const float* p) {
    float4 a = reinterpret_cast<const float4*>(p)[0], b = reinterpret_cast<const float4*>(p)[1];
    return {{a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w}};
}
static __device__ __forceinline__ void store8f(float* p, const Eight& v) {
    reinterpret_cast<float4*>(p)[0] = make_float4(v.x[0], v.x[1], v.x[2], v.x[3]);
    reinterpret_cast<float4*>(p)[1] = make_float4(v.x[4], v.x[5], v.x[6], v.x[7]);
}

static __device__ __forceinline__ float sigmoid(float x) { return 1.f / (1.f + __expf(-x)); }

static __device__ __forceinline__ float warp_sum(float x) {
    for (int d = 16; d; d >>= 1) x += __shfl_xor_sync(0xffffffffu, x, d);
    return x;
}
static __device__ __forceinline__ float warp_max(float x) {
    for (int d = 16; d; d >>= 1) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, d));
    return x;
}
// The sum over a block of up to 1024 threads, given to all of them; always added in the same order.
static __device__ __forceinline__ float block_sum(float x) {
    __shared__ float parts[32];
    int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, warps = (blockDim.x + 31) >> 5;
    x = warp_sum(x);
    __syncthreads();
    if (lane == 0) parts[warp] = x;
    __syncthreads();
    return warp_sum(lane < warps ? parts[lane] : 0.f);
}
// Two sums at once, as block_sum makes them.
static __device__ __forceinline__ float2 block_sum2(float x, float y) {
    __shared__ float2 parts[32];
    int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, warps = (blockDim.x + 31) >> 5;
    x = warp_sum(x), y = warp_sum(y);
    __syncthreads();
    if (lane == 0) parts[warp] = make_float2(x, y);
    __syncthreads();
    float2 part = lane < warps ? parts[lane] : make_float2(0.f, 0.f);
    return make_float2(warp_sum(part.x), warp_sum(part.y));
}
static __device__ __forceinline__ float block_max(float x) {
    __shared__ float parts[32];
    int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, warps = (blockDim.x + 31) >> 5;
    x = warp_max(x);
    __syncthreads();
    if (lane == 0) parts[warp] = x;
    __syncthreads();
    return warp_max(lane < warps ? parts[lane] : -INF);
}

// Philox 4x32, 10 rounds: the same words as rng.rs gives for the same key and counter.
static __device__ __forceinline__ uint4 philox(u64 key64, u32 c0, u32 c1, u32 c2, u32 c3) {
    u32 k0 = (u32)key64, k1 = (u32)(key64 >> 32);
#pragma unroll
    for (int round = 0; round < 10; round++) {
        u64 p0, p1;  // one instruction each
        asm("mul.wide.u32 %0, %1, 0xD2511F53;" : "=l"(p0) : "r"(c0));
        asm("mul.wide.u32 %0, %1, 0xCD9E8D57;" : "=l"(p1) : "r"(c2));
        u32 n0 = (u32)(p1 >> 32) ^ c1 ^ k0, n2 = (u32)(p0 >> 32) ^ c3 ^ k1;
        c1 = (u32)p1;
        c3 = (u32)p0;
        c0 = n0;
        c2 = n2;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return make_uint4(c0, c1, c2, c3);
}

// The document that a row is in: the last that begins at or before it.
static __device__ __forceinline__ int document_of(const int* starts, int documents, int row) {
    int low = 0, high = documents;
    while (high - low > 1) {
        int middle = (low + high) >> 1;
        if (starts[middle] <= row) low = middle; else high = middle;
    }
    return low;
}

// Where attention's log-sum-exp of a row and head lies: [document][head][row of the document].
static __device__ __forceinline__ long long lse_place(int start, int end, int heads, int head, int row) {
    return (long long)start * heads + (long long)head * (end - start) + (row - start);
}
