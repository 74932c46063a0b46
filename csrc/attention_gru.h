// The attention GRU: equations, shapes and the interface of its kernels. Read this page first.
//
// B histories of lengths len[b]; x_t is the input of a step (I numbers), h_t its state (H numbers), a_t the
// attention (a scalar). With s(v) = 1 / (1 + exp(-v)):
//
//     u = s(W_u x + b_iu + U_u h + b_hu)          update gate, absent in agru
//     r = s(W_r x + b_ir + U_r h + b_hr)          reset gate
//     c = U_n h + b_hn
//     n = tanh(W_n x + b_in + r * c)
//     h <- h + z (n - h),  z = alpha + beta u     z: the share of the state that the step replaces
//
//     cell              z                alpha  beta    rows of weight_ih, weight_hh, bias_ih, bias_hh
//     augru             a u              0      a       (u | r | n)
//     augru_official    1 - (1 - a) u    1      a - 1   (u | r | n)
//     augru_inverted    1 - a u          1      -a      (u | r | n)
//     agru              a                a      0       (r | n)
//     gru               1 - u            1      -1      (r | u | n), the order of torch.nn.GRU
//
// Backward, with dh the gradient of h_t from later steps plus that of the returned state:
//
//     dz = dh (n - h_{t-1})      dn' = dh z (1 - n^2)     through tanh
//     du' = dz beta u (1 - u)    dr' = dn' c r (1 - r)    through the sigmoids
//     dc = dn' r                 da = sum over H of dz (dalpha/da + dbeta/da u)
//     dx = W^T [du' dr' dn']     dh_{t-1} = dh (1 - z) + U^T [du' dr' dc]
//     dW += [du' dr' dn'] x^T    dU += [du' dr' dc] h_{t-1}^T    the biases alike, without x and h
//
// Addresses: step t of history b is row  row_start[b] + step_start[t]  of every array over steps, which
// covers ragged rows (row_start = offsets, step_start = t), padded rows (row_start = b T) and packed rows
// (row_start = b, step_start = cumulative batch sizes) alike. A null step_start is t. Inputs have a row_start
// of their own, whose entries may repeat where histories share one input.

#pragma once

#include <cstdint>

namespace dien_fast {

enum class Cell : int64_t { kAugru, kAugruOfficial, kAugruInverted, kAgru, kGru };

// Histories in the order they run in, longest first; a tile is up to kMaxTileRows neighbours that run
// together.
constexpr int kMaxTileRows = 12;

struct Tile {
    int64_t begin;  // first position in Batch::order
    int64_t rows;
};

struct Batch {
    int64_t size;               // B
    const int64_t* order;       // [B] history at each position
    const int64_t* lengths;     // [B]
    const int64_t* row_start;   // [B] rows of att, states, gates and the gradients
    const int64_t* x_start;     // [B] rows of x
    const int64_t* step_start;  // [longest], or null for 0, 1, 2, ...

    // Always inlined: a copy shared by the translation units could be one of the wrong instruction set.
    __attribute__((always_inline)) int64_t step(int64_t t) const {
        return step_start == nullptr ? t : step_start[t];
    }
};

// Weights as the caller has them; the rows of the gates in the order of the table above.
template <typename T>
struct Weights {
    Cell cell;
    int64_t input;     // I
    int64_t hidden;    // H
    const T* w;        // weight_ih [G H, I]
    const T* u;        // weight_hh [G H, H]
    const T* bias_ih;  // [G H] or null
    const T* bias_hh;  // [G H] or null
    bool projected;    // x holds what project made of it, and I is 0
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
    T* gates;      // output, rows of 4 padded_hidden: a vector each of u, r, c, n, then the next columns'; or
                   // null
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

// Sums over rows that every thread keeps for itself, each zeroed by the caller; null where not wanted. agru
// has no u.
template <typename T>
struct WeightGradients {
    T* dw;  // [G H, padded_input], gates in the order (u | r | n)
    T* du;  // [G H, padded_hidden], (n | u | r)
    T* db;  // [(G + 1) H and a vector]: dc, du', dr', dn' summed over rows
};

// One instruction set's kernels for one type. Sizes count elements of T; memory is 64-byte aligned.
template <typename T>
struct Kernels {
    int64_t (*padded)(int64_t size);  // size up to whole vectors
    int64_t (*packed_forward_size)(int64_t input, int64_t hidden);
    int64_t (*packed_backward_size)(int64_t input, int64_t hidden);
    void (*pack_forward)(const Weights<T>&, T* packed);
    void (*pack_backward)(const Weights<T>&, T* packed);
    int64_t (*forward_scratch)(int64_t input, int64_t hidden);
    int64_t (*backward_scratch)(int64_t input, int64_t hidden);
    // What the rows [begin, end) of x add to the gates, biases included: rows of 3 padded_hidden.
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
