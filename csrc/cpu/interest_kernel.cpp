// The CPU kernels of the interest layer, compiled once per instruction set.
//
// Tiles of kTileRows rows go through the products of a layer while they are in the first two levels of cache.
// Rows of a tile and their gradients are padded to whole vectors; products read no padding, so it may hold
// anything finite.
//
// Everything here is internal to the translation unit: a function shared with other instruction sets could be
// linked from the wrong one.

#include "../interest.h"
#include "kernel/target.h"

namespace dien_fast {
namespace DIEN_FAST_ISA {
namespace {

// clang-format off: each needs the one before
#include "kernel/vectors.h"
#include "kernel/products.h"
#include "kernel/rows.h"
#include "kernel/attention_scores_activations.h"
#include "kernel/scores.h"
#include "kernel/auxiliary.h"
// clang-format on

}  // namespace

template <typename T>
static constexpr InterestKernels<T> interest_kernels() {
    return {padded<T>,         panels_size<T>,    pack_panels<T>,       scores_scratch<T>,   query_terms<T>,
            key_terms<T>,      layer<T>,          softmax<T>,           softmax_backward<T>, last_backward<T>,
            layer_backward<T>, terms_backward<T>, auxiliary_scratch<T>, auxiliary<T>};
}

extern const InterestKernels<float> kFloatInterest = interest_kernels<float>();
extern const InterestKernels<double> kDoubleInterest = interest_kernels<double>();

}  // namespace DIEN_FAST_ISA
}  // namespace dien_fast
