// The first layer: the terms that interest.h makes of its weight, and the products that depend on a history's
// candidate.

#pragma once

#include "../common/layers.cuh"
#include "../common/sums.cuh"
#include "attention_scores_cuda.h"

namespace dien_fast::cuda {

// W [C, 4 D] in terms, [C, D] each.
template <typename T>
struct Terms {
    const T* weight;
    int64_t width, depth;
    T *query, *key, *product;  // W_q + W_d, W_k - W_d, W_p
};

template <typename T>
__global__ void split_weight_kernel(Terms<T> p) {
    const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= p.width * p.depth) return;
    const T* w = p.weight + i / p.depth * 4 * p.depth + i % p.depth;
    p.query[i] = w[0] + w[2 * p.depth];
    p.key[i] = w[p.depth] - w[2 * p.depth];
    p.product[i] = w[3 * p.depth];
}

// The rows of histories in tiles of kGemmRows, none of which has rows of two histories.
struct HistoryTiles {
    Ragged rows;
    const int64_t* key_start;  // [B] first row of each history's keys, or null: that of its scores
    int64_t key_rows;
    const int64_t* before;   // [B + 1] tiles of earlier histories
    const int64_t* history;  // [count()] of each tile

    // Rows whose keys exist.
    __device__ RowRange rows_of(int64_t b) const {
        RowRange r = history_rows(rows, b);
        const int64_t start = key_start == nullptr ? r.begin : clamped(key_start[b], 0, key_rows);
        if (key_rows - start < r.size()) r.end = r.begin + (key_rows > start ? key_rows - start : 0);
        return r;
    }
    __device__ int64_t first_key(int64_t b, const RowRange& r) const {
        return key_start == nullptr ? r.begin : clamped(key_start[b], 0, key_rows);
    }
    // At most.
    int64_t count() const { return rows.size + rows.rows / kGemmRows; }
};

static __global__ void tiles_kernel(HistoryTiles tiles, int64_t* before) {
    SharedMemory shared;
    int64_t* partial = shared.take<int64_t>(kScanThreads);
    exclusive_sums(
        tiles.rows.size, [&](int64_t b) { return (tiles.rows_of(b).size() + kGemmRows - 1) / kGemmRows; },
        before, partial);
}

// A thread takes a history.
static __global__ void tile_histories_kernel(HistoryTiles tiles, int64_t* history) {
    const int64_t b = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (b >= tiles.rows.size) return;
    for (int64_t tile = tiles.before[b]; tile < tiles.before[b + 1]; ++tile) history[tile] = b;
}

// What a block of gemm_kernel knows of the tile that it computes.
struct Tile {
    HistoryTiles tiles;
    int64_t history, first_key, first_row;

    __device__ RowRange locate() {
        const int64_t tile = blockIdx.x;
        if (tile >= tiles.before[tiles.rows.size]) return {0, 0};
        history = tiles.history[tile];
        const RowRange rows = tiles.rows_of(history);
        first_row = rows.begin;
        first_key = tiles.first_key(history, rows);
        const int64_t begin = rows.begin + (tile - tiles.before[history]) * kGemmRows;
        return {begin, begin + kGemmRows < rows.end ? begin + kGemmRows : rows.end};
    }
};

// x_1 of the ragged rows: the query term of the history, and k times the transpose of W_k - W_d + W_p
// diag(q).
template <typename T>
struct KeyProduct : PlainA<T>, CountedRows, BiasColumns<T> {
    using W = T;
    using Row = const T*;
    using RawB = Nothing;  // three numbers would take too many registers
    using Column = typename BiasColumns<T>::Column;
    static constexpr bool kAAlongK = true, kBAlongK = true, kSums = false, kTiles = true;
    Tile tile;
    const T *keys, *query;
    const T *key_weights, *product_weights;  // [C, D]
    int64_t width, depth;
    T* x;  // rows of C, those of the padding, which are the query terms, first

