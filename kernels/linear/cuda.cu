// Linear on CUDA; mod.rs has the equations. x, w bf16; sums, bias f32; LoRA's gradients f32.
//
// Cut: a block owns BM x BN outputs and runs over all terms, so that LoRA's products end in the sums they belong to. Its
// warps own parts of the tile; blocks go through the outputs by groups of GROUP rows of tiles, so that what runs at one
// time reads few rows of x and few of w. Four stages of BK values of x and w are under way to swizzled shared memory.
// Sums: one f32 accumulator an output, terms in order, k rising by 16 (mma m16n8k16); the tile's shape and a row's index
// change no bit. A sum over rows of w reads w as it lies through ldmatrix.trans.
// LoRA's gradients are the same product with x transposed too and k = rows, cut in parts whose sums are added in order.
// Bytes of LoRA of rank r on w [n, k] for m rows, beside those of the product: forward x A^T 2 (m k + r k + m r), and in the
// product's sum 2 r (m + n); backward dy B 2 (m n + r n + m r), in dx's sum 2 r (m + k), dA and dB 2 m (k + n + 2 r) read and
// 4 r (k + n) written. Where cuBLASLt takes the product, LoRA's part passes through memory as y: 4 m n more.
//   tile             registers sm_80, sm_90a   shared   for
//   large 128x128x32      115, 112             64 KiB   many rows: bound by the matrix units
//   small  64x64x32        79, 72              32 KiB   too few large tiles to fill a GPU; gradients of rank > 16
//   few    16x32x128       96, 96              48 KiB   up to 16 rows, rank <= 16: bound by the reading of w or of
//                                                       rows; a block has 36 KiB under way
#include "../cuda/dev.cuh"

constexpr u32 MAX_TERMS = 8, STAGES = 4, GROUP = 16;

template <u32 BM_, u32 BN_, u32 BK_, u32 WARPS_M_, u32 WARPS_N_>
struct Tile {
    static constexpr u32 BM = BM_, BN = BN_, BK = BK_, WARPS_M = WARPS_M_, WARPS_N = WARPS_N_;
    static constexpr u32 THREADS = WARP * WARPS_M * WARPS_N;
    // Of one warp: rows by 16, columns by 8.
    static constexpr u32 ROWS = BM / WARPS_M / 16, COLS = BN / WARPS_N / 8;
    // 16-byte chunks of one stage: x, then w.
    static constexpr u32 X_CHUNKS = BM * BK / 8, CHUNKS = (BM + BN) * BK / 8;
};
using Large = Tile<128, 128, 32, 2, 4>;
using Small = Tile<64, 64, 32, 2, 2>;
using Few = Tile<16, 32, 128, 1, 2>;

// Bit t of a mask is of term t.
struct Terms {
    const bf16* x[MAX_TERMS];
    const bf16* w[MAX_TERMS];
    u32 k[MAX_TERMS];
    u32 count;
    u32 over_rows;  // w is [k, n], not [n, k]
    u32 wide_x, wide_w;  // every row begins at a multiple of 16 bytes
};

enum Kind : u32 { ACT = 0, REAL = 1, ADD = 2 };

// An operand's tile while it is loaded: a matrix [rows, cols] of memory, from (row, col) on.
struct Source {
    const bf16* from;
    u32 rows, cols, row, col;
    bool wide;
};

// Eight values of which the first `count` are read.
DEV uint4 read8(const bf16* from, u32 count) {
    u32 words[4];
#pragma unroll
    for (u32 i = 0; i < 4; i++) {
        u32 first = 2 * i < count ? from[2 * i].bits : 0, second = 2 * i + 1 < count ? from[2 * i + 1].bits : 0;
        words[i] = first | second << 16;
    }
    return make_uint4(words[0], words[1], words[2], words[3]);
}

// Eight values of a tile, `count` of them inside the matrix.
struct Chunk {
    const bf16* from;
    u32 count;
};

DEV Chunk chunk_of(const Source& source, u32 row, u32 chunk) {
    row += source.row;
    u32 col = source.col + chunk * 8;
    bool inside = row < source.rows && col < source.cols;
    return Chunk{source.from + (inside ? (size_t)row * source.cols + col : 0), inside ? source.cols - col : 0};
}

// ROWS x 8 CHUNKS values to shared memory, zeros outside the matrix.
template <u32 ROWS, u32 CHUNKS, u32 THREADS>
DEV void load_tile(uint4* tile, const Source& source) {
    if (source.wide) {
#pragma unroll
        for (u32 i = 0; i < ROWS * CHUNKS / THREADS; i++) {
            u32 at = i * THREADS + threadIdx.x;
            Chunk chunk = chunk_of(source, at / CHUNKS, at % CHUNKS);
            copy16(tile + swizzled<CHUNKS>(at / CHUNKS, at % CHUNKS), chunk.from, chunk.count > 0);
        }
    } else {
        for (u32 at = threadIdx.x; at < ROWS * CHUNKS; at += THREADS) {
            Chunk chunk = chunk_of(source, at / CHUNKS, at % CHUNKS);
            tile[swizzled<CHUNKS>(at / CHUNKS, at % CHUNKS)] = read8(chunk.from, chunk.count);
        }
    }
}

