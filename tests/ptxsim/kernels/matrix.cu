// The tensor cores' instructions and the loads that feed them.
typedef unsigned u32;

extern "C" __global__ void products(float* d, const u32* a, const u32* b, const float* c) {
    u32 lane = threadIdx.x;
    float r[4];
    a += lane * 4, b += lane * 2, c += lane * 4;
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %11, %12, %13};"
        : "=f"(r[0]), "=f"(r[1]), "=f"(r[2]), "=f"(r[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "f"(c[0]), "f"(c[1]), "f"(c[2]), "f"(c[3]));
    for (u32 i = 0; i < 4; i++) d[lane * 4 + i] = r[i];
}

extern "C" __global__ void short_products(float* d, const u32* a, const u32* b, const float* c) {
    u32 lane = threadIdx.x;
    float r[4];
    a += lane * 2, b += lane, c += lane * 4;
    asm("mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%7, %8, %9, %10};"
        : "=f"(r[0]), "=f"(r[1]), "=f"(r[2]), "=f"(r[3])
        : "r"(a[0]), "r"(a[1]), "r"(b[0]), "f"(c[0]), "f"(c[1]), "f"(c[2]), "f"(c[3]));
    for (u32 i = 0; i < 4; i++) d[lane * 4 + i] = r[i];
}

// Four matrices of 8 rows of 16 bytes, loaded in every way: 4, 2 and 1 of them, plain and transposed.
extern "C" __global__ void loads(u32* out, const uint4* rows) {
    __shared__ uint4 tile[32];
    u32 lane = threadIdx.x, r[14];
    tile[lane] = rows[lane];
    __syncwarp();
    u32 at = (u32)__cvta_generic_to_shared(tile + lane);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];" : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(at));
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];" : "=r"(r[4]), "=r"(r[5]), "=r"(r[6]), "=r"(r[7]) : "r"(at));
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];" : "=r"(r[8]), "=r"(r[9]) : "r"(at));
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];" : "=r"(r[10]), "=r"(r[11]) : "r"(at));
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];" : "=r"(r[12]) : "r"(at));
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%0}, [%1];" : "=r"(r[13]) : "r"(at));
    for (u32 i = 0; i < 14; i++) out[lane * 14 + i] = r[i];
}
