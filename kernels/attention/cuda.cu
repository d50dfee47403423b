// Attention over the token forest on CUDA; mod.rs has the equations. q, k, v, o, d_o, dv bf16; lse, delta, dq, dk f32.
//
// Query i sees key j iff j <= rows[i] and i < end[j]. Tiles are 64 consecutive queries by 64 consecutive keys, whatever
// spans they hold; the host lists, for every tile, those of the other kind that it meets, and which of them see all.
// Cut: a block of four warps owns a tile of queries of one head (forward, dq) or a tile of keys of one key head (dk, dv,
// over the group's heads), a warp 16 of its rows; the other tiles pass through two stages of swizzled shared memory.
// Sums: in registers, tiles in order of the list, heads inside, pairs by mma m16n8k16; P and dS reach the second product
// as bf16 without leaving the registers. Bits depend on a row's keys and their places in tiles, not on its neighbours.
// Hidden pairs: where not all see all, rows of the second product's operand that are not finite are zeroed in shared
// memory, and NaN is added to what does see them: 0 * NaN never happens. `delta` is summed by mma as d_o v is.
// Shared: 5 tiles (640 d bytes) forward, 6 (768 d) backward. Registers of sm_80 and sm_90a, no spills:
//   d            16        32        48        64        80        96        128
//   forward    96, 103  128, 118  141, 141  149, 157  157, 160  176, 177  181, 181
//   dq         66, 69    85, 96   127, 127  128, 128  161, 166  168, 176  174, 168
//   dk, dv     96, 96   125, 128  140, 137  161, 162  196, 215  217, 224  241, 249
#include "../cuda/dev.cuh"

// Backward takes the passing tile in halves: P and dS of a whole one would not fit in the registers.
constexpr u32 TILE = 64, HALF = 32, THREADS = 128, WHOLE = 0x80000000u;
constexpr float LOG2_E = 1.4426950408889634f;

struct Shape {
    const u32* rows;   // [queries]: a query's own key row
    const u32* end;    // [keys]: the first query past those that can see the key
    const u32* first;  // [tiles + 1] into list
    const u32* list;   // tiles of the other kind, WHOLE where every pair is visible
    u32 heads, key_heads, queries, keys, cached;
    float scale;
};

// What the rows that meet a row of the passing tile have to know of it: `bound` is a key's end or a query's key row.
struct Passing {
    u32 bound, bad;
};

// This thread's two rows of the block's own tile, and their bounds; 0 past the last row.
struct Own {
    u32 at[2], bound[2];
};

DEV float minus_infinity() { return __uint_as_float(0xff800000u); }
DEV float not_a_number() { return __uint_as_float(0x7fffffffu); }

// Is one of two bf16 infinite or NaN, its exponent all ones?
DEV bool not_finite(u32 pair) { return ((pair & 0x7f807f80u) + 0x00800080u & 0x80008000u) != 0; }

DEV Own own_rows(u32 tile, const u32* bounds, u32 count) {
    Own own;
#pragma unroll
    for (u32 half = 0; half < 2; half++) {
        own.at[half] = tile * TILE + threadIdx.x / WARP * 16 + threadIdx.x % WARP / 4 + half * 8;
        own.bound[half] = own.at[half] < count ? bounds[own.at[half]] : 0;
    }
    return own;
}

// Values of head `head` of the rows of tile `tile` to shared memory, zeros past the last row.
template <u32 D>
DEV void load_tile(uint4* to, const bf16* from, u32 tile, u32 rows, u32 head, u32 heads) {
    constexpr u32 CHUNKS = D / 8;
#pragma unroll
    for (u32 i = 0; i < TILE * CHUNKS / THREADS; i++) {
        u32 at = i * THREADS + threadIdx.x, row = tile * TILE + at / CHUNKS;
        size_t value = ((size_t)row * heads + head) * D + at % CHUNKS * 8;
        copy16(to + swizzled<CHUNKS>(at / CHUNKS, at % CHUNKS), row < rows ? from + value : from, row < rows);
    }
}

