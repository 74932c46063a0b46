// The layers of an MLP on rows: activations, and the matrix products of a layer as policies of gemm_kernel
// (gemm.cuh).

#pragma once

#include <type_traits>

#include "../../activations.h"
#include "gemm.cuh"
#include "launch.cuh"
#include "splits.cuh"

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

template <Activation kActivation>
using Chosen = std::integral_constant<Activation, kActivation>;

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
    // Of a channel, numbers whose rows of the kernels' arrays are row_of(e).
    template <int kCount, typename RowOf>
    __device__ void values(const T (&x)[kCount], int64_t c, const RowOf& row_of, T (&out)[kCount]) const {
        const DeviceSigmoid s;
        const ChannelNumbers<T> numbers_of_c = channel(c);
        auto each = [&](auto chosen) {
#pragma unroll
            for (int e = 0; e < kCount; ++e)
                out[e] = activated<T, decltype(chosen)::value>(numbers_of_c, x[e], s);
        };
        switch (activation) {
            case Activation::kIdentity:
                each(Chosen<Activation::kIdentity>());
                break;
            case Activation::kRelu:
                each(Chosen<Activation::kRelu>());
                break;
            case Activation::kPrelu:
                each(Chosen<Activation::kPrelu>());
                break;
            case Activation::kSigmoid:
                each(Chosen<Activation::kSigmoid>());
                break;
            case Activation::kDice:
                each(Chosen<Activation::kDice>());
                break;
        }
        if (seed == nullptr) return;
#pragma unroll
        for (int e = 0; e < kCount; ++e) out[e] *= dropout(key(row_of(e)), c);
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
    using Row = const T*;
    LayerFunction<T> function;
    const T* x;
    int64_t width;

    // Row begin + i.
    __device__ Row row(int64_t begin, int i) const { return x + begin * width + i * int(width); }
    __device__ T at(Row row, int64_t, int k) const { return row[k]; }
    // Numbers of column k.
    template <int kCount, typename RowOf, typename Has>
    __device__ void late(const T (&raw)[kCount], int64_t k, const RowOf& row_of, const Has&,
                         T (&values)[kCount]) const {
        function.values(raw, k, row_of, values);
    }
};

// out = rows W^T + b.
template <typename T, typename Source>
struct LayerProduct : PlainB<T>, CountedRows, BiasColumns<T> {
    using W = T;
    using Row = typename Source::Row;
    using RawA = T;
    using Column = typename BiasColumns<T>::Column;
    static constexpr bool kAAlongK = true, kBAlongK = true, kSums = false, kTiles = false;
    RowSet set;
    Source source;
    const T* weights;  // [columns, width of the source]
    const T* bias;     // [columns]
    int64_t columns;
    T* out;  // rows of `columns`

    LayerProduct(const RowSet& set, const Source& source, const T* weights, const T* bias, int64_t columns,
                 T* out)
        : set(set), source(source), weights(weights), bias(bias), columns(columns), out(out) {}
    __device__ int64_t rows() const { return set.count(); }
    __device__ int64_t cols() const { return columns; }
    __device__ int64_t depth_begin() const { return 0; }
    __device__ int64_t depth_end() const { return source.width; }
    __device__ Row prepare(int64_t i) const { return source.row(set.first + i, 0); }
    __device__ T a(Row row, int64_t i, int64_t, int k) const { return source.at(row, set.first + i, k); }
    template <int kCount, typename At>
    __device__ void late_a(const T (&raw)[kCount], const At& at, T (&values)[kCount]) const {
        source.late(
            raw, at.k, [&](int e) { return set.first + at.line_of(e); }, [&](int e) { return at.has(e); },
            values);
    }
    __device__ T b(Nothing, int64_t, int k, int j) const { return weights[j * int(source.width) + k]; }
    __device__ Column column(int j, int count) const { return this->bias_columns(bias + j, count); }
    __device__ void store(int64_t i, int j, T (&values)[kOwnColumns], int count, const Column& column) const {
#pragma unroll
        for (int c = 0; c < kOwnColumns; ++c) values[c] += column.bias[c];
        store_columns(out + (set.first + i) * columns + j, values, count);
    }
};

