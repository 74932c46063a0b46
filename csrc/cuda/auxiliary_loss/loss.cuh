// The run of the auxiliary loss, on the host. Each chunk of the rows goes through all layers, forward and, if
// gradients are wanted, backward; the gradients of x take the place of x.

#pragma once

#include <arena.h>

#include <algorithm>

#include "pairs.cuh"

namespace dien_fast::cuda {

template <typename T>
struct LossPlan {
    const AuxiliaryCall<T>& call;
    int64_t chunk_rows, chunks;
    int64_t most_blocks = 1024;  // of pair_losses_kernel
    NextRows next;
    T* dlogits;  // [pairs]
    T* x[kMaxLayers];
    double *losses, *dbiases, *last_sums, *dlast;
    int last_splits;
    int splits[kMaxLayers];
    T *weight_sums[kMaxLayers], *bias_sums[kMaxLayers];

    LossPlan(const AuxiliaryCall<T>& call, Arena& arena) : call(call) {
        int64_t numbers = 1;
        for (int64_t l = 0; l < call.layer_count; ++l) numbers += call.widths[l];
        const int64_t rows = call.rows.rows, row_bytes = 2 * numbers * int64_t(sizeof(T));
        chunk_rows = std::min(std::max<int64_t>(call.chunk_bytes / row_bytes, 1), rows);
        chunks = rows == 0 ? 0 : (rows + chunk_rows - 1) / chunk_rows;
        next = {call.rows, arena.take<uint8_t>(rows), arena.take<int64_t>(1)};
        dlogits = arena.take<T>(2 * chunk_rows);
        losses = arena.take<double>(most_blocks);
        dbiases = arena.take<double>(most_blocks);
        const int64_t last_width = call.widths[call.layer_count - 1];
        last_splits = sum_splits_for(2 * chunk_rows);
        last_sums = arena.take<double>(last_splits * last_width);
        dlast = arena.take<double>(last_width);
        for (int64_t l = 0; l < call.layer_count; ++l) {
            x[l] = arena.take<T>(2 * chunk_rows * call.widths[l]);
            splits[l] = splits_for<T>(2 * chunk_rows, call.widths[l], inputs(l));
            const int64_t kept = call.dparameters == nullptr ? 0 : splits[l] * call.widths[l];
            weight_sums[l] = arena.take<T>(kept * inputs(l));
            bias_sums[l] = arena.take<T>(kept);
        }
    }

    int64_t inputs(int64_t l) const { return l == 0 ? 2 * call.depth : call.widths[l - 1]; }
    int64_t last_layer() const { return call.layer_count - 1; }
    dim3 loss_blocks() const { return warp_blocks(2 * chunk_rows, most_blocks); }
    FunctionRows<T> activated(int64_t l) const {
        LayerFunction<T> function{};
        function.activation = Activation::kSigmoid;
        return {function, x[l], call.widths[l]};
    }
};

template <typename T>
int64_t loss_bytes(const AuxiliaryCall<T>& call) {
    Arena arena(nullptr);
    const LossPlan<T> plan(call, arena);
    return arena.used();
}

// One chunk of the rows.
template <typename T>
struct ChunkRun {
    const LossPlan<T>& plan;
    const AuxiliaryCall<T>& call;
    Stream stream;
    PairChunk<T> chunk;
    bool first;
    RowSet pairs;

    ChunkRun(const LossPlan<T>& plan, int64_t i, Stream stream)
        : plan(plan), call(plan.call), stream(stream), first(i == 0) {
        const int64_t begin = i * plan.chunk_rows, rows = std::min(plan.chunk_rows, call.rows.rows - begin);
        chunk = {call.states,
                 call.events,
                 call.negatives,
                 plan.next.has_next,
                 begin,
                 rows,
                 std::min(rows, call.rows.rows - 1 - begin)};
        pairs = {0, 2 * rows, 0, nullptr};
    }

    PairRows<T> inputs() const { return {chunk, call.depth, 2 * call.depth}; }

    template <typename Source>
    void forward(int64_t l, const Source& source) const {
        multiply(LayerProduct<T, Source>{pairs, source, call.weights[l], call.biases[l], call.widths[l],
                                         plan.x[l]},
                 gemm_blocks(pairs.size(), call.widths[l]), stream);
    }
    void forward() const {
        forward(0, inputs());
        for (int64_t l = 1; l < call.layer_count; ++l) forward(l, plan.activated(l - 1));
        const int64_t last = plan.last_layer();
        PairLosses<T> losses{};
        losses.chunk = chunk;
        losses.x = plan.x[last];
        losses.width = call.widths[last];
        losses.last = call.weights[last + 1];
        losses.last_bias = call.biases[last + 1];
        losses.steps = plan.next.steps;
        losses.first = first;
        losses.dlogits = plan.dlogits;
        losses.losses = plan.losses;
        losses.dbiases = plan.dbiases;
        launch(pair_losses_kernel<T>, plan.loss_blocks(), kThreads, kRowSumBytes, stream, losses);
    }

