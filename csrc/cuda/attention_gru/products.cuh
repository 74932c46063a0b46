// The matrix products around the scans, as policies of gemm_kernel (../common/gemm.cuh).

#pragma once

#include "../common/gemm.cuh"
#include "../common/splits.cuh"
#include "schedule.cuh"
#include "weights.cuh"

namespace dien_fast::cuda {

// The rows of x that slots stand for; all rows of x in turn where `rows` is null.
template <typename T>
struct InputRows {
    using Number = T;
    const T* x;
    int64_t width;
    const int64_t* rows;

    __device__ const T* row(int64_t slot) const { return x + (rows == nullptr ? slot : rows[slot]) * width; }
};

// The states before the steps that slots stand for; null stands for a state of zeros.
template <typename W>
struct StatesBefore {
    using Number = W;
    const W* states;
    const W* h0;
    int64_t width;
    const int64_t* rows;

    __device__ const W* row(int64_t slot) const {
        const int64_t at = rows[slot];
        if (at >= 0) return states + at * width;
        return h0 == nullptr ? nullptr : h0 + (-1 - at) * width;
    }
};

// What x adds to the gates' arguments: out[slot] = (u | r | n) of W x + biases.
template <typename T>
struct Projection : PlainA<T>, PlainB<Wide<T>>, CountedRows, BiasColumns<Wide<T>> {
    using W = Wide<T>;
    using Row = const T*;
    using Column = typename BiasColumns<W>::Column;
    static constexpr bool kAAlongK = true, kBAlongK = true, kSums = false, kTiles = false;
    InputRows<T> input;
    const W* weights;  // [columns, I]
    const W* bias;     // [columns]
    int64_t columns;
    const int64_t* count;  // slots in use, or null: max_count
    int64_t max_count;
    W* out;
    int64_t stride;

    __device__ int64_t rows() const { return count == nullptr ? max_count : *count; }
    __device__ int64_t cols() const { return columns; }
    __device__ int64_t depth_begin() const { return 0; }
    __device__ int64_t depth_end() const { return input.width; }
    __device__ Row prepare(int64_t i) const { return input.row(i); }
    __device__ T a(Row row, int64_t, int64_t, int k) const { return row[k]; }
    __device__ W b(Nothing, int64_t, int k, int j) const { return weights[j * int(input.width) + k]; }
    __device__ Column column(int j, int count) const { return this->bias_columns(bias + j, count); }
    __device__ void store(int64_t i, int j, W (&values)[kOwnColumns], int count, const Column& column) const {
#pragma unroll
        for (int c = 0; c < kOwnColumns; ++c) values[c] += column.bias[c];
        store_columns(out + i * stride + j, values, count);
    }
};

// What the states before add to the gates' arguments. Writes c = U_n h + b_hn, and adds to u and r, which
// hold what x adds.
template <typename W_>
struct StateProduct : PlainA<W_>, PlainB<W_>, CountedRows, NoColumns {
    using W = W_;
    using Row = const W*;
    static constexpr bool kAAlongK = true, kBAlongK = true, kSums = false, kTiles = false;
    StatesBefore<W> before;
    const W* weights;  // [columns, H], (c | u | r)
    const W* c_bias;   // [H]
    int64_t columns;
    const int64_t* count;
    W* out;  // (c | u | r | n)
    int64_t stride;

    __device__ int64_t rows() const { return *count; }
    __device__ int64_t cols() const { return columns; }
    __device__ int64_t depth_begin() const { return 0; }
    __device__ int64_t depth_end() const { return before.width; }
    __device__ Row prepare(int64_t i) const { return before.row(i); }
    __device__ W a(Row row, int64_t, int64_t, int k) const { return row == nullptr ? W(0) : row[k]; }
    __device__ W b(Nothing, int64_t, int k, int j) const { return weights[j * int(before.width) + k]; }
    __device__ void store(int64_t i, int j, W (&values)[kOwnColumns], int count, Nothing) const {
        W* to = out + i * stride + j;
        W there[kOwnColumns];
        load_columns(to, count, there);
#pragma unroll
        for (int c = 0; c < kOwnColumns; ++c) values[c] += j + c < before.width ? c_bias[j + c] : there[c];
        store_columns(to, values, count);
    }
};

// dx = [du' dr' dn'] W.
template <typename T>
struct InputGradient : PlainA<Wide<T>>, PlainB<Wide<T>>, CountedRows, NoColumns {
    using W = Wide<T>;
    using Row = const W*;
    static constexpr bool kAAlongK = true, kBAlongK = false, kSums = false, kTiles = false;
    const W* gates;  // du' of the first slot
    int64_t stride;
    int64_t depth;
    const W* weights;  // [depth, I]
    int64_t input;
    const int64_t* count;
    const int64_t* out_rows;
    T* dx;