// Two tiles, one behind the other.
template <u32 D>
DEV void load_pair(uint4* to, const bf16* a, const bf16* b, u32 tile, u32 rows, u32 head, u32 heads) {
    load_tile<D>(to, a, tile, rows, head, heads);
    load_tile<D>(to + TILE * D / 8, b, tile, rows, head, heads);
}

// Zeroes what is not finite in this thread's half of a row; the same answer in both threads of the row.
template <u32 D>
DEV bool clean(uint4* tile) {
    bool bad = false;
#pragma unroll
    for (u32 i = 0; i < D / 16; i++) {
        uint4* at = tile + swizzled<D / 8>(threadIdx.x / 2, 2 * i + threadIdx.x % 2);
        uint4 x = *at;
        if (not_finite(x.x) || not_finite(x.y) || not_finite(x.z) || not_finite(x.w)) {
            *at = make_uint4(0, 0, 0, 0);
            bad = true;
        }
    }
    return bad | __shfl_xor_sync(FULL, bad, 1);
}

// What the block's rows have to know of a passing tile, from two threads a row.
DEV void note(Passing* passing, u32 tile, const u32* bounds, u32 count, bool bad) {
    u32 row = tile * TILE + threadIdx.x / 2;
    if (threadIdx.x % 2 == 0) passing[threadIdx.x / 2] = Passing{row < count ? bounds[row] : 0, bad};
    __syncthreads();
}

// s[16, N] = a[16 rows from a_row] b[N rows from b_row]^T of two tiles, over the head.
template <u32 D, u32 N>
DEV void dot_rows(float (&s)[N / 8][4], const uint4* a, u32 a_row, const uint4* b, u32 b_row) {
#pragma unroll
    for (u32 j = 0; j < N / 8; j++) s[j][0] = s[j][1] = s[j][2] = s[j][3] = 0.0f;
#pragma unroll
    for (u32 k = 0; k < D; k += 16) {
        u32 x[4], y[4];
        fragment<D / 8, false>(x, a, a_row, k);
#pragma unroll
        for (u32 j = 0; j < N; j += 16) {
            fragment<D / 8, false>(y, b, b_row + j, k);
            mma(s[j / 8], x, y[0], y[2]);
            mma(s[j / 8 + 1], x, y[1], y[3]);
        }
    }
}

// sums[16, D] += w[16, N], rounded to bf16, times N rows from b_row of a tile.
template <u32 D, u32 N>
DEV void weigh_rows(float (&sums)[D / 8][4], const float (&w)[N / 8][4], const uint4* b, u32 b_row) {
#pragma unroll
    for (u32 k = 0; k < N; k += 16) {
        const float(&low)[4] = w[k / 8], (&high)[4] = w[k / 8 + 1];
        u32 x[4] = {narrow2(low[0], low[1]), narrow2(low[2], low[3]),  //
                    narrow2(high[0], high[1]), narrow2(high[2], high[3])};
        u32 y[4];
#pragma unroll
        for (u32 c = 0; c < D; c += 16) {
            fragment<D / 8, true>(y, b, c, b_row + k);
            mma(sums[c / 8], x, y[0], y[2]);
            mma(sums[c / 8 + 1], x, y[1], y[3]);
        }
    }
}

// Bit 4 j + e of the answer: does the pair of element e of s[j] see each other? `sees(half, at, bound)` says so of own
// row `half` and row `at` of the passing tile; NaN is noted for own rows that see a bad one.
template <u32 N, class Sees>
DEV u32 visible(const Passing* passing, u32 from, float (&poison)[2], Sees sees) {
    u32 mask = 0;
#pragma unroll
    for (u32 e = 0; e < N / 2; e++) {
        u32 at = from + e / 4 * 8 + threadIdx.x % 4 * 2 + e % 2, half = e / 2 % 2;
        Passing other = passing[at];
        if (sees(half, at, other.bound)) {
            mask |= 1u << e;
            if (other.bad) poison[half] = not_a_number();
        }
    }
    return mask;
}

// Over the four lanes that hold a row.
DEV float row_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(FULL, x, 1));
    return fmaxf(x, __shfl_xor_sync(FULL, x, 2));
}
DEV float row_sum(float x) {
    x += __shfl_xor_sync(FULL, x, 1);
    return x + __shfl_xor_sync(FULL, x, 2);
}

