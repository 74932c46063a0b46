// Loops whose instructions can be counted by hand, for test_issue_clocks.py. A round ends at a barrier, as a
// step does.

// 64 multiply-adds, each of which waits for the one before.
__global__ void chain(float* out, float a, float b, int rounds) {
    float x = out[threadIdx.x];
#pragma unroll 1
    for (int r = 0; r < rounds; ++r) {
#pragma unroll
        for (int i = 0; i < 64; ++i) x = x * a + b;
        __syncthreads();
    }
    out[threadIdx.x] = x;
}

// 64 multiply-adds, of which eight at a time do not wait for one another.
__global__ void independent(float* out, float a, float b, int rounds) {
    float x[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) x[i] = out[threadIdx.x + i];
#pragma unroll 1
    for (int r = 0; r < rounds; ++r) {
#pragma unroll
        for (int i = 0; i < 64; ++i) x[i % 8] = x[i % 8] * a + b;
        __syncthreads();
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) out[threadIdx.x + i] = x[i];
}

// 16 reads of shared memory, each with a multiply-add.
__global__ void reads(float* out, float a, int rounds) {
    __shared__ float shared[512];
    for (int i = threadIdx.x; i < 512; i += blockDim.x) shared[i] = out[i];
    __syncthreads();
    float x = 0;
#pragma unroll 1
    for (int r = 0; r < rounds; ++r) {
#pragma unroll
        for (int i = 0; i < 16; ++i) x = x * a + shared[threadIdx.x + 16 * i];
        __syncthreads();
    }
    out[threadIdx.x] = x;
}