// An operand of OUTS outputs by BK summed values, in memory [outputs, k] or, over rows, [k, outputs].
template <u32 OUTS, class T>
DEV void load_operand(uint4* tile, const bf16* from, u32 out, u32 outs, u32 k, u32 ks, bool over_rows, bool wide) {
    if (over_rows) {
        load_tile<T::BK, OUTS / 8, T::THREADS>(tile, Source{from, ks, outs, k, out, wide});
    } else {
        load_tile<OUTS, T::BK / 8, T::THREADS>(tile, Source{from, outs, ks, out, k, wide});
    }
}

// One warp's sums: [ROWS][COLS] tiles of 16 x 8.
template <class T>
struct Sums {
    float at[T::ROWS][T::COLS][4];
};

// sums += one stage.
template <class T, bool X_OVER_ROWS, bool W_OVER_ROWS>
DEV void multiply(Sums<T>& sums, const uint4* x, const uint4* w, u32 warp_row, u32 warp_col) {
#pragma unroll
    for (u32 k = 0; k < T::BK; k += 16) {
        constexpr u32 X_CHUNKS = (X_OVER_ROWS ? T::BM : T::BK) / 8, W_CHUNKS = (W_OVER_ROWS ? T::BN : T::BK) / 8;
        u32 a[T::ROWS][4], b[T::COLS / 2][4];
#pragma unroll
        for (u32 i = 0; i < T::ROWS; i++) fragment<X_CHUNKS, X_OVER_ROWS>(a[i], x, warp_row + i * 16, k);
#pragma unroll
        for (u32 j = 0; j < T::COLS / 2; j++) fragment<W_CHUNKS, W_OVER_ROWS>(b[j], w, warp_col + j * 16, k);
#pragma unroll
        for (u32 i = 0; i < T::ROWS; i++) {
#pragma unroll
            for (u32 j = 0; j < T::COLS; j++) mma(sums.at[i][j], a[i], b[j / 2][j % 2], b[j / 2][j % 2 + 2]);
        }
    }
}

// Where a sum over terms stands.
struct Cursor {
    u32 term, k;
};

// The next BK values, of the next term after `end`.
template <class T>
DEV void step(Cursor& cursor, u32 end) {
    cursor.k += T::BK;
    if (cursor.k >= end) cursor = Cursor{cursor.term + 1, 0};
}

// The sums of the block's tile at (row, col) of [m, n], over k from `from` to `to`. X_OVER_ROWS: x is [k, m].
template <class T, bool X_OVER_ROWS>
DEV void product(Sums<T>& sums, const Terms& terms, u32 from, u32 to, u32 row, u32 col, u32 m, u32 n) {
    extern __shared__ uint4 stages[];
    u32 warp = threadIdx.x / WARP;
    u32 warp_row = warp / T::WARPS_N * T::ROWS * 16, warp_col = warp % T::WARPS_N * T::COLS * 8;
    Cursor loaded{0, from}, multiplied{0, from};
    auto load = [&](u32 number) {
        if (loaded.term < terms.count) {
            u32 t = loaded.term, k = min(terms.k[t], to);
            uint4* stage = stages + number % STAGES * T::CHUNKS;
            bool over_rows = terms.over_rows >> t & 1, wide_x = terms.wide_x >> t & 1, wide_w = terms.wide_w >> t & 1;
            load_operand<T::BM, T>(stage, terms.x[t], row, m, loaded.k, k, X_OVER_ROWS, wide_x);
            load_operand<T::BN, T>(stage + T::X_CHUNKS, terms.w[t], col, n, loaded.k, k, over_rows, wide_w);
            step<T>(loaded, k);
        }
        copy_commit();
    };
    for (u32 number = 0; number < STAGES - 1; number++) load(number);
    for (u32 number = 0; multiplied.term < terms.count; number++) {
        copy_wait<STAGES - 2>();
        __syncthreads();
        // Into the stage that every warp left before the barrier.
        load(number + STAGES - 1);
        const uint4* stage = stages + number % STAGES * T::CHUNKS;
        if (terms.over_rows >> multiplied.term & 1) {
            multiply<T, X_OVER_ROWS, true>(sums, stage, stage + T::X_CHUNKS, warp_row, warp_col);
        } else {
            multiply<T, X_OVER_ROWS, false>(sums, stage, stage + T::X_CHUNKS, warp_row, warp_col);
        }
        step<T>(multiplied, min(terms.k[multiplied.term], to));
    }
}

