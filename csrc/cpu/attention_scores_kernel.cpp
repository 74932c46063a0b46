// The CPU kernels of the attention scores, compiled once for each instruction set. interest.h has the
// equations.
//
// Tiles of kTileRows rows go through a layer while they are in the first two levels of cache. Rows are padded
// to whole vectors. No product reads the padding, so that it may hold anything finite.
//
// Everything here is internal to the translation unit: a function that instruction sets shared could be
// linked from the wrong one.

#include "../activations.h"
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
// clang-format on

// The numbers in the widest row.
template <typename T>
int64_t widest(const Scores<T>& p) {
    int64_t width = padded<T>(p.depth);
    for (int64_t l = 0; l < p.layer_count; ++l)
        if (padded<T>(p.layers[l].width) > width) width = padded<T>(p.layers[l].width);
    return width;
}

template <typename T>
int64_t scores_scratch(const Scores<T>& p) {
    const int64_t tiles = 4 * kTileRows * widest(p), depth = p.depth, first = p.layers[0].width;
    return tiles + depth * padded<T>(first) + (first + 1) * padded<T>(depth);
}

// Adds the moments of rows [count, width] to sums [kMoments, width]. Null weights stand for 1.
template <typename T>
void add_moments(int64_t count, const T* rows, int64_t width, const T* weights, double* sums) {
    T total = T(count);
    if (weights != nullptr) {
        total = 0;
        for (int64_t i = 0; i < count; ++i) total += weights[i];
        if (total == 0) return;
    }
    for (int64_t column = 0; column < width; column += kLanes<T>) {
        Vec<T> mean = {}, deviations = {};
        for (int64_t i = 0; i < count; ++i) {
            const Vec<T> x = load(rows + i * width + column);
            mean += weights == nullptr ? x : weights[i] * x;
        }
        mean /= total;
        for (int64_t i = 0; i < count; ++i) {
            const Vec<T> centred = load(rows + i * width + column) - mean;
            deviations += weights == nullptr ? centred * centred : weights[i] * centred * centred;
        }
        T means[kLanes<T>];
        store(means, mean);
        for (int lane = 0; lane < kLanes<T>; ++lane) {
            const double m = means[lane];
            sums[kSum * width + column + lane] += double(total) * m;
            sums[kSquares * width + column + lane] += double(total) * m * m;
        }
        add_lanes<double, T>(sums + kDeviations * width + column, deviations);
    }
}

template <typename T>
void query_terms(const Scores<T>& p, int64_t begin, int64_t end, const ScoreSums<T>& sums) {
    const ScoreLayer<T>& l = p.layers[0];
    const int64_t width = padded<T>(l.width);
    for (int64_t b = begin, count; b < end; b += count) {
        count = end - b < kTileRows ? end - b : kTileRows;
        T* x = l.x + (p.rows + b) * width;
        product<T>(count, {p.query + b * p.depth, p.depth, p.depth}, p.query_panels, {l.bias, 0, l.width},
                   {x, width, l.width});
        if (p.weights != nullptr) add_moments(count, x, width, p.weights + p.rows + b, sums.moments[0]);
    }
}

// The panels of the matrix in front of a history's keys, W_k - W_d + W_p diag(q), for forward and for
// backward.
template <typename T>
void candidate_forward(const Scores<T>& p, const T* q, T* out) {
    const T *key = p.key_panels, *with = p.product_panels;
    for (int64_t column = 0, vectors; column < p.layers[0].width; column += vectors * kLanes<T>) {
        vectors = panel_vectors((p.layers[0].width - column + kLanes<T> - 1) / kLanes<T>);
        for (int64_t k = 0; k < p.depth; ++k)
            for (int64_t v = 0; v < vectors; ++v, key += kLanes<T>, with += kLanes<T>, out += kLanes<T>)
                store(out, load(key) + q[k] * load(with));
    }
}
template <typename T>
void candidate_backward(const Scores<T>& p, const T* q, T* out) {
    const T *key = p.key_panels, *with = p.product_panels;
    for (int64_t column = 0, vectors; column < p.depth; column += vectors * kLanes<T>) {
        vectors = panel_vectors((p.depth - column + kLanes<T> - 1) / kLanes<T>);
        for (int64_t c = 0; c < p.layers[0].width; ++c)
            for (int64_t v = 0; v < vectors; ++v, key += kLanes<T>, with += kLanes<T>, out += kLanes<T>)
                store(out, load(key) + load(q + column + v * kLanes<T>) * load(with));
    }
}

