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

// Sums over a warp in a fixed order, the same value in every lane.
DEV float warp_sum(float x) {
#pragma unroll
    for (u32 lane = WARP / 2; lane > 0; lane /= 2) x += __shfl_xor_sync(FULL, x, lane);
    return x;
}
DEV float warp_max(float x) {
#pragma unroll
    for (u32 lane = WARP / 2; lane > 0; lane /= 2) x = fmaxf(x, __shfl_xor_sync(FULL, x, lane));
    return x;
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
