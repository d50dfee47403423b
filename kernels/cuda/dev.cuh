// The only file that kernel sources include. No other header is needed: NVRTC has none at hand, and nvcc gets by without.
#pragma once

typedef unsigned u32;
typedef unsigned long long u64;

// A bf16 as it lies in memory. Arithmetic is f32: widen, compute, narrow once.
struct bf16 {
    unsigned short bits;
};

#define DEV static __device__ __forceinline__
#define KERNEL(threads) extern "C" __global__ void __launch_bounds__(threads)

constexpr u32 WARP = 32;
constexpr u32 FULL = 0xffffffffu;

DEV float infinity() { return __uint_as_float(0x7f800000u); }
DEV float widen(bf16 x) { return __uint_as_float((u32)x.bits << 16); }
// To nearest, ties to even; NaN stays NaN.
DEV bf16 narrow(float x) {
    bf16 y;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
    return y;
}
// Two bf16 in a word, `low` at the lower address.
DEV u32 narrow2(float low, float high) {
    u32 y;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
    return y;
}
DEV float low(u32 pair) { return __uint_as_float(pair << 16); }
DEV float high(u32 pair) { return __uint_as_float(pair & 0xffff0000u); }

// 2^x within 2 ulp; subnormal results are zero.
DEV float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// e^x; the relative error is that of exp2_fast and 2^-24 for every unit of |x|.
DEV float exp_fast(float x) { return exp2_fast(1.44269504f * x); }

// A float whose every operation is rounded by itself, as on a CPU: nvcc makes a * b + c of plain floats one rounding.
struct Rounded {
    float x;
};
DEV Rounded operator+(Rounded a, Rounded b) { return {__fadd_rn(a.x, b.x)}; }
DEV Rounded operator-(Rounded a, Rounded b) { return {__fsub_rn(a.x, b.x)}; }
DEV Rounded operator*(Rounded a, Rounded b) { return {__fmul_rn(a.x, b.x)}; }
DEV Rounded operator/(Rounded a, Rounded b) { return {__fdiv_rn(a.x, b.x)}; }
DEV Rounded root(Rounded a) { return {__fsqrt_rn(a.x)}; }

// N values of T that one instruction moves.
template <typename T, u32 N>
struct alignas(N * sizeof(T)) Pack {
    T value[N];
};
// Whether the first `count` values at p hold a whole pack, and at an address that it may have.
template <u32 N, typename T>
DEV bool is_pack(const T* p, u32 count) {
    return count >= N && (size_t)p % sizeof(Pack<T, N>) == 0;
}
// x = the first `count` of N values at p, zeros behind: as a pack where they are one (4 f32, 4 or 8 bf16), else one by one.
template <u32 N>
DEV void load(float (&x)[N], const float* p, u32 count) {
    if (is_pack<N>(p, count)) {
        Pack<float, N> pack = *(const Pack<float, N>*)p;
#pragma unroll
        for (u32 i = 0; i < N; i++) x[i] = pack.value[i];
    } else {
#pragma unroll
        for (u32 i = 0; i < N; i++) x[i] = i < count ? p[i] : 0.0f;
    }
}
template <u32 N>
DEV void load(float (&x)[N], const bf16* p, u32 count) {
    if (is_pack<N>(p, count)) {
        Pack<u32, N / 2> pairs = *(const Pack<u32, N / 2>*)p;
#pragma unroll
        for (u32 i = 0; i < N; i++) x[i] = i % 2 ? high(pairs.value[i / 2]) : low(pairs.value[i / 2]);
    } else {
#pragma unroll
        for (u32 i = 0; i < N; i++) x[i] = i < count ? widen(p[i]) : 0.0f;
    }
}
// The first `count` of x to p, likewise.
template <u32 N>
DEV void store(float* p, const float (&x)[N], u32 count) {
    if (is_pack<N>(p, count)) {
        Pack<float, N> pack;
#pragma unroll
        for (u32 i = 0; i < N; i++) pack.value[i] = x[i];
        *(Pack<float, N>*)p = pack;
    } else {
#pragma unroll
        for (u32 i = 0; i < N; i++)
            if (i < count) p[i] = x[i];
    }
}
template <u32 N>
DEV void store(bf16* p, const float (&x)[N], u32 count) {
    if (is_pack<N>(p, count)) {
        Pack<u32, N / 2> pairs;
#pragma unroll
        for (u32 i = 0; i < N; i += 2) pairs.value[i / 2] = narrow2(x[i], x[i + 1]);
        *(Pack<u32, N / 2>*)p = pairs;
    } else {
#pragma unroll
        for (u32 i = 0; i < N; i++)
            if (i < count) p[i] = narrow(x[i]);
    }
}

