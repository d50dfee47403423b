// Moves of the residual stream on CUDA; mod.rs has the equations. x f32, y f32 or bf16.
//
// Cut: round, narrow and add take their values as one run, sixteen a thread; gather, scatter_add and blend one block per
// row, sixteen values a thread and run. All of a thread's loads are under way before the first is used. No sums, no shared
// memory; a destination row belongs to one block. Bytes a value: round, narrow 6, gather 8, add, scatter_add, blend 12.
// Registers (sm_80, sm_90a): narrow 38, 40; add 52, 54; gather 40, 32; scatter_add 60, 53.
#include "../cuda/dev.cuh"

constexpr u32 THREADS = 256; // at most

// The values that this block has of a whole tensor: one run of a very long row.
DEV u64 first() { return (u64)blockIdx.x * run_length(); }
DEV u32 own(u64 at, u64 len) { return len - at < run_length() ? (u32)(len - at) : run_length(); }

DEV void add_run(float* y, const float* x, u32 from, u32 width) {
    float sum[PACKS][4], more[PACKS][4];
    load_run(sum, y, from, width);
    load_run(more, x, from, width);
#pragma unroll
    for (u32 i = 0; i < PACKS * 4; i++) sum[i / 4][i % 4] += more[i / 4][i % 4];
    store_run(y, sum, from, width);
}

KERNEL(THREADS) tensor_narrow(bf16* y, const float* x, u64 len, float scale) {
    u64 at = first();
    u32 count = own(at, len);
    float values[PACKS][4];
    load_run(values, x + at, 0, count);
#pragma unroll
    for (u32 i = 0; i < PACKS * 4; i++) values[i / 4][i % 4] *= scale;
    store_run(y + at, values, 0, count);
}

KERNEL(THREADS) tensor_add(float* y, const float* x, u64 len) {
    u64 at = first();
    add_run(y + at, x + at, 0, own(at, len));
}

KERNEL(THREADS) tensor_gather(float* y, const float* x, const u32* rows, u32 width) {
    const float* from = x + (size_t)rows[blockIdx.x] * width;
    float* to = y + (size_t)blockIdx.x * width;
    for (u32 at = 0; at < width; at += run_length()) {
        float values[PACKS][4];
        load_run(values, from, at, width);
        store_run(to, values, at, width);
    }
}

KERNEL(THREADS) tensor_scatter_add(float* y, const float* x, const u32* rows, u32 width) {
    float* to = y + (size_t)rows[blockIdx.x] * width;
    for (u32 at = 0; at < width; at += run_length()) add_run(to, x + (size_t)blockIdx.x * width, at, width);
}

// x = x share + base (1 - share), each product rounded by itself as on the CPU.
KERNEL(THREADS) tensor_blend(float* x, const float* base, const float* share, u32 width) {
    size_t row = (size_t)blockIdx.x * width;
    Rounded own = {share[blockIdx.x]}, other = {1.0f - own.x};
    for (u32 at = 0; at < width; at += run_length()) {
        float values[PACKS][4], others[PACKS][4];
        load_run(values, x + row, at, width);
        load_run(others, base + row, at, width);
#pragma unroll
        for (u32 i = 0; i < PACKS * 4; i++) {
            values[i / 4][i % 4] = (Rounded{values[i / 4][i % 4]} * own + Rounded{others[i / 4][i % 4]} * other).x;
        }
        store_run(x + row, values, at, width);
    }
}
