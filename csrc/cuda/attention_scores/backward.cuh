// The backward run of the attention scores, on the host. It computes x of every layer again. Then, for each
// layer from the last to the first: sums of its channels, which give the gradients of its normalisations and
// of the batch's statistics; the gradient of x in the place of x; and the products that give the gradients of
// weights and of the layer before.

#pragma once

#include "plan.cuh"

namespace dien_fast::cuda {

template <typename T>
struct ScoreBackwardPlan {
    ScorePlan<T> forward;
    T* dlogits;               // [B + N]
    double* dlogit_sums;      // [B]
    T* gradient[kMaxLayers];  // of f, rows of C; of all layers but the last
    int weight_splits[kMaxLayers];
    T *weight_sums, *bias_sums;  // of one layer at a time
    int64_t histories;           // whose matrices have their gradients at once
    int query_splits, term_splits;
    T *dmatrix, *dterms, *dquery_weight, *dkey_weight, *dproduct_weight;

    ScoreBackwardPlan(const ScoreBackward<T>& b, Arena& arena) : forward(b, const_cast<T*>(b.saved), arena) {
        const int64_t size = forward.size, rows = size + forward.rows;
        dlogits = arena.take<T>(rows);
        dlogit_sums = arena.take<double>(size);
        int64_t most_weights = 0, most_biases = 0;
        for (int64_t l = 0; l < b.layer_count; ++l) {
            const LayerParameters<T>& layer = b.layers[l];
            if (l + 1 < b.layer_count) gradient[l] = arena.take<T>(rows * layer.width);
            weight_splits[l] =
                splits_for<T>(l == 0 ? size : forward.active.size(), layer.width, layer.inputs);
            most_weights = std::max(most_weights, weight_splits[l] * layer.width * layer.inputs);
            most_biases = std::max(most_biases, weight_splits[l] * layer.width);
        }
        weight_sums = arena.take<T>(most_weights);
        bias_sums = arena.take<T>(most_biases);
        const int64_t matrix = forward.terms.width * forward.terms.depth;
        histories = std::clamp<int64_t>(b.chunk_bytes / (matrix * int64_t(sizeof(T))), 1,
                                        std::clamp<int64_t>(size, 1, 65535));
        term_splits = int(std::min<int64_t>(32, histories));
        dmatrix = arena.take<T>(histories * matrix);
        dterms = arena.take<T>(size * forward.terms.width);
        dkey_weight = arena.take<T>(term_splits * matrix);
        dproduct_weight = arena.take<T>(term_splits * matrix);
    }
};

template <typename T>
int64_t backward_bytes(const ScoreBackward<T>& b) {
    Arena arena(nullptr);
    const ScoreBackwardPlan<T> plan(b, arena);
    return arena.used();
}

// The gradients of a layer's normalisations and slopes and of the batch's statistics; then dx in the place of
// x.
template <typename T>
void enqueue_row_gradients(const ScoreBackward<T>& b, const ScoreBackwardPlan<T>& plan, int64_t l,
                           Stream stream) {
    const ScorePlan<T>& p = plan.forward;
    const bool is_last = l == p.last_layer();
    const T* d = is_last ? nullptr : plan.gradient[l];
    const RowSet set = is_last ? p.ragged_rows : p.active;  // the others have no logits
    const int splits = sum_splits_for(set.size());
    const int64_t width = b.layers[l].width;
    const GradientSums<T> sums{set, p.function(l), p.x[l], d, plan.dlogits, b.last, p.sums};
    launch(gradients_kernel<T>, channel_blocks(width, splits), kThreads, kRowSumBytes, stream, sums);
    const ChannelSums<T> finish{p.channels(l), p.sums, splits, b.gradients[l], is_last ? b.dlast : nullptr};
    launch(finish_gradients_kernel<T>, blocks_for(width, kSumWarps), kThreads, 0, stream, finish);
    if (b.layers[l].activation == Activation::kPrelu)
        launch(slope_gradient_kernel<T>, dim3(1), kThreads, kThreads * int(sizeof(double)), stream, finish);
    if (p.active.size() == 0) return;
    const RowGradients<T> gradients{p.active, p.weights(), b.batch_statistics, p.function(l), d, plan.dlogits,
                                    b.last,   p.x[l]};
    launch(row_gradients_kernel<T>, warp_blocks(p.active.size()), kThreads, 0, stream, gradients);
}

template <typename T>
void multiply_for_inputs(const RowSet& set, const T* dx, int64_t width, const T* weights, int64_t inputs,
                         bool add, T* out, Stream stream) {
    LayerInputGradient<T> product{};
    product.set = set;
    product.dx = dx;
    product.width = width;
    product.weights = weights;
    product.stride = product.columns = inputs;
    product.add = add;
    product.out = out;
    multiply(product, gemm_blocks(set.size(), inputs), stream);
}

// From dx of a layer behind the first, the gradients of its weight and bias, and of the f before it.
template <typename T>
void enqueue_layer_backward(const ScoreBackward<T>& b, const ScoreBackwardPlan<T>& plan, int64_t l,
                            Stream stream) {
    const ScorePlan<T>& p = plan.forward;
    const LayerParameters<T>& layer = b.layers[l];
    const int splits = plan.weight_splits[l];
    multiply(LayerWeightGradient<T, FunctionRows<T>>{p.active, p.x[l], layer.width, p.activated(l - 1), true,
                                                     plan.weight_sums, plan.bias_sums},
             gemm_blocks(layer.width, layer.inputs, splits), stream);
    sum_splits<T>(plan.weight_sums, splits, layer.width * layer.inputs, b.gradients[l].weight, stream);
    sum_splits<T>(plan.bias_sums, splits, layer.width, b.gradients[l].bias, stream);
    if (p.active.size() > 0)
        multiply_for_inputs<T>(p.active, p.x[l], layer.width, layer.weight, layer.inputs, false,
                               plan.gradient[l - 1], stream);
}

// From dx of the first layer, what depends on each history's matrix.
template <typename T>
void enqueue_matrix_backward(const ScoreBackward<T>& b, const ScoreBackwardPlan<T>& plan, Stream stream) {
    const ScorePlan<T>& p = plan.forward;
    const Terms<T>& terms = p.terms;
    MatrixSums<T> sums{};
    sums.dmatrix = plan.dmatrix;
    sums.query = b.query;
    sums.product_weights = terms.product;
    sums.width = terms.width;
    sums.depth = terms.depth;
    sums.padding = b.batch_statistics ? p.x[0] : nullptr;
    sums.dterms = plan.dterms;
    sums.dquery = b.dquery;
    sums.dkey = plan.dkey_weight;
    sums.dproduct = plan.dproduct_weight;
    for (int64_t begin = 0; begin < p.size; begin += plan.histories) {
        sums.first = begin == 0;
        sums.first_history = begin;
        sums.histories = std::min(plan.histories, p.size - begin);
        MatrixGradient<T> matrices{};
        matrices.ragged = p.ragged;
        matrices.first_history = begin;
        matrices.dx = p.x[0];
        matrices.keys = b.keys;
        matrices.width = terms.width;
        matrices.depth = terms.depth;
        matrices.dmatrix = plan.dmatrix;
        matrices.dterms = plan.dterms;
        multiply(matrices, gemm_blocks(terms.width, terms.depth, sums.histories), stream);
        launch(history_gradient_kernel<T>, dim3(unsigned(sums.histories)), 128, 0, stream, sums);
        launch(term_gradients_kernel<T>,
               dim3(blocks_for(terms.width * terms.depth, kThreads).x, unsigned(plan.term_splits)), kThreads,
               0, stream, sums);
    }
}

template <typename T>
void enqueue_first_backward(const ScoreBackward<T>& b, const ScoreBackwardPlan<T>& plan, Stream stream) {
    const ScorePlan<T>& p = plan.forward;
    const Terms<T>& terms = p.terms;
    if (p.rows > 0 && p.size > 0) {
        KeyGradient<T> keys{};
        keys.tile.tiles = p.tiles;
        keys.dx = p.x[0];
        keys.query = b.query;
        keys.key_weights = terms.key;
        keys.product_weights = terms.product;
        keys.width = terms.width;
        keys.depth = terms.depth;
        keys.dkeys = b.dkeys;
        multiply(keys, p.tile_blocks(terms.depth), stream);
    }
    enqueue_matrix_backward(b, plan, stream);
    const int splits = plan.weight_splits[0];
    multiply(LayerWeightGradient<T, FunctionRows<T>>{p.queries, plan.dterms, terms.width, p.candidates(),
                                                     true, plan.weight_sums, plan.bias_sums},
             gemm_blocks(terms.width, terms.depth, splits), stream);
    sum_splits<T>(plan.bias_sums, splits, terms.width, b.gradients[0].bias, stream);
    const FirstGradient<T> first{terms.width,
                                 terms.depth,
                                 p.size > 0 ? plan.term_splits : 0,
                                 splits,
                                 plan.weight_sums,
                                 plan.dkey_weight,
                                 plan.dproduct_weight,
                                 b.gradients[0].weight};
    launch(first_gradient_kernel<T>, blocks_for(terms.width * terms.depth, kThreads), kThreads, 0, stream,
           first);
    if (p.size > 0)
        multiply_for_inputs<T>(p.queries, plan.dterms, terms.width, terms.query, terms.depth, true, b.dquery,
                               stream);
}

template <typename T>
void run_backward(const ScoreBackward<T>& b, void* workspace, void* stream_) {
    const auto stream = static_cast<Stream>(stream_);
    Arena arena(workspace);
    const ScoreBackwardPlan<T> plan(b, arena);
    const ScorePlan<T>& p = plan.forward;
    p.enqueue_terms(stream);
    for (int64_t l = 0; l < b.layer_count; ++l) {
        p.enqueue_x(l, stream);
        launch(channels_kernel<T>, blocks_for(b.layers[l].width, kSumWarps), kThreads, 0, stream,
               p.channels(l));
    }
    if (p.size > 0) {
        const SoftmaxBackward<T> softmax{p.ragged,        b.scores,     b.dscores,
                                         p.logit_scale(), plan.dlogits, plan.dlogit_sums};
        launch(softmax_backward_kernel<T>, dim3(unsigned(p.size)), kSoftmaxThreads,
               kSoftmaxThreads * int(sizeof(double)), stream, softmax);
    }
    launch(add_up_kernel<T>, dim3(1), kThreads, kThreads * int(sizeof(double)), stream,
           static_cast<const double*>(plan.dlogit_sums), p.size, b.dlast_bias);
    for (int64_t l = p.last_layer(); l >= 0; --l) {
        enqueue_row_gradients(b, plan, l, stream);
        if (l > 0) enqueue_layer_backward(b, plan, l, stream);
    }
    enqueue_first_backward(b, plan, stream);
}

}  // namespace dien_fast::cuda
