// Embedding on CUDA: row i of y is row ids[i] of the table, widened. table bf16, y f32.
//
// Cut: one block per token, sixteen values a thread and run. No sums, no shared memory. Bytes a value: 6.
// Registers (sm_80, sm_90a): 40, 32.
#include "../cuda/dev.cuh"

constexpr u32 THREADS = 256; // at most

KERNEL(THREADS) embedding_forward(float* y, const bf16* table, const u32* ids, u32 width) {
    const bf16* from = table + (size_t)ids[blockIdx.x] * width;
    float* to = y + (size_t)blockIdx.x * width;
    for (u32 at = 0; at < width; at += run_length()) {
        float x[PACKS][4];
        load_run(x, from, at, width);
        store_run(to, x, at, width);
    }
}