// A softmax of one row under way; `max` is of raw scores.
struct Running {
    float max, sum;
};

// Scores of a tile to weights e^(s - max) of two rows, and what was summed so far to the new maximum.
template <u32 D>
DEV void soften(float (&s)[TILE / 8][4], float (&o)[D / 8][4], Running (&running)[2], float scale2) {
#pragma unroll
    for (u32 half = 0; half < 2; half++) {
        float max = running[half].max;
#pragma unroll
        for (u32 j = 0; j < TILE / 8; j++) max = fmaxf(max, fmaxf(s[j][2 * half], s[j][2 * half + 1]));
        max = row_max(max);
        // A row that has seen nothing, or minus infinity only, has no maximum to subtract.
        float base = max == minus_infinity() ? 0.0f : max * scale2;
        float shrink = exp2_fast(running[half].max * scale2 - base), sum = 0.0f;
#pragma unroll
        for (u32 e = 0; e < TILE / 4; e++) {
            float& x = s[e / 2][2 * half + e % 2];
            x = exp2_fast(x * scale2 - base);
            sum += x;
        }
        running[half] = Running{max, running[half].sum * shrink + sum};
#pragma unroll
        for (u32 e = 0; e < D / 4; e++) o[e / 2][2 * half + e % 2] *= shrink;
    }
}

// o and lse of a tile of queries of one head.
template <u32 D>
DEV void forward(bf16* o, float* lse, const bf16* q, const bf16* k, const bf16* v, const Shape& shape) {
    constexpr u32 SIZE = TILE * D / 8;
    extern __shared__ uint4 tiles[];
    __shared__ Passing keys[TILE];
    u32 head = blockIdx.y, key_head = head / (shape.heads / shape.key_heads);
    u32 own = gridDim.x - 1 - blockIdx.x;  // the last queries see the most keys: they begin first
    u32 warp_row = threadIdx.x / WARP * 16, at = shape.first[own], last = shape.first[own + 1];
    Own query = own_rows(own, shape.rows, shape.queries);
    auto load = [&](u32 at) {
        uint4* stage = tiles + SIZE * (1 + at % 2 * 2);
        load_pair<D>(stage, k, v, shape.list[at] & ~WHOLE, shape.keys, key_head, shape.key_heads);
    };
    load_tile<D>(tiles, q, own, shape.queries, head, shape.heads);
    if (at < last) load(at);
    copy_commit();
    float sums[D / 8][4] = {}, poison[2] = {};
    Running running[2] = {{minus_infinity(), 0.0f}, {minus_infinity(), 0.0f}};
    for (; at < last; at++) {
        copy_wait<0>();
        __syncthreads();
        if (at + 1 < last) load(at + 1);
        copy_commit();
        u32 entry = shape.list[at], tile = entry & ~WHOLE, first_key = tile * TILE;
        uint4 *k_tile = tiles + SIZE * (1 + at % 2 * 2), *v_tile = k_tile + SIZE;
        if (!(entry & WHOLE)) {
            note(keys, tile, shape.end, shape.keys, clean<D>(v_tile));
        }
        float s[TILE / 8][4];
        dot_rows<D, TILE>(s, tiles, warp_row, k_tile, 0);
        if (!(entry & WHOLE)) {
            u32 mask = visible<TILE>(keys, 0, poison, [&](u32 half, u32 at, u32 end) {
                return first_key + at <= query.bound[half] && query.at[half] < end;
            });
#pragma unroll
            for (u32 e = 0; e < TILE / 2; e++) s[e / 4][e % 4] = mask >> e & 1 ? s[e / 4][e % 4] : minus_infinity();
        }
        soften<D>(s, sums, running, shape.scale * LOG2_E);
        weigh_rows<D, TILE>(sums, s, v_tile, 0);
    }
#pragma unroll
    for (u32 half = 0; half < 2; half++) {
        float sum = row_sum(running[half].sum), inverse = 1.0f / sum, nan = row_sum(poison[half]);
        if (query.at[half] >= shape.queries) continue;
        size_t out = (size_t)query.at[half] * shape.heads + head;
        if (threadIdx.x % 4 == 0) lse[out] = running[half].max * shape.scale + logf(sum);
#pragma unroll
        for (u32 j = 0; j < D / 8; j++) {
            u32* to = (u32*)(o + out * D + j * 8 + threadIdx.x % 4 * 2);
            *to = narrow2(sums[j][2 * half] * inverse + nan, sums[j][2 * half + 1] * inverse + nan);
        }
    }
}

