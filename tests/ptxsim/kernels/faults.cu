// What the checker is for: each kernel has a fault, and a twin without it.
typedef unsigned u32;

#define DEV static __device__ __forceinline__
#define TWINS(name, parameters, arguments)                                            \
    extern "C" __global__ void name##_faulty parameters { name<true> arguments; }   \
    extern "C" __global__ void name##_sound parameters { name<false> arguments; }

constexpr u32 THREADS = 64;

// Another warp's value is read before a barrier.
template <bool FAULTY> DEV void read_after_write(u32* out, const u32* in) {
    __shared__ u32 tile[THREADS];
    tile[threadIdx.x] = in[threadIdx.x];
    if (!FAULTY) __syncthreads();
    out[threadIdx.x] = tile[THREADS - 1 - threadIdx.x];
}
TWINS(read_after_write, (u32* out, const u32* in), (out, in))

// The tile is written again while another warp may still read it.
template <bool FAULTY> DEV void write_after_read(u32* out, const u32* in) {
    __shared__ u32 tile[THREADS];
    u32 sum = 0;
    for (u32 round = 0; round < 3; round++) {
        tile[threadIdx.x] = in[threadIdx.x] + round;
        __syncthreads();
        sum += tile[THREADS - 1 - threadIdx.x];
        if (!FAULTY) __syncthreads();
    }
    out[threadIdx.x] = sum;
}
TWINS(write_after_read, (u32* out, const u32* in), (out, in))

// Lanes of one warp are in no order either, but for __syncwarp.
template <bool FAULTY> DEV void within_a_warp(u32* out, const u32* in) {
    __shared__ volatile u32 tile[THREADS];
    tile[threadIdx.x] = in[threadIdx.x];
    if (!FAULTY) __syncwarp();
    out[threadIdx.x] = tile[threadIdx.x ^ 1];
}
TWINS(within_a_warp, (u32* out, const u32* in), (out, in))

// Two groups are under way, and the first is read: at most one may still be.
template <bool FAULTY> DEV void weak_wait(u32* out, const u32* in) {
    __shared__ __align__(16) u32 tile[2][THREADS * 4];
    for (u32 stage = 0; stage < 2; stage++) {
        u32 to = (u32)__cvta_generic_to_shared(&tile[stage][threadIdx.x * 4]);
        const u32* from = in + (stage * THREADS + threadIdx.x) * 4;
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16;\ncp.async.commit_group;" ::"r"(to), "l"(from) : "memory");
    }
    if (FAULTY) asm volatile("cp.async.wait_group 2;" ::: "memory");
    else asm volatile("cp.async.wait_group 1;" ::: "memory");
    __syncthreads();
    out[threadIdx.x] = tile[0][THREADS * 4 - 1 - threadIdx.x];
    asm volatile("cp.async.wait_all;" ::: "memory");
    __syncthreads();
    out[THREADS + threadIdx.x] = tile[1][THREADS * 4 - 1 - threadIdx.x];
}
TWINS(weak_wait, (u32* out, const u32* in), (out, in))

// One row too many.
template <bool FAULTY> DEV void out_of_bounds(u32* out, const u32* in, u32 rows) {
    u32 row = blockIdx.x * THREADS + threadIdx.x;
    if (FAULTY ? row <= rows : row < rows) out[row] = in[row % 16];
}
TWINS(out_of_bounds, (u32* out, const u32* in, u32 rows), (out, in, rows))

// The same in shared memory.
template <bool FAULTY> DEV void out_of_shared(u32* out) {
    extern __shared__ u32 dynamic[];
    dynamic[threadIdx.x + (FAULTY ? 1 : 0)] = threadIdx.x;
    out[threadIdx.x] = dynamic[threadIdx.x + (FAULTY ? 1 : 0)];
}
TWINS(out_of_shared, (u32* out), (out))

// A sum begins at what was in memory.
template <bool FAULTY> DEV void uninitialised(u32* out, const u32* in) {
    __shared__ u32 sums[THREADS];
    if (!FAULTY || threadIdx.x > 0) sums[threadIdx.x] = 0;
    for (u32 i = 0; i < 4; i++) sums[threadIdx.x] += in[threadIdx.x];
    out[threadIdx.x] = sums[threadIdx.x];
}
TWINS(uninitialised, (u32* out, const u32* in), (out, in))

// An output that only a part of the threads writes is read by the next launch.
template <bool FAULTY> DEV void unwritten(u32* out) {
    if (!FAULTY || threadIdx.x != 5) out[threadIdx.x] = threadIdx.x;
}
TWINS(unwritten, (u32* out), (out))
extern "C" __global__ void reads_it(u32* out, const u32* in) { out[threadIdx.x] = in[threadIdx.x]; }

// All lanes are named where half of them are.
template <bool FAULTY> DEV void half_a_warp(u32* out) {
    u32 x = threadIdx.x;
    if (threadIdx.x % 32 < 16) x += __shfl_xor_sync(FAULTY ? 0xffffffffu : 0x0000ffffu, x, 1);
    out[threadIdx.x] = x;
}
TWINS(half_a_warp, (u32* out), (out))

// A barrier that one warp never reaches,
template <bool FAULTY> DEV void barrier_of_a_warp(u32* out) {
    if (FAULTY ? threadIdx.x < 32 : true) __syncthreads();
    out[threadIdx.x] = threadIdx.x;
}
TWINS(barrier_of_a_warp, (u32* out), (out))

// and one that some threads of a warp never reach.
template <bool FAULTY> DEV void barrier_of_some(u32* out, u32 threads) {
    if (FAULTY && threadIdx.x >= threads) return;
    __syncthreads();
    out[threadIdx.x] = threadIdx.x;
}
TWINS(barrier_of_some, (u32* out, u32 threads), (out, threads))

// Two blocks write one place.
template <bool FAULTY> DEV void between_blocks(u32* out) { out[(FAULTY ? blockIdx.x / 2 : blockIdx.x) * THREADS + threadIdx.x] = blockIdx.x; }
TWINS(between_blocks, (u32* out), (out))

// Four words at a multiple of one.
template <bool FAULTY> DEV void misaligned(uint4* out, const u32* in) {
    u32 at = threadIdx.x * 4 + (FAULTY && threadIdx.x == 7 ? 1 : 0);
    out[threadIdx.x] = *(const uint4*)(in + at);
}
TWINS(misaligned, (uint4* out, const u32* in), (out, in))

// A producer warp and a consumer warp with barriers of their own; the last one must not be left out.
template <bool FAULTY> DEV void named_barriers(u32* out, const u32* in) {
    __shared__ u32 tile[32];
    for (u32 round = 0; round < 4; round++) {
        if (threadIdx.x < 32) {
            tile[threadIdx.x] = in[threadIdx.x] * round;
            asm volatile("bar.arrive 1, 64;" ::: "memory");
            if (!FAULTY) asm volatile("bar.sync 2, 64;" ::: "memory");
        } else {
            asm volatile("bar.sync 1, 64;" ::: "memory");
            out[round * 32 + threadIdx.x - 32] = tile[63 - threadIdx.x];
            if (!FAULTY) asm volatile("bar.arrive 2, 64;" ::: "memory");
        }
    }
}
TWINS(named_barriers, (u32* out, const u32* in), (out, in))

// A launch that ends in nothing but a thread that gives up.
template <bool FAULTY> DEV void trapped(u32* out, const u32* in) {
    if (FAULTY && in[threadIdx.x] == 3) asm volatile("trap;");
    out[threadIdx.x] = 1;
}
TWINS(trapped, (u32* out, const u32* in), (out, in))
