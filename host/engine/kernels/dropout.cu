// Inverted dropout of an adapter's input, whose mask is made again wherever it is needed: the same bits as on the processor
// (ops/dropout.rs), an element's word chosen by its place in the whole batch.
//
// Traffic, bytes an element: 2 read, 2 written; with ADD also 2 read. Measured, H100: 2.7 and 3.0 TB/s of 3.0 that a copy reaches.
// A thread has eight neighbours, which are two calls of the generator. ADD: y += instead of y =.

extern "C" __global__ void __launch_bounds__(256) dropout(
    bf16* y, const bf16* x, int cols, int y_stride, int x_stride, u64 first_row, float p, u64 key, u32 purpose, u32 step) {
    int c = (blockIdx.x * 256 + threadIdx.x) * 8;
    if (c >= cols) return;
    u64 row = blockIdx.y;
    u64 group = ((first_row + row) * cols + c) / 4;
    Eight v = load8(x + row * x_stride + c);
    float scale = 1.f / (1.f - p);
#pragma unroll
    for (int half = 0; half < 2; half++) {
        uint4 w = philox(key, (u32)(group + half), (u32)((group + half) >> 32), purpose, step);
        u32 words[4] = {w.x, w.y, w.z, w.w};
#pragma unroll
        for (int i = 0; i < 4; i++) {
            bool dropped = (float)(words[i] >> 8) * (1.f / 16777216.f) < p;
            v.x[4 * half + i] = dropped ? 0.f : v.x[4 * half + i] * scale;
        }
    }
    bf16* to = y + row * y_stride + c;
#ifdef ADD
    Eight before = load8(to);
#pragma unroll
    for (int i = 0; i < 8; i++) v.x[i] += before.x[i];
#endif
    store8(to, v);
}
