// AdamW on CUDA; mod.rs has the equations. All f32 but the norm, f64. A step has the bits of the CPU's, for which each
// operation is rounded by itself.
//
// Cut: norm_partials a fixed number of blocks for a length, each over every so many runs; decide one block; step four
// values a thread, all loads under way before the first is used. Sums of squares in f64: a thread's values in order, the
// warp's lanes, the warps, and in decide the blocks likewise: the norm's bits depend on gradient and length alone.
// Bytes a value: norm_partials 4, step 28. Shared: a sum a warp. Registers (sm_80, sm_90a): norm_partials 32, 30; step 39, 38.
#include "../cuda/dev.cuh"

constexpr u32 THREADS = 256;
constexpr float MAX = 3.40282347e38f;

// What decide tells step, and the host: as in cuda.rs.
struct State {
    double norm;
    float scale;
    u32 skip;
};

KERNEL(THREADS) adamw_norm_partials(double* partials, const float* grad, u64 len) {
    __shared__ double parts[THREADS / WARP];
    double squares = 0.0;
    for (u64 at = (u64)blockIdx.x * run_length(); at < len; at += (u64)gridDim.x * run_length()) {
        float g[PACKS][4];
        load_run(g, grad + at, 0, len - at < run_length() ? (u32)(len - at) : run_length());
#pragma unroll
        for (u32 i = 0; i < PACKS * 4; i++) squares += (double)g[i / 4][i % 4] * g[i / 4][i % 4];
    }
    squares = block_sum(squares, parts);
    if (threadIdx.x == 0) partials[blockIdx.x] = squares;
}

// The norm is infinite where f32 squares overflow, as PyTorch's and AdamW's second moment do; clip 0 leaves the gradient.
KERNEL(THREADS) adamw_decide(State* state, const double* partials, u32 n, double clip, u32 finite) {
    __shared__ double parts[THREADS / WARP];
    double square = 0.0;
    for (u32 i = threadIdx.x; i < n; i += THREADS) square += partials[i];
    square = block_sum(square, parts);
    if (threadIdx.x > 0) return;
    double norm = square > MAX ? (double)infinity() : sqrt(square), factor = clip / (norm + 1e-6);
    state->norm = norm;
    state->scale = clip == 0.0 || factor >= 1.0 ? 1.0f : (float)factor;
    state->skip = !finite || !(norm <= MAX);
}

// PyTorch's two formulas: each is exact at its own end.
DEV Rounded lerp(Rounded from, Rounded to, Rounded weight) {
    return weight.x < 0.5f ? from + weight * (to - from) : to - (to - from) * (Rounded{1.0f} - weight);
}

KERNEL(THREADS) adamw_step(float* p, float* m, float* v, const float* grad, u64 len, float keep, float blend, float beta2, float fresh,
                           float root_correction, float eps, float size, const State* state) {
    u64 at = 4 * ((u64)blockIdx.x * THREADS + threadIdx.x);
    if (at >= len || state->skip) return;
    u32 count = len - at < 4 ? (u32)(len - at) : 4;
    float p4[4], m4[4], v4[4], g4[4];
    load(p4, p + at, count);
    load(m4, m + at, count);
    load(v4, v + at, count);
    load(g4, grad + at, count);
#pragma unroll
    for (u32 i = 0; i < 4; i++) {
        Rounded g = Rounded{g4[i]} * Rounded{state->scale};
        Rounded first = lerp({m4[i]}, g, {blend});
        Rounded second = Rounded{v4[i]} * Rounded{beta2} + Rounded{fresh} * g * g;
        Rounded denom = root(second) / Rounded{root_correction} + Rounded{eps};
        p4[i] = (Rounded{p4[i]} * Rounded{keep} + Rounded{size} * first / denom).x;
        m4[i] = first.x;
        v4[i] = second.x;
    }
    store(p + at, p4, count);
    store(m + at, m4, count);
    store(v + at, v4, count);
}
