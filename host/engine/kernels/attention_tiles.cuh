// Tiles in shared memory and the matrix products on them, for the attention kernels. Put in front of each of them, with the
// shape as macros:
//   D     head size, a multiple of 16 up to 256
//   WGS   warpgroups of 128 threads that compute; each owns 64 rows of the block's tile
//   TILE  rows of the tiles that the block walks over
//   REGISTERS  of a computing thread, on Hopper
//   STAGES  how many steps' tiles are in shared memory at a time
//   HOPPER  1: wgmma (sm_90a); 0: ldmatrix and mma.sync (sm_80 and later)
//   COPIERS  128: one more warpgroup that only copies (Hopper); 0: the threads that compute copy
//   WRITERS  how many of its last threads take results out of shared memory instead of bringing tiles in
//
// A tile is R rows of D bf16 numbers, cut into column blocks of 64 numbers (128 bytes). In a column block, row r lies at
// byte 128·r with its 16-byte pieces permuted by r mod 8: the layout that wgmma calls 128-byte swizzle, and that ldmatrix
// reads without bank conflicts. Both paths read the same tile as either operand, along rows or along columns, so
// nothing is ever transposed in memory. A warp's accumulators, 16 rows by N columns, have the same layout on both:
// acc[8·j/2 ..]: of columns 8·j .. 8·j+7, thread t holds (row t/4, columns 2·(t%4), +1) and (row t/4+8, the same).

#pragma nv_diag_suppress 177  // not every kernel uses every function

#define THREADS (128 * WGS)          // those that compute
#define BLOCK_THREADS (THREADS + COPIERS)
#define LOADERS (COPIERS ? COPIERS - WRITERS : THREADS)
#define ROWS (64 * WGS)              // rows of a block's own tile
#define BLOCKS_OF(d) (((d) + 63) / 64)
#define CHUNKS (D / 8)               // 16-byte pieces in a row
#define TILE_BYTES(rows) ((rows) * 128 * BLOCKS_OF(D))

static __device__ __forceinline__ u32 shared_address(const void* p) { return (u32)__cvta_generic_to_shared(p); }

static __device__ __forceinline__ float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

static __device__ __forceinline__ float log2_fast(float x) {
    float y;
    asm("lg2.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// ---- global to shared memory ----

static __device__ __forceinline__ void copy_16(u32 to, const void* from, bool inside) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(inside ? 16 : 0) : "memory");
}

// The thread's number among those that copy.
static __device__ __forceinline__ int loader() { return COPIERS ? (int)threadIdx.x - THREADS : (int)threadIdx.x; }

// Starts copying rows first .. first+R of a [.., stride] matrix into the tile at `to`; rows at or past `end` become zeros.
template <int R>
static __device__ __forceinline__ void load_tile(u32 to, const bf16* from, long long stride, int first, int end) {
    if constexpr (LOADERS % CHUNKS == 0 && R % (LOADERS / CHUNKS) == 0) {
        // Each thread keeps to its column: addresses are additions.
        constexpr int PASS = LOADERS / CHUNKS;
        const int row0 = loader() / CHUNKS, chunk = loader() % CHUNKS, left = end - first - row0;
        const bf16* at = from + (first + row0) * stride + chunk * 8;
        const u32 place = to + (chunk >> 3) * (R * 128) + row0 * 128;
#pragma unroll 4
        for (int row = 0; row < R; row += PASS) {
            copy_16(place + row * 128 + (((chunk & 7) ^ ((row0 + row) & 7)) << 4), row < left ? at : from, row < left);
            at += PASS * stride;
        }
    } else {
#pragma unroll 4
        for (int i = loader(); i < R * CHUNKS; i += LOADERS) {
            int row = i / CHUNKS, chunk = i % CHUNKS;
            u32 at = to + (chunk >> 3) * (R * 128) + row * 128 + (((chunk & 7) ^ (row & 7)) << 4);
            bool inside = first + row < end;
            copy_16(at, from + (inside ? (first + row) * stride + chunk * 8 : 0), inside);
        }
    }
}

static __device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

template <int N>
static __device__ __forceinline__ void wait_copies() { asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory"); }

// ---- steps ----
// A block walks over `steps` steps; `load(step)` starts copying what one needs into stage step % STAGES and commits.
// A computing thread calls acquire before it reads a stage and release after.
// With COPIERS the last warpgroup runs ahead and fills stages as they become free, and the others never wait for each other.
// Otherwise every thread copies its part of the next step and the block meets once a step; STAGES is 2.

#if COPIERS

static __device__ __forceinline__ void wait_barrier(u32 at, int parity) {
    asm volatile("{.reg .pred p;\n"
                 "again: mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n"
                 "@!p bra again;}" ::"r"(at), "r"(parity) : "memory");
}

static __device__ __forceinline__ bool barrier_passed(u32 at, int parity) {
    u32 passed;
    asm volatile("{.reg .pred p; mbarrier.test_wait.parity.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p;}"
                 : "=r"(passed) : "r"(at), "r"(parity) : "memory");
    return __all_sync(~0u, passed);
}

static __device__ __forceinline__ void arrive(u32 at) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(at) : "memory");
}

