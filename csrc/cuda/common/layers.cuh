// The layers of an MLP on rows: activations, and the matrix products of a layer as policies of gemm_kernel
// (gemm.cuh).

#pragma once

#include "../../activations.h"
#include "gemm.cuh"
#include "launch.cuh"

namespace dien_fast::cuda {

// Rows [first, count()) of the kernels' own arrays, of which the last may be unused: how many are, only the
// device knows.
struct RowSet {
    int64_t first;
    int64_t fixed;        // rows that are always used, counted from 0
    int64_t most;         // that may follow them
    const int64_t* used;  // how many do, or null: all

    int64_t size() const { return fixed + most - first; }  // at most
    __device__ int64_t end() const { return fixed + (used == nullptr ? most : clamped(*used, 0, most)); }
    __device__ int64_t count() const { return end() - first; }
};

enum ChannelNumber {
    kMean,
    kScale,
    kShift,
    kGateScale,
    kGateShift,
    kSlope,
    kMeanGradient,
    kVarianceGradient,
    kChannelNumbers
};

struct DeviceSigmoid {
    template <typename T>
    __device__ T operator()(T v) const {
        return sigmoid(v);
    }
};

// What follows the product of a layer: f of interest.h.
template <typename T>
struct LayerFunction {
    Activation activation;
    int64_t width;        // C
    const T* numbers;     // [kChannelNumbers, C], or null where y = x
    const int64_t* seed;  // of dropout, or null: none
    uint32_t keep;
    T kept;
    int64_t layer;
    int64_t padded_rows, ragged_rows;  // of the kernels' arrays; the former stand first

    __device__ ChannelNumbers<T> channel(int64_t c) const {
        if (numbers == nullptr) return {T(0), T(1), T(0), T(0), T(0), T(0)};
        return {numbers[kMean * width + c],      numbers[kScale * width + c],
                numbers[kShift * width + c],     numbers[kGateScale * width + c],
                numbers[kGateShift * width + c], numbers[kSlope * width + c]};
    }
    // Of dropout, for a row of the kernels' arrays; numbered as on the CPU, whose padded rows stand last.
    __device__ uint64_t key(int64_t row) const {
        if (seed == nullptr) return 0;
        const int64_t number = row < padded_rows ? ragged_rows + row : row - padded_rows;
        return row_key(uint64_t(*seed), layer, number);
    }
    __device__ T dropout(uint64_t key, int64_t c) const {
        if (seed == nullptr) return T(1);
        return channel_bits(uint32_t(c), key) < keep ? kept : T(0);
    }
    __device__ T value(T x, uint64_t key, int64_t c) const { return activate(x, c) * dropout(key, c); }

    __device__ T activate(T x, int64_t c) const {
        const DeviceSigmoid s;
        switch (activation) {
            case Activation::kIdentity:
                return numbers == nullptr ? x : activated<T, Activation::kIdentity>(channel(c), x, s);
            case Activation::kRelu:
                return activated<T, Activation::kRelu>(channel(c), x, s);
            case Activation::kPrelu:
                return activated<T, Activation::kPrelu>(channel(c), x, s);
            case Activation::kSigmoid:
                return activated<T, Activation::kSigmoid>(channel(c), x, s);
            case Activation::kDice:
                return activated<T, Activation::kDice>(channel(c), x, s);
        }
        return x;
    }
    __device__ Derivatives<T> derive(T x, T d, int64_t c) const {
        const DeviceSigmoid s;
        switch (activation) {
            case Activation::kIdentity:
                return derivatives<T, Activation::kIdentity>(channel(c), x, d, s);
            case Activation::kRelu:
                return derivatives<T, Activation::kRelu>(channel(c), x, d, s);
            case Activation::kPrelu:
                return derivatives<T, Activation::kPrelu>(channel(c), x, d, s);
            case Activation::kSigmoid:
                return derivatives<T, Activation::kSigmoid>(channel(c), x, d, s);
            case Activation::kDice:
                return derivatives<T, Activation::kDice>(channel(c), x, d, s);
        }
        return {};
    }
};

// Rows [., width] through a function, as a factor of a product.
template <typename T>
struct FunctionRows {
    struct Row {
        const T* x;
        uint64_t key;
    };
    LayerFunction<T> function;
    const T* x;
    int64_t width;

    __device__ Row row(int64_t i) const { return {x + i * width, function.key(i)}; }
    __device__ T at(Row row, int64_t k) const { return function.value(row.x[k], row.key, k); }
};

// out = rows W^T + b.
template <typename T, typename Source>
struct LayerProduct {
    using W = T;
    using Row = typename Source::Row;
    static constexpr bool kAAlongK = true, kBAlongK = true, kSums = false, kTiles = false;
    RowSet set;
    Source source;
    const T* weights;  // [columns, width of the source]
    const T* bias;     // [columns]
    int64_t columns;
    T* out;  // rows of `columns`

