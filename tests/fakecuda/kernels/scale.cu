// Something to launch: a kernel that is right, one that writes past its end, one that races.
__device__ float offsets[2] = {1.0f, 2.0f};

extern "C" __global__ void scale(float* y, const float* x, float by, unsigned len) {
    unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < len) y[i] = x[i] * by + offsets[0];
}

extern "C" __global__ void past_the_end(float* y, unsigned len) { y[len + threadIdx.x] = 1.0f; }

extern "C" __global__ void race(float* y) { *y = threadIdx.x; }

extern "C" __global__ void much_shared(float* y) {
    extern __shared__ float tile[];
    tile[threadIdx.x] = 3.0f;
    y[threadIdx.x] = tile[threadIdx.x];
}