    __device__ RowRange locate() { return tile.locate(); }
    __device__ int64_t cols() const { return width; }
    __device__ int64_t depth_begin() const { return 0; }
    __device__ int64_t depth_end() const { return depth; }
    __device__ Row prepare(int64_t i) const { return keys + (tile.first_key + i - tile.first_row) * depth; }
    __device__ T a(Row row, int64_t, int64_t, int k) const { return row[k]; }
    __device__ Nothing b(Nothing, int64_t, int, int) const { return {}; }
    template <int kCount, typename At>
    __device__ void late_b(const Nothing (&)[kCount], const At& at, T (&values)[kCount]) const {
        const T q = at.k < at.depth ? query[tile.history * depth + at.k] : T(0);
#pragma unroll
        for (int e = 0; e < kCount; ++e) {
            const int place = int(at.line_of(e)) * int(depth) + at.k;
            values[e] = at.has(e) ? key_weights[place] + q * product_weights[place] : T(0);
        }
    }
    __device__ Column column(int j, int count) const {
        return this->bias_columns(x + tile.history * width + j, count);
    }
    __device__ void store(int64_t i, int j, T (&values)[kOwnColumns], int count, const Column& column) const {
#pragma unroll
        for (int c = 0; c < kOwnColumns; ++c) values[c] += column.bias[c];
        store_columns(x + (tile.tiles.rows.size + i) * width + j, values, count);
    }
};

// The gradients of the keys, dx_1 (W_k - W_d + W_p diag(q)).
template <typename T>
struct KeyGradient : PlainA<T>, CountedRows, NoColumns {
    using W = T;
    using Row = const T*;
    using RawB = Nothing;
    static constexpr bool kAAlongK = true, kBAlongK = false, kSums = false, kTiles = true;
    Tile tile;
    const T *dx, *query;
    const T *key_weights, *product_weights;
    int64_t width, depth;
    T* dkeys;

    __device__ RowRange locate() { return tile.locate(); }
    __device__ int64_t cols() const { return depth; }
    __device__ int64_t depth_begin() const { return 0; }
    __device__ int64_t depth_end() const { return width; }
    __device__ Row prepare(int64_t i) const { return dx + (tile.tiles.rows.size + i) * width; }
    __device__ T a(Row row, int64_t, int64_t, int k) const { return row[k]; }
    __device__ Nothing b(Nothing, int64_t, int, int) const { return {}; }
    template <int kCount, typename At>
    __device__ void late_b(const Nothing (&)[kCount], const At& at, T (&values)[kCount]) const {
        const T q = at.lines > 0 ? query[tile.history * depth + at.line] : T(0);
#pragma unroll
        for (int e = 0; e < kCount; ++e) {
            const int place = at.k_of(e) * int(depth) + int(at.line);
            values[e] = at.has(e) ? key_weights[place] + q * product_weights[place] : T(0);
        }
    }
    __device__ void store(int64_t i, int j, const T (&values)[kOwnColumns], int count, Nothing) const {
        store_columns(dkeys + i * depth + j, values, count);
    }
};

// The gradients of that matrix, one for each history (blockIdx.z) of a chunk, and of the query terms, in
// which the padding's is to be added yet.
template <typename T>
struct MatrixGradient : PlainA<T>, PlainB<T>, CountedRows, NoColumns {
    using W = T;
    using Row = Nothing;
    static constexpr bool kAAlongK = false, kBAlongK = false, kSums = true, kTiles = false;
    Ragged ragged;
    int64_t first_history;
    const T *dx, *keys;
    int64_t width, depth;
    T* dmatrix;  // [histories, C, D]
    T* dterms;   // [B, C]

