// The CPU kernels of the auxiliary loss and its gradients, compiled once for each instruction set. interest.h
// has the equations. Rows are padded to whole vectors; no product reads the padding, so that it may hold
// anything finite.
//
// Everything here is internal to the translation unit: a function that instruction sets shared could be
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
// clang-format on

// A tile has up to kTileRows states, as many events, and as many negatives, which stand behind the events:
// "pairs".
constexpr int kPairs = 2 * kTileRows;

template <typename T>
int64_t auxiliary_scratch(const Auxiliary<T>& p) {
    const int64_t depth = padded<T>(p.depth);
    int64_t size = (2 * kTileRows + 2 * kPairs) * depth + 2 * kTileRows * padded<T>(p.widths[0]);
    for (int64_t l = 0; l < p.layer_count; ++l) size += 2 * kPairs * padded<T>(p.widths[l]);
    return size;
}

// Turns `size` numbers v into s(v), up to the end of their last vector, and returns the sum of log(1 + e^v).
// It is max(v, 0) + log(1 + e^-|v|); the sum of the latter is the logarithm of a product, which cannot
// overflow, as a tile has kPairs factors of at most 2.
template <typename T>
double errors(T* v, int64_t size) {
    double total = 0, powers = 1;
    for (int64_t i = 0; i < size; i += kLanes<T>) {
        const Vec<T> value = load(v + i);
        const Vec<T> e = exponential(value > T(0) ? -value : value);
        store(v + i, (value > T(0) ? T(1) - Vec<T>{} : e) / (T(1) + e));
        T growing[kLanes<T>], rest[kLanes<T>];
        store(growing, value <= T(0) ? Vec<T>{} : value);  // NaN stays
        store(rest, e);
        for (int64_t lane = 0; lane < kLanes<T> && i + lane < size; ++lane) {
            total += double(growing[lane]);
            powers *= 1 + double(rest[lane]);
        }
    }
    return total + log(powers);
}

// rows = s(rows), for `size` numbers, whole vectors.
template <typename T>
void squash(T* rows, int64_t size) {
    int64_t i = 0;
    for (; i + 2 * kLanes<T> <= size; i += 2 * kLanes<T>) {
        Vec<T> v = Factor<T>::gate * load(rows + i), w = Factor<T>::gate * load(rows + i + kLanes<T>);
        sigmoids(v, w);
        store(rows + i, v);
        store(rows + i + kLanes<T>, w);
    }
    for (; i < size; i += kLanes<T>) store(rows + i, sigmoid(Factor<T>::gate * load(rows + i)));
}

// d *= a (1 - a)
template <typename T>
void through_sigmoid(const T* a, int64_t size, T* d) {
    for (int64_t i = 0; i < size; i += kLanes<T>) {
        const Vec<T> value = load(a + i);
        store(d + i, load(d + i) * value * (T(1) - value));
    }
}

template <typename T>
struct AuxiliaryTile {
    int64_t count = 0;
    int64_t rows[kTileRows];           // of the states; their events and negatives are one row further
    T *states, *pairs;                 // [count, padded D], [2 count, padded D]
    T *state_terms, *dstate_terms;     // [count, padded C_1]
    T *dstates, *dpairs;               // as states, pairs
    T *a[kMaxLayers], *d[kMaxLayers];  // [2 count, padded C_l]
};

