// One run of the attention scores, forward or backward: its tensors checked, its weights packed, its memory
// laid out, and what the threads' sums say about mean and variance.

#pragma once

#include <cmath>
#include <cstring>
#include <optional>
#include <vector>

#include "../attention_scores_mlp.h"
#include "ragged.h"

namespace dien_fast {

template <typename T>
const ScoreKernels<T>& score_kernels(const std::vector<int64_t>& widths) {
    const Capability chosen = capability(widths.data(), widths.size());
    if constexpr (sizeof(T) == 4)
        return DIEN_FAST_CHOOSE(chosen, kFloatScores);
    else
        return DIEN_FAST_CHOOSE(chosen, kDoubleScores);
}

// The arrays over the channels of a layer.
enum Coefficient {
    kBias,
    kMean,
    kScale,
    kShift,
    kGateScale,
    kGateShift,
    kSlope,
    kMeanGradient,
    kVarianceGradient,
    kCoefficients
};

template <typename T>
class ScoreRun {
  public:
    const ScoreMLP<T>& mlp;
    const ScoreKernels<T>& k;
    Scores<T> p{};  // what the kernels get
    std::vector<int64_t> offsets, begins;
    int64_t threads;
    int64_t saved_size = 0;  // of what forward keeps for backward: x and statistics of every layer
    double count;            // rows of the batch, padding included

    ScoreRun(const ScoreMLP<T>& mlp, const ScoreInputs& in, Direction direction)
        : mlp(mlp), k(score_kernels<T>(mlp.widths())) {
        offsets = check_offsets(in.offsets, in.key_start ? -1 : in.keys.size(0));
        p.size = offsets.size() - 1;
        p.rows = offsets.back();
        p.depth = mlp.depth;
        p.offsets = offsets.data();
        p.query = data<T>("query", in.query, {p.size, p.depth});
        p.keys = data<T>("keys", in.keys, {-1, p.depth});
        int64_t longest = 0;
        for (int64_t b = 0; b < p.size; ++b) longest = std::max(longest, length(b));
        STD_TORCH_CHECK(longest <= in.max_length, "max_length must be at least the longest length ", longest,
                        ", got ", in.max_length);
        count = double(p.size) * double(in.max_length);
        read_key_start(in);
        if (mlp.batch_statistics) weigh_rows(in.max_length);
        read_dropout(in);
        p.last_bias = mlp.last_bias[0];
        p.logit_scale = T(1 / std::sqrt(double(p.depth)));
        p.layer_count = mlp.layers.size();
        lay_out();
        pack(direction);
    }

    int64_t length(int64_t b) const { return offsets[b + 1] - offsets[b]; }
    int64_t width(int64_t l) const { return k.padded(mlp.layers[l].width); }

    // `saved` holds saved_size numbers and outlives the run.
    void bind(T* saved) {
        for (int64_t l = 0; l < p.layer_count; ++l) p.layers[l].x = saved + x_[l];
        saved_ = saved;
    }

    ScoreSums<T> sums(int64_t thread) {
        ScoreSums<T> out{};
        double* own = sums_memory_.data() + thread * sums_.size();
        for (int64_t l = 0; l < p.layer_count; ++l) {
            out.moments[l] = own + moments_[l];
            out.reductions[l] = own + reductions_[l];
        }
        out.last = own + last_;
        return out;
    }
    // Adds all threads' sums to those of thread 0.
    void add_sums() { add_threads(sums_memory_.data(), sums_.size(), threads); }
    const double* reductions(int64_t l, int64_t thread = 0) const {
        return sums_memory_.data() + thread * sums_.size() + reductions_[l];
    }
    const double* last() const { return sums_memory_.data() + last_; }

