// Sums over the rows of each channel, and the arithmetic on channels between two passes over the rows.

#pragma once

#include "../common/row_sums.cuh"
#include "attention_scores_cuda.h"

namespace dien_fast::cuda {

// The sums that a channel has in backward: Reduction of interest.h, and in the place of dx, whose sums the
// products make, those of the last product's weight.
constexpr int kDlast = kDx;

// What every row of the kernels' arrays counts in batch statistics.
struct RowWeights {
    Ragged rows;
    int64_t max_length;

    __device__ int64_t of(int64_t row) const {
        if (row >= rows.size) return 1;
        const int64_t length = history_rows(rows, row).size();
        return max_length > length ? max_length - length : 0;
    }
};

template <typename T>
struct MomentSums {
    RowSet set;
    RowWeights weights;
    const T* x;
    int64_t width;
    double* out;  // [splits, kMoments, C]
};

template <typename T>
__global__ void moments_kernel(MomentSums<T> p) {
    const int64_t channel = int64_t(blockIdx.x) * kWarp + threadIdx.x % kWarp;
    sum_rows<kMoments>(p.set, p.width, channel, p.out, [&](int64_t row, int count, double* sums) {
        T x[kRowsAtOnce], weight[kRowsAtOnce], total = 0, mean = 0, deviations = 0;
        load_rows(p.x, p.width, channel, row, count, x);
#pragma unroll
        for (int i = 0; i < kRowsAtOnce; ++i) {
            weight[i] = i < count ? T(p.weights.of(row + i)) : T(0);
            total += weight[i];
            mean += weight[i] * x[i];
        }
        if (total == T(0)) return;
        mean /= total;
#pragma unroll
        for (int i = 0; i < kRowsAtOnce; ++i) deviations += weight[i] * (x[i] - mean) * (x[i] - mean);
        sums[kSum] += double(total) * double(mean);
        sums[kSquares] += double(total) * double(mean) * double(mean);
        sums[kDeviations] += double(deviations);
    });
}

template <typename T>
struct GradientSums {
    RowSet set;
    LayerFunction<T> function;
    const T* x;
    const T* d;        // gradient of f, rows of C; or null in the last layer:
    const T* dlogits;  // it is dlogits times last
    const T* last;
    double* out;  // [splits, kReductions, C]
};

template <typename T>
__global__ void gradients_kernel(GradientSums<T> p) {
    const int64_t width = p.function.width;
    const int64_t channel = int64_t(blockIdx.x) * kWarp + threadIdx.x % kWarp;
    sum_rows<kReductions>(p.set, width, channel, p.out, [&](int64_t row, int count, double* sums) {
        T dy = 0, dy_centred = 0, dgate = 0, dgate_centred = 0, dslope = 0, dlast = 0;
        T xs[kRowsAtOnce], ds[kRowsAtOnce];
        load_rows(p.x, width, channel, row, count, xs);
        if (p.d != nullptr)
            load_rows(p.d, width, channel, row, count, ds);
        else
            load_rows(p.dlogits, 1, 0, row, count, ds);
#pragma unroll
        for (int i = 0; i < kRowsAtOnce; ++i) {
            if (i >= count) continue;
            const T x = xs[i], factor = p.function.dropout(p.function.key(row + i), channel);
            T d = ds[i];
            if (p.d == nullptr) {
                dlast += d * factor * p.function.activate(x, channel);
                d *= p.last[channel];
            }
            const Derivatives<T> g = p.function.derive(x, d * factor, channel);
            dy += g.dy;
            dy_centred += g.dy * g.centred;
            dgate += g.dgate;
            dgate_centred += g.dgate * g.centred;
            dslope += g.dslope;
        }
        sums[kDy] += double(dy);
        sums[kDyCentred] += double(dy_centred);
        sums[kDgate] += double(dgate);
        sums[kDgateCentred] += double(dgate_centred);
        sums[kDslope] += double(dslope);
        sums[kDlast] += double(dlast);
    });
}

// Where the numbers of one layer's channels come from and go to.
template <typename T>
struct LayerChannels {
    LayerParameters<T> layer;
    bool batch;
    double count;           // rows of the batch, padding included
    const double* moments;  // [splits, kMoments, C], or null: `saved` is read
    int splits;
    T* saved;                    // [2, C] mean and variance of x
    T* numbers;                  // [kChannelNumbers, C]
    T *norm_batch, *gate_batch;  // outputs [2, C], mean and unbiased variance, or null
};

template <typename T>
__device__ Channel channel_of(const LayerChannels<T>& p, int64_t c) {
    const int64_t width = p.layer.width;
    return channel(p.layer, p.batch, c, p.batch ? double(p.saved[c]) : 0,
                   p.batch ? double(p.saved[width + c]) : 0);
}

// A warp takes a channel.
template <typename T>
__global__ void channels_kernel(LayerChannels<T> p) {
    const int64_t width = p.layer.width, c = int64_t(blockIdx.x) * kSumWarps + threadIdx.x / kWarp;
    if (c >= width) return;
    double total[kMoments] = {};
    if (p.moments != nullptr) add_splits<kMoments>(p.moments, p.splits, width, c, total);
    if (threadIdx.x % kWarp > 0) return;
    if (p.moments != nullptr) {
        const double mean = total[kSum] / p.count, between = total[kSquares] - total[kSum] * mean;
        p.saved[c] = T(mean);
        // Rounding can make the variance between rows negative; NaN stays.
        p.saved[width + c] = T((total[kDeviations] + (between < 0 ? 0 : between)) / p.count);
    }
    const Channel v = channel_of(p, c);
    p.numbers[kMean * width + c] = T(v.mean);
    p.numbers[kScale * width + c] = T(v.scale);
    p.numbers[kShift * width + c] = T(v.shift);
    p.numbers[kGateScale * width + c] = T(v.gate_scale);
    p.numbers[kGateShift * width + c] = T(v.gate_shift);
    p.numbers[kSlope * width + c] = p.layer.slopes == 0 ? T(0) : p.layer.slope[p.layer.slopes == 1 ? 0 : c];
    const double unbiased = p.count / (p.count - 1);
    if (p.norm_batch != nullptr) {
        p.norm_batch[c] = T(v.mean);
        p.norm_batch[width + c] = T(unbiased * v.variance);
    }
    if (p.gate_batch != nullptr) {
        p.gate_batch[c] = T(v.gate_mean);
        p.gate_batch[width + c] = T(unbiased * v.gate_variance);
    }
}

// The gradients of a layer's parameters but weight and bias, and those of mean and variance, which the next
// pass over the rows needs.
template <typename T>
struct ChannelSums {
    LayerChannels<T> channels;
    const double* sums;  // [splits, kReductions, C]
    int splits;
    ScoreLayerGradients<T> out;
    T* dlast;  // output [C] of the last layer, else null
};

// A warp takes a channel.
template <typename T>
__global__ void finish_gradients_kernel(ChannelSums<T> p) {
    const LayerParameters<T>& layer = p.channels.layer;
    const int64_t width = layer.width, c = int64_t(blockIdx.x) * kSumWarps + threadIdx.x / kWarp;
    if (c >= width) return;
    double total[kReductions] = {};
    add_splits<kReductions>(p.sums, p.splits, width, c, total);
    if (threadIdx.x % kWarp > 0) return;
    const ChannelGradients g = gradients(layer, p.channels.batch, channel_of(p.channels, c), total);
    if (layer.norm) {
        p.out.gamma[c] = T(g.gamma);
        p.out.beta[c] = T(g.beta);
    }
    if (layer.gate) {
        p.out.gate_gamma[c] = T(g.gate_gamma);
        p.out.gate_beta[c] = T(g.gate_beta);
        p.out.slope[c] = T(total[kDslope]);
    }
    if (p.dlast != nullptr) p.dlast[c] = T(total[kDlast]);
    p.channels.numbers[kMeanGradient * width + c] = T(g.mean / p.channels.count);
    p.channels.numbers[kVarianceGradient * width + c] = T(2 * g.variance / p.channels.count);
}

// The gradient of the slope that all channels of a PReLU share; one block.
template <typename T>
__global__ void slope_gradient_kernel(ChannelSums<T> p) {
    SharedMemory shared;
    double* partial = shared.take<double>(kThreads);
    const int64_t width = p.channels.layer.width, count = p.splits * width;
    double slope = 0;
    for (int64_t i = threadIdx.x; i < count; i += kThreads)
        slope += p.sums[(i / width * kReductions + kDslope) * width + i % width];
    slope = block_sum(slope, partial);
    if (threadIdx.x == 0) p.out.slope[0] = T(slope);
}

// Turns a layer's x into the gradient of x. A warp takes a row.
template <typename T>
struct RowGradients {
    RowSet set;
    RowWeights weights;
    bool batch;
    LayerFunction<T> function;
    const T* d;  // as GradientSums has these
    const T* dlogits;
    const T* last;
    T* x;  // input and output
};

template <typename T>
__global__ void row_gradients_kernel(RowGradients<T> p) {
    const int64_t width = p.function.width, end = p.set.end();
    const int64_t first = p.set.first + int64_t(blockIdx.x) * kSumWarps + threadIdx.x / kWarp;
    for (int64_t row = first; row < end; row += int64_t(gridDim.x) * kSumWarps) {
        const uint64_t key = p.function.key(row);
        const T weight = p.batch ? T(p.weights.of(row)) : T(0);
        for (int64_t c = threadIdx.x % kWarp; c < width; c += kWarp) {
            T& x = p.x[row * width + c];
            const T d = p.d != nullptr ? p.d[row * width + c] : p.dlogits[row] * p.last[c];
            const Derivatives<T> g = p.function.derive(x, d * p.function.dropout(key, c), c);
            const T* numbers = p.function.numbers + c;
            T dx = numbers[kScale * width] * g.dy + numbers[kGateScale * width] * g.dgate;
            if (p.batch)
                dx += weight *
                      (numbers[kMeanGradient * width] + g.centred * numbers[kVarianceGradient * width]);
            x = dx;
        }
    }
}

}  // namespace dien_fast::cuda