// Pairs of bf16 in the order mma takes them for a or b, straight from memory: elements 2 t, 2 t + 1 of k's halves.
DEV u32 pair_of(const bf16* x, size_t row, size_t rows, u32 dim, u32 k) {
    return row < rows ? *(const u32*)(x + row * dim + k + threadIdx.x % 4 * 2) : 0;
}

// delta [rows] = the sum over the head of d_o o; d_o, o [rows, dim], a row a query's head. A warp has 16 rows and keeps
// the diagonal of d_o o^T: summed as d_o v is, so that a query that sees one key has dS = 0 exactly.
KERNEL(THREADS) attention_delta(float* delta, const bf16* d_o, const bf16* o, u32 rows, u32 dim) {
    u32 lane = threadIdx.x % WARP;
    size_t row = ((size_t)blockIdx.x * THREADS + threadIdx.x) / WARP * 16 + lane / 4;
    float low[4] = {}, high[4] = {};
    for (u32 k = 0; k < dim; k += 16) {
        u32 a[4] = {pair_of(d_o, row, rows, dim, k), pair_of(d_o, row + 8, rows, dim, k),
                    pair_of(d_o, row, rows, dim, k + 8), pair_of(d_o, row + 8, rows, dim, k + 8)};
        mma(low, a, pair_of(o, row, rows, dim, k), pair_of(o, row, rows, dim, k + 8));
        mma(high, a, pair_of(o, row + 8, rows, dim, k), pair_of(o, row + 8, rows, dim, k + 8));
    }
    // Lane 4 g + t holds columns 2 t and 2 t + 1 of row g.
    if (lane / 8 != lane % 4) return;
    if (row < rows) delta[row] = lane / 4 % 2 ? low[1] : low[0];
    if (row + 8 < rows) delta[row + 8] = lane / 4 % 2 ? high[3] : high[2];
}

// lse log2(e) and delta of a query's head; zeros past the last query.
DEV float2 stats_of(const float* lse, const float* delta, u32 query, u32 head, const Shape& shape) {
    if (query >= shape.queries) return make_float2(0.0f, 0.0f);
    size_t at = (size_t)query * shape.heads + head;
    return make_float2(lse[at] * LOG2_E, delta[at]);
}

// P and dS of a stretch of N of the passing rows, from scores and d_o v: hidden pairs are zero. `stats(half, j)` gives
// lse log2(e) and delta of element (half, j)'s query.
template <u32 N, class Stats>
DEV void differentiate(float (&p)[N / 8][4], float (&ds)[N / 8][4], u32 mask, float scale2, Stats stats) {
#pragma unroll
    for (u32 e = 0; e < N / 2; e++) {
        float2 of = stats(e / 2 % 2, e / 4 * 8 + threadIdx.x % 4 * 2 + e % 2);
        float& weight = p[e / 4][e % 4];
        float& slope = ds[e / 4][e % 4];
        bool seen = mask >> e & 1;
        weight = seen ? exp2_fast(weight * scale2 - of.x) : 0.0f;
        slope = seen ? weight * (slope - of.y) : 0.0f;
    }
}

