// The pairs of a state and the event after it, and the kernels that turn their logits into the loss.
//
// A chunk is rows [begin, begin + rows). Pair i < rows is that of row begin + i with the clicked event, pair
// rows + i that with the negative. Pairs of rows without a next one in their history are computed as zeros,
// and count nothing.

#pragma once

#include "../common/row_sums.cuh"
#include "auxiliary_loss_cuda.h"

namespace dien_fast::cuda {

// Which rows have a next one in their history [N], and how many.
struct NextRows {
    Ragged rows;
    uint8_t* has_next;
    int64_t* steps;
};

static __global__ void clear_next_kernel(NextRows p) {
    const int64_t row = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (row < p.rows.rows) p.has_next[row] = 0;
}

// A block takes a history.
static __global__ void mark_next_kernel(NextRows p) {
    const RowRange rows = history_rows(p.rows, blockIdx.x);
    for (int64_t row = rows.begin + threadIdx.x; row + 1 < rows.end; row += blockDim.x) p.has_next[row] = 1;
}

// One block.
static __global__ void count_steps_kernel(NextRows p) {
    SharedMemory shared;
    int64_t* partial = shared.take<int64_t>(kThreads);
    int64_t steps = 0;
    for (int64_t b = threadIdx.x; b < p.rows.size; b += kThreads) {
        const int64_t length = history_rows(p.rows, b).size();
        steps += length > 0 ? length - 1 : 0;
    }
    steps = block_sum(steps, partial);
    if (threadIdx.x == 0) *p.steps = steps;
}

template <typename T>
struct PairChunk {
    const T *states, *events, *negatives;  // [N, D]
    const uint8_t* has_next;
    int64_t begin, rows;
    int64_t rows_before_last;  // rows of the chunk that are not the batch's last

    __device__ bool counts(int64_t pair) const {
        return has_next[begin + (pair < rows ? pair : pair - rows)];
    }
};

// [h; e], as a factor of a product; zeros where there is no such pair.
template <typename T>
struct PairRows {
    using Row = Nothing;
    PairChunk<T> chunk;
    int64_t depth;
    int64_t width;  // 2 D

