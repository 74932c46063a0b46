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
    const int64_t* before;  // [B + 1] tiles of earlier histories

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

// What a block of gemm_kernel knows of the tile that it computes.
struct Tile {
    HistoryTiles tiles;
    int64_t history, first_key, first_row;

    __device__ RowRange locate() {
        const int64_t tile = blockIdx.x;
        if (tile >= tiles.before[tiles.rows.size]) return {0, 0};
        int64_t b = 0,
                end = tiles.rows.size;  // finds the last history whose tiles begin at or before this one
        while (end - b > 1) {
            const int64_t middle = (b + end) / 2;
            if (tiles.before[middle] <= tile)
                b = middle;
            else
                end = middle;
        }
        const RowRange rows = tiles.rows_of(b);
        history = b;
        first_row = rows.begin;
        first_key = tiles.first_key(b, rows);
        const int64_t begin = rows.begin + (tile - tiles.before[b]) * kGemmRows;
        return {begin, begin + kGemmRows < rows.end ? begin + kGemmRows : rows.end};
    }
};

// x_1 of the ragged rows: the query term of the history, and k times the transpose of W_k - W_d + W_p
// diag(q).
template <typename T>
struct KeyProduct {
    using W = T;
    using Row = const T*;
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
    __device__ T a(Row row, int64_t, int64_t k) const { return row[k]; }
    __device__ T b(int64_t k, int64_t j) const {
        return key_weights[j * depth + k] + query[tile.history * depth + k] * product_weights[j * depth + k];
    }
    __device__ void store(int64_t i, int64_t j, T value) const {
        x[(tile.tiles.rows.size + i) * width + j] = value + x[tile.history * width + j];
    }
};

// The gradients of the keys, dx_1 (W_k - W_d + W_p diag(q)).
template <typename T>
struct KeyGradient {
    using W = T;
    using Row = const T*;
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
    __device__ T a(Row row, int64_t, int64_t k) const { return row[k]; }
    __device__ T b(int64_t k, int64_t j) const {
        return key_weights[k * depth + j] + query[tile.history * depth + j] * product_weights[k * depth + j];
    }
    __device__ void store(int64_t i, int64_t j, T value) const { dkeys[i * depth + j] = value; }
};

// The gradients of that matrix, one for each history (blockIdx.z) of a chunk, and of the query terms, in
// which the padding's is to be added yet.
template <typename T>
struct MatrixGradient {
    using W = T;
    struct Row {};
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
    __device__ Row prepare(int64_t) const { return {}; }
    __device__ T a(Row, int64_t i, int64_t k) const { return dx[(ragged.size + k) * width + i]; }
    __device__ T b(int64_t k, int64_t j) const { return keys[k * depth + j]; }
    __device__ void store(int64_t i, int64_t j, T value) const {
        dmatrix[(blockIdx.z * width + i) * depth + j] = value;
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
