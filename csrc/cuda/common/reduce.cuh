// Sums and maxima over the threads of a warp or a block, in an order that does not change from run to run.

#pragma once

#include "numbers.cuh"

namespace dien_fast::cuda {

constexpr int kWarp = 32;

// The sum over the lanes of a warp, in every lane.
template <typename W>
__device__ W warp_sum(W value) {
#pragma unroll
    for (int mask = kWarp / 2; mask > 0; mask /= 2) value += shuffle_xor(value, mask);
    return value;
}

// The result of `combine` over the threads of a block, in every thread. The number of threads is a power of
// two; `shared` has a number for each. Threads may use `shared` again after the next barrier.
template <typename W, typename F>
__device__ W block_reduce(W value, W* shared, const F& combine) {
    const int thread = threadIdx.x;
    __syncthreads();  // an earlier call may still read
    shared[thread] = value;
    for (int half = blockDim.x / 2; half > 0; half /= 2) {
        __syncthreads();
        if (thread < half) shared[thread] = combine(shared[thread], shared[thread + half]);
    }
    __syncthreads();
    return shared[0];
}
template <typename W>
__device__ W block_sum(W value, W* shared) {
    return block_reduce(value, shared, [](W a, W b) { return a + b; });
}

}  // namespace dien_fast::cuda
