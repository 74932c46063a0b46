// The entry points of the attention scores on the CPU.

#include <cmath>
#include <cstring>
#include <optional>
#include <tuple>

#include "attention_scores_layers.h"

namespace dien_fast {
namespace {

template <typename T>
const ScoreKernels<T>& kernels(const std::vector<int64_t>& widths) {
    const Capability chosen = capability(widths.data(), widths.size());
    if constexpr (sizeof(T) == 4)
        return DIEN_FAST_CHOOSE(chosen, kFloatScores);
    else
        return DIEN_FAST_CHOOSE(chosen, kDoubleScores);
}

// Everything a forward or backward run needs beside its tensors.
template <typename T>
class Run {
  public:
    const Arguments<T>& a;
    const ScoreKernels<T>& k = kernels<T>(a.widths());
    Scores<T> p{};
    std::vector<int64_t> offsets, key_start, begins;
    int64_t threads, saved_size;
    double count;  // rows of the batch

    Run(const Arguments<T>& arguments, const Tensor& query, const Tensor& keys, const Tensor& offsets_tensor,
        const std::optional<Tensor>& key_start_tensor, const std::optional<Tensor>& seed, int64_t max_length,
        double dropout, bool backward)
        : a(arguments) {
        offsets = check_offsets(offsets_tensor, key_start_tensor ? -1 : keys.size(0));
        p.size = offsets.size() - 1;
        p.rows = offsets.back();
        p.depth = a.depth;
        p.query = data<T>("query", query, {p.size, a.depth});
        p.keys = data<T>("keys", keys, {-1, a.depth});
        int64_t longest = 0;
        for (int64_t b = 0; b < p.size; ++b) longest = std::max(longest, offsets[b + 1] - offsets[b]);
        STD_TORCH_CHECK(longest <= max_length, "max_length must be at least the longest length ", longest,
                        ", got ", max_length);
        key_start.assign(offsets.begin(), offsets.end() - 1);
        if (key_start_tensor) {
            check_shape("key_start", *key_start_tensor, {p.size});
            STD_TORCH_CHECK(
                key_start_tensor->scalar_type() == ScalarType::Long && key_start_tensor->is_contiguous(),
                "key_start must be contiguous int64");
            STD_TORCH_CHECK(!a.batch_statistics, "key_start must come with evaluation");
            const int64_t* from = static_cast<const int64_t*>(key_start_tensor->const_data_ptr());
            for (int64_t b = 0; b < p.size; ++b) {
                const int64_t length = offsets[b + 1] - offsets[b];
                STD_TORCH_CHECK(length == 0 || (from[b] >= 0 && length <= keys.size(0) &&
                                                from[b] <= keys.size(0) - length),
                                "key_start must leave history ", b, " inside the ", keys.size(0),
                                " keys, got ", from[b], " for ", length, " steps");
                key_start[b] = from[b];
            }
        }
        p.offsets = offsets.data();
        p.key_start = key_start.data();
        count = double(p.size) * double(max_length);
        if (a.batch_statistics) {
            weights_.assign(p.rows + p.size, T(1));
            for (int64_t b = 0; b < p.size; ++b)
                weights_[p.rows + b] = T(max_length - (offsets[b + 1] - offsets[b]));
            p.weights = weights_.data();
        }
        STD_TORCH_CHECK(dropout >= 0 && dropout < 1, "dropout must lie in [0, 1), got ", dropout);
        p.dropout = dropout > 0;
        if (p.dropout) {
            STD_TORCH_CHECK(seed, "seed must be given with dropout");
            check_shape("seed", *seed, {1});
            STD_TORCH_CHECK(seed->scalar_type() == ScalarType::Long, "seed must be int64");
            p.seed = uint64_t(*static_cast<const int64_t*>(seed->const_data_ptr()));
            p.keep = uint32_t(std::min(std::llround((1 - dropout) * 4294967296.0), 4294967295ll));
            p.kept = T(1 / (1 - dropout));
        }
        p.last_bias = a.last_bias[0];
        p.logit_scale = T(1 / std::sqrt(double(a.depth)));
        p.layer_count = a.layers.size();
        int64_t operations = 0;
        Pieces<T> rows;
        for (size_t l = 0; l < a.layers.size(); ++l) {
            const int64_t width = a.layers[l].width, padded = k.padded(width);
            operations += 2 * a.layers[l].inputs * width;
            x_.push_back(rows.add((p.rows + p.size) * padded));
            statistics_.push_back(rows.add(2 * padded));
        }
        saved_size = rows.size();
        begins = share_out(offsets, operations);
        threads = begins.size() - 1;
        pack(backward);
        for (int64_t l = 0; l < p.layer_count; ++l) moments_.push_back(sums_.add(kMoments * width(l)));
        for (int64_t l = 0; l < p.layer_count; ++l) reductions_.push_back(sums_.add(kReductions * width(l)));
        last_ = sums_.add(width(p.layer_count - 1) + 1);
        sums_memory_.assign(sums_.size() * threads, 0);
    }

