// RMSNorm on CUDA; mod.rs has the equations. x, dx f32, y bf16, w f32, r f32.
//
// Cut: one block of 128 threads per row; a thread holds every 128th value. Sums: each thread in order, then the warp's
// lanes, then the warps in order, so that a row's bits depend on that row alone.
// Memory: a row is read twice (the second time from L1 or L2) and written once; nothing is kept in shared memory but one
// sum per warp. Registers stay low enough for full occupancy: the bytes are what bounds it.
#include "../cuda/dev.cuh"

constexpr u32 THREADS = 128;

// The block's sum, the same in every thread. `parts` [THREADS / WARP] is free again after the next barrier.
DEV float block_sum(float x, float* parts) {
    x = warp_sum(x);
    if (threadIdx.x % WARP == 0) parts[threadIdx.x / WARP] = x;
    __syncthreads();
    float sum = 0.0f;
#pragma unroll
    for (u32 warp = 0; warp < THREADS / WARP; warp++) sum += parts[warp];
    return sum;
}

// y = narrow(w * (x * r)), r = 1 / sqrt(mean(x^2) + eps).
KERNEL(THREADS) rmsnorm_forward(bf16* y, float* r, const float* x, const float* w, u32 width, float eps) {
    __shared__ float parts[THREADS / WARP];
    const float* row = x + (size_t)blockIdx.x * width;
    float squares = 0.0f;
    for (u32 i = threadIdx.x; i < width; i += THREADS) squares += row[i] * row[i];
    float scale = 1.0f / sqrtf(block_sum(squares, parts) / width + eps);
    for (u32 i = threadIdx.x; i < width; i += THREADS) y[(size_t)blockIdx.x * width + i] = narrow(w[i] * (row[i] * scale));
    if (threadIdx.x == 0) r[blockIdx.x] = scale;
}

// dx += r (w dy - x r^2 / D sum_j w_j dy_j x_j): the residual's gradient is there already.
KERNEL(THREADS) rmsnorm_backward(float* dx, const float* dy, const float* x, const float* w, const float* r, u32 width) {
    __shared__ float parts[THREADS / WARP];
    size_t row = (size_t)blockIdx.x * width;
    float scale = r[blockIdx.x], along = 0.0f;
    for (u32 i = threadIdx.x; i < width; i += THREADS) along += w[i] * dy[row + i] * x[row + i];
    along = scale * scale * block_sum(along, parts) / width;
    for (u32 i = threadIdx.x; i < width; i += THREADS) dx[row + i] += scale * (w[i] * dy[row + i] - x[row + i] * along);
}
