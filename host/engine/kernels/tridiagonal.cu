// Symmetric matrices in f64 made tridiagonal by Householder's reflections, several at a time, 32 columns a launch.
//
// Each column needs a product of what is left of the matrix with a vector, so that all of it is read once a column:
// n³/6 numbers, 92 GB for n = 4096, of which the lower triangle is read and used both ways; 31 ms at the 3.0 TB/s of an
// H100, where it takes 44 ms a matrix in batches of four: 70 %. Beside that stand two meetings of all blocks a column.
// Several matrices are in work at the same time, each by blocks of its own on every multiprocessor, so that one reads
// while another's blocks meet.
//
// The reflections of a panel of 32 columns are gathered (H = I − tau·v·vᵀ as the rank-two updates v·wᵀ + w·vᵀ: LAPACK's
// dlatrd) and applied by `update`, which reads and writes the triangle once a panel, 3 % of the traffic each way: 4.4
// ms a matrix.
//
// A matrix is column-major with `ld` numbers a column (a multiple of 64; what lies outside is 0); of its tiles of 64 ×
// 64 the diagonal ones are kept whole and of the others those below. Work space of a matrix, in numbers, with T = ld /
// 64:
//   v [32][ld], w [32][ld]   the panel's reflections
//   x [ld]                   the column that is made zero
//   norms [ld / 32]          sums of its squares, 32 rows each
//   dots [64]                Vᵀv, Wᵀv
//   energies [MOST_BLOCKS]   each block's part of vᵀAv
//   parts [T][T][64]         products of tiles with parts of v; [i][j] is for the rows of tile row i
//
// All sums are made in an order that depends on sizes and the number of blocks only.
#define TILE 64
#define PANEL 32
#define WARPS 8
#define MOST_BLOCKS 512
// A column whose squares sum up to less is zero already; smaller sums would lose digits.
#define NOTHING 1e-290

static __device__ __forceinline__ double all_lanes(double x) {
    for (int d = 16; d; d >>= 1) x += __shfl_xor_sync(0xffffffffu, x, d);
    return x;
}

// What other blocks wrote during this launch: not from the multiprocessor's own cache.
static __device__ __forceinline__ double fresh(const double* p) { return __ldcg(p); }
static __device__ __forceinline__ double2 fresh2(const double* p) {
    return __ldcg(reinterpret_cast<const double2*>(p));
}

static __device__ __forceinline__ void tile_at(int index, int& row, int& col) {
    row = (int)((sqrtf(8.f * index + 1.f) - 1.f) * 0.5f);
    while (row * (row + 1) / 2 > index) row--;
    while ((row + 1) * (row + 2) / 2 <= index) row++;
    col = index - row * (row + 1) / 2;
}

// Waits until all blocks of a matrix are here, and sees what they wrote.
static __device__ __forceinline__ void meet(u32* arrivals, u32 blocks) {
    __syncthreads();
    if (threadIdx.x == 0) {
        __threadfence();
        u32 complete = (atomicAdd(arrivals, 1u) / blocks + 1) * blocks;
        while ((int)(*(volatile u32*)arrivals - complete) < 0) {
        }
        __threadfence();
    }
    __syncthreads();
}

// The reflection's vector at row r: 0 down to row j, 1 below it, then the column scaled.
static __device__ __forceinline__ double reflection(double x, int r, int j, double scale) {
    return r <= j ? 0. : r == j + 1 ? 1. : x * scale;
}