    int64_t width(int64_t l) const { return k.padded(a.layers[l].width); }

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
    void add_sums() { add_threads(sums_memory_.data(), sums_.size(), sums_.size(), threads); }
    const double* reductions(int64_t l, int64_t thread = 0) const {
        return sums_memory_.data() + thread * sums_.size() + reductions_[l];
    }
    const double* last() const { return sums_memory_.data() + last_; }

    // Mean and variance of layer l, from the threads' moments, kept with the rows for backward.
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
            const double between = std::max(total[kSquares] - total[kSum] * mean, 0.0);  // NaN stays
            statistics[width + c] = T((total[kDeviations] + between) / count);
        }
    }
    Channel channel_of(int64_t l, int64_t c) const {
        const T* statistics = saved_ + statistics_[l];
        const bool batch = a.batch_statistics;
        return channel(a.layers[l], batch, c, batch ? double(statistics[c]) : 0,
                       batch ? double(statistics[width(l) + c]) : 0);
    }
    void finish_channels(int64_t l) {
        T* to[] = {coefficient(l, 1), coefficient(l, 2), coefficient(l, 3), coefficient(l, 4),
                   coefficient(l, 5)};
        for (int64_t c = 0; c < a.layers[l].width; ++c) {
            const Channel v = channel_of(l, c);
            const double values[] = {v.mean, v.scale, v.shift, v.gate_scale, v.gate_shift};
            for (int i = 0; i < 5; ++i) to[i][c] = T(values[i]);
        }
    }
    void set_gradients(int64_t l, int64_t c, double mean, double variance) {
        coefficient(l, 7)[c] = T(mean / count);
        coefficient(l, 8)[c] = T(2 * variance / count);
    }

  private:
    // Arrays over channels: bias, mean, scale, shift, gate scale, gate shift, slope, two gradients.
    T* coefficient(int64_t l, int64_t i) { return packed_->data() + coefficients_[l] + i * width(l); }

