// The gated activation y = silu(gate) · up and its gradients.
//
// Traffic: forward reads gate and up and writes y; backward reads gate, up and dy and writes their gradients in place and,
// over dy, y again where somebody reads it, so that nothing of y is kept. Eight elements a thread; exponentials hide behind the
// memory: measured, H100, 8192 rows of 12288: 3.0 TB/s, all that a copy reaches.

// gate_up[rows, stride]: gate in columns 0.., up in columns up_at...
extern "C" __global__ void __launch_bounds__(256) swiglu_forward(
    bf16* y, const bf16* gate_up, int n, int up_at, int y_stride, int stride) {
    int c = (blockIdx.x * 256 + threadIdx.x) * 8;
    if (c >= n) return;
    const bf16* row = gate_up + (u64)blockIdx.y * stride;
    // Rows are padded to whole groups of eight, so that the last group may be read and written beyond n.
    Eight g = load8(row + c), u = load8(row + up_at + c);
#pragma unroll
    for (int i = 0; i < 8; i++) g.x[i] = c + i < n ? g.x[i] * sigmoid(g.x[i]) * u.x[i] : 0.f;
    store8(y + (u64)blockIdx.y * y_stride + c, g);
}

// With `again`, dy becomes y.
extern "C" __global__ void __launch_bounds__(256) swiglu_backward(
    bf16* gate_up, bf16* dy, int n, int up_at, int stride, int dy_stride, int again) {
    int c = (blockIdx.x * 256 + threadIdx.x) * 8;
    if (c >= n) return;
    bf16 *row = gate_up + (u64)blockIdx.y * stride, *dy_row = dy + (u64)blockIdx.y * dy_stride;
    Eight g = load8(row + c), u = load8(row + up_at + c), d = load8(dy_row + c);
    Eight dg, du, y;
#pragma unroll
    for (int i = 0; i < 8; i++) {
        float x = g.x[i], s = sigmoid(x), silu = x * s;
        bool in = c + i < n;
        du.x[i] = in ? d.x[i] * silu : 0.f;
        dg.x[i] = in ? d.x[i] * u.x[i] * s * (1.f + x * (1.f - s)) : 0.f;
        y.x[i] = in ? silu * u.x[i] : 0.f;
    }
    store8(row + c, dg);
    store8(row + up_at + c, du);
    if (again) store8(dy_row + c, y);
}