static __device__ __forceinline__ void make_barrier(u32 at, int arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(at), "r"(arrivals) : "memory");
}

// Once a warp, behind whatever its threads did before.
static __device__ __forceinline__ void arrive_warp(u32 at) {
    __syncwarp();
    if ((threadIdx.x & 31) == 0) arrive(at);
}

#define FULL(step) (barriers + (step) % STAGES * 16)
#define EMPTY(step) (FULL(step) + 8)
#define BARRIER_BYTES (16 * STAGES)

static __device__ __forceinline__ void make_barriers(u32 barriers) {
    if (threadIdx.x < STAGES) {
        make_barrier(FULL(threadIdx.x), LOADERS);
        make_barrier(EMPTY(threadIdx.x), 4 * WGS);
    }
    __syncthreads();
}

// Shared memory that was written by ordinary stores may be read by the tensor cores and by bulk copies.
static __device__ __forceinline__ void show_shared() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

static __device__ __forceinline__ void announce(u32 full) {
    show_shared();
    arrive(full);
}

template <class Load>
static __device__ __forceinline__ void produce(u32 barriers, int steps, Load load) {
    bool pending = false;
    for (int step = 0; step < steps; step++) {
        int parity = (step / STAGES + 1) & 1;
        if (step >= STAGES && !barrier_passed(EMPTY(step), parity)) {
            if (pending) {
                wait_copies<0>();
                announce(FULL(step - 1));
                pending = false;
            }
            wait_barrier(EMPTY(step), parity);
        }
        load(step);
        if (pending) {
            wait_copies<1>();
            announce(FULL(step - 1));
        }
        pending = true;
    }
    wait_copies<0>();
    announce(FULL(steps - 1));
}

static __device__ __forceinline__ void acquire(u32 barriers, int step) { wait_barrier(FULL(step), (step / STAGES) & 1); }

template <class Load>
static __device__ __forceinline__ void acquire(u32 barriers, int step, int, Load) {
    acquire(barriers, step);
}

static __device__ __forceinline__ void release(u32 barriers, int step) { arrive_warp(EMPTY(step)); }

// Registers move from the warpgroup that copies to those that compute, of the 65,536 of a multiprocessor. REGISTERS: how
// many each computing thread gets.
static __device__ __forceinline__ void give_registers() {
    if (WGS > 1) asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(65536 / 128 / 8 * 8 - WGS * REGISTERS - 8 * (WGS == 2)));
}
static __device__ __forceinline__ void take_registers() {
    if (WGS > 1) asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}

// The role of each thread: those of the last warpgroup copy and are done.
#define SPLIT_ROLES(steps, load)             \
    make_barriers(barriers);                 \
    if (threadIdx.x >= THREADS) {            \
        give_registers();                    \
        produce(barriers, steps, load);      \
        return;                              \
    }                                        \
    take_registers()

#else

#define BARRIER_BYTES 0

template <class Load>
static __device__ __forceinline__ void acquire(u32, int step, int steps, Load load) {
    wait_copies<0>();
#if HOPPER
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
    __syncthreads();
    if (step + 1 < steps) load(step + 1);
}

static __device__ __forceinline__ void release(u32, int) {}

#define SPLIT_ROLES(steps, load) load(0)

#endif

// ---- products ----
// product_tiles<NB, N>:  acc[64, N] (+)= A[64 rows of a tile, D] · B[N rows of a tile, D]ᵀ
// product_columns<NB>:   acc[64, D] += P[64, 16·steps] (registers) · B[rows of a tile, D]
// Both work on one warpgroup. On Hopper they are asynchronous: fence_products() before, commit_products() after, and
// wait_products<groups still running>() before the accumulators are read.

#if HOPPER

