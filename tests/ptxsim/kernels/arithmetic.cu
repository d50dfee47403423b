// Every operator and the instructions behind them, a row of results for each thread. The tests compute the same in Rust.
typedef unsigned u32;
typedef unsigned long long u64;
typedef long long i64;

extern "C" __global__ void integers(u32* out, const u32* left, const u32* right) {
    u32 i = blockIdx.x * blockDim.x + threadIdx.x, a = left[i], b = right[i], n = b % 40;
    int s = (int)a, t = (int)b;
    u32 r[] = {a + b, a - b, a * b, __umulhi(a, b), (u32)__mulhi(s, t), a / (b | 1), a % (b | 1), (u32)(s / (t | 1)), (u32)(s % (t | 1)),
               min(a, b), max(a, b), (u32)min(s, t), (u32)max(s, t), a & b, a | b, a ^ b, ~a, (u32)-s, (u32)abs(s),
               (u32)__popc(a), (u32)__clz(a), __brev(a), a * b + n, (u32)(a < b), (u32)(s < t), (u32)(a == b),
               __byte_perm(a, b, 0x6431), __byte_perm(a, b, b), __funnelshift_l(a, b, n), __funnelshift_r(a, b, n),
               __funnelshift_lc(a, b, n), __funnelshift_rc(a, b, n), (a & b) ^ (~a | n), (u32)(signed char)a, (u32)(short)a,
               (u32)(unsigned char)a, (u32)__ffs(a)};
    for (u32 j = 0; j < sizeof(r) / 4; j++) out[i * 64 + j] = r[j];
}

extern "C" __global__ void fields(u32* out, const u32* left, const u32* right) {
    u32 i = threadIdx.x, a = left[i], b = right[i], at = b % 37, len = b / 64 % 37, r[8];
    asm("shl.b32 %0, %1, %2;" : "=r"(r[0]) : "r"(a), "r"(at));
    asm("shr.u32 %0, %1, %2;" : "=r"(r[1]) : "r"(a), "r"(at));
    asm("shr.s32 %0, %1, %2;" : "=r"(r[2]) : "r"(a), "r"(at));
    asm("bfe.u32 %0, %1, %2, %3;" : "=r"(r[3]) : "r"(a), "r"(at), "r"(len));
    asm("bfe.s32 %0, %1, %2, %3;" : "=r"(r[4]) : "r"(a), "r"(at), "r"(len));
    asm("bfi.b32 %0, %1, %2, %3, %4;" : "=r"(r[5]) : "r"(a), "r"(b), "r"(at), "r"(len));
    asm("lop3.b32 %0, %1, %2, %3, 0xca;" : "=r"(r[6]) : "r"(a), "r"(b), "r"(at * 0x01010101));
    asm("{ .reg .pred p, q; setp.lt.u32 p|q, %1, %2; @p mov.u32 %0, 1; @q mov.u32 %0, 2; }" : "=r"(r[7]) : "r"(a), "r"(b));
    for (u32 j = 0; j < 8; j++) out[i * 8 + j] = r[j];
}

extern "C" __global__ void wide(u64* out, const u64* left, const u64* right) {
    u32 i = threadIdx.x;
    u64 a = left[i], b = right[i];
    i64 s = (i64)a, t = (i64)b;
    u64 r[] = {a + b, a - b, a * b, __umul64hi(a, b), (u64)__mul64hi(s, t), a / (b | 1), a % (b | 1), (u64)(s / (t | 1)),
               a << (b & 63), a >> (b & 63), (u64)(s >> (b & 63)), (u64)(u32)a * (u32)b, (u64)((i64)(int)a * (int)b),
               (u64)__popcll(a), (u64)__clzll(a), __brevll(a), (u64)(s < t), (u64)(int)a, min(a, b)};
    for (u32 j = 0; j < sizeof(r) / 8; j++) out[i * 32 + j] = r[j];
}

extern "C" __global__ void floats(float* out, const float* left, const float* right) {
    u32 i = threadIdx.x;
    float a = left[i], b = right[i], nan_min, nan_max;
    asm("min.NaN.f32 %0, %1, %2;" : "=f"(nan_min) : "f"(a), "f"(b));
    asm("max.NaN.f32 %0, %1, %2;" : "=f"(nan_max) : "f"(a), "f"(b));
    float r[] = {a + b, a - b, a * b, a / b, fmaf(a, b, 0.1f), __fmaf_rd(a, b, 0.1f), __fmaf_ru(a, b, 0.1f), __fmaf_rz(a, b, 0.1f),
                 fminf(a, b), fmaxf(a, b), nan_min, nan_max, sqrtf(fabsf(a)), 1.0f / a, fabsf(a), -a, floorf(a), ceilf(a), truncf(a),
                 rintf(a), __saturatef(a), copysignf(a, b), a < b ? 1.0f : 2.0f, a >= b ? 1.0f : 2.0f, a != b ? 1.0f : 2.0f,
                 (float)(int)a, (float)(u32)a, (float)(i64)a, (float)((double)a * (double)b)};
    for (u32 j = 0; j < sizeof(r) / 4; j++) out[i * 32 + j] = r[j];
}

// Approximate functions: the tests allow for an error.
extern "C" __global__ void functions(float* out, const float* left) {
    u32 i = threadIdx.x;
    float a = left[i], r[6];
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r[0]) : "f"(a));
    asm("lg2.approx.f32 %0, %1;" : "=f"(r[1]) : "f"(fabsf(a)));
    asm("rsqrt.approx.f32 %0, %1;" : "=f"(r[2]) : "f"(fabsf(a)));
    r[3] = expf(a);
    r[4] = sinf(a * 1e6f); // the slow path: a table in constant memory, an array of the thread's own
    r[5] = logf(fabsf(a));
    for (u32 j = 0; j < 6; j++) out[i * 8 + j] = r[j];
}

extern "C" __global__ void doubles(double* out, const double* left, const double* right) {
    u32 i = threadIdx.x;
    double a = left[i], b = right[i];
    double r[] = {a + b, a - b, a * b, a / b, fma(a, b, 0.1), fmin(a, b), fmax(a, b), sqrt(fabs(a)), (double)(float)a, (double)(i64)a, floor(a)};
    for (u32 j = 0; j < sizeof(r) / 8; j++) out[i * 16 + j] = r[j];
}

extern "C" __global__ void bf16s(u32* out, const float* left, const float* right) {
    u32 i = threadIdx.x, pair, product;
    unsigned short low, high;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(left[i]), "f"(right[i]));
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(high) : "f"(left[i]));
    asm("{ .reg .b16 %%low, %%high; mov.b32 {%%low, %%high}, %1; mov.b16 %0, %%low; }" : "=h"(low) : "r"(pair));
    asm("fma.rn.bf16x2 %0, %1, %1, %1;" : "=r"(product) : "r"(pair));
    out[i * 4] = pair;
    out[i * 4 + 1] = high;
    out[i * 4 + 2] = low;
    out[i * 4 + 3] = product;
}

// Chooses among many, by a table of branches if the compiler likes.
extern "C" __global__ void choices(u32* out, const u32* in) {
    u32 i = threadIdx.x, x = in[i];
    switch (x % 9) {
        case 0: x = x * 3 + 1; break;
        case 1: x ^= 0x55; break;
        case 2: for (u32 j = 0; j < x % 5; j++) x += j * x; break;
        case 3: x = x / 7; break;
        case 4: if (x & 8) x = ~x; else x -= 5; break;
        case 5: x = 100; break;
        case 6: x = x << 3; break;
        case 7: return;
        default: x = 0; break;
    }
    out[i] = x;
}