    __device__ int64_t rows() const { return set.count(); }
    __device__ int64_t cols() const { return columns; }
    __device__ int64_t depth_begin() const { return 0; }
    __device__ int64_t depth_end() const { return source.width; }
    __device__ Row prepare(int64_t i) const { return source.row(set.first + i); }
    __device__ T a(Row row, int64_t, int64_t k) const { return source.at(row, k); }
    __device__ T b(int64_t k, int64_t j) const { return weights[j * source.width + k]; }
    __device__ void store(int64_t i, int64_t j, T value) const {
        out[(set.first + i) * columns + j] = value + bias[j];
    }
};

// Of the same product, what the gradients dx of out give for the rows: dx W, added to what is there or not.
// Where the rows are sigmoids, this is the gradient of those, and `through` makes of it that of their
// arguments.
template <typename T>
struct LayerInputGradient {
    using W = T;
    using Row = const T*;
    static constexpr bool kAAlongK = true, kBAlongK = false, kSums = false, kTiles = false;
    RowSet set;
    const T* dx;
    int64_t width;     // of dx
    int64_t behind;    // if not 0, the row so many rows behind is added to each row of dx
    const T* weights;  // [width, stride]
    int64_t stride;
    int64_t columns;
    bool add;
    const T* through;  // the sigmoids' arguments, rows of `columns`, or null; may be `out`
    T* out;            // rows of `columns`

    __device__ int64_t rows() const { return set.count(); }
    __device__ int64_t cols() const { return columns; }
    __device__ int64_t depth_begin() const { return 0; }
    __device__ int64_t depth_end() const { return width; }
    __device__ Row prepare(int64_t i) const { return dx + (set.first + i) * width; }
    __device__ T a(Row row, int64_t, int64_t k) const {
        return behind == 0 ? row[k] : row[k] + row[behind * width + k];
    }
    __device__ T b(int64_t k, int64_t j) const { return weights[k * stride + j]; }
    __device__ void store(int64_t i, int64_t j, T value) const {
        const int64_t at = (set.first + i) * columns + j;
        if (through != nullptr) {
            const T p = sigmoid(through[at]);
            value *= p * (T(1) - p);
        }
        out[at] = add ? out[at] + value : value;
    }
};

// And for W and b: sums over the rows, which are split among blocks (blockIdx.z). Each split keeps sums of
// its own, which grow from chunk to chunk of the rows; they are added up in the order of the splits at the
// end.
template <typename T, typename Source>
struct LayerWeightGradient {
    using W = T;
    struct Row {};
    static constexpr bool kAAlongK = false, kBAlongK = false, kSums = true, kTiles = false;
    RowSet set;
    const T* dx;
    int64_t width;  // of dx
    Source source;
    bool first;    // whether this is the first chunk
    T* sums;       // [splits, width, width of the source]
    T* bias_sums;  // [splits, width]

    __device__ int64_t rows() const { return width; }
    __device__ int64_t cols() const { return source.width; }
    __device__ int64_t depth_begin() const { return set.count() * blockIdx.z / gridDim.z; }
    __device__ int64_t depth_end() const { return set.count() * (blockIdx.z + 1) / gridDim.z; }
    __device__ Row prepare(int64_t) const { return {}; }
    __device__ T a(Row, int64_t i, int64_t k) const { return dx[(set.first + k) * width + i]; }
    __device__ T b(int64_t k, int64_t j) const { return source.at(source.row(set.first + k), j); }
    __device__ void store(int64_t i, int64_t j, T value) const {
        T& to = sums[(blockIdx.z * width + i) * source.width + j];
        to = first ? value : to + value;
    }
    __device__ void store_sum(int64_t i, T value) const {
        T& to = bias_sums[blockIdx.z * width + i];
        to = first ? value : to + value;
    }
};

// out [size] = the sum of the splits, in their order.
template <typename T>
__global__ void sum_splits_kernel(const T* sums, int splits, int64_t size, T* out) {
    const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= size) return;
    T sum = 0;
    for (int split = 0; split < splits; ++split) sum += sums[split * size + i];
    out[i] = sum;
}
template <typename T>
void sum_splits(const T* sums, int splits, int64_t size, T* out, Stream stream) {
    if (size > 0)
        launch(sum_splits_kernel<T>, blocks_for(size, kThreads), kThreads, 0, stream, sums, splits, size,
               out);
}

template <typename P>
void multiply(const P& policy, dim3 blocks, Stream stream) {
    launch(gemm_kernel<P>, blocks, kGemmThreads, gemm_shared_bytes<typename P::W>(), stream, policy);
}

// Splits of `rows` that keep the largest device busy with products [outputs, inputs].
inline int splits_for(int64_t rows, int64_t outputs, int64_t inputs) {
    const dim3 tiles = gemm_blocks(outputs, inputs);
    const int64_t enough = std::max<int64_t>(1, 288 / (int64_t(tiles.x) * tiles.y));
    return int(std::min<int64_t>(enough, rows / 256 + 1));
}

}  // namespace dien_fast::cuda
