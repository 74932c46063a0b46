// The weights, brought into the kernels' order of the gates and into the wide type; see x_gate and h_gate in
// cells.h.

#pragma once

#include <arena.h>
#include <platform.h>

#include <algorithm>

#include "../common/launch.cuh"
#include "../common/numbers.cuh"
#include "attention_gru_cuda.h"

namespace dien_fast::cuda {

// Recurrent weights as the scans read them. The columns of a product are cut into blocks; a block has `depth`
// rows of `stride` numbers, which are its columns in groups of a warp's 8, each group's gates side by side:
// their distance is known to the compiler, so that one address serves them all. The lanes of a warp read
// neighbouring rows together: a stride that is an odd multiple of 8 spreads those over all banks of the
// shared memory.
struct Panels {
    int columns;  // of a block: the hidden size rounded up to whole warps, at most kMaxColumns
    int blocks;
    int depth;   // the number of terms of a sum, rounded up
    int stride;  // of a row
    int stage;   // rows that are copied at once where not all fit in shared memory
};

constexpr int kWarpColumns = 8;  // columns of the result that a warp computes
constexpr int kMaxColumns = 128;

inline int round_up(int64_t value, int unit) { return int((value + unit - 1) / unit * unit); }

inline Panels panels(int64_t hidden, int gates, int64_t depth) {
    Panels p{};
    p.columns = hidden < kMaxColumns ? round_up(hidden, kWarpColumns) : kMaxColumns;
    p.blocks = int((hidden + p.columns - 1) / p.columns);
    p.depth = round_up(depth, 8);
    p.stride = gates * p.columns;
    if (p.stride / 8 % 2 == 0) p.stride += 8;
    p.stage = gates == 1 ? 32 : 16;
    return p;
}
// Forward multiplies h [H] by the transpose of U; a column's gates (c | u | r) stand side by side.
inline Panels forward_panels(int64_t hidden, int gates) { return panels(hidden, gates, hidden); }
// Backward multiplies (dc | du' | dr') [G H] by U.
inline Panels backward_panels(int64_t hidden, int gates) { return panels(hidden, 1, gates * hidden); }

inline int64_t panels_size(const Panels& p) {
    // Room behind the last block for a whole stage that begins in its last row.
    return (int64_t(p.blocks) * p.depth + p.stage) * p.stride;
}

// The arguments of pack_kernel.
template <typename T>
struct PackWeights {
    Cell cell;
    int64_t input, hidden;
    int gates;
    const T* w;
    const T* u;
    const T* bias_ih;
    const T* bias_hh;
    Wide<T>* x_weights;      // [G H, I], (u | r | n)
    Wide<T>* x_bias;         // [G H], (u | r | n): b_iu + b_hu, b_ir + b_hr, b_in
    Wide<T>* c_bias;         // [H]: b_hn
    Wide<T>* state_weights;  // [G H, H], (c | u | r), or null
    Wide<T>* panels;         // of U for the direction
    Panels shape;
    bool forward;
};

template <typename T>
__global__ void pack_kernel(PackWeights<T> p) {
    using W = Wide<T>;
    const int64_t hidden = p.hidden, rows = p.gates * hidden;
    const int64_t first = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    const int64_t step = int64_t(gridDim.x) * blockDim.x;
    // The caller's row for a row in the kernels' order, of weights that meet h or of those that meet x.
    auto caller_row = [&](int64_t row, bool of_state) {
        const int place = int(row / hidden);
        const Gate gate = of_state ? h_gate(p.cell, place) : x_gate(p.cell, place);
        return gate_block(p.cell, gate) * hidden + row % hidden;
    };
    for (int64_t i = first; i < rows * p.input; i += step)
        p.x_weights[i] = widened(p.w[caller_row(i / p.input, false) * p.input + i % p.input]);
    for (int64_t i = first; i < rows; i += step) {
        const int64_t row = caller_row(i, false);
        W bias = p.bias_ih == nullptr ? W(0) : widened(p.bias_ih[row]);
        if (p.bias_hh != nullptr && i < rows - hidden) bias += widened(p.bias_hh[row]);
        p.x_bias[i] = bias;
    }
    for (int64_t i = first; i < hidden; i += step)
        p.c_bias[i] = p.bias_hh == nullptr ? W(0) : widened(p.bias_hh[caller_row(i, true)]);
    if (p.state_weights != nullptr)
        for (int64_t i = first; i < rows * hidden; i += step)
            p.state_weights[i] = widened(p.u[caller_row(i / hidden, true) * hidden + i % hidden]);
    const int64_t size = int64_t(p.shape.blocks) * p.shape.depth + p.shape.stage;
    for (int64_t i = first; i < size * p.shape.stride; i += step) {
        const int64_t line = i / p.shape.stride, block = line / p.shape.depth, k = line % p.shape.depth;
        const int at = int(i % p.shape.stride), gates = p.forward ? p.gates : 1;
        const int gate = at / kWarpColumns % gates;
        const int64_t column =
            block * p.shape.columns + at / (kWarpColumns * gates) * kWarpColumns + at % kWarpColumns;
        W value = 0;
        if (block < p.shape.blocks && column < hidden && at < gates * p.shape.columns) {
            if (p.forward && k < hidden)
                value = widened(p.u[caller_row(gate * hidden + column, true) * hidden + k]);
            if (!p.forward && k < rows) value = widened(p.u[caller_row(k, true) * hidden + column]);
        }
        p.panels[i] = value;
    }
}

// The packed weights of a call, in its workspace.
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

}  // namespace dien_fast::cuda