template <typename T>
void run_tile(const Auxiliary<T>& p, AuxiliaryTile<T>& tile, AuxiliarySums<T>& sums) {
    const int64_t count = tile.count, depth = p.depth, stride = padded<T>(depth), last = p.layer_count - 1;
    const int64_t pairs = 2 * count, first = p.widths[0], first_width = padded<T>(first);
    if (count == 0) return;
    for (int64_t i = 0; i < count; ++i) {
        const int64_t row = tile.rows[i];
        copy_padded(tile.states + i * stride, p.states + row * depth, depth);
        copy_padded(tile.pairs + i * stride, p.events + (row + 1) * depth, depth);
        copy_padded(tile.pairs + (count + i) * stride, p.negatives + (row + 1) * depth, depth);
    }
    product<T>(count, {tile.states, stride, depth}, p.state_forward, {p.bias[0], 0, first},
               {tile.state_terms, first_width, first});
    for (int64_t side = 0; side < 2; ++side)
        product<T>(count, {tile.pairs + side * count * stride, stride, depth}, p.event_forward,
                   {tile.state_terms, first_width, first},
                   {tile.a[0] + side * count * first_width, first_width, first});
    squash(tile.a[0], pairs * first_width);
    for (int64_t l = 1; l <= last; ++l) {
        const int64_t width = padded<T>(p.widths[l]);
        product<T>(pairs, {tile.a[l - 1], padded<T>(p.widths[l - 1]), p.widths[l - 1]}, p.forward[l],
                   {p.bias[l], 0, p.widths[l]}, {tile.a[l], width, p.widths[l]});
        squash(tile.a[l], pairs * width);
    }
    const int64_t width = padded<T>(p.widths[last]);
    T dlogits[kPairs + kLanes<T>] = {};
    for (int64_t i = 0; i < pairs; ++i) {
        const T logit = dot(tile.a[last] + i * width, p.last, width) + p.last_bias;
        dlogits[i] = i < count ? -logit : logit;
    }
    sums.loss += errors(dlogits, pairs);
    for (int64_t i = 0; i < pairs; ++i) dlogits[i] *= i < count ? -p.scale : p.scale;
    tile.count = 0;
    if (p.dstates == nullptr) return;

    for (int64_t i = 0; i < pairs; ++i) sums.last_bias += double(dlogits[i]);
    add_weighted_rows(pairs, dlogits, tile.a[last], width, sums.last);
    for (int64_t i = 0; i < pairs; ++i)
        for (int64_t column = 0; column < width; column += kLanes<T>)
            store(tile.d[last] + i * width + column, dlogits[i] * load(p.last + column));
    through_sigmoid(tile.a[last], pairs * width, tile.d[last]);
    for (int64_t l = last; l > 0; --l) {
        const int64_t inputs = p.widths[l - 1], in_width = padded<T>(inputs),
                      out_width = padded<T>(p.widths[l]);
        outer<T>(pairs, {tile.a[l - 1], in_width, inputs}, {tile.d[l], out_width, p.widths[l]},
                 sums.weight[l]);
        add_rows(pairs, tile.d[l], out_width, sums.bias[l]);
        product<T>(pairs, {tile.d[l], out_width, p.widths[l]}, p.backward[l], {},
                   {tile.d[l - 1], in_width, inputs});
        through_sigmoid(tile.a[l - 1], pairs * in_width, tile.d[l - 1]);
    }
    const View<const T> dterms{tile.d[0], first_width, first};
    outer<T>(pairs, {tile.pairs, stride, depth}, dterms, sums.event);
    product<T>(pairs, dterms, p.event_backward, {}, {tile.dpairs, stride, depth});
    for (int64_t i = 0; i < count * first_width; i += kLanes<T>)
        store(tile.dstate_terms + i, load(tile.d[0] + i) + load(tile.d[0] + count * first_width + i));
    add_rows(count, tile.dstate_terms, first_width, sums.bias[0]);
    const View<const T> dstate_terms{tile.dstate_terms, first_width, first};
    outer<T>(count, {tile.states, stride, depth}, dstate_terms, sums.state);
    product<T>(count, dstate_terms, p.state_backward, {}, {tile.dstates, stride, depth});
    for (int64_t i = 0; i < count; ++i) {
        const int64_t row = tile.rows[i];
        std::memcpy(p.dstates + row * depth, tile.dstates + i * stride, depth * sizeof(T));
        std::memcpy(p.devents + (row + 1) * depth, tile.dpairs + i * stride, depth * sizeof(T));
        std::memcpy(p.dnegatives + (row + 1) * depth, tile.dpairs + (count + i) * stride, depth * sizeof(T));
    }
}

template <typename T>
void auxiliary(const Auxiliary<T>& p, int64_t begin, int64_t end, AuxiliarySums<T>& sums, T* scratch) {
    const int64_t stride = padded<T>(p.depth), first = padded<T>(p.widths[0]);
    AuxiliaryTile<T> tile;
    tile.states = take(scratch, kTileRows * stride);
    tile.pairs = take(scratch, kPairs * stride);
    tile.state_terms = take(scratch, kTileRows * first);
    tile.dstate_terms = take(scratch, kTileRows * first);
    tile.dstates = take(scratch, kTileRows * stride);
    tile.dpairs = take(scratch, kPairs * stride);
    for (int64_t l = 0; l < p.layer_count; ++l) {
        tile.a[l] = take(scratch, kPairs * padded<T>(p.widths[l]));
        tile.d[l] = take(scratch, kPairs * padded<T>(p.widths[l]));
    }
    for (int64_t b = begin; b < end; ++b) {
        const int64_t start = p.offsets[b], stop = p.offsets[b + 1];
        if (start == stop) continue;
        if (p.dstates != nullptr) {
            std::memset(p.dstates + (stop - 1) * p.depth, 0, p.depth * sizeof(T));
            std::memset(p.devents + start * p.depth, 0, p.depth * sizeof(T));
            std::memset(p.dnegatives + start * p.depth, 0, p.depth * sizeof(T));
        }
        for (int64_t row = start; row + 1 < stop; ++row) {
            tile.rows[tile.count++] = row;
            if (tile.count == kTileRows) run_tile(p, tile, sums);
        }
    }
    run_tile(p, tile, sums);
}

}  // namespace

template <typename T>
static constexpr AuxiliaryKernels<T> auxiliary_kernels() {
    return {padded<T>, panels_size<T>, pack_panels<T>, auxiliary_scratch<T>, auxiliary<T>};
}

extern const AuxiliaryKernels<float> kFloatAuxiliary = auxiliary_kernels<float>();
extern const AuxiliaryKernels<double> kDoubleAuxiliary = auxiliary_kernels<double>();

}  // namespace DIEN_FAST_ISA
}  // namespace dien_fast