// dq of a tile of queries of one head: sum_j dS_ij k_j / sqrt(d).
template <u32 D>
DEV void backward_q(
    float* dq, const bf16* d_o, const bf16* q, const bf16* k, const bf16* v, const float* lse, const float* delta,
    const Shape& shape
) {
    constexpr u32 SIZE = TILE * D / 8;
    extern __shared__ uint4 tiles[];
    __shared__ Passing keys[TILE];
    u32 head = blockIdx.y, key_head = head / (shape.heads / shape.key_heads);
    u32 own = gridDim.x - 1 - blockIdx.x;  // the last queries see the most keys: they begin first
    u32 warp_row = threadIdx.x / WARP * 16, at = shape.first[own], last = shape.first[own + 1];
    Own query = own_rows(own, shape.rows, shape.queries);
    float2 stats[2] = {stats_of(lse, delta, query.at[0], head, shape), stats_of(lse, delta, query.at[1], head, shape)};
    auto load = [&](u32 at) {
        uint4* stage = tiles + SIZE * (2 + at % 2 * 2);
        load_pair<D>(stage, k, v, shape.list[at] & ~WHOLE, shape.keys, key_head, shape.key_heads);
    };
    load_pair<D>(tiles, q, d_o, own, shape.queries, head, shape.heads);
    if (at < last) load(at);
    copy_commit();
    float sums[D / 8][4] = {}, poison[2] = {};
    for (; at < last; at++) {
        copy_wait<0>();
        __syncthreads();
        if (at + 1 < last) load(at + 1);
        copy_commit();
        u32 entry = shape.list[at], tile = entry & ~WHOLE, first_key = tile * TILE;
        uint4 *k_tile = tiles + SIZE * (2 + at % 2 * 2), *v_tile = k_tile + SIZE;
        if (!(entry & WHOLE)) {
            note(keys, tile, shape.end, shape.keys, clean<D>(k_tile));
        }
#pragma unroll
        for (u32 from = 0; from < TILE; from += HALF) {
            u32 mask = FULL;
            if (!(entry & WHOLE)) {
                mask = visible<HALF>(keys, from, poison, [&](u32 half, u32 at, u32 end) {
                    return first_key + at <= query.bound[half] && query.at[half] < end;
                });
            }
            float p[HALF / 8][4], ds[HALF / 8][4];
            dot_rows<D, HALF>(p, tiles, warp_row, k_tile, from);
            dot_rows<D, HALF>(ds, tiles + SIZE, warp_row, v_tile, from);
            differentiate<HALF>(p, ds, mask, shape.scale * LOG2_E, [&](u32 half, u32) { return stats[half]; });
            weigh_rows<D, HALF>(sums, ds, k_tile, from);
        }
    }
#pragma unroll
    for (u32 half = 0; half < 2; half++) {
        float nan = row_sum(poison[half]);
        if (query.at[half] >= shape.queries) continue;
        float* to = dq + ((size_t)query.at[half] * shape.heads + head) * D + threadIdx.x % 4 * 2;
#pragma unroll
        for (u32 j = 0; j < D / 8; j++) {
            to[j * 8] = sums[j][2 * half] * shape.scale + nan;
            to[j * 8 + 1] = sums[j][2 * half + 1] * shape.scale + nan;
        }
    }
}

