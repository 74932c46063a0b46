// The attention GRU: equations, shapes and the interface of its kernels. Read this page first.
//
// FORWARD. A batch has B histories, history b has len[b] steps. A step takes its input x_t (I numbers) and
// its attention a_t (one number), and turns the state h_{t-1} (H numbers) into h_t. The first state is h0, or
// 0. With s(v) = 1 / (1 + exp(-v)):
//
//     u = s(W_u x + b_iu + U_u h + b_hu)          update gate, absent in agru
//     r = s(W_r x + b_ir + U_r h + b_hr)          reset gate
//     c = U_n h + b_hn                            what the state adds to the candidate
//     n = tanh(W_n x + b_in + r * c)              candidate
//     h <- h + z (n - h),  z = alpha + beta u     z: the share of the state that the step replaces
//
// W is weight_ih, U weight_hh. A cell is a rule for z and an order of the gates' blocks of H rows, as cells.h
// says:
//
//     cell              z                alpha  beta    rows of weight_ih, weight_hh, bias_ih, bias_hh
//     augru             a u              0      a       (u | r | n)
//     augru_official    1 - (1 - a) u    1      a - 1   (u | r | n)
//     augru_inverted    1 - a u          1      -a      (u | r | n)
//     agru              a                a      0       (r | n)
//     gru               1 - u            1      -1      (r | u | n), the order of torch.nn.GRU
//
// BACKWARD. A step gets dh, the gradient of h_t: what the steps after it hand down, plus the gradient of the
// state that was returned. A prime marks the gradient of a gate's argument, before its sigmoid or tanh:
//
//     dz = dh (n - h_{t-1})      dn' = dh z (1 - n^2)     through tanh
//     du' = dz beta u (1 - u)    dr' = dn' c r (1 - r)    through the sigmoids
//     dc = dn' r                 da = sum over H of dz (dalpha/da + dbeta/da u)
//     dx = W^T [du' dr' dn']     dh_{t-1} = dh (1 - z) + U^T [du' dr' dc]
//     dW += [du' dr' dn'] x^T    dU += [du' dr' dc] h_{t-1}^T    the biases alike, without x and h
//
// It needs u, r, c and n of every step. Forward keeps them where they are few; else backward computes them
// again from the states. Only dh_{t-1} goes from step to step; dx, dW and dU are products of many steps' rows
// at once.
//
// ADDRESSES. One rule covers every layout without a copy: step t of history b is row  row_start[b] +
// step_start[t] of every array that has a row for each step.
//
//     ragged    row_start = offsets    step_start = t
//     padded    row_start = b T        step_start = t
//     packed    row_start = b          step_start = the sum of the batch sizes before t
//
// A null step_start is t. x has a row_start of its own, x_start, whose entries may repeat: histories that
// share one input, such as the candidates of a user.
//
// WHO DOES WHAT on the CPU. attention_gru_cpu.cpp checks the tensors and makes the outputs. schedule.cpp
// sorts the histories by length and cuts them into tiles, which it shares out among the threads. Each thread
// runs its tiles through all their steps with the kernels declared below, which attention_gru_kernel.cpp
// defines for one instruction set at a time. G is the number of gates, 3, or 2 in agru. CUDA has an interface
// of its own, cuda/attention_gru/attention_gru_cuda.h.

#pragma once

#include <cstdint>

#include "cells.h"

namespace dien_fast {

// Histories run in the order of their lengths, longest first. A tile is up to kMaxTileRows neighbours in that
// order, which run together.
constexpr int kMaxTileRows = 12;

struct Tile {
    int64_t begin;  // position in Batch::order of its first history
    int64_t rows;   // histories
};

struct Batch {
    int64_t size;               // B
    const int64_t* order;       // [B] history at each position
    const int64_t* lengths;     // [B]
    const int64_t* row_start;   // [B] rows of att, states, gates and the gradients
    const int64_t* x_start;     // [B] rows of x
    const int64_t* step_start;  // [longest], or null for 0, 1, 2, ...

