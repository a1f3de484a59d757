// What has the singular values of a matrix as its eigenvalues, in f64: the smaller of A·Aᵀ and Aᵀ·A, which has their
// squares, and [[0, Aᵀ], [A, 0]], which has them and their negatives.
//
// `elements` are row-major f32, `stride` numbers from one matrix of the batch to the next; products of two are exact in
// f64. The results are column-major with `ld` numbers a column; what lies outside a matrix is 0.
//
// `square`: n²·k/2 multiply-adds for n×n sums of k products, 128 × 128 of them a block, 8 × 8 a thread, so that the
// units of f64 are what limits it: 18.8 of 33 TFLOP/s on an H100, 57 %. It reads each element n/128 times, mostly from
// L2.
#define EDGE 128
#define DEPTH 8
#define PITCH (EDGE + 2)

// The tile (row, col), row >= col, that stands at `index` when the lower triangle is counted row by row.
static __device__ __forceinline__ void tile_at(int index, int& row, int& col) {
    row = (int)((sqrtf(8.f * index + 1.f) - 1.f) * 0.5f);
    while (row * (row + 1) / 2 > index) row--;
    while ((row + 1) * (row + 2) / 2 <= index) row++;
    col = index - row * (row + 1) / 2;
}

// A thread's four of the 128 × 8 numbers of a panel: rows of the square and places in its sums.
static __device__ __forceinline__ void fetch(const float* elements, int rows, int cols, int first, int depth,
                                             float (&to)[4]) {
    bool wide = rows <= cols;
    int size = wide ? rows : cols, length = wide ? cols : rows;
#pragma unroll
    for (int m = 0; m < 4; m++) {
        int i = first + (wide ? threadIdx.x / 2 : threadIdx.x % 32 + 32 * m);
        int k = depth + (wide ? threadIdx.x % 2 * 4 + m : threadIdx.x / 32);
        u64 at = wide ? (u64)i * cols + k : (u64)k * cols + i;
        to[m] = i < size && k < length ? elements[at] : 0.f;
    }
}
static __device__ __forceinline__ void place(double (*panel)[PITCH], bool wide, const float (&from)[4]) {
#pragma unroll
    for (int m = 0; m < 4; m++) {
        int i = wide ? threadIdx.x / 2 : threadIdx.x % 32 + 32 * m;
        int k = wide ? threadIdx.x % 2 * 4 + m : threadIdx.x / 32;
        panel[k][i] = (double)from[m];
    }
}

// Grid: (tiles of 128, matrices).
extern "C" __global__ void __launch_bounds__(256) square(const float* elements, u64 stride, const int* shapes,
                                                         double* out, u64 out_stride, int ld) {
    __shared__ __align__(16) double left[2][DEPTH][PITCH];
    __shared__ __align__(16) double right[2][DEPTH][PITCH];
    int rows = shapes[2 * blockIdx.y], cols = shapes[2 * blockIdx.y + 1];
    bool wide = rows <= cols;
    int size = wide ? rows : cols, length = wide ? cols : rows;
    int edges = (size + EDGE - 1) / EDGE;
    if ((int)blockIdx.x >= edges * (edges + 1) / 2) return;
    int tile_row, tile_col;
    tile_at(blockIdx.x, tile_row, tile_col);
    elements += stride * blockIdx.y;
    out += out_stride * blockIdx.y;
    int across = threadIdx.x % 16, down = threadIdx.x / 16;

    double sums[8][8];
#pragma unroll
    for (int i = 0; i < 8; i++)
#pragma unroll
        for (int j = 0; j < 8; j++) sums[i][j] = 0.;
    float next_left[4], next_right[4];
    fetch(elements, rows, cols, tile_row * EDGE, 0, next_left);
    fetch(elements, rows, cols, tile_col * EDGE, 0, next_right);
    for (int depth = 0, buffer = 0; depth < length; depth += DEPTH, buffer ^= 1) {
        place(left[buffer], wide, next_left);
        place(right[buffer], wide, next_right);
        __syncthreads();
        if (depth + DEPTH < length) {
            fetch(elements, rows, cols, tile_row * EDGE, depth + DEPTH, next_left);
            fetch(elements, rows, cols, tile_col * EDGE, depth + DEPTH, next_right);
        }
#pragma unroll
        for (int k = 0; k < DEPTH; k++) {
            double2 a[4], b[4];
#pragma unroll
            for (int m = 0; m < 4; m++) {
                a[m] = *reinterpret_cast<const double2*>(&left[buffer][k][2 * across + 32 * m]);
                b[m] = *reinterpret_cast<const double2*>(&right[buffer][k][2 * down + 32 * m]);
            }
#pragma unroll
            for (int i = 0; i < 8; i++)
#pragma unroll
                for (int j = 0; j < 8; j++)
                    sums[i][j] += (i % 2 ? a[i / 2].y : a[i / 2].x) * (j % 2 ? b[j / 2].y : b[j / 2].x);
        }
    }
#pragma unroll
    for (int j = 0; j < 8; j++)
#pragma unroll
        for (int m = 0; m < 4; m++) {
            u64 row = tile_row * EDGE + 2 * across + 32 * m, col = tile_col * EDGE + 2 * down + 32 * (j / 2) + j % 2;
            *reinterpret_cast<double2*>(out + col * ld + row) = make_double2(sums[2 * m][j], sums[2 * m + 1][j]);
        }
}

// [[0, Aᵀ], [A, 0]], of rows + cols each way. Grid: (columns, matrices), strided. Writes it once.
extern "C" __global__ void whole(const float* elements, u64 stride, const int* shapes, double* out, u64 out_stride,
                                 int ld) {
    int rows = shapes[2 * blockIdx.y], cols = shapes[2 * blockIdx.y + 1];
    elements += stride * blockIdx.y;
    out += out_stride * blockIdx.y;
    for (int col = blockIdx.x; col < ld; col += gridDim.x)
        for (int row = threadIdx.x; row < ld; row += blockDim.x) {
            bool below = col < cols && row >= cols && row < rows + cols;
            bool above = row < cols && col >= cols && col < rows + cols;
            u64 at = below ? (u64)(row - cols) * cols + col : (u64)(col - cols) * cols + row;
            out[(u64)col * ld + row] = below || above ? (double)elements[at] : 0.;
        }
}
