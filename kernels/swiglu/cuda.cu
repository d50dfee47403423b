// SwiGLU on CUDA; mod.rs has the equations. All bf16, arithmetic f32.
//
// Cut: values are one run; a thread takes eight, 16 bytes of each tensor, all loads under way before the first is used.
// No sums, no shared memory. Bytes a value: forward 6, backward 12. Registers (sm_80, sm_90a): forward 32, 30; backward 38, 38.
#include "../cuda/dev.cuh"

constexpr u32 THREADS = 256, N = 8;

DEV u64 first() { return N * ((u64)blockIdx.x * THREADS + threadIdx.x); }
// How many of the values from `at` on this thread has.
DEV u32 own(u64 at, u64 len) { return at >= len ? 0 : len - at < N ? (u32)(len - at) : N; }
DEV float sigmoid(float x) { return 1.0f / (1.0f + exp_fast(-x)); }

// h = g s(g) u.
KERNEL(THREADS) swiglu_forward(bf16* h, const bf16* gate, const bf16* up, u64 len) {
    u64 at = first();
    u32 count = own(at, len);
    float g[N], u[N];
    load(g, gate + at, count);
    load(u, up + at, count);
#pragma unroll
    for (u32 i = 0; i < N; i++) u[i] *= g[i] * sigmoid(g[i]);
    store(h + at, u, count);
}

// dup = dh g s, dgate = dh u s (1 + g (1 - s)), and h again, as forward has it.
KERNEL(THREADS) swiglu_backward(bf16* h, bf16* dgate, bf16* dup, const bf16* dh, const bf16* gate, const bf16* up, u64 len) {
    u64 at = first();
    u32 count = own(at, len);
    float d[N], g[N], u[N], product[N];
    load(d, dh + at, count);
    load(g, gate + at, count);
    load(u, up + at, count);
#pragma unroll
    for (u32 i = 0; i < N; i++) {
        float s = sigmoid(g[i]), along_gate = d[i] * u[i] * (s * (1.0f + g[i] * (1.0f - s)));
        product[i] = u[i] * (g[i] * s);
        u[i] = d[i] * (g[i] * s);
        g[i] = along_gate;
    }
    store(h + at, product, count);
    store(dgate + at, g, count);
    store(dup + at, u, count);
}