static __device__ __forceinline__ void fence_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
static __device__ __forceinline__ void commit_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int N>
static __device__ __forceinline__ void wait_products() { asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory"); }

// Keeps the compiler from moving reads and writes of accumulators across the asynchronous products.
template <int N>
static __device__ __forceinline__ void pin(float (&acc)[N]) {
#pragma unroll
    for (int i = 0; i < N; i++) asm volatile("" : "+f"(acc[i])::"memory");
}

// Descriptor of a 128-byte-swizzled operand. `lead`: bytes between column blocks, for an operand that is read along columns.
static __device__ __forceinline__ u64 descriptor(u32 address, u32 lead) {
    return ((u64)1 << 62) | ((u64)(1024 >> 4) << 32) | ((u64)((lead & 0x3ffff) >> 4) << 16) | (u64)((address & 0x3ffff) >> 4);
}

#define A8(v, i) "+f"(v[i]), "+f"(v[i + 1]), "+f"(v[i + 2]), "+f"(v[i + 3]), "+f"(v[i + 4]), "+f"(v[i + 5]), "+f"(v[i + 6]), "+f"(v[i + 7])
#define A32(v) A8(v, 0), A8(v, 8), A8(v, 16), A8(v, 24)
#define A40(v) A32(v), A8(v, 32)
#define A48(v) A40(v), A8(v, 40)
#define A64(v) A48(v), A8(v, 48), A8(v, 56)
#define S32 "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define S40 S32 ",%32,%33,%34,%35,%36,%37,%38,%39"
#define S48 S40 ",%40,%41,%42,%43,%44,%45,%46,%47"
#define S64 S48 ",%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"

// Both operands in shared memory, read along rows; along columns with `turned` "1, 1".
#define WGMMA_TILES(n, acc, regs, list, a, b, add, turned, i0, i1, i2)                                          \
    asm volatile("{.reg .pred p; setp.ne.b32 p, %" i2 ", 0;\n"                                                  \
                 "wgmma.mma_async.sync.aligned.m64n" #n "k16.f32.bf16.bf16 " list "}, %" i0 ", %" i1            \
                 ", p, 1, 1, " turned ";}"                                                                          \
                 : regs(acc)                                                                                    \
                 : "l"(a), "l"(b), "r"(add))

// A in registers, B in shared memory and read along columns.
#define WGMMA_COLUMNS(n, acc, regs, list, a, b, i0, i1, i2, i3, i4)                                             \
    asm volatile("wgmma.mma_async.sync.aligned.m64n" #n "k16.f32.bf16.bf16 " list "}, {%" i0 ",%" i1 ",%" i2    \
                 ",%" i3 "}, %" i4 ", 1, 1, 1, 1;"                                                              \
                 : regs(acc)                                                                                    \
                 : "r"((a)[0]), "r"((a)[1]), "r"((a)[2]), "r"((a)[3]), "l"(b))

template <int N>
struct Wgmma;
template <>
struct Wgmma<64> {
    static __device__ __forceinline__ void tiles(float* c, u64 a, u64 b, int add) { WGMMA_TILES(64, c, A32, S32, a, b, add, "0, 0", "32", "33", "34"); }
    static __device__ __forceinline__ void turned(float* c, u64 a, u64 b, int add) { WGMMA_TILES(64, c, A32, S32, a, b, add, "1, 1", "32", "33", "34"); }
    static __device__ __forceinline__ void columns(float* c, const u32* a, u64 b) { WGMMA_COLUMNS(64, c, A32, S32, a, b, "32", "33", "34", "35", "36"); }
};
template <>
struct Wgmma<80> {
    static __device__ __forceinline__ void columns(float* c, const u32* a, u64 b) { WGMMA_COLUMNS(80, c, A40, S40, a, b, "40", "41", "42", "43", "44"); }
};
template <>
struct Wgmma<96> {
    static __device__ __forceinline__ void columns(float* c, const u32* a, u64 b) { WGMMA_COLUMNS(96, c, A48, S48, a, b, "48", "49", "50", "51", "52"); }
};
template <>
struct Wgmma<128> {
    static __device__ __forceinline__ void tiles(float* c, u64 a, u64 b, int add) { WGMMA_TILES(128, c, A64, S64, a, b, add, "0, 0", "64", "65", "66"); }
    static __device__ __forceinline__ void columns(float* c, const u32* a, u64 b) { WGMMA_COLUMNS(128, c, A64, S64, a, b, "64", "65", "66", "67", "68"); }
};

// A's 64 rows start at row `a_row` of a tile of RA rows; B is a whole tile of N rows.
template <int RA, int N>
static __device__ __forceinline__ void product_tiles(float (&acc)[N / 2], u32 a, int a_row, u32 b) {
#pragma unroll
    for (int k = 0; k < D / 16; k++) {
        u32 inner = (k & 3) * 32;
        u64 da = descriptor(a + (k >> 2) * (RA * 128) + a_row * 128 + inner, 16);
        u64 db = descriptor(b + (k >> 2) * (N * 128) + inner, 16);
        Wgmma<N>::tiles(acc, da, db, k > 0);
    }
}

// acc[64, 64] = Aᵀ · B of two column blocks of R rows, all of which are summed over.
template <int R>
static __device__ __forceinline__ void product_turned(float (&acc)[32], u32 a, u32 b) {
#pragma unroll
    for (int k = 0; k < R / 16; k++)
        Wgmma<64>::turned(acc, descriptor(a + k * 2048, R * 128), descriptor(b + k * 2048, R * 128), k > 0);
}

// B is a tile of RB rows, all of which are summed over.
template <int RB>
static __device__ __forceinline__ void product_columns(float (&acc)[D / 2], const u32 (&p)[RB / 4], u32 b) {
    constexpr int N = D > 128 ? 128 : D;
#pragma unroll
    for (int k = 0; k < RB / 16; k++)
#pragma unroll
        for (int n = 0; n < D / N; n++)
            Wgmma<N>::columns(acc + n * 64, p + k * 4, descriptor(b + n * 2 * (RB * 128) + k * 2048, RB * 128));
}

#else

static __device__ __forceinline__ void fence_products() {}
static __device__ __forceinline__ void commit_products() {}
template <int N>
static __device__ __forceinline__ void wait_products() {}
template <int N>
static __device__ __forceinline__ void pin(float (&acc)[N]) {}

static __device__ __forceinline__ void matrices(u32 (&r)[4], u32 at) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(at) : "memory");
}