// dk and dv of a tile of keys of one key head: sums over queries and the group's heads of dS_ij q_i / sqrt(d) and
// P_ij d_o_i. Keys below `cached` are left alone.
template <u32 D>
DEV void backward_kv(
    float* dk, bf16* dv, const bf16* d_o, const bf16* q, const bf16* k, const bf16* v, const float* lse,
    const float* delta, const Shape& shape
) {
    constexpr u32 SIZE = TILE * D / 8;
    constexpr u32 STRETCH = D == 96 ? HALF / 2 : HALF; // with a whole half, sm_120 spills
    extern __shared__ uint4 tiles[];
    __shared__ Passing queries[TILE];
    __shared__ float2 stats[2][TILE];
    u32 key_tile = shape.cached / TILE + blockIdx.x, key_head = blockIdx.y, group = shape.heads / shape.key_heads;
    u32 warp_row = threadIdx.x / WARP * 16, first = shape.first[key_tile];
    u32 steps = (shape.first[key_tile + 1] - first) * group;
    Own key = own_rows(key_tile, shape.end, shape.keys);
    auto load = [&](u32 step) {
        u32 tile = shape.list[first + step / group] & ~WHOLE, head = key_head * group + step % group;
        load_pair<D>(tiles + SIZE * (2 + step % 2 * 2), q, d_o, tile, shape.queries, head, shape.heads);
        if (threadIdx.x >= TILE) return;
        stats[step % 2][threadIdx.x] = stats_of(lse, delta, tile * TILE + threadIdx.x, head, shape);
    };
    load_pair<D>(tiles, k, v, key_tile, shape.keys, key_head, shape.key_heads);
    if (steps > 0) load(0);
    copy_commit();
    float dk_sums[D / 8][4] = {}, dv_sums[D / 8][4] = {}, poison[2] = {};
    for (u32 step = 0; step < steps; step++) {
        copy_wait<0>();
        __syncthreads();
        if (step + 1 < steps) load(step + 1);
        copy_commit();
        u32 entry = shape.list[first + step / group], tile = entry & ~WHOLE, first_query = tile * TILE;
        uint4 *q_tile = tiles + SIZE * (2 + step % 2 * 2), *d_o_tile = q_tile + SIZE;
        if (!(entry & WHOLE)) {
            note(queries, tile, shape.rows, shape.queries, clean<D>(q_tile) | clean<D>(d_o_tile));
        }
#pragma unroll
        for (u32 from = 0; from < TILE; from += STRETCH) {
            u32 mask = FULL;
            if (!(entry & WHOLE)) {
                mask = visible<STRETCH>(queries, from, poison, [&](u32 half, u32 at, u32 row) {
                    return key.at[half] <= row && first_query + at < key.bound[half];
                });
            }
            float p[STRETCH / 8][4], ds[STRETCH / 8][4];
            dot_rows<D, STRETCH>(p, tiles, warp_row, q_tile, from);
            dot_rows<D, STRETCH>(ds, tiles + SIZE, warp_row, d_o_tile, from);
            const float2* of = stats[step % 2] + from;
            differentiate<STRETCH>(p, ds, mask, shape.scale * LOG2_E, [&](u32, u32 at) { return of[at]; });
            weigh_rows<D, STRETCH>(dv_sums, p, d_o_tile, from);
            weigh_rows<D, STRETCH>(dk_sums, ds, q_tile, from);
        }
    }
#pragma unroll
    for (u32 half = 0; half < 2; half++) {
        float nan = row_sum(poison[half]);
        if (key.at[half] < shape.cached || key.at[half] >= shape.keys) continue;
        size_t out = ((size_t)key.at[half] * shape.key_heads + key_head) * D + threadIdx.x % 4 * 2;
#pragma unroll
        for (u32 j = 0; j < D / 8; j++) {
            dk[out + j * 8] = dk_sums[j][2 * half] * shape.scale + nan;
            dk[out + j * 8 + 1] = dk_sums[j][2 * half + 1] * shape.scale + nan;
            *(u32*)(dv + out + j * 8) = narrow2(dv_sums[j][2 * half] + nan, dv_sums[j][2 * half + 1] + nan);
        }
    }
}

#define KERNELS(D)                                                                                                      \
    KERNEL(THREADS)                                                                                                     \
    attention_forward_##D(bf16* o, float* lse, const bf16* q, const bf16* k, const bf16* v,                             \
                          const __grid_constant__ Shape shape) {                                                        \
        forward<D>(o, lse, q, k, v, shape);                                                                             \
    }                                                                                                                   \
    KERNEL(THREADS)                                                                                                     \
    attention_backward_q_##D(float* dq, const bf16* d_o, const bf16* q, const bf16* k, const bf16* v, const float* lse, \
                             const float* delta, const __grid_constant__ Shape shape) {                                 \
        backward_q<D>(dq, d_o, q, k, v, lse, delta, shape);                                                             \
    }                                                                                                                   \
    KERNEL(THREADS)                                                                                                     \
    attention_backward_kv_##D(float* dk, bf16* dv, const bf16* d_o, const bf16* q, const bf16* k, const bf16* v,        \
                              const float* lse, const float* delta, const __grid_constant__ Shape shape) {              \
        backward_kv<D>(dk, dv, d_o, q, k, v, lse, delta, shape);                                                        \
    }

// Which head sizes are compiled; a build for one model may ask for its own alone.
#ifndef HEAD_SIZES
#define HEAD_SIZES KERNELS(16) KERNELS(32) KERNELS(48) KERNELS(64) KERNELS(80) KERNELS(96) KERNELS(128)
#endif
HEAD_SIZES
