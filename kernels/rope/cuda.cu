// RoPE on CUDA; mod.rs has the equations. x, dy f32, y, dx bf16, tables f32 [positions, half].
//
// Cut: one block per row; a thread turns four pairs of a head at a time, the head's low and high halves together, so that
// every value is read once and each line of the tables comes from L1 after the row's first head. No sums, no shared memory.
// Bytes a value: 6, and the table's row once. Registers (sm_80, sm_90a): 28, 28.
#include "../cuda/dev.cuh"

constexpr u32 THREADS = 128; // at most

// Every head of row blockIdx.x by the angles of table row at[blockIdx.x], turned back where `sign` is -1.
DEV void turn(bf16* y, const float* x, const float* cos, const float* sin, const u32* at, u32 heads, u32 half, float sign) {
    size_t row = (size_t)blockIdx.x * heads * 2 * half, angles = (size_t)at[blockIdx.x] * half;
    u32 packs = (half + 3) / 4; // of a head's half
    for (u32 i = threadIdx.x; i < heads * packs; i += blockDim.x) {
        u32 first = i % packs * 4, count = half - first;
        size_t lows = row + (size_t)(i / packs) * 2 * half + first;
        float low[4], high[4], c[4], s[4], turned_low[4], turned_high[4];
        load(low, x + lows, count);
        load(high, x + lows + half, count);
        load(c, cos + angles + first, count);
        load(s, sin + angles + first, count);
#pragma unroll
        for (u32 j = 0; j < 4; j++) {
            turned_low[j] = low[j] * c[j] - high[j] * (sign * s[j]);
            turned_high[j] = high[j] * c[j] + low[j] * (sign * s[j]);
        }
        store(y + lows, turned_low, count);
        store(y + lows + half, turned_high, count);
    }
}

KERNEL(THREADS) rope_forward(bf16* y, const float* x, const float* cos, const float* sin, const u32* at, u32 heads, u32 half) {
    turn(y, x, cos, sin, at, heads, half, 1.0f);
}

KERNEL(THREADS) rope_backward(bf16* dx, const float* dy, const float* cos, const float* sin, const u32* at, u32 heads, u32 half) {
    turn(dx, dy, cos, sin, at, heads, half, -1.0f);
}
