// What both directions do on the host beside the schedule: pack weights, zero padding, choose tiles.

#pragma once

#include <algorithm>

#include "../attention_gru/products.cuh"
#include "../attention_gru/schedule.cuh"
#include "../attention_gru/weights.cuh"

namespace dien_fast::cuda {

constexpr int kThreads = 256;

// Zeroes the padded rows of an array with rows of `width`.
template <typename T>
__global__ void zero_padding_kernel(Layout layout, int64_t width, T* rows) {
    const int64_t row = blockIdx.x, b = row / layout.steps;
    if (row - b * layout.steps < layout.lengths[b]) return;
    for (int64_t i = threadIdx.x; i < width; i += blockDim.x) store(rows[row * width + i], 0);
}

// Weights in the kernels' order, in the workspace.
template <typename T>
struct Packed {
    PackWeights<T> pack{};

    Packed(const Call& call, bool forward, Arena& arena) {
        using W = Wide<T>;
        const int gates = gate_count(call.cell);
        const int64_t hidden = call.hidden, rows = gates * hidden;
        pack.cell = call.cell;
        pack.input = call.input;
        pack.hidden = hidden;
        pack.gates = gates;
        pack.w = static_cast<const T*>(call.w);
        pack.u = static_cast<const T*>(call.u);
        pack.bias_ih = static_cast<const T*>(call.bias_ih);
        pack.bias_hh = static_cast<const T*>(call.bias_hh);
        pack.x_weights = arena.take<W>(rows * call.input);
        pack.x_bias = arena.take<W>(rows);
        pack.c_bias = arena.take<W>(hidden);
        pack.state_weights = forward ? nullptr : arena.take<W>(rows * hidden);
        pack.shape = forward ? forward_panels(hidden, gates) : backward_panels(hidden, gates);
        pack.panels = arena.take<W>(panels_size(pack.shape));
        pack.forward = forward;
    }

    void enqueue(Stream stream) const {
        const int64_t size = std::max(panels_size(pack.shape), pack.gates * pack.hidden * pack.input);
        launch(pack_kernel<T>, dim3(std::min(blocks_for(size, kThreads).x, 1024u)), kThreads, 0, stream,
               pack);
    }
};

// Histories of a block: as many as leave no multiprocessor without one.
inline int tile_rows(int64_t batch, const Device& device) {
    return batch > 4 * device.multiprocessors ? 8 : 4;
}

}  // namespace dien_fast::cuda