    // Mean and variance of layer l from the threads' moments; they are kept with the rows for backward.
    void finish_moments(int64_t l) {
        const int64_t width = this->width(l);
        T* statistics = saved_ + statistics_[l];
        for (int64_t c = 0; c < width; ++c) {
            double total[kMoments] = {};
            for (int64_t thread = 0; thread < threads; ++thread)
                for (int64_t i = 0; i < kMoments; ++i)
                    total[i] += sums_memory_[thread * sums_.size() + moments_[l] + i * width + c];
            const double mean = total[kSum] / count;
            statistics[c] = T(mean);
            // Rounding can make the variance between tiles negative; std::max in this order keeps NaN.
            const double between = std::max(total[kSquares] - total[kSum] * mean, 0.0);
            statistics[width + c] = T((total[kDeviations] + between) / count);
        }
    }
    Channel channel_of(int64_t l, int64_t c) const {
        const T* statistics = saved_ + statistics_[l];
        const bool batch = mlp.batch_statistics;
        return channel(mlp.layers[l], batch, c, batch ? double(statistics[c]) : 0,
                       batch ? double(statistics[width(l) + c]) : 0);
    }
    // The coefficients that turn layer l's x into f.
    void finish_channels(int64_t l) {
        for (int64_t c = 0; c < mlp.layers[l].width; ++c) {
            const Channel v = channel_of(l, c);
            coefficient(l, kMean)[c] = T(v.mean);
            coefficient(l, kScale)[c] = T(v.scale);
            coefficient(l, kShift)[c] = T(v.shift);
            coefficient(l, kGateScale)[c] = T(v.gate_scale);
            coefficient(l, kGateShift)[c] = T(v.gate_shift);
        }
    }
    // The gradients of mean and variance, as the kernels spread them over the rows.
    void set_gradients(int64_t l, int64_t c, double mean, double variance) {
        coefficient(l, kMeanGradient)[c] = T(mean / count);
        coefficient(l, kVarianceGradient)[c] = T(2 * variance / count);
    }

  private:
    void read_key_start(const ScoreInputs& in) {
        key_start_.assign(offsets.begin(), offsets.end() - 1);
        if (in.key_start) {
            const int64_t *from = integer_data("key_start", *in.key_start, p.size), rows = in.keys.size(0);
            STD_TORCH_CHECK(!mlp.batch_statistics, "key_start must come with evaluation");
            for (int64_t b = 0; b < p.size; ++b) {
                STD_TORCH_CHECK(
                    length(b) == 0 || (from[b] >= 0 && length(b) <= rows && from[b] <= rows - length(b)),
                    "key_start must leave history ", b, " inside the ", rows, " keys, got ", from[b], " for ",
                    length(b), " steps");
                key_start_[b] = from[b];
            }
        }
        p.key_start = key_start_.data();
    }

    void weigh_rows(int64_t max_length) {
        weights_.assign(p.rows + p.size, T(1));
        for (int64_t b = 0; b < p.size; ++b) weights_[p.rows + b] = T(max_length - length(b));
        p.weights = weights_.data();
    }

    void read_dropout(const ScoreInputs& in) {
        STD_TORCH_CHECK(in.dropout >= 0 && in.dropout < 1, "dropout must lie in [0, 1), got ", in.dropout);
        p.dropout = in.dropout > 0;
        if (!p.dropout) return;
        STD_TORCH_CHECK(in.seed, "seed must be given with dropout");
        check_shape("seed", *in.seed, {1});
        STD_TORCH_CHECK(in.seed->scalar_type() == ScalarType::Long, "seed must be int64");
        p.seed = uint64_t(*static_cast<const int64_t*>(in.seed->const_data_ptr()));
        p.keep = uint32_t(std::min(std::llround((1 - in.dropout) * 4294967296.0), 4294967295ll));
        p.kept = T(1 / (1 - in.dropout));
    }

    void lay_out() {
        int64_t operations = 0;
        Pieces<T> rows;
        for (int64_t l = 0; l < p.layer_count; ++l) {
            operations += 2 * mlp.layers[l].inputs * mlp.layers[l].width;
            x_.push_back(rows.add((p.rows + p.size) * width(l)));
            statistics_.push_back(rows.add(2 * width(l)));
        }
        saved_size = rows.size();
        begins = share_out(offsets, operations);
        threads = begins.size() - 1;
        for (int64_t l = 0; l < p.layer_count; ++l) moments_.push_back(sums_.add(kMoments * width(l)));
        for (int64_t l = 0; l < p.layer_count; ++l) reductions_.push_back(sums_.add(kReductions * width(l)));
        last_ = sums_.add(width(p.layer_count - 1) + 1);
        sums_memory_.assign(sums_.size() * threads, 0);
    }

