// The forward run of the attention scores, on the host. Each layer is a product over the rows, sums of its
// channels where the batch's statistics are needed, and the arithmetic on channels; then the softmax.

#pragma once

#include "plan.cuh"

namespace dien_fast::cuda {

template <typename T>
int64_t forward_bytes(const ScoreForward<T>& f) {
    Arena arena(nullptr);
    const ScorePlan<T> plan(f, f.saved, arena);
    return arena.used();
}

// Finds the numbers of a layer's channels, from the rows where they are the batch's. `statistics` is where
// those of its normalisations go, and is moved behind them.
template <typename T>
void enqueue_channels(const ScorePlan<T>& plan, int64_t l, T*& statistics, Stream stream) {
    LayerChannels<T> channels = plan.channels(l);
    const int64_t width = channels.layer.width;
    if (channels.batch) {
        const MomentSums<T> moments{plan.active, plan.weights(), plan.x[l], width, plan.sums};
        launch(moments_kernel<T>, channel_blocks(width, plan.splits), kThreads, kRowSumBytes, stream,
               moments);
        channels.moments = plan.sums;
        auto take = [&](const Normalisation<T>& norm) {
            T* taken = norm ? statistics : nullptr;
            if (norm) statistics += 2 * width;
            return taken;
        };
        channels.norm_batch = take(channels.layer.norm);
        channels.gate_batch = take(channels.layer.gate);
    }
    launch(channels_kernel<T>, blocks_for(width, kSumWarps), kThreads, 0, stream, channels);
}

template <typename T>
void run_forward(const ScoreForward<T>& f, void* workspace, void* stream_) {
    const auto stream = static_cast<Stream>(stream_);
    Arena arena(workspace);
    const ScorePlan<T> plan(f, f.saved, arena);
    T* statistics = f.statistics;
    plan.enqueue_terms(stream);
    for (int64_t l = 0; l < f.layer_count; ++l) {
        plan.enqueue_x(l, stream);
        enqueue_channels(plan, l, statistics, stream);
    }
    if (plan.rows == 0 || plan.size == 0) return;
    const int64_t last = plan.last_layer();
    const Logits<T> logits{plan.ragged_rows, plan.function(last), plan.x[last], f.last,
                           f.last_bias,      plan.logit_scale(),  plan.size,    f.scores};
    launch(logits_kernel<T>, warp_blocks(plan.rows), kThreads, 0, stream, logits);
    launch(softmax_kernel<T>, dim3(unsigned(plan.size)), kSoftmaxThreads, kSoftmaxThreads * int(sizeof(T)),
           stream, plan.ragged, f.scores);
}

}  // namespace dien_fast::cuda