    // The matrices of one direction.
    void pack(bool backward) {
        Pieces<T> pieces;
        const int64_t depth = p.depth, first = a.layers[0].width;
        const int64_t panels = backward ? k.panels_size(first, depth) : k.panels_size(depth, first);
        const int64_t firsts[] = {pieces.add(panels), pieces.add(panels), pieces.add(panels)};
        const int64_t product_rows = pieces.add(depth * width(0)),
                      last = pieces.add(width(p.layer_count - 1));
        std::vector<int64_t> weights{0};
        for (int64_t l = 0; l < p.layer_count; ++l) {
            coefficients_.push_back(pieces.add(9 * width(l)));
            if (l == 0) continue;
            const int64_t inputs = a.layers[l].inputs, outputs = a.layers[l].width;
            weights.push_back(
                pieces.add(backward ? k.panels_size(outputs, inputs) : k.panels_size(inputs, outputs)));
        }
        packed_.emplace(pieces.size());
        T* base = packed_->data();
        std::memset(base, 0, pieces.size() * sizeof(T));
        // The first layer's weight is [C, 4 D]: of q, k, q - k and q * k.
        std::vector<T> terms(3 * first * depth);
        T *of_query = terms.data(), *of_key = of_query + first * depth, *of_product = of_key + first * depth;
        for (int64_t c = 0; c < first; ++c)
            for (int64_t d = 0; d < depth; ++d) {
                const T* w = a.layers[0].weight + c * 4 * depth + d;
                of_query[c * depth + d] = w[0] + w[2 * depth];
                of_key[c * depth + d] = w[depth] - w[2 * depth];
                of_product[c * depth + d] = w[3 * depth];
                base[product_rows + d * width(0) + c] = w[3 * depth];
            }
        for (int i = 0; i < 3; ++i) {
            const T* matrix = terms.data() + i * first * depth;
            if (backward)
                k.pack(matrix, first, depth, depth, false, base + firsts[i]);
            else
                k.pack(matrix, depth, first, depth, true, base + firsts[i]);
        }
        (backward ? p.query_backward : p.query_forward) = base + firsts[0];
        (backward ? p.key_backward : p.key_forward) = base + firsts[1];
        (backward ? p.product_backward : p.product_forward) = base + firsts[2];
        p.product_rows = base + product_rows;
        std::memcpy(base + last, a.last, a.layers.back().width * sizeof(T));
        p.last = base + last;
        for (int64_t l = 0; l < p.layer_count; ++l) {
            const LayerArguments<T>& from = a.layers[l];
            ScoreLayer<T>& to = p.layers[l];
            to.activation = from.activation;
            to.inputs = from.inputs;
            to.width = from.width;
            if (l > 0) {
                if (backward)
                    k.pack(from.weight, from.width, from.inputs, from.inputs, false, base + weights[l]);
                else
                    k.pack(from.weight, from.inputs, from.width, from.inputs, true, base + weights[l]);
                (backward ? to.backward : to.forward) = base + weights[l];
            }
            std::memcpy(coefficient(l, 0), from.bias, from.width * sizeof(T));
            for (int64_t c = 0; c < from.width && from.slopes > 0; ++c)
                coefficient(l, 6)[c] = from.slope[from.slopes == 1 ? 0 : c];
            to.bias = coefficient(l, 0);
            to.mean = coefficient(l, 1);
            to.scale = coefficient(l, 2);
            to.shift = coefficient(l, 3);
            to.gate_scale = coefficient(l, 4);
            to.gate_shift = coefficient(l, 5);
            to.slope = coefficient(l, 6);
            to.mean_gradient = coefficient(l, 7);
            to.variance_gradient = coefficient(l, 8);
        }
    }

    std::vector<T> weights_;
    std::optional<Scratch<T>> packed_;
    Pieces<double> sums_;
    std::vector<double> sums_memory_;
    std::vector<int64_t> x_, statistics_, coefficients_, moments_, reductions_;
    int64_t last_ = 0;
    T* saved_ = nullptr;
};

// Without batch statistics and with nothing to keep, histories go through all layers a few at a time, their
// rows in the caches.
template <typename T>
Tensor score_blocks(Run<T>& run, const Tensor& query) {
    constexpr int64_t kBlockRows = 4 * kTileRows;
    const Scores<T>& p = run.p;
    Tensor scores = torch::stable::new_empty(query, {p.rows});
    T* const out = static_cast<T*>(scores.mutable_data_ptr());
    for (int64_t l = 0; l < p.layer_count; ++l) run.finish_channels(l);
    int64_t most = kBlockRows, channels = 0;
    for (int64_t b = 0; b < p.size; ++b) most = std::max(most, run.offsets[b + 1] - run.offsets[b] + 1);
    for (int64_t l = 0; l < p.layer_count; ++l) channels += run.width(l);
    const int64_t scratch_size = run.k.scratch(p), per_thread = scratch_size + most * channels;
    const Scratch<T> memory(per_thread * run.threads);
    for_each_thread(run.threads, [&](int64_t thread) {
        T* const scratch = memory.data() + thread * per_thread;
        const ScoreSums<T> none{};
        std::vector<int64_t> offsets;
        for (int64_t begin = run.begins[thread], end; begin < run.begins[thread + 1]; begin = end) {
            offsets.assign(1, 0);
            for (end = begin; end < run.begins[thread + 1]; ++end) {
                const int64_t rows = run.offsets[end + 1] - run.offsets[begin];
                if (end > begin && rows + end + 1 - begin > kBlockRows) break;
                offsets.push_back(rows);
            }
            Scores<T> block = p;
            block.size = end - begin;
            block.rows = offsets.back();
            block.offsets = offsets.data();
            block.key_start += begin;
            block.query += begin * p.depth;
            block.scores = out + run.offsets[begin];
            T* rows = scratch + scratch_size;
            for (int64_t l = 0; l < p.layer_count; ++l) {
                block.layers[l].x = rows;
                rows += (block.rows + block.size) * run.width(l);
            }
            run.k.query_terms(block, 0, block.size, none);
            run.k.key_terms(block, 0, block.size, none, scratch);
            for (int64_t l = 1; l < p.layer_count; ++l) run.k.layer(block, l, 0, block.rows, none, scratch);
            run.k.softmax(block, 0, block.size, scratch);
        }
    });
    return scores;
}

