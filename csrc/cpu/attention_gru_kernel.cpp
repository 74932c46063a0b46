// The CPU kernels of the attention GRU. This file is compiled once for each instruction set: the compiler's
// flags choose the namespace and the shape of the tiles (kernel/target.h).
//
// Forward (kernel/attention_gru_forward.h). A thread runs one tile of histories through all their steps, so
// no thread waits for another. In each step the tile goes through the columns of H, one vector of columns at
// a time, a "column block". For a column block, kRows histories at a time keep the sums of u, r and n (or c)
// in registers, through the products with x and with h; then all histories of the tile go through the
// activations together. kRows is as many histories as the registers hold sums of three gates for. The packed
// weights of a column block are read from the second-level cache once for the whole tile; for its
// kMaxTileRows / kRows groups they stay in the first level.
//
// Backward (kernel/attention_gru_backward.h) runs the steps in reverse. Only dh_{t-1} = ... + U^T [du' dr'
// dc] goes from step to step. The gradients of the gates are collected until there are kChunkRows rows of
// them; then dx and the sums over rows are computed as matrix products.
//
// Everything here is internal to the translation unit: a function that instruction sets shared could be
// linked from the wrong one.

#include "../attention_gru.h"
#include "kernel/target.h"
#include "view.h"

namespace dien_fast {
namespace DIEN_FAST_ISA {
namespace {

constexpr int kChunkRows = 96;
constexpr int kParts =
    4;  // u, r, c and n, of which a row of gates holds a vector each for every column block

#include "kernel/vectors.h"
// clang-format off: each needs the one before
#include "kernel/products.h"
// clang-format on

// clang-format off: each needs the one before
#include "kernel/attention_gru_forward.h"
#include "kernel/attention_gru_backward.h"
// clang-format on

}  // namespace

template <typename T>
static constexpr Kernels<T> kernels() {
    return {padded<T>,
            packed_forward_size<T>,
            packed_backward_size<T>,
            pack_forward<T>,
            pack_backward<T>,
            forward_scratch<T>,
            backward_scratch<T>,
            project<T>,
            forward<T>,
            backward<T>};
}

extern const Kernels<float> kFloatKernels = kernels<float>();
extern const Kernels<double> kDoubleKernels = kernels<double>();

}  // namespace DIEN_FAST_ISA
}  // namespace dien_fast
