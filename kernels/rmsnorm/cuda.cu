// RMSNorm on CUDA; mod.rs has the equations. x, dx, dy f32, y bf16, w f32, r f32.
//
// Cut: one block per row, as many threads as let each hold sixteen values in registers; a row of more than 8,192 values is
// done in runs of as many. Sums: a thread's values in order, the warp's lanes, the warps in order: a row's bits depend on
// that row alone. Memory: a row of at most 8,192 values is read once and written once, w comes from L2; a longer one is
// read twice. Bytes a value: forward 6, backward 16. Shared: a sum a warp. Registers (sm_80, sm_90a): 56, 61; 70, 70.
#include "../cuda/dev.cuh"

constexpr u32 THREADS = 512; // at most

// y = narrow(w * (x * r)), r = 1 / sqrt(mean(x^2) + eps).
KERNEL(THREADS) rmsnorm_forward(bf16* y, float* r, const float* x, const float* w, u32 width, float eps) {
    __shared__ float parts[THREADS / WARP];
    size_t row = (size_t)blockIdx.x * width;
    float held[PACKS][4], squares = 0.0f;
    for (u32 from = 0; from < width; from += run_length()) {
        load_run(held, x + row, from, width);
#pragma unroll
        for (u32 i = 0; i < PACKS * 4; i++) squares += held[i / 4][i % 4] * held[i / 4][i % 4];
    }
    float scale = 1.0f / sqrtf(block_sum(squares, parts) / width + eps);
    for (u32 from = 0; from < width; from += run_length()) {
        if (width > run_length()) load_run(held, x + row, from, width);
        float weight[PACKS][4];
        load_run(weight, w, from, width);
#pragma unroll
        for (u32 i = 0; i < PACKS * 4; i++) weight[i / 4][i % 4] *= held[i / 4][i % 4] * scale;
        store_run(y + row, weight, from, width);
    }
    if (threadIdx.x == 0) r[blockIdx.x] = scale;
}

// x and w dy of a run.
DEV void load_operands(float (&held)[PACKS][4], float (&slope)[PACKS][4], const float* x, const float* dy, const float* w,
                       u32 from, u32 width) {
    load_run(held, x, from, width);
    load_run(slope, dy, from, width);
    float weight[PACKS][4];
    load_run(weight, w, from, width);
#pragma unroll
    for (u32 i = 0; i < PACKS * 4; i++) slope[i / 4][i % 4] *= weight[i / 4][i % 4];
}

// dx += r (w dy - x r^2 / D sum_j w_j dy_j x_j): the residual's gradient is there already.
KERNEL(THREADS) rmsnorm_backward(float* dx, const float* dy, const float* x, const float* w, const float* r, u32 width) {
    __shared__ float parts[THREADS / WARP];
    size_t row = (size_t)blockIdx.x * width;
    float held[PACKS][4], slope[PACKS][4], along = 0.0f;
    for (u32 from = 0; from < width; from += run_length()) {
        load_operands(held, slope, x + row, dy + row, w, from, width);
#pragma unroll
        for (u32 i = 0; i < PACKS * 4; i++) along += slope[i / 4][i % 4] * held[i / 4][i % 4];
    }
    float scale = r[blockIdx.x];
    along = scale * scale * block_sum(along, parts) / width;
    for (u32 from = 0; from < width; from += run_length()) {
        if (width > run_length()) load_operands(held, slope, x + row, dy + row, w, from, width);
        float sum[PACKS][4];
        load_run(sum, dx + row, from, width);
#pragma unroll
        for (u32 i = 0; i < PACKS * 4; i++) sum[i / 4][i % 4] += scale * (slope[i / 4][i % 4] - held[i / 4][i % 4] * along);
        store_run(dx + row, sum, from, width);
    }
}