template <typename T>
std::tuple<Tensor, Tensor, Tensor> run_forward(const Tensor& query, const Tensor& keys, const Tensor& offsets,
                                               const std::optional<Tensor>& key_start,
                                               const Arguments<T>& arguments,
                                               const std::optional<Tensor>& seed, int64_t max_length,
                                               double dropout, bool save) {
    Run<T> run(arguments, query, keys, offsets, key_start, seed, max_length, dropout, false);
    Scores<T>& p = run.p;
    auto none = [&] { return torch::stable::new_empty(query, {0}); };
    if (p.weights == nullptr && !p.dropout && !save) return {score_blocks(run, query), none(), none()};
    Tensor saved = empty_rows(query, {run.saved_size});
    run.bind(static_cast<T*>(saved.mutable_data_ptr()));
    Tensor scores = torch::stable::new_empty(query, {p.rows});
    p.scores = static_cast<T*>(scores.mutable_data_ptr());
    const int64_t per_thread = run.k.scratch(p);
    const Scratch<T> scratch(per_thread * run.threads);
    auto histories = [&](auto f) {
        for_each_thread(run.threads, [&](int64_t thread) {
            f(run.begins[thread], run.begins[thread + 1], run.sums(thread),
              scratch.data() + thread * per_thread);
        });
    };
    auto finish = [&](int64_t l) {
        if (p.weights != nullptr) run.finish_moments(l);
        run.finish_channels(l);
    };
    histories([&](int64_t begin, int64_t end, const ScoreSums<T>& sums, T* memory) {
        run.k.query_terms(p, begin, end, sums);
        run.k.key_terms(p, begin, end, sums, memory);
    });
    finish(0);
    for (int64_t l = 1; l < p.layer_count; ++l) {
        histories([&](int64_t begin, int64_t end, const ScoreSums<T>& sums, T* memory) {
            run.k.layer(p, l, p.offsets[begin], p.offsets[end], sums, memory);
            if (p.weights != nullptr) run.k.layer(p, l, p.rows + begin, p.rows + end, sums, memory);
        });
        finish(l);
    }
    histories([&](int64_t begin, int64_t end, const ScoreSums<T>&, T* memory) {
        run.k.softmax(p, begin, end, memory);
    });

    int64_t channels = 0;
    if (p.weights != nullptr)
        for (const auto& l : arguments.layers) channels += 2 * l.width * ((l.gamma != nullptr) + l.gated());
    Tensor statistics = torch::stable::new_empty(query, {channels});
    if (p.weights != nullptr) {
        T* out = static_cast<T*>(statistics.mutable_data_ptr());
        const double unbiased = run.count / (run.count - 1);
        for (int64_t l = 0; l < p.layer_count; ++l) {
            const auto& from = arguments.layers[l];
            for (int part = 0; part < 2; ++part) {
                if (part == 0 ? from.gamma == nullptr : !from.gated()) continue;
                for (int64_t c = 0; c < from.width; ++c) {
                    const Channel v = run.channel_of(l, c);
                    out[c] = T(part == 0 ? v.mean : v.gate_mean);
                    out[from.width + c] = T(unbiased * (part == 0 ? v.variance : v.gate_variance));
                }
                out += 2 * from.width;
            }
        }
    }
    return {scores, statistics, save ? saved : none()};
}

