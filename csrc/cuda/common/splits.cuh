// Sums over the splits of a product that kGroups of a block's threads share: split by split, each group adds
// up every eighth of them, and the groups' sums are added in the order of the groups.

#pragma once

#include "launch.cuh"

namespace dien_fast::cuda {

constexpr int kGroups = 8;
constexpr int kGroupThreads = kThreads / kGroups;

// A grid for `size` sums.
inline dim3 split_blocks(int64_t size) { return blocks_for(size, kGroupThreads); }

// Which of the sums is this thread's.
__device__ inline int64_t number_of_thread() {
    return int64_t(blockIdx.x) * kGroupThreads + threadIdx.x % kGroupThreads;
}
// Whether the thread is the one of its groups that gets the sum.
__device__ inline bool leads() { return threadIdx.x < kGroupThreads; }

// The sum of sums[split, i] over the splits, in the threads that lead; all threads of the block call it. It
// takes shared memory, a number for each thread.
template <typename T>
__device__ T sum_of_splits(const T* sums, int splits, int64_t size, int64_t i) {
    SharedMemory shared;
    T* partial = shared.take<T>(kThreads);
    T sum = 0;
    if (i < size)
#pragma unroll 4
        for (int split = threadIdx.x / kGroupThreads; split < splits; split += kGroups)
            sum += sums[split * size + i];
    partial[threadIdx.x] = sum;
    __syncthreads();
    if (leads())
        for (int group = 1; group < kGroups; ++group) sum += partial[group * kGroupThreads + threadIdx.x];
    return sum;
}

}  // namespace dien_fast::cuda