    // Always inlined, as a copy that translation units share could be one for the wrong instruction set.
    __attribute__((always_inline)) int64_t step(int64_t t) const {
        return step_start == nullptr ? t : step_start[t];
    }
};

// Weights as the caller has them: G blocks of H rows, in the cell's order.
template <typename T>
struct Weights {
    Cell cell;
    int64_t input;     // I
    int64_t hidden;    // H
    const T* w;        // weight_ih [G H, I]
    const T* u;        // weight_hh [G H, H]
    const T* bias_ih;  // [G H] or null
    const T* bias_hh;  // [G H] or null
    bool projected;    // x holds the output of Kernels::project instead, and I is 0
};

template <typename T>
struct Forward {
    Batch batch;
    Weights<T> weights;
    const T* packed;  // from pack_forward
    const T* x;       // rows of I, x_stride apart
    int64_t x_stride;
    const T* att;  // one a row, or null for gru
    const T* h0;   // [B, H], or null for 0
    T* states;     // output, rows of H, or null if not wanted
    T* last;       // output [B, H]
    // Output, or null: rows of 4 padded_hidden, a vector of the first columns of u, of r, of c and of n, then
    // of the next columns.
    T* gates;
};

template <typename T>
struct Backward {
    Batch batch;
    Weights<T> weights;
    const T* packed;        // from pack_backward
    const T* packed_gates;  // from pack_forward where gates is null, else unused
    const T* x;             // as in Forward
    int64_t x_stride;
    const T* att;      // as in Forward
    const T* h0;       // as in Forward
    const T* states;   // rows of H, from the forward run
    const T* gates;    // from the forward run, or null: they are computed again
    const T* dstates;  // rows of H, or null for 0
    const T* dlast;    // [B, H], or null for 0
    T* dx;             // output, rows of I, or null if not wanted
    T* datt;           // output, one a row, or null if not wanted
    T* dh0;            // output [B, H], or null if not wanted
};

// The gradients of weights and biases, summed over the rows of one thread. The caller zeroes them; null where
// not wanted. The blocks are in the kernels' own order, see x_gate and h_gate in cells.h; agru has none for
// u.
template <typename T>
struct WeightGradients {
    T* dw;  // [G H, padded_input], (u | r | n)
    T* du;  // [G H, padded_hidden], (c | u | r)
    T* db;  // [(G + 1) H, and room for a vector], (dc | du' | dr' | dn')
};

// The kernels of one instruction set for one type. Sizes count elements of T; memory is 64-byte aligned.
template <typename T>
struct Kernels {
    int64_t (*padded)(int64_t size);  // rounded up to whole vectors
    int64_t (*packed_forward_size)(int64_t input, int64_t hidden);
    int64_t (*packed_backward_size)(int64_t input, int64_t hidden);
    void (*pack_forward)(const Weights<T>&, T* packed);
    void (*pack_backward)(const Weights<T>&, T* packed);
    int64_t (*forward_scratch)(int64_t input, int64_t hidden);
    int64_t (*backward_scratch)(int64_t input, int64_t hidden);
    // What rows [begin, end) of x add to the gates' arguments, biases included: rows of 3 padded_hidden in
    // `out`.
    void (*project)(const Forward<T>&, int64_t begin, int64_t end, T* out);
    void (*forward)(const Forward<T>&, Tile, T* scratch);
    void (*backward)(const Backward<T>&, Tile, const WeightGradients<T>&, T* scratch);
};

// Defined by the translation units that cpu/attention_gru_kernel.cpp is compiled into.
namespace baseline {
extern const Kernels<float> kFloatKernels;
extern const Kernels<double> kDoubleKernels;
}  // namespace baseline
namespace avx2 {
extern const Kernels<float> kFloatKernels;
extern const Kernels<double> kDoubleKernels;
}  // namespace avx2
namespace avx512 {
extern const Kernels<float> kFloatKernels;
extern const Kernels<double> kDoubleKernels;
}  // namespace avx512
namespace avx512vl {
extern const Kernels<float> kFloatKernels;
extern const Kernels<double> kDoubleKernels;
}  // namespace avx512vl

}  // namespace dien_fast