static __device__ __forceinline__ void matrices_turned(u32 (&r)[4], u32 at) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(at) : "memory");
}

static __device__ __forceinline__ void mma(float* c, const u32* a, u32 b0, u32 b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Shared address of the 16-byte piece `chunk` of row `row` in a tile of R rows.
template <int R>
static __device__ __forceinline__ u32 piece(u32 tile, int row, int chunk) {
    return tile + (chunk >> 3) * (R * 128) + row * 128 + (((chunk & 7) ^ (row & 7)) << 4);
}

template <int RA, int N>
static __device__ __forceinline__ void product_tiles(float (&acc)[N / 2], u32 a, int a_row, u32 b) {
    int lane = threadIdx.x & 31, row = a_row + ((threadIdx.x >> 5) & 3) * 16;
#pragma unroll
    for (int i = 0; i < N / 2; i++) acc[i] = 0.0f;
#pragma unroll
    for (int k = 0; k < D / 16; k++) {
        u32 fa[4];
        matrices(fa, piece<RA>(a, row + (lane & 15), 2 * k + (lane >> 4)));
#pragma unroll
        for (int n = 0; n < N / 16; n++) {
            u32 fb[4];
            matrices(fb, piece<N>(b, n * 16 + (lane & 7) + ((lane >> 4) << 3), 2 * k + ((lane >> 3) & 1)));
            mma(acc + n * 8, fa, fb[0], fb[1]);
            mma(acc + n * 8 + 4, fa, fb[2], fb[3]);
        }
    }
}

template <int RB>
static __device__ __forceinline__ void product_columns(float (&acc)[D / 2], const u32 (&p)[RB / 4], u32 b) {
    int lane = threadIdx.x & 31;
#pragma unroll
    for (int k = 0; k < RB / 16; k++)
#pragma unroll
        for (int n = 0; n < D / 16; n++) {
            u32 fb[4];
            matrices_turned(fb, piece<RB>(b, k * 16 + (lane & 15), 2 * n + (lane >> 4)));
            mma(acc + n * 8, p + k * 4, fb[0], fb[1]);
            mma(acc + n * 8 + 4, p + k * 4, fb[2], fb[3]);
        }
}

#endif

// An accumulator [64, N] rounded to bf16 as the left operand of product_columns.
template <int N>
static __device__ __forceinline__ void round_operand(u32 (&p)[N / 4], const float (&acc)[N / 2]) {
#pragma unroll
    for (int i = 0; i < N / 4; i++) p[i] = bf16x2_of(acc[2 * i], acc[2 * i + 1]);
}

// Writes the warp's [16, D] accumulators, times a factor a row half, into rows `row` and `row`+8 of a [.., stride]
// matrix, where those rows lie before `end`.
static __device__ __forceinline__ void write_rows(bf16* to, long long stride, int row, int end, const float (&acc)[D / 2], float low, float high) {
    int column = (threadIdx.x & 3) * 2;
#pragma unroll
    for (int j = 0; j < D / 8; j++) {
        if (row < end) *(u32*)(to + row * stride + j * 8 + column) = bf16x2_of(acc[4 * j] * low, acc[4 * j + 1] * low);
        if (row + 8 < end) *(u32*)(to + (row + 8) * stride + j * 8 + column) = bf16x2_of(acc[4 * j + 2] * high, acc[4 * j + 3] * high);
    }
}

// Dynamic shared memory from the first address that 128-byte swizzling allows; the launch asks for 1024 bytes more.
static __device__ __forceinline__ u32 shared_base(const void* memory) { return (shared_address(memory) + 1023u) & ~1023u; }