template <typename T>
void key_terms(const Scores<T>& p, int64_t begin, int64_t end, const ScoreSums<T>& sums, T* scratch) {
    const ScoreLayer<T>& l = p.layers[0];
    const int64_t width = padded<T>(l.width);
    T* matrix = take(scratch, panels_size<T>(l.width, p.depth, Direction::kForward));
    for (int64_t b = begin; b < end; ++b) {
        const int64_t row = p.offsets[b], length = p.offsets[b + 1] - row;
        if (length == 0) continue;
        candidate_forward(p, p.query + b * p.depth, matrix);
        for (int64_t t = 0, count; t < length; t += count) {
            count = length - t < kTileRows ? length - t : kTileRows;
            T* x = l.x + (row + t) * width;
            product<T>(count, {p.keys + (p.key_start[b] + t) * p.depth, p.depth, p.depth}, matrix,
                       {l.x + (p.rows + b) * width, 0, l.width}, {x, width, l.width});
            if (p.weights != nullptr) add_moments<T>(count, x, width, nullptr, sums.moments[0]);
        }
    }
}

template <typename T>
void layer(const Scores<T>& p, int64_t layer, int64_t begin, int64_t end, const ScoreSums<T>& sums,
           T* scratch) {
    const ScoreLayer<T>&before = p.layers[layer - 1], &l = p.layers[layer];
    const int64_t width = padded<T>(l.width);
    T* a = take(scratch, kTileRows * padded<T>(before.width));
    for (int64_t row = begin, count; row < end; row += count) {
        count = end - row < kTileRows ? end - row : kTileRows;
        activate(p, layer - 1, row, count, a);
        T* x = l.x + row * width;
        product<T>(count, {a, padded<T>(before.width), l.inputs}, l.panels, {l.bias, 0, l.width},
                   {x, width, l.width});
        if (p.weights != nullptr)
            add_moments<T>(count, x, width, begin < p.rows ? nullptr : p.weights + row, sums.moments[layer]);
    }
}

template <typename T>
void softmax(const Scores<T>& p, int64_t begin, int64_t end, T* scratch) {
    const int64_t last = p.layer_count - 1, width = padded<T>(p.layers[last].width);
    const int64_t first_row = p.offsets[begin], end_row = p.offsets[end];
    for (int64_t row = first_row, count; row < end_row; row += count) {
        count = end_row - row < kTileRows ? end_row - row : kTileRows;
        activate(p, last, row, count, scratch);
        for (int64_t i = 0; i < count; ++i)
            p.scores[row + i] = p.logit_scale * (dot(scratch + i * width, p.last, width) + p.last_bias);
    }
    for (int64_t b = begin; b < end; ++b) {
        T* scores = p.scores + p.offsets[b];
        const int64_t length = p.offsets[b + 1] - p.offsets[b];
        if (length == 0) continue;
        T largest = scores[0];
        for (int64_t t = 1; t < length; ++t) largest = scores[t] > largest ? scores[t] : largest;
        Vec<T> total = {};
        int64_t t = 0;
        for (; t + kLanes<T> <= length; t += kLanes<T>) {
            const Vec<T> power = exponential(load(scores + t) - largest);
            store(scores + t, power);
            total += power;
        }
        if (t < length) {
            Vec<T> rest = {};
            for (int64_t lane = 0; lane < length - t; ++lane) rest[lane] = scores[t + lane];
            rest = exponential(rest - largest);
            for (int64_t lane = 0; lane < kLanes<T>; ++lane) {
                if (lane >= length - t)
                    rest[lane] = 0;
                else
                    scores[t + lane] = rest[lane];
            }
            total += rest;
        }
        const T inverse = T(1) / sum<T>(total);
        for (t = 0; t < length; ++t) scores[t] *= inverse;
    }
}

