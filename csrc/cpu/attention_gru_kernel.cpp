// The CPU kernels, compiled once per instruction set; the compiler's target chooses the namespace and tile
// shape.
//
// A thread runs one tile of histories through all their steps, so nothing waits for anything. In a step the
// tile goes through the columns of H in blocks of one vector; for a block, kRows histories at a time keep the
// sums of u, r and n (or c) in registers through the products with x and h, and all of the tile go through
// the activations together. The packed weights of a block stay in the first-level cache for all histories of
// the tile. kRows sums of three gates are as many as the registers hold; kMaxTileRows / kRows of them read a
// block's weights from the second level once.
//
// Backward runs the steps in reverse. Only dh_{t-1} = ... + U^T [du' dr' dc] is sequential; the gradients of
// the gates are collected for kChunkRows rows, from which dx and the sums over rows are matrix products.
//
// Everything here is internal to the translation unit: a function shared with other instruction sets could be
// linked from the wrong one.

#include "../attention_gru.h"
#include "kernel/target.h"

namespace dien_fast {
namespace DIEN_FAST_ISA {
namespace {

constexpr int kChunkRows = 96;
constexpr int kParts = 4;  // of a row of gates: u, r, c, n

#include "kernel/vectors.h"
// clang-format off: each needs the one before
#include "kernel/products.h"
// clang-format on

int gate_count(Cell cell) { return cell == Cell::kAgru ? 2 : 3; }

// Row block of u (gate 0), r (1) or n (2) in the caller's weights; -1 where the cell has no such gate.
int gate_block(Cell cell, int gate) {
    if (cell == Cell::kAgru) return gate - 1;
    if (cell == Cell::kGru) return gate == 2 ? 2 : 1 - gate;
    return gate;
}

template <typename T>
struct Rule {
    T alpha, beta;      // z = alpha + beta u
    T alpha_a, beta_a;  // their derivatives in a
};
template <typename T>
Rule<T> rule(Cell cell, T a) {
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
