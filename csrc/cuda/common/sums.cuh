// Sums of integers over everything before, by one block.

#pragma once

#include <platform.h>

#include <cstdint>

namespace dien_fast::cuda {

constexpr int kScanThreads = 512;

// out[i] = value(0) + ... + value(i - 1) for i in [0, count], by one block. `partial` is shared memory
// [kScanThreads].
template <typename Value>
__device__ void exclusive_sums(int64_t count, const Value& value, int64_t* out, int64_t* partial) {
    const int thread = threadIdx.x;
    const int64_t each = (count + kScanThreads - 1) / kScanThreads;
    const int64_t begin = thread * each < count ? thread * each : count;
    const int64_t end = begin + each < count ? begin + each : count;
    int64_t own = 0;
    for (int64_t i = begin; i < end; ++i) own += value(i);
    partial[thread] = own;
    __syncthreads();
    for (int distance = 1; distance < kScanThreads; distance *= 2) {
        const int64_t more = thread >= distance ? partial[thread - distance] : 0;
        __syncthreads();
        partial[thread] += more;
        __syncthreads();
    }
    int64_t sum = partial[thread] - own;
    for (int64_t i = begin; i < end; ++i) {
        out[i] = sum;
        sum += value(i);
    }
    if (thread == kScanThreads - 1) out[count] = partial[thread];
}

}  // namespace dien_fast::cuda