template <typename T>
std::tuple<Tensor, Tensor, std::vector<Tensor>> run_backward(
    const Tensor& dscores, const Tensor& scores, const Tensor& query, const Tensor& keys,
    const Tensor& offsets, const std::vector<Tensor>& parameters, const Arguments<T>& arguments,
    const std::optional<Tensor>& seed, const Tensor& saved, int64_t max_length, double dropout) {
    Run<T> run(arguments, query, keys, offsets, std::nullopt, seed, max_length, dropout, true);
    Scores<T>& p = run.p;
    const bool batch = arguments.batch_statistics;
    // Backward only reads what forward kept.
    run.bind(const_cast<T*>(data<T>("saved", saved, {run.saved_size})));
    p.scores = const_cast<T*>(data<T>("scores", scores, {p.rows}));
    p.dscores = data<T>("dscores", dscores, {p.rows});
    Tensor dquery = torch::stable::new_empty(query, {p.size, p.depth});
    Tensor dkeys = empty_rows(query, {p.rows, p.depth});
    p.dquery = static_cast<T*>(dquery.mutable_data_ptr());
    p.dkeys = static_cast<T*>(dkeys.mutable_data_ptr());
    for (int64_t l = 0; l < p.layer_count; ++l) run.finish_channels(l);

    Pieces<T> rows, of_weights;
    const int64_t dlogits = rows.add(p.rows + p.size), first = p.depth * run.width(0);
    std::vector<int64_t> gradient_rows, weights{0};
    for (int64_t l = 0; l + 1 < p.layer_count; ++l)
        gradient_rows.push_back(rows.add((p.rows + p.size) * run.width(l)));
    const int64_t firsts[] = {of_weights.add(first), of_weights.add(first), of_weights.add(first)};
    for (int64_t l = 1; l < p.layer_count; ++l)
        weights.push_back(of_weights.add(p.layers[l].inputs * run.width(l)));
    const Scratch<T> memory(rows.size());
    p.dlogits = memory.data() + dlogits;
    for (int64_t l = 0; l + 1 < p.layer_count; ++l) p.layers[l].gradient = memory.data() + gradient_rows[l];
    const Scratch<T> weight_sums(of_weights.size() * run.threads);
    const int64_t per_thread = run.k.scratch(p);
    const Scratch<T> scratch(per_thread * run.threads);
    auto histories = [&](auto f) {
        for_each_thread(run.threads, [&](int64_t thread) {
            ScoreSums<T> sums = run.sums(thread);
            T* own = weight_sums.data() + thread * of_weights.size();
            sums.query = own + firsts[0];
            sums.key = own + firsts[1];
            sums.product = own + firsts[2];
            for (int64_t l = 1; l < p.layer_count; ++l) sums.weight[l] = own + weights[l];
            f(run.begins[thread], run.begins[thread + 1], sums, scratch.data() + thread * per_thread);
        });
    };

    std::vector<Tensor> dparameters;
    for (const Tensor& parameter : parameters) {
        dparameters.push_back(torch::stable::new_empty(parameter, parameter.sizes()));
    }
    auto output = [&](int64_t index) { return static_cast<T*>(dparameters[index].mutable_data_ptr()); };
    // What the sums over the rows of layer l's activation say about its parameters and statistics.
    auto finish = [&](int64_t l) {
        const LayerArguments<T>& from = arguments.layers[l];
        const int64_t width = run.width(l);
        int64_t index = from.index + 2;
        T* dgamma = from.gamma != nullptr ? output(index) : nullptr;
        T* dbeta = from.gamma != nullptr ? output(index + 1) : nullptr;
        index += from.gamma != nullptr ? 2 : 0;
        T* dslope = from.slopes > 0 ? output(index) : nullptr;
        T* dgate_gamma = from.gated() ? output(index + 1) : nullptr;
        T* dgate_beta = from.gated() ? output(index + 2) : nullptr;
        double slope = 0;
        for (int64_t c = 0; c < from.width; ++c) {
            double total[kReductions] = {};
            for (int64_t thread = 0; thread < run.threads; ++thread) {
                const double* own = run.reductions(l, thread) + c;
                for (int64_t i = 0; i < kReductions; ++i) total[i] += own[i * width];
            }
            const ChannelGradients g = gradients(from, batch, run.channel_of(l, c), total[kDy],
                                                 total[kDyCentred], total[kDgate], total[kDgateCentred]);
            if (dgamma != nullptr) dgamma[c] = T(g.gamma), dbeta[c] = T(g.beta);
            if (from.gated()) dgate_gamma[c] = T(g.gate_gamma), dgate_beta[c] = T(g.gate_beta);
            if (from.slopes > 1 || from.gated()) dslope[c] = T(total[kDslope]);
            slope += total[kDslope];
            run.set_gradients(l, c, g.mean, g.variance);
        }
        if (from.slopes == 1 && !from.gated()) dslope[0] = T(slope);
    };

    const int64_t end_layer = p.layer_count - 1;
    histories([&](int64_t begin, int64_t end, const ScoreSums<T>& sums, T* own) {
        std::memset(sums.query, 0, of_weights.size() * sizeof(T));
        run.k.softmax_backward(p, begin, end);
        run.k.last_backward(p, p.offsets[begin], p.offsets[end], sums, own);
    });
    finish(end_layer);
    for (int64_t l = end_layer; l > 0; --l) {
        histories([&](int64_t begin, int64_t end, const ScoreSums<T>& sums, T* own) {
            run.k.layer_backward(p, l, p.offsets[begin], p.offsets[end], sums, own);
            if (batch) run.k.layer_backward(p, l, p.rows + begin, p.rows + end, sums, own);
        });
        finish(l - 1);
    }
    histories([&](int64_t begin, int64_t end, const ScoreSums<T>& sums, T* own) {
        run.k.terms_backward(p, begin, end, sums, own);
    });

    // Threads are added in their order, so that the same threads give the same bits.
    run.add_sums();
    add_threads(weight_sums.data(), of_weights.size(), of_weights.size(), run.threads);
    for (int64_t l = 0; l < p.layer_count; ++l) {
        const LayerArguments<T>& to = arguments.layers[l];
        for (int64_t c = 0; c < to.width; ++c)
            output(to.index + 1)[c] = T(run.reductions(l)[kDx * run.width(l) + c]);
        if (l > 0)
            copy_matrix(weight_sums.data() + weights[l], run.width(l), true, to.width, to.inputs,
                        output(to.index));
    }
    const T *of_query = weight_sums.data() + firsts[0], *of_key = weight_sums.data() + firsts[1],
            *of_product = weight_sums.data() + firsts[2];
    for (int64_t c = 0; c < arguments.layers[0].width; ++c)
        for (int64_t d = 0; d < p.depth; ++d) {
            T* to = output(0) + c * 4 * p.depth + d;
            const int64_t at = d * run.width(0) + c;
            to[0] = of_query[at];
            to[p.depth] = of_key[at];
            to[2 * p.depth] = of_query[at] - of_key[at];
            to[3 * p.depth] = of_product[at];
        }
    const int64_t count = parameters.size(), last_width = arguments.layers.back().width;
    for (int64_t c = 0; c < last_width; ++c) output(count - 2)[c] = T(run.last()[c]);
    output(count - 1)[0] = T(run.last()[run.width(end_layer)]);
    return {dquery, dkeys, dparameters};
}

