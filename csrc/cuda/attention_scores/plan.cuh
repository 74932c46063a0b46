// What forward and backward have in common, on the host: the pieces of the workspace, and the passes over the
// rows that compute every layer's x and the numbers of its channels.

#pragma once

#include <arena.h>

#include <algorithm>
#include <cmath>

#include "channels.cuh"
#include "softmax.cuh"
#include "terms.cuh"

namespace dien_fast::cuda {

template <typename T>
struct ScorePlan {
    const ScoreCall<T>& call;
    Ragged ragged;
    int64_t size, rows;  // B, N
    RowSet queries;      // the rows of the padding, which begin as the query terms
    RowSet ragged_rows;
    RowSet active;  // the rows that go through all layers
    Terms<T> terms{};
    HistoryTiles tiles{};
    int64_t *tiles_before, *tile_histories;
    T *numbers[kMaxLayers], *x[kMaxLayers], *statistics[kMaxLayers];
    int splits;
    double* sums;  // [splits, kReductions, C] of one layer at a time

    ScorePlan(const ScoreCall<T>& call, T* saved, Arena& arena)
        : call(call),
          ragged(call.rows),
          size(call.rows.size),
          rows(call.rows.rows),
          queries{0, size, 0, nullptr},
          ragged_rows{size, size, rows, call.rows.offsets + size},
          active(call.batch_statistics ? RowSet{0, size, rows, call.rows.offsets + size} : ragged_rows),
          splits(sum_splits_for(active.size())) {
        const int64_t first = call.layers[0].width;
        terms.weight = call.layers[0].weight;
        terms.width = first;
        terms.depth = call.depth;
        terms.query = arena.take<T>(first * call.depth);
        terms.key = arena.take<T>(first * call.depth);
        terms.product = arena.take<T>(first * call.depth);
        tiles_before = arena.take<int64_t>(size + 1);
        tile_histories = arena.take<int64_t>(size + rows / kGemmRows);
        tiles = {ragged, call.key_start, call.key_rows, tiles_before, tile_histories};
        int64_t widest = 0;
        for (int64_t l = 0; l < call.layer_count; ++l) {
            const int64_t width = call.layers[l].width;
            widest = std::max(widest, width);
            numbers[l] = arena.take<T>(kChannelNumbers * width);
            x[l] = arena.take<T>((size + rows) * width);
            statistics[l] = saved == nullptr ? arena.take<T>(2 * width) : saved;
            if (saved != nullptr) saved += 2 * width;
        }
        sums = arena.take<double>(splits * kReductions * widest);
    }

    int64_t last_layer() const { return call.layer_count - 1; }
    T logit_scale() const { return T(1 / std::sqrt(double(call.depth))); }
    RowWeights weights() const { return {ragged, call.max_length}; }

    LayerFunction<T> function(int64_t l) const {
        const LayerParameters<T>& layer = call.layers[l];
        return {layer.activation, layer.width, numbers[l], call.seed, call.keep, call.kept, l, size, rows};
    }
    FunctionRows<T> activated(int64_t l) const { return {function(l), x[l], call.layers[l].width}; }
    FunctionRows<T> candidates() const { return {LayerFunction<T>{}, call.query, call.depth}; }
    LayerChannels<T> channels(int64_t l) const {
        LayerChannels<T> c{};
        c.layer = call.layers[l];
        c.batch = call.batch_statistics;
        c.count = double(size) * double(call.max_length);
        c.splits = splits;
        c.saved = statistics[l];
        c.numbers = numbers[l];
        return c;
    }

    void enqueue_terms(Stream stream) const {
        const int64_t count = terms.width * terms.depth;
        launch(split_weight_kernel<T>, blocks_for(count, kThreads), kThreads, 0, stream, terms);
        if (rows == 0 || size == 0) return;
        launch(tiles_kernel, dim3(1), kScanThreads, kScanThreads * int(sizeof(int64_t)), stream, tiles,
               tiles_before);
        launch(tile_histories_kernel, blocks_for(size, kThreads), kThreads, 0, stream, tiles, tile_histories);
    }
    // A grid for products of tiles.
    dim3 tile_blocks(int64_t columns) const {
        return dim3(unsigned(tiles.count()), blocks_for(columns, kGemmColumns).x);
    }
    void enqueue_x(int64_t l, Stream stream) const { l == 0 ? first_x(stream) : later_x(l, stream); }

  private:
    void first_x(Stream stream) const {
        const LayerParameters<T>& layer = call.layers[0];
        if (size > 0)
            multiply(LayerProduct<T, FunctionRows<T>>{queries, candidates(), terms.query, layer.bias,
                                                      layer.width, x[0]},
                     gemm_blocks(size, layer.width), stream);
        if (rows == 0 || size == 0) return;
        KeyProduct<T> product{};
        product.tile.tiles = tiles;
        product.keys = call.keys;
        product.query = call.query;
        product.key_weights = terms.key;
        product.product_weights = terms.product;
        product.width = layer.width;
        product.depth = call.depth;
        product.x = x[0];
        multiply(product, tile_blocks(layer.width), stream);
    }
    void later_x(int64_t l, Stream stream) const {
        const LayerParameters<T>& layer = call.layers[l];
        if (active.size() == 0) return;
        multiply(LayerProduct<T, FunctionRows<T>>{active, activated(l - 1), layer.weight, layer.bias,
                                                  layer.width, x[l]},
                 gemm_blocks(active.size(), layer.width), stream);
    }
};

}  // namespace dien_fast::cuda