    T* coefficient(int64_t l, Coefficient which) {
        return packed_->data() + coefficients_[l] + which * width(l);
    }

    void pack(Direction direction) {
        Pieces<T> pieces;
        const int64_t depth = p.depth, first = mlp.layers[0].width;
        int64_t terms[3];
        for (int64_t& term : terms) term = pieces.add(k.panels_size(first, depth, direction));
        const int64_t product_rows = pieces.add(depth * width(0));
        const int64_t last = pieces.add(width(p.layer_count - 1));
        std::vector<int64_t> weights{0};
        for (int64_t l = 0; l < p.layer_count; ++l) {
            coefficients_.push_back(pieces.add(kCoefficients * width(l)));
            if (l > 0)
                weights.push_back(
                    pieces.add(k.panels_size(mlp.layers[l].width, mlp.layers[l].inputs, direction)));
        }
        packed_.emplace(pieces.size());
        T* base = packed_->data();
        std::memset(base, 0, pieces.size() * sizeof(T));
        pack_first(direction, base + terms[0], base + terms[1], base + terms[2], base + product_rows);
        std::memcpy(base + last, mlp.last, mlp.layers.back().width * sizeof(T));
        p.last = base + last;
        for (int64_t l = 0; l < p.layer_count; ++l) {
            const LayerParameters<T>& from = mlp.layers[l];
            ScoreLayer<T>& to = p.layers[l];
            to.activation = from.activation;
            to.inputs = from.inputs;
            to.width = from.width;
            if (l > 0) {
                k.pack(from.width, {from.weight, from.inputs, from.inputs}, direction, base + weights[l]);
                to.panels = base + weights[l];
            }
            std::memcpy(coefficient(l, kBias), from.bias, from.width * sizeof(T));
            for (int64_t c = 0; c < from.width && from.slopes > 0; ++c)
                coefficient(l, kSlope)[c] = from.slope[from.slopes == 1 ? 0 : c];
            to.bias = coefficient(l, kBias);
            to.mean = coefficient(l, kMean);
            to.scale = coefficient(l, kScale);
            to.shift = coefficient(l, kShift);
            to.gate_scale = coefficient(l, kGateScale);
            to.gate_shift = coefficient(l, kGateShift);
            to.slope = coefficient(l, kSlope);
            to.mean_gradient = coefficient(l, kMeanGradient);
            to.variance_gradient = coefficient(l, kVarianceGradient);
        }
    }

    // The first layer's weight [C, 4 D] in the terms that interest.h makes of it.
    void pack_first(Direction direction, T* query, T* key, T* product, T* product_rows) {
        const int64_t depth = p.depth, first = mlp.layers[0].width;
        std::vector<T> of_query(first * depth), of_key(first * depth);
        for (int64_t c = 0; c < first; ++c)
            for (int64_t d = 0; d < depth; ++d) {
                const T* w = mlp.layers[0].weight + c * 4 * depth + d;
                of_query[c * depth + d] = w[0] + w[2 * depth];
                of_key[c * depth + d] = w[depth] - w[2 * depth];
                product_rows[d * width(0) + c] = w[3 * depth];
            }
        k.pack(first, {of_query.data(), depth, depth}, direction, query);
        k.pack(first, {of_key.data(), depth, depth}, direction, key);
        k.pack(first, {mlp.layers[0].weight + 3 * depth, 4 * depth, depth}, direction, product);
        p.query_panels = query;
        p.key_panels = key;
        p.product_panels = product;
        p.product_rows = product_rows;
    }

    std::vector<int64_t> key_start_;
    std::vector<T> weights_;
    std::optional<Scratch<T>> packed_;
    Pieces<double> sums_;
    std::vector<double> sums_memory_;
    std::vector<int64_t> x_, statistics_, coefficients_, moments_, reductions_;  // where they begin
    int64_t last_ = 0;
    T* saved_ = nullptr;
};

}  // namespace dien_fast