// put(row, col, sum) for every output of the block that is inside [m, n], pairs of columns beside each other.
template <class T, class Put>
DEV void each(const Sums<T>& sums, u32 row, u32 col, u32 m, u32 n, Put put) {
    u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    row += warp / T::WARPS_N * T::ROWS * 16 + lane / 4;
    col += warp % T::WARPS_N * T::COLS * 8 + lane % 4 * 2;
#pragma unroll
    for (u32 i = 0; i < T::ROWS; i++) {
#pragma unroll
        for (u32 j = 0; j < T::COLS; j++) {
#pragma unroll
            for (u32 half = 0; half < 2; half++) {
                u32 r = row + i * 16 + half * 8, c = col + j * 8;
                if (r < m && c < n) put(r, c, sums.at[i][j][2 * half], sums.at[i][j][2 * half + 1]);
            }
        }
    }
}

// c [m, n] = bias + the sum over terms of x w; bf16, f32, or added to f32.
template <class T>
DEV void gemm(void* c, const float* bias, const Terms& terms, u32 m, u32 n, u32 kind) {
    u32 tiles_m = (m + T::BM - 1) / T::BM, tiles_n = (n + T::BN - 1) / T::BN;
    u32 first = blockIdx.x / (GROUP * tiles_n) * GROUP, in_group = blockIdx.x % (GROUP * tiles_n);
    u32 high = tiles_m - first < GROUP ? tiles_m - first : GROUP;
    u32 row = (first + in_group % high) * T::BM, col = in_group / high * T::BN;
    Sums<T> sums = {};
    product<T, false>(sums, terms, 0, FULL, row, col, m, n);
    each<T>(sums, row, col, m, n, [&](u32 r, u32 j, float low, float high) {
        size_t at = (size_t)r * n + j;
        bool both = j + 1 < n;
        if (bias) low += bias[j];
        if (bias && both) high += bias[j + 1];
        if (kind == ACT) {
            bf16* y = (bf16*)c + at;
            if (n % 2 == 0) {
                *(u32*)y = narrow2(low, high);
            } else {
                y[0] = narrow(low);
                if (both) y[1] = narrow(high);
            }
        } else {
            float* y = (float*)c + at;
            y[0] = kind == ADD ? y[0] + low : low;
            if (both) y[1] = kind == ADD ? y[1] + high : high;
        }
    });
}

// Two blocks a multiprocessor: one loads while the other multiplies.
extern "C" __global__ void __launch_bounds__(Large::THREADS, 2)
    linear_gemm_large(void* c, const float* bias, const __grid_constant__ Terms terms, u32 m, u32 n, u32 kind) {
    gemm<Large>(c, bias, terms, m, n, kind);
}
KERNEL(Small::THREADS)
linear_gemm_small(void* c, const float* bias, const __grid_constant__ Terms terms, u32 m, u32 n, u32 kind) {
    gemm<Small>(c, bias, terms, m, n, kind);
}
KERNEL(Few::THREADS)
linear_gemm_few(void* c, const float* bias, const __grid_constant__ Terms terms, u32 m, u32 n, u32 kind) {
    gemm<Few>(c, bias, terms, m, n, kind);
}

// LoRA's gradient c [m, n], or transposed [n, m], of a = x [rows, m] and b = w [rows, n]: c += a^T b where `parts` is
// null, else parts [gridDim.y, m n] = the sums over `part` rows each.
template <class T>
DEV void gradient(float* c, float* parts, const Terms& terms, u32 m, u32 n, u32 part, u32 transposed) {
    u32 row = blockIdx.z * T::BM, col = blockIdx.x * T::BN, from = blockIdx.y * part;
    Sums<T> sums = {};
    product<T, true>(sums, terms, from, from + part, row, col, m, n);
    float* to = parts ? parts + (size_t)blockIdx.y * m * n : c;
    auto put = [&](u32 r, u32 j, float sum) {
        float* at = to + (transposed ? (size_t)j * m + r : (size_t)r * n + j);
        *at = parts ? sum : *at + sum;
    };
    each<T>(sums, row, col, m, n, [&](u32 r, u32 j, float low, float high) {
        put(r, j, low);
        if (j + 1 < n) put(r, j + 1, high);
    });
}

KERNEL(Small::THREADS)
linear_gradient_small(float* c, float* parts, const __grid_constant__ Terms terms, u32 m, u32 n, u32 part,
                      u32 transposed) {
    gradient<Small>(c, parts, terms, m, n, part, transposed);
}
KERNEL(Few::THREADS)
linear_gradient_few(float* c, float* parts, const __grid_constant__ Terms terms, u32 m, u32 n, u32 part,
                    u32 transposed) {
    gradient<Few>(c, parts, terms, m, n, part, transposed);
}

// c [len] += the parts [count, len], in order.
KERNEL(256) linear_gradient_sum(float* c, const float* parts, u32 len, u32 count) {
    u32 i = blockIdx.x * 256 + threadIdx.x;
    if (i >= len) return;
    float sum = 0.0f;
    for (u32 part = 0; part < count; part++) sum += parts[(size_t)part * len + i];
    c[i] += sum;
}