template <typename T>
void softmax_backward(const Scores<T>& p, int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
        T common = 0;
        for (int64_t row = p.offsets[b]; row < p.offsets[b + 1]; ++row)
            common += p.scores[row] * p.dscores[row];
        for (int64_t row = p.offsets[b]; row < p.offsets[b + 1]; ++row)
            p.dlogits[row] = p.logit_scale * p.scores[row] * (p.dscores[row] - common);
        p.dlogits[p.rows + b] = 0;
    }
}

// d [count, padded C_L] = the gradient of the last layer's f, with dropout's factors yet to come.
template <typename T>
void last_gradient(const Scores<T>& p, int64_t row, int64_t count, T* d) {
    const int64_t width = padded<T>(p.layers[p.layer_count - 1].width);
    for (int64_t i = 0; i < count; ++i)
        for (int64_t column = 0; column < width; column += kLanes<T>)
            store(d + i * width + column, p.dlogits[row + i] * load(p.last + column));
}

// Ranges below N alone, as the other rows have no logit.
template <typename T>
void last_backward(const Scores<T>& p, int64_t begin, int64_t end, const ScoreSums<T>& sums, T* scratch) {
    const int64_t last = p.layer_count - 1, width = padded<T>(p.layers[last].width);
    T* a = take(scratch, kTileRows * width);
    T* d = take(scratch, kTileRows * width);
    for (int64_t row = begin, count; row < end; row += count) {
        count = end - row < kTileRows ? end - row : kTileRows;
        activate(p, last, row, count, a);
        add_weighted_rows(count, p.dlogits + row, a, width, sums.last);
        for (int64_t i = 0; i < count; ++i) sums.last[width] += double(p.dlogits[row + i]);
        last_gradient(p, row, count, d);
        reduce(p, last, row, count, d, sums.reductions[last]);
    }
}

// dx [count, padded C] = the gradient of a layer's x, from that of its f. `spare` has room for as much.
template <typename T>
void gradient_of_x(const Scores<T>& p, int64_t layer, int64_t row, int64_t count, T* spare, T* dx) {
    const ScoreLayer<T>& l = p.layers[layer];
    const int64_t width = padded<T>(l.width);
    if (layer < p.layer_count - 1) return input_gradients(p, layer, row, count, l.gradient + row * width, dx);
    last_gradient(p, row, count, spare);
    if (p.dropout) {
        const RowKeys keys(p, layer, row, count);
        for (int64_t i = 0; i < count; ++i)
            for (int64_t column = 0; column < width; column += kLanes<T>) {
                T* at = spare + i * width + column;
                store(at, load(at) * dropout(p, keys.of[i], column));
            }
    }
    input_gradients(p, layer, row, count, spare, dx);
}

template <typename T>
void layer_backward(const Scores<T>& p, int64_t layer, int64_t begin, int64_t end, const ScoreSums<T>& sums,
                    T* scratch) {
    const ScoreLayer<T>&before = p.layers[layer - 1], &l = p.layers[layer];
    const int64_t width = padded<T>(l.width), width_before = padded<T>(before.width);
    T* d = take(scratch, kTileRows * width);
    T* dx = take(scratch, kTileRows * width);
    T* a = take(scratch, kTileRows * width_before);
    for (int64_t row = begin, count; row < end; row += count) {
        count = end - row < kTileRows ? end - row : kTileRows;
        gradient_of_x(p, layer, row, count, d, dx);
        activate(p, layer - 1, row, count, a);
        outer<T>(count, {a, width_before, l.inputs}, {dx, width, l.width}, sums.weight[layer]);
        add_rows(count, dx, width, sums.reductions[layer] + kDx * width);
        T* gradient = before.gradient + row * width_before;
        product<T>(count, {dx, width, l.width}, l.panels, {}, {gradient, width_before, before.width});
        reduce(p, layer - 1, row, count, gradient, sums.reductions[layer - 1]);
    }
}

