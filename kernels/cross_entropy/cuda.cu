// Cross-entropy on CUDA over a block of the vocabulary's columns; mod.rs has the equations. logits f32, d_logits bf16.
//
// Cut: log_sum_exp one block per row, sixteen values a thread and run; backward one block per row and run; chosen one
// thread per target. Sums: a thread's values in order under the maximum so far, the warp's lanes, the warps in order,
// then what earlier blocks of columns gave: a row's bits depend on that row and the cut into columns alone.
// Bytes a logit: log_sum_exp 4, backward 6; each is read once. Shared: a maximum and a sum a warp.
// Registers (sm_80, sm_90a): log_sum_exp 35, 34; backward 38, 32.
#include "../cuda/dev.cuh"

constexpr u32 ROW_THREADS = 512, RUN_THREADS = 128; // at most

// Of the values so far: the largest, and the sum of e^(value - shift(largest)).
struct LogSum {
    float max, sum;
};
// An infinite maximum would make infinity minus infinity; unshifted, the sum is 0 or infinity as it should be.
DEV float shift(float max) { return isinf(max) ? 0.0f : max; }
DEV float moved(LogSum part, float max) { return part.max == max ? part.sum : part.sum * exp_fast(part.max - max); }
DEV LogSum merged(LogSum a, LogSum b) {
    float max = fmaxf(a.max, b.max);
    return {max, moved(a, max) + moved(b, max)};
}
DEV LogSum warp_merged(LogSum part) {
#pragma unroll
    for (u32 lane = WARP / 2; lane > 0; lane /= 2)
        part = merged(part, {__shfl_xor_sync(FULL, part.max, lane), __shfl_xor_sync(FULL, part.sum, lane)});
    return part;
}

// The next values of a row; those past its end are negative infinity.
DEV LogSum with_run(LogSum part, float (&x)[PACKS][4], u32 from, u32 cols) {
    float max = part.max;
#pragma unroll
    for (u32 i = 0; i < PACKS * 4; i++) {
        if (i % 4 >= left(from + pack_at(i / 4), cols)) x[i / 4][i % 4] = -infinity();
        max = fmaxf(max, x[i / 4][i % 4]);
    }
    float sum = moved(part, max);
#pragma unroll
    for (u32 i = 0; i < PACKS * 4; i++) sum += exp_fast(x[i / 4][i % 4] - shift(max));
    return {max, sum};
}

// lse[row] = log sum e^z of these columns, and unless `first` of what lse[row] holds, which counts as one more logit.
KERNEL(ROW_THREADS) cross_entropy_log_sum_exp(float* lse, const float* logits, u32 cols, u32 first) {
    __shared__ LogSum parts[ROW_THREADS / WARP];
    LogSum own = {-infinity(), 0.0f};
    for (u32 from = 0; from < cols; from += run_length()) {
        float x[PACKS][4];
        load_run(x, logits + (size_t)blockIdx.x * cols, from, cols);
        own = with_run(own, x, from, cols);
    }
    own = warp_merged(own);
    if (threadIdx.x % WARP == 0) parts[threadIdx.x / WARP] = own;
    __syncthreads();
    if (threadIdx.x > 0) return;
    for (u32 warp = 1; warp < blockDim.x / WARP; warp++) own = merged(own, parts[warp]);
    if (!first) own = merged(own, {lse[blockIdx.x], exp_fast(lse[blockIdx.x] - shift(lse[blockIdx.x]))});
    lse[blockIdx.x] = shift(own.max) + logf(own.sum);
}

// out[i] = the logit of target i, where its token is among these columns.
KERNEL(RUN_THREADS) cross_entropy_chosen(float* out, const float* logits, u32 cols, u32 col0, const u32* rows, const u32* tokens, u32 n) {
    u32 i = blockIdx.x * RUN_THREADS + threadIdx.x;
    if (i >= n || tokens[i] - col0 >= cols) return; // a token before col0 wraps around
    out[i] = logits[(size_t)rows[i] * cols + (tokens[i] - col0)];
}

// Of a row's targets with one token the first writes, for all of them.
DEV bool is_first(const u32* tokens, u32 begin, u32 t) {
    for (u32 other = begin; other < t; other++)
        if (tokens[other] == tokens[t]) return false;
    return true;
}
DEV float weight_of(const u32* tokens, const float* weights, u32 t, u32 end) {
    float sum = 0.0f;
    for (u32 other = t; other < end; other++)
        if (tokens[other] == tokens[t]) sum += weights[other];
    return sum;
}

// d = total e^(z - lse), less at the row's targets their weights: from the logit again, so that it is rounded once.
KERNEL(RUN_THREADS) cross_entropy_backward(bf16* d_logits, const float* logits, const float* lse, const float* total, u32 cols, u32 col0,
                                           const u32* first_target, const u32* tokens, const float* weights) {
    size_t row = (size_t)blockIdx.x * cols;
    u32 from = blockIdx.y * run_length(), count = min(run_length(), cols - from);
    float share = total[blockIdx.x], norm = lse[blockIdx.x], z[PACKS][4];
    load_run(z, logits + row, from, cols);
#pragma unroll
    for (u32 i = 0; i < PACKS * 4; i++) z[i / 4][i % 4] = share * exp_fast(z[i / 4][i % 4] - norm);
    store_run(d_logits + row, z, from, cols);
    __syncthreads(); // a target's value goes over what was just written
    u32 begin = first_target[blockIdx.x], end = first_target[blockIdx.x + 1];
    for (u32 t = begin + threadIdx.x; t < end; t += blockDim.x) {
        u32 col = tokens[t] - col0 - from; // wraps around for a token before this run
        if (col >= count || !is_first(tokens, begin, t)) continue;
        size_t at = row + from + col;
        d_logits[at] = narrow(share * exp_fast(logits[at] - norm) - weight_of(tokens, weights, t, end));
    }
}
