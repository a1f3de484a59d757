// Rows of the embedding table, and the gradient of the table.
//
// Traffic: forward reads and writes a row a token; too little of a step (0.02 ms of 500) to be measured alone. The gradient is added without atomics: one block a distinct token id
// adds the rows of all its places, in their order, so that a run gives the same bits again.

extern "C" __global__ void __launch_bounds__(256) embedding_forward(
    bf16* y, const bf16* table, const int* ids, int n, int y_stride, int stride) {
    const bf16* from = table + (u64)ids[blockIdx.x] * stride;
    bf16* to = y + (u64)blockIdx.x * y_stride;
    int whole = n & ~7;
    for (int c = threadIdx.x * 8; c < whole; c += 256 * 8)
        *reinterpret_cast<uint4*>(to + c) = *reinterpret_cast<const uint4*>(from + c);
    for (int c = whole + threadIdx.x; c < n; c += 256) to[c] = from[c];
}

// places[starts[i] .. starts[i + 1]] are the rows of dy for the i-th distinct id, ids[i].
extern "C" __global__ void __launch_bounds__(256) embedding_backward(
    float* d_table, const bf16* dy, const int* ids, const int* starts, const int* places, int n, int d_stride, int dy_stride) {
    int first = starts[blockIdx.x], last = starts[blockIdx.x + 1];
    float* to = d_table + (u64)ids[blockIdx.x] * d_stride;
    for (int c = threadIdx.x; c < n; c += 256) {
        float sum = 0.f;
        for (int i = first; i < last; i++) sum += f32_of(dy[(u64)places[i] * dy_stride + c]);
        to[c] += sum;
    }
}
