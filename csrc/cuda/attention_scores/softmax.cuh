// The last product of the attention's MLP and the softmax over the logits of each history, and their
// backward.

#pragma once

#include "../common/layers.cuh"
#include "../common/reduce.cuh"
#include "attention_scores_cuda.h"

namespace dien_fast::cuda {

constexpr int kSoftmaxThreads = 128;

template <typename T>
struct Logits {
    RowSet set;  // of the ragged rows
    LayerFunction<T> function;
    const T* x;
    const T* last;       // [C]
    const T* last_bias;  // one number
    T scale;
    int64_t padded_rows;  // B
    T* out;               // [N]
};

// A warp takes a row.
template <typename T>
__global__ void logits_kernel(Logits<T> p) {
    const int lane = threadIdx.x % kWarp;
    const int64_t width = p.function.width, end = p.set.end();
    const int64_t warps = kThreads / kWarp, step = gridDim.x * warps;
    for (int64_t row = p.set.first + blockIdx.x * warps + threadIdx.x / kWarp; row < end; row += step) {
        const uint64_t key = p.function.key(row);
        T sum = 0;
        for (int64_t c = lane; c < width; c += kWarp)
            sum += p.function.value(p.x[row * width + c], key, c) * p.last[c];
        sum = warp_sum(sum);
        if (lane == 0) p.out[row - p.padded_rows] = p.scale * (sum + *p.last_bias);
    }
}

// Turns the logits of a history, one for each block, into scores.
template <typename T>
__global__ void softmax_kernel(Ragged ragged, T* scores) {
    SharedMemory shared;
    T* partial = shared.take<T>(kSoftmaxThreads);
    const RowRange rows = history_rows(ragged, blockIdx.x);
    if (rows.size() == 0) return;
    T largest = scores[rows.begin];
    for (int64_t row = rows.begin + threadIdx.x; row < rows.end; row += kSoftmaxThreads)
        largest = scores[row] > largest ? scores[row] : largest;
    largest = block_reduce(largest, partial, [](T a, T b) { return b > a ? b : a; });
    T total = 0;
    for (int64_t row = rows.begin + threadIdx.x; row < rows.end; row += kSoftmaxThreads) {
        const T power = exponential(scores[row] - largest);
        scores[row] = power;
        total += power;
    }
    const T inverse = T(1) / block_sum(total, partial);
    for (int64_t row = rows.begin + threadIdx.x; row < rows.end; row += kSoftmaxThreads)
        scores[row] *= inverse;
}

template <typename T>
struct SoftmaxBackward {
    Ragged rows;
    const T *scores, *dscores;  // [N]
    T scale;
    T* dlogits;    // output [B + N], 0 for the padding
    double* sums;  // output [B], of each history's dlogits
};

template <typename T>
__global__ void softmax_backward_kernel(SoftmaxBackward<T> p) {
    SharedMemory shared;
    double* partial = shared.take<double>(kSoftmaxThreads);
    const int64_t b = blockIdx.x;
    const RowRange rows = history_rows(p.rows, b);
    T common = 0;
    for (int64_t row = rows.begin + threadIdx.x; row < rows.end; row += kSoftmaxThreads)
        common += p.scores[row] * p.dscores[row];
    common = T(block_sum(double(common), partial));
    double sum = 0;
    for (int64_t row = rows.begin + threadIdx.x; row < rows.end; row += kSoftmaxThreads) {
        const T d = p.scale * p.scores[row] * (p.dscores[row] - common);
        p.dlogits[p.rows.size + row] = d;
        sum += double(d);
    }
    sum = block_sum(sum, partial);
    if (threadIdx.x != 0) return;
    p.dlogits[b] = 0;
    p.sums[b] = sum;
}

// out = the sum of sums [count], by one block.
template <typename T>
__global__ void add_up_kernel(const double* sums, int64_t count, T* out) {
    SharedMemory shared;
    double* partial = shared.take<double>(kThreads);
    double sum = 0;
    for (int64_t i = threadIdx.x; i < count; i += kThreads) sum += sums[i];
    sum = block_sum(sum, partial);
    if (threadIdx.x == 0) *out = T(sum);
}

}  // namespace dien_fast::cuda
