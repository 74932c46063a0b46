// The attention scores on CUDA: the operators attention_scores and attention_scores_backward. Checks the
// tensors and makes outputs and workspace; the launchers that attention_scores_cuda.h declares do the rest.
//
// What differs from the operators on the CPU: offsets, key_start and seed are in device memory, and their
// values are not read here. Where histories share keys, though, only the offsets tell how many scores there
// are, and the host waits for them. Forward keeps the batch's mean and variance of every layer; backward
// computes the rows of the layers again.

#include "attention_scores_cuda.h"

#include <cmath>
#include <optional>
#include <tuple>
#include <vector>

#include "../../attention_scores_mlp.h"
#include "../common/operator.h"

namespace dien_fast::cuda {
namespace {

int64_t last_offset(const Tensor& offsets) {
    Tensor whole = offsets;
    const Tensor last = torch::stable::narrow(whole, 0, offsets.size(0) - 1, 1);
    const torch::stable::Device host(torch::headeronly::DeviceType::CPU);
    const Tensor copy = torch::stable::to(last, std::nullopt, std::nullopt, host);
    return *static_cast<const int64_t*>(copy.const_data_ptr());
}

template <typename T>
void read_dropout(ScoreCall<T>& call, const Checks& check, const ScoreInputs& in) {
    STD_TORCH_CHECK(in.dropout >= 0 && in.dropout < 1, "dropout must lie in [0, 1), got ", in.dropout);
    if (in.dropout == 0) return;
    STD_TORCH_CHECK(in.seed, "seed must be given with dropout");
    call.seed = check.integers("seed", in.seed, {1});
    call.keep = uint32_t(std::min(std::llround((1 - in.dropout) * 4294967296.0), 4294967295ll));
    call.kept = T(1 / (1 - in.dropout));
}

template <typename T>
void read(ScoreCall<T>& call, const ScoreInputs& in, const ScoreMLP<T>& mlp) {
    const Checks check{in.query, "query"};
    const int64_t size = check.size_of(in.offsets);
    call.rows.offsets = check.integers("offsets", in.offsets, {-1});
    call.rows.size = size;
    call.depth = mlp.depth;
    call.query = check.numbers<T>("query", in.query, {size, mlp.depth});
    call.keys = check.numbers<T>("keys", in.keys, {-1, mlp.depth});
    call.key_rows = in.keys.size(0);
    call.rows.rows = call.key_rows;
    call.max_length = in.max_length;
    call.batch_statistics = mlp.batch_statistics;
    STD_TORCH_CHECK(in.max_length >= 0, "max_length must be at least 0, got ", in.max_length);
    if (in.key_start) {
        STD_TORCH_CHECK(!mlp.batch_statistics, "key_start must come with evaluation");
        call.key_start = check.integers("key_start", in.key_start, {size});
        call.rows.rows = last_offset(in.offsets);
        STD_TORCH_CHECK(call.rows.rows >= 0, "offsets must rise from 0 to N, got N = ", call.rows.rows);
    }
    call.layer_count = int64_t(mlp.layers.size());
    std::copy(mlp.layers.begin(), mlp.layers.end(), call.layers);
    call.last = mlp.last;
    call.last_bias = mlp.last_bias;
    read_dropout(call, check, in);
}

template <typename T>
ScoreMLP<T> read_layers(const ScoreArguments& arguments, const Tensor& query) {
    const Checks check{query, "query"};
    return ScoreMLP<T>(arguments, query.size(1), [&](const char* name, const Tensor& value, Shape shape) {
        return check.numbers<T>(name, value, shape);
    });
}

template <typename T>
std::tuple<Tensor, Tensor, Tensor> run_forward(const ScoreArguments& arguments, const ScoreInputs& in,
                                               bool save) {
    const ScoreMLP<T> mlp = read_layers<T>(arguments, in.query);
    ScoreForward<T> f{};
    read(f, in, mlp);
    int64_t channels = 0, numbers = 0;
    for (const LayerParameters<T>& layer : mlp.layers) {
        channels += 2 * layer.width;
        numbers += 2 * layer.width * (bool(layer.norm) + bool(layer.gate));
    }
    const bool batch = mlp.batch_statistics;
    const Tensor scores = torch::stable::new_empty(in.query, {f.rows.rows});
    const Tensor statistics = torch::stable::new_empty(in.query, {batch ? numbers : 0});
    const Tensor saved = torch::stable::new_empty(in.query, {batch && save ? channels : 0});
    f.scores = output<T>(scores);
    f.statistics = output<T>(statistics);
    f.saved = output<T>(saved);
    run_in_workspace(f, in.query);
    return {scores, statistics, saved};
}

// Where the gradients of a layer's parameters go; `outputs` has the order of the parameters.
template <typename T>
ScoreLayerGradients<T> layer_gradients(const LayerParameters<T>& layer, const std::vector<Tensor>& outputs) {
    int64_t index = layer.index;
    auto next = [&](bool given) { return given ? output<T>(outputs[index++]) : nullptr; };
    ScoreLayerGradients<T> out{};
    out.weight = next(true);
    out.bias = next(true);
    out.gamma = next(bool(layer.norm));
    out.beta = next(bool(layer.norm));
    out.slope = next(layer.slopes > 0);
    out.gate_gamma = next(bool(layer.gate));
    out.gate_beta = next(bool(layer.gate));
    return out;
}

template <typename T>
std::tuple<Tensor, Tensor, std::vector<Tensor>> run_backward(const ScoreArguments& arguments,
                                                             const ScoreInputs& in, const Tensor& dscores,
                                                             const Tensor& scores, const Tensor& saved) {
    const ScoreMLP<T> mlp = read_layers<T>(arguments, in.query);
    const Checks check{in.query, "query"};
    ScoreBackward<T> b{};
    read(b, in, mlp);
    const int64_t rows = b.rows.rows;
    int64_t channels = 0;
    for (const LayerParameters<T>& layer : mlp.layers) channels += 2 * layer.width;
    b.scores = check.numbers<T>("scores", scores, {rows});
    b.dscores = check.numbers<T>("dscores", dscores, {rows});
    const T* given = check.numbers<T>("saved", saved, {mlp.batch_statistics ? channels : 0});
    b.saved = mlp.batch_statistics ? given : nullptr;
    const Tensor dquery = torch::stable::new_empty(in.query, {b.rows.size, b.depth});
    const Tensor dkeys = torch::stable::new_empty(in.query, {rows, b.depth});
    std::vector<Tensor> dparameters;
    for (const Tensor& parameter : arguments.parameters)
        dparameters.push_back(torch::stable::new_empty(parameter, parameter.sizes()));
    b.dquery = output<T>(dquery);
    b.dkeys = output<T>(dkeys);
    for (int64_t l = 0; l < b.layer_count; ++l) b.gradients[l] = layer_gradients(mlp.layers[l], dparameters);
    b.dlast = output<T>(dparameters[dparameters.size() - 2]);
    b.dlast_bias = output<T>(dparameters.back());
    run_in_workspace(b, in.query);
    return {dquery, dkeys, dparameters};
}

std::tuple<Tensor, Tensor, Tensor> attention_scores(Tensor query, Tensor keys, Tensor offsets,
                                                    std::optional<Tensor> key_start,
                                                    std::vector<Tensor> parameters,
                                                    std::vector<Tensor> running, std::optional<Tensor> seed,
                                                    int64_t max_length, std::vector<int64_t> layers,
                                                    std::vector<double> epsilons, double dropout,
                                                    bool training, bool save) {
    check_sizes("query", query, {-1, -1});
    const ScoreInputs in{query, keys, offsets, key_start, seed, max_length, training ? dropout : 0.0};
    const ScoreArguments arguments{parameters, running, layers, epsilons, training};
    return is_single("query", query) ? run_forward<float>(arguments, in, save)
                                     : run_forward<double>(arguments, in, save);
}

std::tuple<Tensor, Tensor, std::vector<Tensor>> attention_scores_backward(
    Tensor dscores, Tensor scores, Tensor query, Tensor keys, Tensor offsets, std::vector<Tensor> parameters,
    std::vector<Tensor> running, std::optional<Tensor> seed, Tensor saved, int64_t max_length,
    std::vector<int64_t> layers, std::vector<double> epsilons, double dropout, bool training) {
    check_sizes("query", query, {-1, -1});
    const std::optional<Tensor> no_key_start;
    const ScoreInputs in{query, keys, offsets, no_key_start, seed, max_length, training ? dropout : 0.0};
    const ScoreArguments arguments{parameters, running, layers, epsilons, training};
    return is_single("query", query) ? run_backward<float>(arguments, in, dscores, scores, saved)
                                     : run_backward<double>(arguments, in, dscores, scores, saved);
}

}  // namespace
}  // namespace dien_fast::cuda

STABLE_TORCH_LIBRARY_IMPL(dien_fast, CUDA, m) {
    m.impl("attention_scores", TORCH_BOX(&dien_fast::cuda::attention_scores));
    m.impl("attention_scores_backward", TORCH_BOX(&dien_fast::cuda::attention_scores_backward));
}
