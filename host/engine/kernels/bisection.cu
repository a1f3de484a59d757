// The largest eigenvalues of symmetric tridiagonal matrices in f64, by counting: as many eigenvalues lie below x as
// there are negative pivots when T − x is eliminated (Sturm; the recurrence as in LAPACK's dlaebz). Four threads divide
// an eigenvalue's interval in five at a time, about 25 times.
//
// Each is exact to a few roundings of the matrix's norm. n·25 divisions in a row for each thread, 9 ms for n = 4096 on
// an H100 whatever the number of matrices: they have to wait for each other, and no memory is read but the matrix
// itself, from the cache.
#define SIDES 4

// Grid: (eigenvalues · 4 / 256, matrices). `found` gets `wanted` eigenvalues of each matrix, from the largest on.
extern "C" __global__ void __launch_bounds__(256)
    bisect(const double* diagonals, const double* besides, const int* sizes, const int* wanted, int ld, double* found) {
    __shared__ double shares[3][8];
    int n = sizes[blockIdx.y], count = wanted[blockIdx.y];
    const double* diagonal = diagonals + (u64)ld * blockIdx.y;
    const double* beside = besides + (u64)ld * blockIdx.y;
    // Gershgorin: every eigenvalue lies within the entries beside the diagonal around it.
    double low = 1.7e308, high = -1.7e308, square = 0.;
    for (int i = threadIdx.x; i < n; i += 256) {
        double left = i ? fabs(beside[i - 1]) : 0., right = i + 1 < n ? fabs(beside[i]) : 0.;
        low = fmin(low, diagonal[i] - left - right);
        high = fmax(high, diagonal[i] + left + right);
        square = fmax(square, right * right);
    }
    for (int d = 16; d; d >>= 1) {
        low = fmin(low, __shfl_xor_sync(0xffffffffu, low, d));
        high = fmax(high, __shfl_xor_sync(0xffffffffu, high, d));
        square = fmax(square, __shfl_xor_sync(0xffffffffu, square, d));
    }
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    if (lane == 0) {
        shares[0][warp] = low;
        shares[1][warp] = high;
        shares[2][warp] = square;
    }
    __syncthreads();
    for (int k = 0; k < 8; k++) {
        low = fmin(low, shares[0][k]);
        high = fmax(high, shares[1][k]);
        square = fmax(square, shares[2][k]);
    }
    double norm = fmax(fabs(low), fabs(high));
    low -= norm * 1e-15;
    high += norm * 1e-15;
    // Smaller pivots count as this much.
    double least = 2.3e-308 * fmax(1., square);
    // 2⁻⁵⁶ of the norm, or a rounding of the eigenvalue.
    double enough = norm * 1.4e-17;

    int place = (blockIdx.x * 256 + threadIdx.x) / SIDES, part = threadIdx.x % SIDES;
    // Its number from the lowest; threads without one repeat the last.
    int number = n - 1 - (place < count ? place : count - 1);
    for (int round = 0; round < 64; round++) {
        double width = high - low;
        // A warp goes on until all of its eigenvalues are found.
        if (!__any_sync(0xffffffffu, width > fmax(enough, 4.5e-16 * fmax(fabs(low), fabs(high))))) break;
        double x = low + width * ((part + 1) / (double)(SIDES + 1));
        double pivot = diagonal[0] - x;
        if (fabs(pivot) < least) pivot = -least;
        int below = pivot < 0.;
#pragma unroll 4
        for (int i = 1; i < n; i++) {
            double b = beside[i - 1];
            pivot = diagonal[i] - x - b * b / pivot;
            if (fabs(pivot) < least) pivot = -least;
            below += pivot < 0.;
        }
        // Where the eigenvalue is not below x, its interval begins at x or later.
        int beyond = below <= number;
        beyond += __shfl_xor_sync(0xffffffffu, beyond, 1);
        beyond += __shfl_xor_sync(0xffffffffu, beyond, 2);
        double base = low;
        if (beyond > 0) low = base + width * (beyond / (double)(SIDES + 1));
        if (beyond < SIDES) high = base + width * ((beyond + 1) / (double)(SIDES + 1));
    }
    if (part == 0 && place < count) found[(u64)ld * blockIdx.y + place] = 0.5 * (low + high);
}
