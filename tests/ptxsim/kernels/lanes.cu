// How lanes of a warp speak to each other, and what is asked of all of them.
typedef unsigned u32;

extern "C" __global__ void shuffles(u32* out, const u32* in) {
    u32 i = threadIdx.x, x = in[i], full = 0xffffffffu;
    u32 r[] = {__shfl_sync(full, x, i * 7), __shfl_sync(full, x, i + 3, 8), __shfl_up_sync(full, x, 3), __shfl_up_sync(full, x, 5, 16),
               __shfl_down_sync(full, x, 3), __shfl_down_sync(full, x, 1, 4), __shfl_xor_sync(full, x, 9), __shfl_xor_sync(full, x, 9, 8),
               __ballot_sync(full, x & 1), (u32)__any_sync(full, x == 0), (u32)__all_sync(full, x < 1000), __match_any_sync(full, x % 5),
               __reduce_add_sync(full, x), __reduce_max_sync(full, x), __activemask()};
    for (u32 j = 0; j < sizeof(r) / 4; j++) out[i * 16 + j] = r[j];
    // Half of a warp for itself: both are right to name themselves only.
    if (i < 16) out[i * 16 + 15] = __shfl_xor_sync(0x0000ffffu, x, 1);
    else out[i * 16 + 15] = __shfl_xor_sync(0xffff0000u, x, 2);
}

extern "C" __global__ void answers(u32* out, const u32* in) {
    u32 i = threadIdx.x, x = in[i];
    out[i * 3] = __syncthreads_count(x & 1);
    out[i * 3 + 1] = __syncthreads_and(x < 1000);
    out[i * 3 + 2] = __syncthreads_or(x == 0);
}
