// Sums over the rows of each channel.
//
// A block sums 32 channels of a share of the rows (a split, blockIdx.y). Each warp takes eight neighbouring
// rows at a time; their sums, in the type of the numbers, are added up in double. The warps' sums are added
// in the order of the warps, the splits' by the lanes of a warp, in a fixed order.

#pragma once

#include "layers.cuh"
#include "reduce.cuh"

namespace dien_fast::cuda {

constexpr int kRowsAtOnce = 8;
constexpr int kSumWarps = kThreads / kWarp;

inline int sum_splits_for(int64_t rows) {
    return int(std::min<int64_t>(128, rows / (kSumWarps * kRowsAtOnce) + 1));
}
inline dim3 channel_blocks(int64_t width, int splits) {
    return dim3(blocks_for(width, kWarp).x, unsigned(splits));
}
constexpr int kRowSumBytes = kThreads * int(sizeof(double));  // of shared memory

// For kernels whose warps take turns with the rows.
inline dim3 warp_blocks(int64_t rows, int64_t most = 8192) {
    return dim3(unsigned(std::clamp<int64_t>(rows / kSumWarps, 1, most)));
}

// Adds up what `each(first row, rows, sums)` adds to sums [kSums] for up to kRowsAtOnce rows of a channel,
// over the rows of the block's split, and writes out [splits, kSums, width].
template <int kSums, typename F>
__device__ void sum_rows(const RowSet& set, int64_t width, int64_t channel, double* out, const F& each) {
    SharedMemory shared;
    double* partial = shared.take<double>(kThreads);
    const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
    const int64_t count = set.count();
    const int64_t begin = set.first + count * blockIdx.y / gridDim.y;
    const int64_t end = set.first + count * (blockIdx.y + 1) / gridDim.y;
    double sums[kSums] = {};
    if (channel < width)
        for (int64_t row = begin + warp * kRowsAtOnce; row < end; row += kSumWarps * kRowsAtOnce)
            each(row, end - row < kRowsAtOnce ? int(end - row) : kRowsAtOnce, sums);
#pragma unroll
    for (int i = 0; i < kSums; ++i) {
        __syncthreads();
        partial[threadIdx.x] = sums[i];
        __syncthreads();
        if (warp > 0 || channel >= width) continue;
        for (int other = 1; other < kSumWarps; ++other) sums[i] += partial[other * kWarp + lane];
        out[(blockIdx.y * kSums + i) * width + channel] = sums[i];
    }
}

// Numbers of a channel in up to kRowsAtOnce rows, 0 beyond them. All are on their way before one is waited
// for.
template <typename T>
__device__ void load_rows(const T* from, int64_t width, int64_t channel, int64_t row, int count,
                          T (&values)[kRowsAtOnce]) {
#pragma unroll
    for (int i = 0; i < kRowsAtOnce; ++i) values[i] = i < count ? from[(row + i) * width + channel] : T(0);
}

// The sums of the splits for a channel, by a warp: each lane adds up its share of the splits, and the lanes'
// sums are added in a fixed order.
template <int kSums>
__device__ void add_splits(const double* sums, int splits, int64_t width, int64_t channel, double* total) {
    for (int split = threadIdx.x % kWarp; split < splits; split += kWarp)
#pragma unroll
        for (int i = 0; i < kSums; ++i) total[i] += sums[(int64_t(split) * kSums + i) * width + channel];
#pragma unroll
    for (int i = 0; i < kSums; ++i) total[i] = warp_sum(total[i]);
}

}  // namespace dien_fast::cuda
