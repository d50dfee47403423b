// Sampling on CUDA; mod.rs has the order of things. logits f32.
//
// Cut: one block for the one row. Nothing is sorted: the token at a place of the falling order is found bit by bit, as
// the largest rank at or above which enough of a measure lies (how many tokens, how much weight), one pass over the row
// a bit. Weights are multiples of 2^-40 of the likeliest token's, so that sums are exact in any order.
// Passes: 1 greedy, 66 a draw, 32 more for each of top-k and top-p; the row comes from L2. Shared: a sum a warp.
// Registers (sm_80, sm_90a): pick 39, 42.
#include "../cuda/dev.cuh"

constexpr u32 THREADS = 1024;
constexpr u32 NO_TOKEN = 0xffffffffu;
constexpr float ONE = 0x1p40f; // the likeliest token's weight

// Larger floats have larger ranks, NaN the largest; the two zeros are one.
DEV u32 rank(float x) {
    u32 bits = __float_as_uint(x + 0.0f);
    return isnan(x) ? 0xffffffffu : bits >> 31 ? ~bits : bits | 0x80000000u;
}
DEV float ranked(u32 rank) { return __uint_as_float(rank >> 31 ? rank & 0x7fffffffu : ~rank); }

struct Row {
    const float* logits;
    u32 count;
};
// f(token, logit) over this thread's part of the row.
template <typename F>
DEV void each(Row row, F f) {
    for (u32 at = 4 * threadIdx.x; at < row.count; at += 4 * THREADS) {
        float x[4];
        load(x, row.logits + at, row.count - at);
#pragma unroll
        for (u32 i = 0; i < 4; i++)
            if (at + i < row.count) f(at + i, x[i]);
    }
}

// The measure of all tokens of rank `least` or more: `order` gives a token's rank, `measure` its part.
template <typename Order, typename Measure>
DEV u64 measured(Row row, u32 least, Order order, Measure measure) {
    __shared__ u64 parts[THREADS / WARP];
    u64 sum = 0;
    each(row, [&](u32 token, float x) { sum += order(token, x) >= least ? measure(x) : 0; });
    __syncthreads(); // the last pass's parts have been read
    return block_sum(sum, parts);
}

// The largest rank at or above which the measure is `goal` or more, and the measure above it.
struct Place {
    u32 rank;
    u64 above;
};
// The whole row's measure is `goal` at least.
template <typename Order, typename Measure>
DEV Place descend(Row row, u64 goal, Order order, Measure measure) {
    Place place = {0, 0};
    for (u32 bit = 1u << 31; bit > 0; bit >>= 1) {
        u64 sum = measured(row, place.rank | bit, order, measure);
        if (sum >= goal)
            place.rank |= bit;
        else
            place.above = sum;
    }
    return place;
}

// The first of the largest logits: its rank above the complement of its number.
DEV u64 likeliest(Row row) {
    __shared__ u64 parts[THREADS / WARP];
    u64 best = 0;
    each(row, [&](u32 token, float x) { best = max(best, (u64)rank(x) << 32 | ~token); });
#pragma unroll
    for (u32 lane = WARP / 2; lane > 0; lane /= 2) best = max(best, __shfl_xor_sync(FULL, best, lane));
    if (threadIdx.x % WARP == 0) parts[threadIdx.x / WARP] = best;
    __syncthreads();
    for (u32 warp = 0; warp < THREADS / WARP; warp++) best = max(best, parts[warp]);
    return best;
}

DEV u32 draw(Row row, float largest, float temperature, u32 top_k, float top_p, double uniform) {
    auto by_logit = [](u32, float x) { return rank(x); };
    auto weigh = [=](float x) { return (u64)(ONE * exp_fast((x - largest) / temperature)); };
    u32 least = top_k == 0 || top_k >= row.count ? 0 : descend(row, top_k, by_logit, [](float) { return (u64)1; }).rank;
    auto weight = [=](float x) { return rank(x) >= least ? weigh(x) : 0; };
    u64 all = measured(row, 0, by_logit, weight);
    if (top_p < 1.0f) {
        u64 enough = max((u64)((double)top_p * (double)all), 1ull);
        Place last = descend(row, enough, by_logit, weight);
        u64 one = weigh(ranked(last.rank));
        all = last.above + (enough - last.above + one - 1) / one * one; // whole tokens, among equals too
    }
    u64 under = min((u64)(uniform * (double)all), all - 1);
    Place place = descend(row, under + 1, by_logit, weight);
    u64 nth = (under - place.above) / weigh(ranked(place.rank));
    auto is_it = [=](float x) { return (u64)(rank(x) == place.rank); };
    return ~descend(row, nth + 1, [](u32 token, float) { return ~token; }, is_it).rank;
}

KERNEL(THREADS) sample_pick(u32* token, const float* logits, u32 count, float temperature, u32 top_k, float top_p, double uniform) {
    Row row = {logits, count};
    u64 best = likeliest(row);
    float largest = ranked((u32)(best >> 32));
    u32 picked = ~(u32)best;
    if (isnan(largest) || isinf(largest))
        picked = NO_TOKEN;
    else if (temperature > 0.0f)
        picked = draw(row, largest, temperature, top_k, top_p, uniform);
    if (threadIdx.x == 0) *token = picked;
}

// One thread a token that was there before.
KERNEL(THREADS) sample_penalise(float* logits, const u32* seen, u32 n, float penalty) {
    u32 i = blockIdx.x * THREADS + threadIdx.x;
    if (i >= n) return;
    float* x = logits + seen[i];
    *x = *x < 0.0f ? *x * penalty : *x / penalty;
}
