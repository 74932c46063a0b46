// The attention scores on the CPU: the operators attention_scores and attention_scores_backward.
// ../interest.h says what they compute. A run has a pass over the rows for each layer; between two passes,
// attention_scores_run.h computes what the threads' sums say.

#include <cmath>
#include <cstring>
#include <optional>
#include <tuple>

#include "attention_scores_run.h"

namespace dien_fast {
namespace {

// Where no layer needs statistics of the batch and nothing is kept for backward: a few histories at a time go
// through all layers, with their rows in the caches.
template <typename T>
Tensor score_blocks(ScoreRun<T>& run, const Tensor& query) {
    constexpr int64_t kBlockRows = 4 * kTileRows;
    const Scores<T>& p = run.p;
    Tensor scores = torch::stable::new_empty(query, {p.rows});
    T* const out = static_cast<T*>(scores.mutable_data_ptr());
    for (int64_t l = 0; l < p.layer_count; ++l) run.finish_channels(l);
    int64_t most = kBlockRows, channels = 0;
    for (int64_t b = 0; b < p.size; ++b) most = std::max(most, run.length(b) + 1);
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

// The batch's statistics that running ones are updated with: mean and unbiased variance of each
// normalisation.
template <typename T>
Tensor statistics_of(const ScoreRun<T>& run, const Tensor& like) {
    int64_t channels = 0;
    if (run.mlp.batch_statistics)
        for (const auto& l : run.mlp.layers) channels += 2 * l.width * (bool(l.norm) + bool(l.gate));
    Tensor statistics = torch::stable::new_empty(like, {channels});
    if (channels == 0) return statistics;
    T* out = static_cast<T*>(statistics.mutable_data_ptr());
    const double unbiased = run.count / (run.count - 1);
    for (int64_t l = 0; l < run.p.layer_count; ++l) {
        const LayerParameters<T>& from = run.mlp.layers[l];
        auto append = [&](double Channel::* mean, double Channel::* variance) {
            for (int64_t c = 0; c < from.width; ++c) {
                const Channel v = run.channel_of(l, c);
                out[c] = T(v.*mean);
                out[from.width + c] = T(unbiased * v.*variance);
            }
            out += 2 * from.width;
        };
        if (from.norm) append(&Channel::mean, &Channel::variance);
        if (from.gate) append(&Channel::gate_mean, &Channel::gate_variance);
    }
    return statistics;
}

template <typename T>
std::tuple<Tensor, Tensor, Tensor> run_forward(const ScoreMLP<T>& mlp, const ScoreInputs& in, bool save) {
    ScoreRun<T> run(mlp, in, Direction::kForward);
    Scores<T>& p = run.p;
    const Tensor& query = in.query;
    const bool batch = mlp.batch_statistics;
    auto none = [&] { return torch::stable::new_empty(query, {0}); };
    if (!batch && !p.dropout && !save) return {score_blocks(run, query), none(), none()};
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
        if (batch) run.finish_moments(l);
        run.finish_channels(l);
    };
    histories([&](int64_t begin, int64_t end, const ScoreSums<T>& sums, T* own) {
        run.k.query_terms(p, begin, end, sums);
        run.k.key_terms(p, begin, end, sums, own);
    });
    finish(0);
    for (int64_t l = 1; l < p.layer_count; ++l) {
        histories([&](int64_t begin, int64_t end, const ScoreSums<T>& sums, T* own) {
            run.k.layer(p, l, p.offsets[begin], p.offsets[end], sums, own);
            if (batch) run.k.layer(p, l, p.rows + begin, p.rows + end, sums, own);
        });
        finish(l);
    }
    histories(
        [&](int64_t begin, int64_t end, const ScoreSums<T>&, T* own) { run.k.softmax(p, begin, end, own); });
    return {scores, statistics_of(run, query), save ? saved : none()};
}

// The gradients of the weights, summed by each thread, and where the sums begin.
template <typename T>
class WeightSums {
  public:
    explicit WeightSums(const ScoreRun<T>& run) : run_(run) {
        const int64_t first = run.p.depth * run.width(0);
        query_ = pieces_.add(first);
        key_ = pieces_.add(first);
        product_ = pieces_.add(first);
        for (int64_t l = 1; l < run.p.layer_count; ++l)
            layers_.push_back(pieces_.add(run.p.layers[l].inputs * run.width(l)));
        memory_.emplace(pieces_.size() * run.threads);
    }

    void zero(int64_t thread) { std::memset(at(0, thread), 0, pieces_.size() * sizeof(T)); }
    void set(int64_t thread, ScoreSums<T>& sums) const {
        sums.query = at(query_, thread);
        sums.key = at(key_, thread);
        sums.product = at(product_, thread);
        for (int64_t l = 1; l < run_.p.layer_count; ++l) sums.weight[l] = at(layers_[l - 1], thread);
    }
    void add() { add_threads(memory_->data(), pieces_.size(), run_.threads); }

