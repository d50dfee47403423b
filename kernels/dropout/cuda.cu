// Dropout on CUDA; mod.rs has the equations and the hash. apply bf16, add and noise f32: bit for bit as on the CPU, for
// which each product and sum is rounded by itself.
//
// Cut: one block per row, sixteen values a thread and run. No sums, no shared memory. Bytes a value: apply 4, add 12,
// noise 8. The hash's 18 integer instructions a value, not memory, bound apply; add and noise hide them.
// Registers (sm_80, sm_90a): apply 48, 48; add 68, 64; noise 48, 46.
#include "../cuda/dev.cuh"

constexpr u32 THREADS = 256; // at most

DEV u32 mix(u32 x) {
    x = (x ^ x >> 16) * 0x7feb352du;
    x = (x ^ x >> 15) * 0x846ca68bu;
    return x ^ x >> 16;
}
DEV u32 hash(u64 key, u32 channel) { return mix(mix(channel ^ (u32)key) ^ (u32)(key >> 32)); }
// What a channel is multiplied by: `threshold` is the dropped share of 2^31, `scale` what makes up for it.
DEV float factor(u64 key, u32 channel, u32 threshold, float scale) { return hash(key, channel) >> 1 >= threshold ? scale : 0.0f; }
// In [-1, 1), multiples of 2^-23.
DEV float uniform(u64 key, u32 channel) { return (float)(hash(key, channel) >> 8) * 0x1p-23f - 1.0f; }
// The channel of value i of a thread's run.
DEV u32 channel_at(u32 from, u32 i) { return from + pack_at(i / 4) + i % 4; }

// y = x k / (1 - p).
KERNEL(THREADS) dropout_apply(bf16* y, const bf16* x, const u64* keys, u32 width, u32 threshold, float scale) {
    size_t row = (size_t)blockIdx.x * width;
    u64 key = keys[blockIdx.x];
    for (u32 at = 0; at < width; at += run_length()) {
        float values[PACKS][4];
        load_run(values, x + row, at, width);
#pragma unroll
        for (u32 i = 0; i < PACKS * 4; i++) values[i / 4][i % 4] *= factor(key, channel_at(at, i), threshold, scale);
        store_run(y + row, values, at, width);
    }
}

// dx += dy k / (1 - p).
KERNEL(THREADS) dropout_add(float* dx, const float* dy, const u64* keys, u32 width, u32 threshold, float scale) {
    size_t row = (size_t)blockIdx.x * width;
    u64 key = keys[blockIdx.x];
    for (u32 at = 0; at < width; at += run_length()) {
        float sum[PACKS][4], more[PACKS][4];
        load_run(sum, dx + row, at, width);
        load_run(more, dy + row, at, width);
#pragma unroll
        for (u32 i = 0; i < PACKS * 4; i++) {
            Rounded product = Rounded{more[i / 4][i % 4]} * Rounded{factor(key, channel_at(at, i), threshold, scale)};
            sum[i / 4][i % 4] += product.x;
        }
        store_run(dx + row, sum, at, width);
    }
}

// x += scale u, u uniform in [-1, 1).
KERNEL(THREADS) dropout_noise(float* x, const u64* keys, const float* scale, u32 width) {
    float* row = x + (size_t)blockIdx.x * width;
    u64 key = keys[blockIdx.x];
    Rounded size = {scale[blockIdx.x]};
    for (u32 at = 0; at < width; at += run_length()) {
        float sum[PACKS][4];
        load_run(sum, row, at, width);
#pragma unroll
        for (u32 i = 0; i < PACKS * 4; i++) sum[i / 4][i % 4] += (size * Rounded{uniform(key, channel_at(at, i))}).x;
        store_run(row, sum, at, width);
    }
}