std::tuple<Tensor, Tensor, Tensor> attention_scores(Tensor query, Tensor keys, Tensor offsets,
                                                    std::optional<Tensor> key_start,
                                                    std::vector<Tensor> parameters,
                                                    std::vector<Tensor> running, std::optional<Tensor> seed,
                                                    int64_t max_length, std::vector<int64_t> layers,
                                                    std::vector<double> epsilons, double dropout,
                                                    bool training, bool save) {
    check_shape("query", query, {-1, -1});
    auto with = [&](auto zero) {
        using T = decltype(zero);
        const Arguments<T> arguments(parameters, running, layers, epsilons, training, query.size(1));
        return run_forward<T>(query, keys, offsets, key_start, arguments, seed, max_length,
                              training ? dropout : 0.0, save);
    };
    return is_single("query", query) ? with(0.0f) : with(0.0);
}

std::tuple<Tensor, Tensor, std::vector<Tensor>> attention_scores_backward(
    Tensor dscores, Tensor scores, Tensor query, Tensor keys, Tensor offsets, std::vector<Tensor> parameters,
    std::vector<Tensor> running, std::optional<Tensor> seed, Tensor saved, int64_t max_length,
    std::vector<int64_t> layers, std::vector<double> epsilons, double dropout, bool training) {
    check_shape("query", query, {-1, -1});
    auto with = [&](auto zero) {
        using T = decltype(zero);
        const Arguments<T> arguments(parameters, running, layers, epsilons, training, query.size(1));
        return run_backward<T>(dscores, scores, query, keys, offsets, parameters, arguments, seed, saved,
                               max_length, training ? dropout : 0.0);
    };
    return is_single("query", query) ? with(0.0f) : with(0.0);
}

}  // namespace
}  // namespace dien_fast

STABLE_TORCH_LIBRARY_IMPL(dien_fast, CPU, m) {
    m.impl("attention_scores", TORCH_BOX(&dien_fast::attention_scores));
    m.impl("attention_scores_backward", TORCH_BOX(&dien_fast::attention_scores_backward));
}