    __device__ Row row(int64_t, int) const { return {}; }
    // A chunk's rows and numbers are few enough for 32 bits.
    __device__ T at(Row, int64_t pair, int k) const {
        const int rows = int(chunk.rows), width_of_row = int(depth);
        const bool clicked = int(pair) < rows;
        const int row = clicked ? int(pair) : int(pair) - rows;
        if (k < width_of_row) return (chunk.states + chunk.begin * depth)[row * width_of_row + k];
        const T* events = (clicked ? chunk.events : chunk.negatives) + chunk.begin * depth;
        return events[(row < int(chunk.rows_before_last) ? row + 1 : row) * width_of_row + k - width_of_row];
    }
    template <int kCount, typename RowOf, typename Has>
    __device__ void late(const T (&raw)[kCount], int64_t, const RowOf& pair_of, const Has& has,
                         T (&values)[kCount]) const {
#pragma unroll
        for (int e = 0; e < kCount; ++e) values[e] = has(e) && chunk.counts(pair_of(e)) ? raw[e] : T(0);
    }
};

// The logits of pairs, from x of the last layer, and their part of the loss.
template <typename T>
struct PairLosses {
    PairChunk<T> chunk;
    const T* x;  // [pairs, C]
    int64_t width;
    const T *last, *last_bias;  // [C], one number
    const int64_t* steps;
    bool first;                // whether this is the first chunk
    T* dlogits;                // output [pairs]
    double *losses, *dbiases;  // [blocks] sums, which grow from chunk to chunk
};

// A warp takes a pair.
template <typename T>
__global__ void pair_losses_kernel(PairLosses<T> p) {
    SharedMemory shared;
    double* partial = shared.take<double>(kThreads);
    const int lane = threadIdx.x % kWarp;
    const int64_t first = int64_t(blockIdx.x) * kSumWarps + threadIdx.x / kWarp;
    const T scale = *p.steps > 0 ? T(1 / (2 * double(*p.steps))) : T(0);
    double loss = 0, dbias = 0;
    for (int64_t pair = first; pair < 2 * p.chunk.rows; pair += int64_t(gridDim.x) * kSumWarps) {
        T logit = 0;
        for (int64_t c = lane; c < p.width; c += kWarp) logit += sigmoid(p.x[pair * p.width + c]) * p.last[c];
        logit = warp_sum(logit) + *p.last_bias;
        if (lane > 0) continue;
        T d = 0;
        if (p.chunk.counts(pair)) {
            const T v = pair < p.chunk.rows ? -logit : logit;
            const T power = exponential(v > T(0) ? -v : v);
            loss += double(v <= T(0) ? T(0) : v) + double(logarithm_plus_one(power));  // NaN stays
            const T p_wrong = (v > T(0) ? T(1) : power) / (T(1) + power);
            d = pair < p.chunk.rows ? -scale * p_wrong : scale * p_wrong;
        }
        p.dlogits[pair] = d;
        dbias += double(d);
    }
    loss = block_sum(loss, partial);
    dbias = block_sum(dbias, partial);
    if (threadIdx.x > 0) return;
    p.losses[blockIdx.x] = p.first ? loss : p.losses[blockIdx.x] + loss;
    p.dbiases[blockIdx.x] = p.first ? dbias : p.dbiases[blockIdx.x] + dbias;
}

// The sums of the last weight's gradients, and dx of the last layer in the place of its x.
template <typename T>
struct LastGradients {
    RowSet set;
    const T* dlogits;
    const T* last;
    int64_t width;
    T* x;
    double* out;  // [splits, C]
};

template <typename T>
__global__ void last_gradients_kernel(LastGradients<T> p) {
    const int64_t channel = int64_t(blockIdx.x) * kWarp + threadIdx.x % kWarp;
    sum_rows<1>(p.set, p.width, channel, p.out, [&](int64_t row, int count, double* sums) {
        T xs[kRowsAtOnce], ds[kRowsAtOnce], sum = 0;
        load_rows(p.x, p.width, channel, row, count, xs);
        load_rows(p.dlogits, 1, 0, row, count, ds);
#pragma unroll
        for (int i = 0; i < kRowsAtOnce; ++i) {
            if (i >= count) continue;
            const T a = sigmoid(xs[i]);
            sum += ds[i] * a;
            p.x[(row + i) * p.width + channel] = ds[i] * p.last[channel] * a * (T(1) - a);
        }
        sums[0] += double(sum);
    });
}

// to [size] (+)= the sum of the splits of `from`.
struct GrowingSums {
    const double* from;  // [splits, size]
    int splits;
    int64_t size;
    bool first;
    double* to;
};

static __global__ void grow_sums_kernel(GrowingSums p) {
    const int64_t i = number_of_thread();
    const double sum = sum_of_splits(p.from, p.splits, p.size, i);
    if (leads() && i < p.size) p.to[i] = p.first ? sum : p.to[i] + sum;
}

// The loss, and the gradients of the last product; one block.
template <typename T>
struct LossResults {
    const double *losses, *dbiases;  // [count]
    const double* dlast;             // [C]
    int64_t count;                   // 0 where no row ran
    int64_t width;
    const int64_t* steps;
    T* loss;
    T* out;  // [C + 1] gradients of the last weight and bias, or null
};

template <typename T>
__global__ void loss_results_kernel(LossResults<T> p) {
    SharedMemory shared;
    double* partial = shared.take<double>(kThreads);
    double loss = 0, dbias = 0;
    for (int64_t i = threadIdx.x; i < p.count; i += kThreads) {
        loss += p.losses[i];
        dbias += p.dbiases[i];
    }
    loss = block_sum(loss, partial);
    dbias = block_sum(dbias, partial);
    if (threadIdx.x == 0) *p.loss = *p.steps > 0 ? T(loss / (2 * double(*p.steps))) : T(0);
    if (p.out == nullptr) return;
    for (int64_t c = threadIdx.x; c < p.width; c += kThreads) p.out[c] = p.count > 0 ? T(p.dlast[c]) : T(0);
    if (threadIdx.x == 0) p.out[p.width] = T(dbias);
}

template <typename T>
__global__ void zero_kernel(T* to, int64_t size) {
    const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i < size) to[i] = 0;
}

}  // namespace dien_fast::cuda