// Grid: `blocks` for each matrix, all of which must run at the same time (a cooperative launch).
extern "C" __global__ void __launch_bounds__(256, 4)
    panel(double* matrices, u64 stride, double* works, u64 work_stride, const int* sizes, int ld, int first, int blocks,
          double* diagonals, double* besides, u32* all_arrivals) {
    __shared__ double room[2][WARPS][TILE];
    __shared__ double row_v[PANEL], row_w[PANEL], dot_v[PANEL], dot_w[PANEL];
    __shared__ double said[3];
    int matrix = blockIdx.x / blocks, block = blockIdx.x % blocks;
    int n = sizes[matrix];
    if (first >= n) return;
    const double* a = matrices + stride * matrix;
    double* v = works + work_stride * matrix;
    double* w = v + (u64)PANEL * ld;
    double* x = w + (u64)PANEL * ld;
    double* norms = x + ld;
    double* dots = norms + ld / 32;
    double* energies = dots + 2 * PANEL;
    double* parts = energies + MOST_BLOCKS;
    double* diagonal = diagonals + (u64)ld * matrix;
    double* beside = besides + (u64)ld * matrix;
    u32* arrivals = all_arrivals + 32 * matrix;
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    int stripes = ld / TILE, tiles = (n + TILE - 1) / TILE;
    int first_chunk = first / 32, chunks = (n + 31) / 32;
    // Of the reflection before: H = I − tau·v·vᵀ.
    double tau = 0., scale = 0.;

    for (int j = first;; j++) {
        int before = j - first - 1;
        bool more = j < first + PANEL;
        // The reflection before is completed: w = tau·(A·v − V·(Wᵀv) − W·(Vᵀv)) − ½·tau²·(vᵀ that)·v. Then column j is
        // brought up to date with all of them.
        double half = 0., w_at_j = 0., v_at_j = 0.;
        if (before >= 0) {
            if (warp == 0) {
                double sum = 0.;
                for (int s = j / TILE + lane; s < tiles; s += 32)
                    sum += fresh(parts + ((u64)(j / TILE) * stripes + s) * TILE + j % TILE);
                if (lane < before)
                    sum -= fresh(v + (u64)lane * ld + j) * fresh(dots + PANEL + lane) +
                           fresh(w + (u64)lane * ld + j) * fresh(dots + lane);
                sum = all_lanes(sum);
                if (lane == 0) said[0] = sum;
            } else if (warp == 1) {
                double sum = 0.;
                for (int b = lane; b < blocks; b += 32) sum += fresh(energies + b);
                if (lane < before) sum -= 2. * fresh(dots + lane) * fresh(dots + PANEL + lane);
                sum = all_lanes(sum);
                if (lane == 0) said[1] = sum;
            } else if (lane < before) {
                if (warp == 2) row_v[lane] = fresh(v + (u64)lane * ld + j);
                if (warp == 3) row_w[lane] = fresh(w + (u64)lane * ld + j);
                if (warp == 4) dot_v[lane] = fresh(dots + lane);
                if (warp == 5) dot_w[lane] = fresh(dots + PANEL + lane);
            }
            __syncthreads();
            if (tau != 0.) {
                half = -0.5 * tau * tau * said[1];
                v_at_j = 1.;
                w_at_j = tau * said[0] + half;
            }
        }
        for (int chunk = block; chunk < chunks; chunk += blocks) {
            if (chunk < first_chunk) continue;
            int r = chunk * 32 + lane;
            double column = 0., newest = 0.;
            if (warp == 0) {
                if (more) column = fresh(a + (u64)j * ld + r);
                if (before >= 0) newest = fresh(v + (u64)before * ld + r);
            }
            double product = 0., change = 0.;
            if (tau != 0.)
                for (int s = j / TILE + warp; s < tiles; s += WARPS)
                    product += fresh(parts + ((u64)(r / TILE) * stripes + s) * TILE + r % TILE);
            for (int t = warp; t < before; t += WARPS) {
                double vt = fresh(v + (u64)t * ld + r), wt = fresh(w + (u64)t * ld + r);
                product -= vt * dot_w[t] + wt * dot_v[t];
                change += vt * row_w[t] + wt * row_v[t];
            }
            room[0][warp][lane] = product;
            room[0][warp][32 + lane] = change;
            __syncthreads();
            if (warp == 0) {
                product = change = 0.;
                for (int k = 0; k < WARPS; k++) {
                    product += room[0][k][lane];
                    change += room[0][k][32 + lane];
                }
                bool inside = r >= j && r < n;
                if (before >= 0) {
                    double complete = tau != 0. && inside ? tau * product + half * newest : 0.;
                    w[(u64)before * ld + r] = complete;
                    change += newest * w_at_j + complete * v_at_j;
                }
                if (more) {
                    column = inside ? column - change : 0.;
                    if (r == j) diagonal[j] = column;
                    x[r] = r > j ? column : 0.;
                    double squares = all_lanes(r > j + 1 ? column * column : 0.);
                    if (lane == 0) norms[chunk] = squares;
                }
            }
            __syncthreads();
        }
        if (!more || j == n - 1) return;
        meet(arrivals, blocks);

        // The reflection that makes column j zero below the entry beside the diagonal.
        if (warp == 0) {
            double sum = 0.;
            for (int chunk = first_chunk + lane; chunk < chunks; chunk += 32) sum += fresh(norms + chunk);
            sum = all_lanes(sum);
            if (lane == 0) {
                said[0] = sum;
                said[1] = fresh(x + j + 1);
            }
        }
        __syncthreads();
        double squares = said[0], entry = said[1];
        if (squares <= NOTHING) {
            tau = scale = 0.;
        } else {
            double length = sqrt(entry * entry + squares), result = entry > 0. ? -length : length;
            tau = (result - entry) / result;
            scale = 1. / (entry - result);
            entry = result;
        }
        if (block == 0 && threadIdx.x == 0) beside[j] = entry;
        int here = j - first;
        if (warp == 1)
            for (int chunk = block; chunk < chunks; chunk += blocks) {
                int r = chunk * 32 + lane;
                if (chunk >= first_chunk)
                    v[(u64)here * ld + r] = tau != 0. ? reflection(fresh(x + r), r, j, scale) : 0.;
            }
        if (tau != 0.) {
            int start = (j + 1) / TILE, side = tiles - start, count = side * (side + 1) / 2, flip = 0;
            double energy = 0.;
            for (int item = block; item < count + 2 * here; item += blocks, flip ^= 1) {
                if (item < count) {
                    int row, col;
                    tile_at(item, row, col);
                    row += start, col += start;
                    int r = row * TILE + 2 * lane, c = col * TILE + 8 * warp;
                    double2 numbers[8];
                    const double* at = a + (u64)c * ld + r;
#pragma unroll
                    for (int k = 0; k < 8; k++) numbers[k] = fresh2(at + (u64)k * ld);
                    double2 down = fresh2(x + r);
                    down.x = reflection(down.x, r, j, scale);
                    down.y = reflection(down.y, r + 1, j, scale);
                    double2 across = make_double2(0., 0.);
                    double sums[8];
#pragma unroll
                    for (int k = 0; k < 8; k += 2) {
                        double2 two = fresh2(x + c + k);
                        two.x = reflection(two.x, c + k, j, scale);
                        two.y = reflection(two.y, c + k + 1, j, scale);
                        across.x += numbers[k].x * two.x + numbers[k + 1].x * two.y;
                        across.y += numbers[k].y * two.x + numbers[k + 1].y * two.y;
                        sums[k] = numbers[k].x * down.x + numbers[k].y * down.y;
                        sums[k + 1] = numbers[k + 1].x * down.x + numbers[k + 1].y * down.y;
                    }
                    room[flip][warp][2 * lane] = across.x;
                    room[flip][warp][2 * lane + 1] = across.y;
                    double part = across.x * down.x + across.y * down.y;
                    energy += row == col ? part : 2. * part;
                    if (row != col) {
                        // Sums over the lanes, eight at once: each lane ends with that of column lane / 4.
#pragma unroll
                        for (int width = 4, d = 16; width; width >>= 1, d >>= 1)
#pragma unroll
                            for (int k = 0; k < width; k++) {
                                double give = lane & d ? sums[k] : sums[k + width];
                                double keep = lane & d ? sums[k + width] : sums[k];
                                sums[k] = keep + __shfl_xor_sync(0xffffffffu, give, d);
                            }
                        double sum = sums[0] + __shfl_xor_sync(0xffffffffu, sums[0], 2);
                        sum += __shfl_xor_sync(0xffffffffu, sum, 1);
                        if (lane % 4 == 0) parts[((u64)col * stripes + row) * TILE + 8 * warp + lane / 4] = sum;
                    }
                    __syncthreads();
                    if (threadIdx.x < TILE) {
                        double sum = 0.;
                        for (int k = 0; k < WARPS; k++) sum += room[flip][k][threadIdx.x];
                        parts[((u64)row * stripes + col) * TILE + threadIdx.x] = sum;
                    }
                } else {
                    int which = item - count;
                    const double* other = which < here ? v + (u64)which * ld : w + (u64)(which - here) * ld;
                    double sum = 0.;
                    for (int r = j + 1 + threadIdx.x; r < n; r += 32 * WARPS)
                        sum += fresh(other + r) * reflection(fresh(x + r), r, j, scale);
                    sum = all_lanes(sum);
                    if (lane == 0) room[flip][warp][0] = sum;
                    __syncthreads();
                    if (threadIdx.x == 0) {
                        double total = 0.;
                        for (int k = 0; k < WARPS; k++) total += room[flip][k][0];
                        dots[which < here ? which : PANEL + which - here] = total;
                    }
                }
            }
            energy = all_lanes(energy);
            __syncthreads();
            if (lane == 0) room[0][warp][0] = energy;
            __syncthreads();
            if (threadIdx.x == 0) {
                double total = 0.;
                for (int k = 0; k < WARPS; k++) total += room[0][k][0];
                energies[block] = total;
            }
        }
        meet(arrivals, blocks);
    }
}