// A row is moved by one block, a run at a time: PACKS packs of four values a thread, neighbours side by side, all of a
// thread's loads under way before the first is used.
constexpr u32 PACKS = 4;
DEV u32 run_length() { return PACKS * 4 * blockDim.x; }
DEV u32 pack_at(u32 pack) { return 4 * (pack * blockDim.x + threadIdx.x); }
// Values of the row from `at` on.
DEV u32 left(u32 at, u32 width) { return at < width ? width - at : 0; }
template <typename T>
DEV void load_run(float (&x)[PACKS][4], const T* row, u32 from, u32 width) {
#pragma unroll
    for (u32 pack = 0; pack < PACKS; pack++) load(x[pack], row + from + pack_at(pack), left(from + pack_at(pack), width));
}
template <typename T>
DEV void store_run(T* row, const float (&x)[PACKS][4], u32 from, u32 width) {
#pragma unroll
    for (u32 pack = 0; pack < PACKS; pack++) store(row + from + pack_at(pack), x[pack], left(from + pack_at(pack), width));
}

// Sums over a warp in a fixed order, the same value in every lane.
template <typename T>
DEV T warp_sum(T x) {
#pragma unroll
    for (u32 lane = WARP / 2; lane > 0; lane /= 2) x += __shfl_xor_sync(FULL, x, lane);
    return x;
}
DEV float warp_max(float x) {
#pragma unroll
    for (u32 lane = WARP / 2; lane > 0; lane /= 2) x = fmaxf(x, __shfl_xor_sync(FULL, x, lane));
    return x;
}

// The block's sum, warp by warp, the same in every thread. `parts` holds a value a warp and is free again after the next
// barrier.
template <typename T>
DEV T block_sum(T x, T* parts) {
    x = warp_sum(x);
    if (threadIdx.x % WARP == 0) parts[threadIdx.x / WARP] = x;
    __syncthreads();
    T sum = 0;
    for (u32 warp = 0; warp < blockDim.x / WARP; warp++) sum += parts[warp];
    return sum;
}

DEV u32 shared_address(const void* p) { return (u32)__cvta_generic_to_shared(p); }

// 16 bytes from global to shared memory without a register; zeros where `wanted` is false (then `from` is not read).
DEV void copy16(void* to, const void* from, bool wanted) {
    u32 bytes = wanted ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(bytes) : "memory");
}
DEV void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most N of this thread's groups are under way; others see the data after a barrier.
template <int N>
DEV void copy_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

// Where 16-byte chunk `chunk` of row `row` lies in a tile of CHUNKS chunks a row (an even number): chunks change places
// by their row, so that one chunk of eight consecutive rows lies in eight different bank groups.
template <u32 CHUNKS>
DEV u32 swizzled(u32 row, u32 chunk) {
    constexpr u32 POWER = CHUNKS & (0u - CHUNKS), SPAN = POWER < 8 ? POWER : 8;
    return row * CHUNKS + (chunk ^ (row / (8 / SPAN) % SPAN));
}

// Four 8 x 8 matrices of 16-bit values from shared memory; lane i gives the address of row i % 8 of matrix i / 8.
DEV void load_matrices(u32 (&r)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}
// The same, each transposed.
DEV void load_matrices_transposed(u32 (&r)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}
// 16 outputs from `out` on by 16 summed values from `k` on, of a swizzled tile [outputs, k] or, over rows, [k, outputs]:
// quarters (outputs, k) in mma's order for a, (low, low), (high, low), (low, high), (high, high). As b, elements 0 and 2
// are the lower eight outputs, 1 and 3 the higher.
template <u32 CHUNKS, bool OVER_ROWS>
DEV void fragment(u32 (&r)[4], const uint4* tile, u32 out, u32 k) {
    u32 lane = threadIdx.x % WARP;
    if (OVER_ROWS) {
        load_matrices_transposed(r, tile + swizzled<CHUNKS>(k + lane / 16 * 8 + lane % 8, out / 8 + lane / 8 % 2));
    } else {
        load_matrices(r, tile + swizzled<CHUNKS>(out + lane % 16, k / 8 + lane / 16));
    }
}
// d[16, 8] += a[16, 16] b[16, 8] of one warp; bf16 products, f32 sums.
DEV void mma(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
