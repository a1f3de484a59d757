// Biases of linear layers whose output no other kernel passes over. Traffic: 2 bytes read and 2 written an element.
// Measured, H100, 8192 rows of 6144: 2.9 TB/s, 95 % of what a copy reaches.

// y[rows, stride] += bias[n], n a multiple of 8; a thread has eight neighbours.
extern "C" __global__ void __launch_bounds__(256) add_bias(bf16* y, const float* bias, int n, int stride) {
    int c = (blockIdx.x * 256 + threadIdx.x) * 8;
    if (c >= n) return;
    bf16* to = y + (u64)blockIdx.y * stride + c;
    Eight v = load8(to);
#pragma unroll
    for (int i = 0; i < 8; i++) v.x[i] += bias[c + i];
    store8(to, v);
}
