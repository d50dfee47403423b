// Quantised weights on CUDA, widened: rows to bf16 for the matrix units, or the embedding's rows of some tokens to f32.
// mod.rs has the equation, Bits in matrix.rs the layout; scales f32 [rows, ceil(cols / run)], run a multiple of 8 or all of cols.
//
// Cut: one block per row, eight values a thread and turn: one load of 8 or 4 bytes, one scale, one or two stores of 16. No
// sums, no shared memory. Bytes a value: 8 bits to bf16 3, to f32 5; 4 bits to bf16 2.6, to f32 4.6 (runs of 32).
// Registers (sm_80, sm_90a): 8 bits 32, 32; 4 bits 31, 31.
#include "../cuda/dev.cuh"

constexpr u32 THREADS = 256; // at most
constexpr u32 EIGHT = 8;

typedef unsigned char byte;

// Eight whole numbers of a row from column `at` on; zeros behind its `cols`.
DEV void load_eight_bits(float (&x)[EIGHT], const byte* row, u32 at, u32 cols) {
    const byte* p = row + at;
    if (is_pack<EIGHT>(p, cols - at)) {
        Pack<u32, 2> words = *(const Pack<u32, 2>*)p;
#pragma unroll
        for (u32 i = 0; i < EIGHT; i++) x[i] = (float)(signed char)(words.value[i / 4] >> 8 * (i % 4));
    } else {
#pragma unroll
        for (u32 i = 0; i < EIGHT; i++) x[i] = i < cols - at ? (float)(signed char)p[i] : 0.0f;
    }
}
// The same of 4 bits: a row is whole words.
DEV void load_four_bits(float (&x)[EIGHT], const byte* row, u32 at) {
    u32 word = *(const u32*)(row + at / 2);
#pragma unroll
    for (u32 i = 0; i < EIGHT; i++) x[i] = (float)((int)(word >> 4 * i & 15) - 8);
}

DEV void store_eight(bf16* p, const float (&x)[EIGHT], u32 count) { store(p, x, count); }
DEV void store_eight(float* p, const float (&x)[EIGHT], u32 count) {
    float low[4], high[4];
#pragma unroll
    for (u32 i = 0; i < 4; i++) low[i] = x[i], high[i] = x[4 + i];
    store(p, low, count);
    store(p + 4, high, count < 4 ? 0 : count - 4);
}

// Row blockIdx.x of y is row blockIdx.x of q, or row ids[blockIdx.x].
template <u32 BITS, typename T>
DEV void widen_row(T* y, const byte* q, const float* scales, const u32* ids, u32 cols, u32 run) {
    size_t row = ids ? ids[blockIdx.x] : blockIdx.x;
    const byte* from = q + row * (BITS == 8 ? cols : (cols + 7) / 8 * 4);
    const float* scale = scales + row * ((cols + run - 1) / run);
    T* to = y + (size_t)blockIdx.x * cols;
    for (u32 at = EIGHT * threadIdx.x; at < cols; at += EIGHT * blockDim.x) {
        float x[EIGHT], s = scale[at / run];
        if (BITS == 8) load_eight_bits(x, from, at, cols);
        else load_four_bits(x, from, at);
#pragma unroll
        for (u32 i = 0; i < EIGHT; i++) x[i] *= s;
        store_eight(to + at, x, cols - at);
    }
}

#define WIDEN(name, bits, T) \
    KERNEL(THREADS) name(T* y, const byte* q, const float* scales, const u32* ids, u32 cols, u32 run) { \
        widen_row<bits>(y, q, scales, ids, cols, run); \
    }
WIDEN(quantize_widen_8_bf16, 8, bf16)
WIDEN(quantize_widen_4_bf16, 4, bf16)
WIDEN(quantize_widen_8_f32, 8, float)
WIDEN(quantize_widen_4_f32, 4, float)
