// The arguments of the operators attention_scores and attention_scores_backward that describe the MLP,
// checked and read into layers, for CPU and CUDA alike.

#pragma once

#include <functional>
#include <optional>
#include <vector>

#include "attention_scores_layers.h"
#include "checks.h"

namespace dien_fast {

constexpr int64_t kNormalised = 8;  // added to the number of a layer's activation if the layer is normalised

// The operators' arguments that describe the MLP.
struct ScoreArguments {
    const std::vector<Tensor>& parameters;
    const std::vector<Tensor>& running;
    const std::vector<int64_t>& layers;
    const std::vector<double>& epsilons;
    bool training;
};

// The other arguments, as the operators get them.
struct ScoreInputs {
    const Tensor& query;
    const Tensor& keys;
    const Tensor& offsets;
    const std::optional<Tensor>& key_start;
    const std::optional<Tensor>& seed;
    int64_t max_length;
    double dropout;
};

template <typename T>
class ScoreMLP {
  public:
    std::vector<LayerParameters<T>> layers;
    const T *last = nullptr, *last_bias = nullptr;  // of the last product
    int64_t depth = 0;
    bool batch_statistics = false;  // whether a normalisation uses those of the batch

    // `data` checks that one of the tensors, named first, has a shape and is where and as it should be, and
    // returns its address.
    using Data = std::function<const T*(const char*, const Tensor&, Shape)>;

    ScoreMLP(const ScoreArguments& arguments, int64_t depth, const Data& data)
        : depth(depth), a_(arguments), data_(data) {
        STD_TORCH_CHECK(!a_.layers.empty() && a_.layers.size() <= size_t(kMaxLayers),
                        "layers must hold 1 to ", kMaxLayers, " layers, got ", a_.layers.size());
        STD_TORCH_CHECK(depth > 0, "query must have at least one channel, got 0");
        int64_t inputs = 4 * depth;
        for (int64_t code : a_.layers) {
            layers.push_back(read_layer(code, inputs));
            inputs = layers.back().width;
        }
        layers[0].inputs = depth;  // of each of the four parts of its weight
        last = take({1, inputs});
        last_bias = take({1});
        STD_TORCH_CHECK(parameter_ == a_.parameters.size() && statistic_ == a_.running.size() &&
                            epsilon_ == a_.epsilons.size(),
                        "parameters, running and epsilons must be those of the layers, got ",
                        a_.parameters.size(), ", ", a_.running.size(), " and ", a_.epsilons.size(), " for ",
                        parameter_, ", ", statistic_, " and ", epsilon_);
    }

    std::vector<int64_t> widths() const {
        std::vector<int64_t> out;
        for (const auto& l : layers) out.push_back(l.width);
        return out;
    }

  private:
    LayerParameters<T> read_layer(int64_t code, int64_t inputs) {
        STD_TORCH_CHECK(
            code >= 0 && code % kNormalised <= int64_t(Activation::kDice) && code < 2 * kNormalised,
            "layers must hold codes of activations, got ", code);
        LayerParameters<T> l{};
        l.activation = Activation(code % kNormalised);
        l.index = parameter_;
        STD_TORCH_CHECK(parameter_ < a_.parameters.size() && a_.parameters[parameter_].dim() == 2,
                        "parameters must hold a matrix for every layer");
        l.inputs = inputs;
        l.width = a_.parameters[parameter_].size(0);
        STD_TORCH_CHECK(l.width > 0, "parameters must have at least one output a layer");
        l.weight = take({l.width, inputs});
        l.bias = take({l.width});
        if (code >= kNormalised) l.norm = take_normalisation(l.width);
        const bool dice = l.activation == Activation::kDice;
        if (dice || l.activation == Activation::kPrelu) {
            l.slopes = dice ? l.width : 1;
            l.slope = take({l.slopes});
        }
        if (dice) l.gate = take_normalisation(l.width);
        batch_statistics |= a_.training && l.has_statistics();
        return l;
    }
    const T* take(Shape shape) {
        STD_TORCH_CHECK(parameter_ < a_.parameters.size(), "parameters must be those of the layers, got ",
                        a_.parameters.size());
        return data_("parameters", a_.parameters[parameter_++], shape);
    }
    const T* take_running(int64_t width) {
        STD_TORCH_CHECK(statistic_ < a_.running.size(), "running must hold two tensors a normalisation, got ",
                        a_.running.size());
        return data_("running", a_.running[statistic_++], {width});
    }
    Normalisation<T> take_normalisation(int64_t width) {
        Normalisation<T> out;
        out.gamma = take({width});
        out.beta = take({width});
        if (!a_.training) {
            out.mean = take_running(width);
            out.variance = take_running(width);
        }
        STD_TORCH_CHECK(epsilon_ < a_.epsilons.size(), "epsilons must hold one number a normalisation, got ",
                        a_.epsilons.size());
        out.epsilon = a_.epsilons[epsilon_++];
        return out;
    }

    const ScoreArguments a_;
    const Data& data_;
    size_t parameter_ = 0, statistic_ = 0, epsilon_ = 0;  // the next ones to take
};

}  // namespace dien_fast