// Of the same product, what the gradients dx of out give for the rows: dx W, added to what is there or not.
// Where the rows are sigmoids, this is the gradient of those, and `through` makes of it that of their
// arguments.
template <typename T>
struct InputGradientOfLayer : PlainB<T>, CountedRows, NoColumns {
    using W = T;
    using Row = const T*;
    static constexpr bool kAAlongK = true, kBAlongK = false, kSums = false, kTiles = false;
    RowSet set;
    const T* dx;
    int64_t width;     // of dx
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
    __device__ T b(Nothing, int64_t, int k, int j) const { return weights[k * int(stride) + j]; }
    __device__ void store(int64_t i, int j, T (&values)[kOwnColumns], int count, Nothing) const {
        const int64_t at = (set.first + i) * columns + j;
        if (through != nullptr) {
            T x[kOwnColumns];
            load_columns(through + at, count, x);
#pragma unroll
            for (int c = 0; c < kOwnColumns; ++c) {
                const T p = sigmoid(x[c]);
                values[c] *= p * (T(1) - p);
            }
        }
        grow_columns(out + at, values, count, !add);
    }
};
template <typename T>
struct LayerInputGradient : InputGradientOfLayer<T>, PlainA<T> {
    __device__ T a(const T* row, int64_t, int64_t, int k) const { return row[k]; }
};
// The row so many rows behind is added to each row of dx.
template <typename T>
struct LayerInputGradientOfTwo : InputGradientOfLayer<T> {
    using RawA = T;
    int64_t behind;

    __device__ T a(const T* row, int64_t, int64_t, int k) const { return row[k]; }
    // Two numbers fetched ahead would take too many registers.
    template <int kCount, typename At>
    __device__ void late_a(const T (&raw)[kCount], const At& at, T (&values)[kCount]) const {
        const T* other = this->prepare(at.line + behind) + at.k;
#pragma unroll
        for (int e = 0; e < kCount; ++e)
            values[e] = at.has(e) ? raw[e] + other[e * at.line_step * int(this->width)] : T(0);
    }
};

// And for W and b: sums over the rows, which are split among blocks (blockIdx.z). Each split keeps sums of
// its own, which grow from chunk to chunk of the rows; they are added up in a fixed order at the
// end.
template <typename T, typename Source>
struct LayerWeightGradient : PlainA<T>, NoColumns {
    using W = T;
    using Row = Nothing;
    using RowOfB = typename Source::Row;
    using RawB = T;
    static constexpr bool kAAlongK = false, kBAlongK = false, kSums = true, kTiles = false;
    RowSet set;
    const T* dx;
    int64_t width;  // of dx
    Source source;
    bool first;    // whether this is the first chunk
    T* sums;       // [splits, width, width of the source]
    T* bias_sums;  // [splits, width]

    LayerWeightGradient(const RowSet& set, const T* dx, int64_t width, const Source& source, bool first,
                        T* sums, T* bias_sums)
        : set(set), dx(dx), width(width), source(source), first(first), sums(sums), bias_sums(bias_sums) {}
    __device__ int64_t rows() const { return width; }
    __device__ int64_t cols() const { return source.width; }
    __device__ int64_t depth_begin() const { return set.count() * blockIdx.z / gridDim.z; }
    __device__ int64_t depth_end() const { return set.count() * (blockIdx.z + 1) / gridDim.z; }
    __device__ T a(Nothing, int64_t i, int64_t begin, int k) const {
        return (dx + (set.first + begin) * width + i)[k * int(width)];
    }
    __device__ RowOfB row_of_b(int64_t begin, int k) const { return source.row(set.first + begin, k); }
    __device__ T b(RowOfB row, int64_t begin, int k, int j) const {
        return source.at(row, set.first + begin + k, j);
    }
    template <int kCount, typename At>
    __device__ void late_b(const T (&raw)[kCount], const At& at, T (&values)[kCount]) const {
        source.late(
            raw, at.line, [&](int e) { return set.first + at.begin + at.k_of(e); },
            [&](int e) { return at.has(e); }, values);
    }
    __device__ void store(int64_t i, int j, T (&values)[kOwnColumns], int count, Nothing) const {
        grow_columns(sums + (blockIdx.z * width + i) * source.width + j, values, count, first);
    }
    __device__ void store_sum(int64_t i, T value) const {
        T& to = bias_sums[blockIdx.z * width + i];
        to = first ? value : to + value;
    }
};

// out [size] = the sum of the splits.
template <typename T>
__global__ void sum_splits_kernel(const T* sums, int splits, int64_t size, T* out) {
    const int64_t i = number_of_thread();
    const T sum = sum_of_splits(sums, splits, size, i);
    if (leads() && i < size) out[i] = sum;
}
template <typename T>
void sum_splits(const T* sums, int splits, int64_t size, T* out, Stream stream) {
    if (size > 0)
        launch(sum_splits_kernel<T>, split_blocks(size), kThreads, kThreads * int(sizeof(T)), stream, sums,
               splits, size, out);
}

template <typename P>
void multiply(const P& policy, dim3 blocks, Stream stream) {
    launch(gemm_kernel<P>, blocks, kGemmThreads, gemm_shared_bytes<typename P::W>(), stream, policy);
}

}  // namespace dien_fast::cuda