    __device__ int64_t rows() const { return *count; }
    __device__ int64_t cols() const { return input; }
    __device__ int64_t depth_begin() const { return 0; }
    __device__ int64_t depth_end() const { return depth; }
    __device__ Row prepare(int64_t i) const { return gates + i * stride; }
    __device__ W a(Row row, int64_t, int64_t, int k) const { return row[k]; }
    __device__ W b(Nothing, int64_t, int k, int j) const { return weights[k * int(input) + j]; }
    __device__ void store(int64_t i, int j, const W (&values)[kOwnColumns], int count, Nothing) const {
        store_columns(dx + out_rows[i] * input + j, values, count);
    }
};

// The gradients of weights, sums over slots of outer products with x or with the states before, and of
// biases. The slots are split among blocks (blockIdx.z). Each split keeps sums of its own, which grow from
// chunk to chunk and are added up in a fixed order at the end.
template <typename W_, typename Source>
struct WeightGradient : PlainA<W_>, PlainB<typename Source::Number>, NoColumns {
    using W = W_;
    using Row = Nothing;
    using RowOfB = const typename Source::Number*;
    static constexpr bool kAAlongK = false, kBAlongK = false, kSums = true, kTiles = false;
    const W* gates;  // gradients of the first slot
    int64_t stride;
    int64_t gate_rows;  // G H
    Source source;
    const int64_t* count;
    bool first;    // whether this is the first chunk that runs
    W* sums;       // [splits, G H, width]
    W* bias_sums;  // [splits, G H]

    __device__ int64_t rows() const { return gate_rows; }
    __device__ int64_t cols() const { return source.width; }
    __device__ int64_t depth_begin() const { return *count * blockIdx.z / gridDim.z; }
    __device__ int64_t depth_end() const { return *count * (blockIdx.z + 1) / gridDim.z; }
    __device__ RowOfB row_of_b(int64_t begin, int k) const { return source.row(begin + k); }
    __device__ W a(Row, int64_t i, int64_t begin, int k) const {
        return (gates + begin * stride + i)[k * int(stride)];
    }
    __device__ typename Source::Number b(RowOfB row, int64_t, int, int j) const {
        return row == nullptr ? typename Source::Number() : row[j];
    }
    __device__ void store(int64_t i, int j, W (&values)[kOwnColumns], int count, Nothing) const {
        grow_columns(sums + (blockIdx.z * gate_rows + i) * source.width + j, values, count, first);
    }
    __device__ void store_sum(int64_t i, W value) const {
        W& to = bias_sums[blockIdx.z * gate_rows + i];
        to = first ? value : to + value;
    }
};

// Adds the splits up, and brings the gates into the caller's order.
template <typename T>
struct GatherGradient {
    Cell cell;
    bool of_state;  // gradients of weights that meet h, in the order (c | u | r)
    int64_t hidden, gate_rows, width;
    int splits;
    const Wide<T>* sums;  // [splits, gate_rows, width]
    T* out;               // [gate_rows, width]
};

template <typename T>
__global__ void gather_gradient_kernel(GatherGradient<T> g) {
    const int64_t size = g.gate_rows * g.width, i = number_of_thread();
    const Wide<T> sum = sum_of_splits(g.sums, g.splits, size, i);
    if (!leads() || i >= size) return;
    const int64_t row = i / g.width;
    const int place = int(row / g.hidden);
    const int64_t block = gate_block(g.cell, g.of_state ? h_gate(g.cell, place) : x_gate(g.cell, place));
    store(g.out[(block * g.hidden + row % g.hidden) * g.width + i % g.width], sum);
}

}  // namespace dien_fast::cuda