    __device__ RowRange range() const { return history_rows(ragged, first_history + blockIdx.z); }
    __device__ int64_t rows() const { return width; }
    __device__ int64_t cols() const { return depth; }
    __device__ int64_t depth_begin() const { return range().begin; }
    __device__ int64_t depth_end() const { return range().end; }
    __device__ T a(Row, int64_t i, int64_t begin, int k) const {
        return (dx + (ragged.size + begin) * width + i)[k * int(width)];
    }
    __device__ T b(Nothing, int64_t begin, int k, int j) const {
        return (keys + begin * depth + j)[k * int(depth)];
    }
    __device__ void store(int64_t i, int j, const T (&values)[kOwnColumns], int count, Nothing) const {
        store_columns(dmatrix + (blockIdx.z * width + i) * depth + j, values, count);
    }
    __device__ void store_sum(int64_t i, T value) const {
        dterms[(first_history + blockIdx.z) * width + i] = value;
    }
};

// What the gradients of the histories' matrices give.
template <typename T>
struct MatrixSums {
    int64_t first_history, histories;  // of the chunk
    const T* dmatrix;                  // [histories, C, D]
    const T* query;                    // [B, D]
    const T* product_weights;          // [C, D]
    int64_t width, depth;
    const T* padding;    // [B, C] dx_1 of the padding, or null
    T* dterms;           // [B, C], which get it
    T* dquery;           // output [B, D]
    T *dkey, *dproduct;  // [splits, C, D] sums over the histories of the chunks
    bool first;          // whether this is the first chunk
};

// A block takes a history.
template <typename T>
__global__ void history_gradient_kernel(MatrixSums<T> p) {
    const int64_t b = p.first_history + blockIdx.x;
    const T* dmatrix = p.dmatrix + int64_t(blockIdx.x) * p.width * p.depth;
    for (int64_t d = threadIdx.x; d < p.depth; d += blockDim.x) {
        T sum = 0;
#pragma unroll 16
        for (int64_t c = 0; c < p.width; ++c)
            sum += dmatrix[c * p.depth + d] * p.product_weights[c * p.depth + d];
        p.dquery[b * p.depth + d] = sum;
    }
    if (p.padding == nullptr) return;
    for (int64_t c = threadIdx.x; c < p.width; c += blockDim.x)
        p.dterms[b * p.width + c] += p.padding[b * p.width + c];
}

// A thread takes a number of the weights, for a split of the histories (blockIdx.y).
template <typename T>
__global__ void term_gradients_kernel(MatrixSums<T> p) {
    const int64_t size = p.width * p.depth, i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= size) return;
    const int64_t end = p.histories * (blockIdx.y + 1) / gridDim.y, at = blockIdx.y * size + i;
    T key = p.first ? T(0) : p.dkey[at], product = p.first ? T(0) : p.dproduct[at];
    for (int64_t h = p.histories * blockIdx.y / gridDim.y; h < end; ++h) {
        const T d = p.dmatrix[h * size + i];
        key += d;
        product += d * p.query[(p.first_history + h) * p.depth + i % p.depth];
    }
    p.dkey[at] = key;
    p.dproduct[at] = product;
}

// The first layer's gradient [C, 4 D], from those of its terms, whose splits are added up.
template <typename T>
struct FirstGradient {
    int64_t width, depth;
    int splits, query_splits;
    const T *query, *key, *product;  // [splits, C, D]
    T* out;
};

template <typename T>
__global__ void first_gradient_kernel(FirstGradient<T> p) {
    const int64_t size = p.width * p.depth, i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= size) return;
    T query = 0, key = 0, product = 0;
    for (int split = 0; split < p.query_splits; ++split) query += p.query[split * size + i];
    for (int split = 0; split < p.splits; ++split) {
        key += p.key[split * size + i];
        product += p.product[split * size + i];
    }
    T* out = p.out + i / p.depth * 4 * p.depth + i % p.depth;
    out[0] = query;
    out[p.depth] = key;
    out[2 * p.depth] = query - key;
    out[3 * p.depth] = product;
}

}  // namespace dien_fast::cuda