    // The first layer's gradient [C, 4 D], from those of the terms that interest.h makes of its weight.
    void write_first(T* out) const {
        const T *query = at(query_, 0), *key = at(key_, 0), *product = at(product_, 0);
        const int64_t depth = run_.p.depth;
        for (int64_t c = 0; c < run_.mlp.layers[0].width; ++c)
            for (int64_t d = 0; d < depth; ++d) {
                T* to = out + c * 4 * depth + d;
                const int64_t from = d * run_.width(0) + c;
                to[0] = query[from];
                to[depth] = key[from];
                to[2 * depth] = query[from] - key[from];
                to[3 * depth] = product[from];
            }
    }
    void write_layer(int64_t l, T* out) const {
        const LayerParameters<T>& layer = run_.mlp.layers[l];
        copy_transposed(at(layers_[l - 1], 0), run_.width(l), layer.width, layer.inputs, out);
    }

  private:
    T* at(int64_t begin, int64_t thread) const { return memory_->data() + thread * pieces_.size() + begin; }

    const ScoreRun<T>& run_;
    Pieces<T> pieces_;
    std::optional<Scratch<T>> memory_;
    int64_t query_, key_, product_;
    std::vector<int64_t> layers_;  // from layer 2 on
};

// What the sums over the rows of layer l's f say: the gradients of its parameters but weight and bias, and
// those of mean and variance, which the next pass needs.
template <typename T, typename Output>
void finish_gradients(ScoreRun<T>& run, int64_t l, const Output& output) {
    const LayerParameters<T>& from = run.mlp.layers[l];
    const int64_t width = run.width(l);
    int64_t index = from.index + 2;  // behind weight and bias
    T *dgamma = nullptr, *dbeta = nullptr, *dslope = nullptr, *dgate_gamma = nullptr, *dgate_beta = nullptr;
    if (from.norm) dgamma = output(index++), dbeta = output(index++);
    if (from.slopes > 0) dslope = output(index++);
    if (from.gate) dgate_gamma = output(index++), dgate_beta = output(index++);
    double slope = 0;
    for (int64_t c = 0; c < from.width; ++c) {
        double total[kReductions] = {};
        for (int64_t thread = 0; thread < run.threads; ++thread) {
            const double* own = run.reductions(l, thread) + c;
            for (int64_t i = 0; i < kReductions; ++i) total[i] += own[i * width];
        }
        const ChannelGradients g = gradients(from, run.mlp.batch_statistics, run.channel_of(l, c), total);
        if (from.norm) dgamma[c] = T(g.gamma), dbeta[c] = T(g.beta);
        if (from.gate)
            dgate_gamma[c] = T(g.gate_gamma), dgate_beta[c] = T(g.gate_beta), dslope[c] = T(total[kDslope]);
        slope += total[kDslope];
        run.set_gradients(l, c, g.mean, g.variance);
    }
    if (from.activation == Activation::kPrelu) dslope[0] = T(slope);
}

template <typename T>
std::tuple<Tensor, Tensor, std::vector<Tensor>> run_backward(const ScoreMLP<T>& mlp, const ScoreInputs& in,
                                                             const Tensor& dscores, const Tensor& scores,
                                                             const Tensor& saved,
                                                             const std::vector<Tensor>& parameters) {
    ScoreRun<T> run(mlp, in, Direction::kBackward);
    Scores<T>& p = run.p;
    // The kernels of backward only read x, the statistics and the scores.
    run.bind(const_cast<T*>(data<T>("saved", saved, {run.saved_size})));
    p.scores = const_cast<T*>(data<T>("scores", scores, {p.rows}));
    p.dscores = data<T>("dscores", dscores, {p.rows});
    Tensor dquery = torch::stable::new_empty(in.query, {p.size, p.depth});
    Tensor dkeys = empty_rows(in.query, {p.rows, p.depth});
    p.dquery = static_cast<T*>(dquery.mutable_data_ptr());
    p.dkeys = static_cast<T*>(dkeys.mutable_data_ptr());
    std::vector<Tensor> dparameters;
    for (const Tensor& parameter : parameters)
        dparameters.push_back(torch::stable::new_empty(parameter, parameter.sizes()));
    auto output = [&](int64_t index) { return static_cast<T*>(dparameters[index].mutable_data_ptr()); };
    for (int64_t l = 0; l < p.layer_count; ++l) run.finish_channels(l);

    Pieces<T> rows;
    const int64_t dlogits = rows.add(p.rows + p.size), end_layer = p.layer_count - 1;
    std::vector<int64_t> gradients;
    for (int64_t l = 0; l < end_layer; ++l) gradients.push_back(rows.add((p.rows + p.size) * run.width(l)));
    const Scratch<T> memory(rows.size());
    p.dlogits = memory.data() + dlogits;
    for (int64_t l = 0; l < end_layer; ++l) p.layers[l].gradient = memory.data() + gradients[l];
    WeightSums<T> weights(run);
    const int64_t per_thread = run.k.scratch(p);
    const Scratch<T> scratch(per_thread * run.threads);
    auto histories = [&](auto f) {
        for_each_thread(run.threads, [&](int64_t thread) {
            ScoreSums<T> sums = run.sums(thread);
            weights.set(thread, sums);
            f(thread, run.begins[thread], run.begins[thread + 1], sums, scratch.data() + thread * per_thread);
        });
    };

    histories([&](int64_t thread, int64_t begin, int64_t end, const ScoreSums<T>& sums, T* own) {
        weights.zero(thread);
        run.k.softmax_backward(p, begin, end);
        run.k.last_backward(p, p.offsets[begin], p.offsets[end], sums, own);
    });
    finish_gradients(run, end_layer, output);
    for (int64_t l = end_layer; l > 0; --l) {
        histories([&](int64_t, int64_t begin, int64_t end, const ScoreSums<T>& sums, T* own) {
            run.k.layer_backward(p, l, p.offsets[begin], p.offsets[end], sums, own);
            if (mlp.batch_statistics) run.k.layer_backward(p, l, p.rows + begin, p.rows + end, sums, own);
        });
        finish_gradients(run, l - 1, output);
    }
    histories([&](int64_t, int64_t begin, int64_t end, const ScoreSums<T>& sums, T* own) {
        run.k.terms_backward(p, begin, end, sums, own);
    });

    run.add_sums();
    weights.add();
    weights.write_first(output(0));
    for (int64_t l = 0; l < p.layer_count; ++l) {
        const LayerParameters<T>& to = mlp.layers[l];
        if (l > 0) weights.write_layer(l, output(to.index));
        T* dbias = output(to.index + 1);
        for (int64_t c = 0; c < to.width; ++c) dbias[c] = T(run.reductions(l)[kDx * run.width(l) + c]);
    }
    const int64_t count = parameters.size();
    for (int64_t c = 0; c < mlp.layers.back().width; ++c) output(count - 2)[c] = T(run.last()[c]);
    output(count - 1)[0] = T(run.last()[run.width(end_layer)]);
    return {dquery, dkeys, dparameters};
}

template <typename T>
const T* parameter_data(const char* name, const Tensor& value, Shape shape) {
    return data<T>(name, value, shape);
}

std::tuple<Tensor, Tensor, Tensor> attention_scores(Tensor query, Tensor keys, Tensor offsets,
                                                    std::optional<Tensor> key_start,
                                                    std::vector<Tensor> parameters,
                                                    std::vector<Tensor> running, std::optional<Tensor> seed,
                                                    int64_t max_length, std::vector<int64_t> layers,
                                                    std::vector<double> epsilons, double dropout,
                                                    bool training, bool save) {
    check_shape("query", query, {-1, -1});
    const ScoreInputs in{query, keys, offsets, key_start, seed, max_length, training ? dropout : 0.0};
    const ScoreArguments arguments{parameters, running, layers, epsilons, training};
    if (is_single("query", query))
        return run_forward<float>({arguments, query.size(1), parameter_data<float>}, in, save);
    return run_forward<double>({arguments, query.size(1), parameter_data<double>}, in, save);
}

std::tuple<Tensor, Tensor, std::vector<Tensor>> attention_scores_backward(
    Tensor dscores, Tensor scores, Tensor query, Tensor keys, Tensor offsets, std::vector<Tensor> parameters,
    std::vector<Tensor> running, std::optional<Tensor> seed, Tensor saved, int64_t max_length,
    std::vector<int64_t> layers, std::vector<double> epsilons, double dropout, bool training) {
    check_shape("query", query, {-1, -1});
    const std::optional<Tensor> no_key_start;
    const ScoreInputs in{query, keys, offsets, no_key_start, seed, max_length, training ? dropout : 0.0};
    const ScoreArguments arguments{parameters, running, layers, epsilons, training};
    const int64_t depth = query.size(1);
    if (is_single("query", query))
        return run_backward<float>({arguments, depth, parameter_data<float>}, in, dscores, scores, saved,
                                   parameters);
    return run_backward<double>({arguments, depth, parameter_data<double>}, in, dscores, scores, saved,
                                parameters);
}

}  // namespace
}  // namespace dien_fast

STABLE_TORCH_LIBRARY_IMPL(dien_fast, CPU, m) {
    m.impl("attention_scores", TORCH_BOX(&dien_fast::attention_scores));
    m.impl("attention_scores_backward", TORCH_BOX(&dien_fast::attention_scores_backward));
}