    template <typename Source>
    void weight_gradient(int64_t l, const Source& source) const {
        multiply(LayerWeightGradient<T, Source>{pairs, plan.x[l], call.widths[l], source, first,
                                                plan.weight_sums[l], plan.bias_sums[l]},
                 gemm_blocks(call.widths[l], source.width, plan.splits[l]), stream);
    }
    void backward() const {
        const int64_t last = plan.last_layer(), width = call.widths[last];
        const LastGradients<T> of_last{pairs, plan.dlogits, call.weights[last + 1],
                                       width, plan.x[last], plan.last_sums};
        launch(last_gradients_kernel<T>, channel_blocks(width, plan.last_splits), kThreads, kRowSumBytes,
               stream, of_last);
        launch(grow_sums_kernel, split_blocks(width), kThreads, kRowSumBytes, stream,
               GrowingSums{plan.last_sums, plan.last_splits, width, first, plan.dlast});
        for (int64_t l = last; l > 0; --l) {
            const int64_t inputs = call.widths[l - 1];
            weight_gradient(l, plan.activated(l - 1));
            LayerInputGradient<T> product{};
            product.set = pairs;
            product.dx = plan.x[l];
            product.width = call.widths[l];
            product.weights = call.weights[l];
            product.stride = product.columns = inputs;
            product.through = product.out = plan.x[l - 1];
            multiply(product, gemm_blocks(pairs.size(), inputs), stream);
        }
        weight_gradient(0, inputs());
        const int64_t depth = call.depth, events = chunk.rows_before_last;
        // The event after a row is the next row's.
        LayerInputGradientOfTwo<T> of_states{};
        of_states.behind = chunk.rows;
        row_gradient(of_states, chunk.rows, 0, 0, call.dstates + chunk.begin * depth);
        const LayerInputGradient<T> of_events{};
        row_gradient(of_events, events, 0, depth, call.devents + (chunk.begin + 1) * depth);
        row_gradient(of_events, events, chunk.rows, depth, call.dnegatives + (chunk.begin + 1) * depth);
    }

  private:
    // The gradient of the columns from `column` on of the first layer's inputs, for `rows` pairs from `pair`
    // on.
    template <typename Product>
    void row_gradient(Product product, int64_t rows, int64_t pair, int64_t column, T* out) const {
        const int64_t depth = call.depth;
        if (rows == 0 || depth == 0) return;
        product.set = {0, rows, 0, nullptr};
        product.dx = plan.x[0] + pair * call.widths[0];
        product.width = call.widths[0];
        product.weights = call.weights[0] + column;
        product.stride = 2 * depth;
        product.columns = depth;
        product.out = out;
        multiply(product, gemm_blocks(rows, depth), stream);
    }
};

// Brings the sums into the order of the parameters.
template <typename T>
void enqueue_results(const LossPlan<T>& plan, Stream stream) {
    const AuxiliaryCall<T>& call = plan.call;
    T* out = call.dparameters;
    for (int64_t l = 0; l < call.layer_count && out != nullptr; ++l) {
        const int splits = plan.chunks > 0 ? plan.splits[l] : 0;  // without any row no sums were written
        sum_splits<T>(plan.weight_sums[l], splits, call.widths[l] * plan.inputs(l), out, stream);
        out += call.widths[l] * plan.inputs(l);
        sum_splits<T>(plan.bias_sums[l], splits, call.widths[l], out, stream);
        out += call.widths[l];
    }
    LossResults<T> results{};
    results.losses = plan.losses;
    results.dbiases = plan.dbiases;
    results.dlast = plan.dlast;
    results.count = plan.chunks > 0 ? plan.loss_blocks().x : 0;
    results.width = call.widths[plan.last_layer()];
    results.steps = plan.next.steps;
    results.loss = call.loss;
    results.out = out;
    launch(loss_results_kernel<T>, dim3(1), kThreads, kRowSumBytes, stream, results);
}

template <typename T>
void run_loss(const AuxiliaryCall<T>& call, void* workspace, void* stream_) {
    const auto stream = static_cast<Stream>(stream_);
    Arena arena(workspace);
    const LossPlan<T> plan(call, arena);
    const int64_t rows = call.rows.rows;
    if (rows > 0) {
        launch(clear_next_kernel, blocks_for(rows, kThreads), kThreads, 0, stream, plan.next);
        if (call.rows.size > 0)
            launch(mark_next_kernel, dim3(unsigned(call.rows.size)), kThreads, 0, stream, plan.next);
    }
    launch(count_steps_kernel, dim3(1), kThreads, kThreads * int(sizeof(int64_t)), stream, plan.next);
    for (int64_t i = 0; i < plan.chunks; ++i) {
        const ChunkRun<T> chunk(plan, i, stream);
        chunk.forward();
        if (call.dparameters != nullptr) chunk.backward();
    }
    if (call.dparameters != nullptr && rows > 0 && call.depth > 0) {
        const dim3 blocks = blocks_for(call.depth, kThreads);  // no event stands before the first one
        launch(zero_kernel<T>, blocks, kThreads, 0, stream, call.devents, call.depth);
        launch(zero_kernel<T>, blocks, kThreads, 0, stream, call.dnegatives, call.depth);
    }
    enqueue_results(plan, stream);
}

}  // namespace dien_fast::cuda
