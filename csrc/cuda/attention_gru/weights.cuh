// The rules of the cells, and the weights brought into the kernels' order.
//
// Inside, the gates that meet x stand in the order (u | r | n), those that meet h in the order (c | u | r),
// without u in agru, so that the row (c | u | r | n) of a step holds both in one piece each.

#pragma once

#include <platform.h>

#include "attention_gru_cuda.h"

namespace dien_fast::cuda {

template <typename T>
struct WideOf {
    using type = float;
};
template <>
struct WideOf<double> {
    using type = double;
};
template <typename T>
using Wide = typename WideOf<T>::type;

// Neighbours in shared memory, read and written as vectors; the compiler does not see that they are aligned.
template <typename W, int kCount>
struct alignas(sizeof(W) * kCount < 16 ? sizeof(W) * kCount : 16) Vector {
    W values[kCount];
};

template <typename W>
struct Rule {
    W alpha, beta;      // z = alpha + beta u
    W alpha_a, beta_a;  // their derivatives in a
};
template <typename W>
__device__ inline Rule<W> rule(Cell cell, W a) {
    switch (cell) {
        case Cell::kAugru:
            return {0, a, 0, 1};
        case Cell::kAugruOfficial:
            return {1, a - 1, 0, 1};
        case Cell::kAugruInverted:
            return {1, -a, 0, -1};
        case Cell::kAgru:
            return {a, 0, 1, 0};
        default:
            return {1, -1, 0, 0};
    }
}

__device__ inline float exponential(float v) { return expf(v); }
__device__ inline double exponential(double v) { return exp(v); }
__device__ inline float hyperbolic_tangent(float v) { return tanhf(v); }
__device__ inline double hyperbolic_tangent(double v) { return tanh(v); }
template <typename W>
__device__ inline W sigmoid(W v) {
    return W(1) / (W(1) + exponential(-v));
}

inline int gate_count(Cell cell) { return cell == Cell::kAgru ? 2 : 3; }

// The caller's block of rows for the gate at a place of (u | r | n), or of (c | u | r) where `of_state`.
__host__ __device__ inline int gate_block(Cell cell, int place, bool of_state) {
    const int gates = cell == Cell::kAgru ? 2 : 3;
    if (of_state) place = place == 0 ? gates - 1 : place - 1;
    return cell == Cell::kGru && place < 2 ? 1 - place : place;
}

// Recurrent weights as the scans read them: for each block of columns of the result, `depth` rows of `stride`
// numbers, the gates' columns side by side. The odd multiple of 8 spreads neighbouring rows, which the lanes
// of a warp read together, over all banks.
struct Panels {
    int columns;  // of a block: of the hidden size up to whole warps, at most 128
    int blocks;
    int depth;
    int stride;
    int stage;  // rows that are streamed at once, where not all fit: whole turns of the scan
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
// Forward: h [H] times U^T, the gates (c | u | r) of a column side by side.
inline Panels forward_panels(int64_t hidden, int gates) { return panels(hidden, gates, hidden); }
// Backward: (dc | du' | dr') [G H] times U.
inline Panels backward_panels(int64_t hidden, int gates) { return panels(hidden, 1, gates * hidden); }

inline int64_t panels_size(const Panels& p) {
    // Whole stages can be copied from anywhere inside.
    return (int64_t(p.blocks) * p.depth + p.stage) * p.stride;
}

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
    Wide<T>* x_bias;         // [G H]: all biases outside of r * c
    Wide<T>* c_bias;         // [H]
    Wide<T>* state_weights;  // [G H, H], (c | u | r), or null
    Wide<T>* panels;         // forward or backward
    Panels shape;
    bool forward;
};

template <typename T>
__global__ void pack_kernel(PackWeights<T> p) {
    using W = Wide<T>;
    const int64_t hidden = p.hidden, rows = p.gates * hidden;
    const int64_t first = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    const int64_t step = int64_t(gridDim.x) * blockDim.x;
    auto caller_row = [&](int64_t row, bool of_state) {
        return gate_block(p.cell, int(row / hidden), of_state) * hidden + row % hidden;
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
        const int at = int(i % p.shape.stride), gate = p.forward ? at / p.shape.columns : 0;
        const int64_t column = block * p.shape.columns + at - gate * p.shape.columns;
        W value = 0;
        if (block < p.shape.blocks && column < hidden && at < p.gates * p.shape.columns) {
            if (p.forward && k < hidden)
                value = widened(p.u[caller_row(gate * hidden + column, true) * hidden + k]);
            if (!p.forward && k < rows) value = widened(p.u[caller_row(k, true) * hidden + column]);
        }
        p.panels[i] = value;
    }
}

}  // namespace dien_fast::cuda