// A − V·Wᵀ − W·Vᵀ in what is left behind a panel. Grid: (tiles, matrices).
extern "C" __global__ void __launch_bounds__(256, 3)
    update(double* matrices, u64 stride, const double* works, u64 work_stride, const int* sizes, int ld, int first) {
    const int DEPTH = 8;
    __shared__ __align__(16) double stage[4][DEPTH][TILE];
    int n = sizes[blockIdx.y], start = (first + PANEL) / TILE, side = (n + TILE - 1) / TILE - start;
    if (first + PANEL >= n || (int)blockIdx.x >= side * (side + 1) / 2) return;
    int row, col;
    tile_at(blockIdx.x, row, col);
    row = (row + start) * TILE, col = (col + start) * TILE;
    const double* v = works + work_stride * blockIdx.y;
    const double* w = v + (u64)PANEL * ld;
    // Each thread has the rows 2·(its number mod 16) + {0, 1, 32, 33} and four columns.
    int r = 2 * (threadIdx.x % 16), c = 4 * (threadIdx.x / 16);
    double* at = matrices + stride * blockIdx.y + (u64)(col + c) * ld + row + r;
    double2 out[4][2];
#pragma unroll
    for (int k = 0; k < 4; k++)
#pragma unroll
        for (int m = 0; m < 2; m++) out[k][m] = *reinterpret_cast<const double2*>(at + (u64)k * ld + 32 * m);
    for (int depth = 0; depth < PANEL; depth += DEPTH) {
        for (int k = threadIdx.x; k < DEPTH * TILE; k += 256) {
            int t = k / TILE, place = k % TILE;
            u64 from = (u64)(depth + t) * ld;
            stage[0][t][place] = v[from + row + place];
            stage[1][t][place] = w[from + col + place];
            stage[2][t][place] = w[from + row + place];
            stage[3][t][place] = v[from + col + place];
        }
        __syncthreads();
#pragma unroll
        for (int t = 0; t < DEPTH; t++)
#pragma unroll
            for (int side = 0; side < 4; side += 2) {
                double2 low = *reinterpret_cast<const double2*>(&stage[side][t][r]);
                double2 high = *reinterpret_cast<const double2*>(&stage[side][t][r + 32]);
#pragma unroll
                for (int k = 0; k < 4; k++) {
                    double factor = stage[side + 1][t][c + k];
                    out[k][0].x -= low.x * factor;
                    out[k][0].y -= low.y * factor;
                    out[k][1].x -= high.x * factor;
                    out[k][1].y -= high.y * factor;
                }
            }
        __syncthreads();
    }
#pragma unroll
    for (int k = 0; k < 4; k++)
#pragma unroll
        for (int m = 0; m < 2; m++) *reinterpret_cast<double2*>(at + (u64)k * ld + 32 * m) = out[k][m];
}
