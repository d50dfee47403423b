// Every kind of memory, and every way to reach it.
typedef unsigned u32;
typedef unsigned long long u64;

__constant__ u32 squares[8] = {0, 1, 4, 9, 16, 25, 36, 49};
__device__ u32 counter = 5;
__device__ float scales[3] = {1.5f, -2.0f, 0.25f};
extern __shared__ u32 dynamic[];

extern "C" __global__ void vectors(uint4* to, const uint4* from, short2* narrow, const signed char* bytes) {
    u32 i = threadIdx.x;
    uint4 v = __ldg(from + i);
    to[i] = make_uint4(v.w, v.z, v.y, v.x);
    narrow[i] = make_short2(bytes[2 * i], bytes[2 * i + 1]);
}

// An array that is indexed by what only a run knows lies in each thread's own memory.
extern "C" __global__ void own(u32* out, const u32* in) {
    u32 i = threadIdx.x, bins[16];
    for (u32 j = 0; j < 16; j++) bins[j] = j;
    for (u32 j = 0; j < 8; j++) bins[in[i * 8 + j] % 16] += squares[in[i * 8 + j] % 8];
    for (u32 j = 0; j < 16; j++) out[i * 16 + j] = bins[j];
}

__device__ __noinline__ u32 mix(u32 x, u32 rounds) {
    for (u32 j = 0; j < rounds; j++) {
        if (x & 1) x = x * 5 + 1;
        else x = x / 2 + j;
    }
    return x;
}
extern "C" __global__ void called(u32* out, const u32* in) {
    u32 i = threadIdx.x;
    out[i] = mix(in[i], i % 4) ^ mix(in[i] + 1, 3);
}

// Generic addresses: which memory it is, the pointer says.
extern "C" __global__ void generic(float* out, u32 which) {
    __shared__ float fixed[32];
    fixed[threadIdx.x] = threadIdx.x;
    dynamic[threadIdx.x] = 100 + threadIdx.x;
    __syncthreads();
    const float* from = which == 0 ? fixed : scales;
    u32 index = which == 0 ? 31 - threadIdx.x : threadIdx.x % 3;
    out[threadIdx.x] = from[index] + dynamic[31 - threadIdx.x];
}

extern "C" __global__ void atomics(u32* out, u64* sum, float* total) {
    u32 i = blockIdx.x * blockDim.x + threadIdx.x;
    atomicAdd(&counter, 1);
    atomicAdd(out, i);
    atomicMax(out + 1, i);
    atomicMin(out + 2, i);
    atomicOr(out + 3, 1u << (i % 32));
    atomicXor(out + 4, i);
    atomicInc(out + 5, 9);
    for (u32 old = 0, seen; (seen = atomicCAS(out + 6, old, old + 2)) != old;) old = seen;
    atomicAdd(sum, (u64)i << 20);
    atomicAdd(total, 0.5f);
    if (i == 0) atomicExch(out + 7, 77);
}

struct Shape {
    u32 sizes[3];
    double scale;
    unsigned char last;
};
extern "C" __global__ void parameters(double* out, unsigned char byte, Shape shape, u32 which) {
    out[0] = byte;
    out[1] = shape.sizes[which] * shape.scale;
    out[2] = shape.last;
}

extern "C" __global__ void geometry(uint4* out) {
    u32 thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
    u32 block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
    u32 threads = blockDim.x * blockDim.y * blockDim.z, lane;
    asm("mov.u32 %0, %%laneid;" : "=r"(lane));
    out[block * threads + thread] = make_uint4(threadIdx.x, threadIdx.y, threadIdx.z, lane);
}