template <typename T>
void terms_backward(const Scores<T>& p, int64_t begin, int64_t end, const ScoreSums<T>& sums, T* scratch) {
    const ScoreLayer<T>& l = p.layers[0];
    const int64_t width = padded<T>(l.width), depth = p.depth;
    T* candidate = take(scratch, depth);
    T* matrix = take(scratch, panels_size<T>(l.width, depth, Direction::kBackward));
    T* dmatrix = take(scratch, depth * width);
    T* dterms = take(scratch, kTileRows * width);
    T* dx = take(scratch, kTileRows * width);
    T* spare = take(scratch, kTileRows * width);
    T* dquery = take(scratch, kTileRows * padded<T>(depth));
    for (int64_t group = begin, histories; group < end; group += histories) {
        histories = end - group < kTileRows ? end - group : kTileRows;
        for (int64_t i = 0; i < histories; ++i) {
            const int64_t b = group + i, row = p.offsets[b], length = p.offsets[b + 1] - row;
            const T* q = p.query + b * depth;
            T* dterm = dterms + i * width;
            T* dq = dquery + i * padded<T>(depth);
            if (p.weights != nullptr)
                gradient_of_x(p, 0, p.rows + b, 1, spare, dterm);
            else
                std::memset(dterm, 0, width * sizeof(T));
            std::memset(dq, 0, padded<T>(depth) * sizeof(T));
            if (length == 0) continue;
            copy_padded(candidate, q, depth);
            candidate_backward(p, candidate, matrix);
            std::memset(dmatrix, 0, depth * width * sizeof(T));
            for (int64_t t = 0, count; t < length; t += count) {
                count = length - t < kTileRows ? length - t : kTileRows;
                gradient_of_x(p, 0, row + t, count, spare, dx);
                product<T>(count, {dx, width, l.width}, matrix, {},
                           {p.dkeys + (row + t) * depth, depth, depth}, Write::kExactly);
                outer<T>(count, {p.keys + (p.key_start[b] + t) * depth, depth, depth}, {dx, width, l.width},
                         dmatrix);
                add_rows(count, dx, width, dterm);
            }
            for (int64_t k = 0; k < depth; ++k) {
                Vec<T> total = {};
                for (int64_t at = k * width; at < (k + 1) * width; at += kLanes<T>) {
                    const Vec<T> d = load(dmatrix + at);
                    store(sums.key + at, load(sums.key + at) + d);
                    store(sums.product + at, load(sums.product + at) + q[k] * d);
                    total += d * load(p.product_rows + at);
                }
                dq[k] = sum<T>(total);
            }
        }
        outer<T>(histories, {p.query + group * depth, depth, depth}, {dterms, width, l.width}, sums.query);
        add_rows(histories, dterms, width, sums.reductions[0] + kDx * width);
        const View<T> rows{dquery, padded<T>(depth), depth};
        product<T>(histories, {dterms, width, l.width}, p.query_panels,
                   {rows.data, rows.stride, rows.columns}, rows);
        for (int64_t i = 0; i < histories; ++i)
            std::memcpy(p.dquery + (group + i) * depth, dquery + i * padded<T>(depth), depth * sizeof(T));
    }
}

}  // namespace

template <typename T>
static constexpr ScoreKernels<T> score_kernels() {
    return {padded<T>,           panels_size<T>,   pack_panels<T>,    scores_scratch<T>,
            query_terms<T>,      key_terms<T>,     layer<T>,          softmax<T>,
            softmax_backward<T>, last_backward<T>, layer_backward<T>, terms_backward<T>};
}

extern const ScoreKernels<float> kFloatScores = score_kernels<float>();
extern const ScoreKernels<double> kDoubleScores = score_kernels<double>();

}  // namespace DIEN_FAST_ISA
}  // namespace dien_fast
