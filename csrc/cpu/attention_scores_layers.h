// The layers of the attention's MLP: their parameters, checked, and the arithmetic on channels that the
// kernels' passes over rows leave to be done between them. In double, as it costs nothing there.

#pragma once

#include <cmath>
#include <vector>

#include "../interest.h"
#include "arguments.h"

namespace dien_fast {

constexpr int64_t kNormalised = 8;  // added to the number of a layer's activation if the layer is normalised

// A batch normalisation: scale and shift, and in evaluation the running mean and variance.
template <typename T>
struct Normalisation {
    const T *gamma = nullptr, *beta = nullptr, *mean = nullptr, *variance = nullptr;
    double epsilon = 0;
    explicit operator bool() const { return gamma != nullptr; }
};

template <typename T>
struct LayerParameters {
    Activation activation;
    int64_t inputs, width;
    int64_t index;  // of its weight among all parameters; the others follow in the order of this struct
    const T *weight, *bias;
    Normalisation<T> norm;
    int64_t slopes = 0;  // one for PReLU, `width` for Dice
    const T* slope = nullptr;
    Normalisation<T> gate;  // Dice's

    bool has_statistics() const { return norm || gate; }
};

// The operators' arguments that describe the MLP.
struct ScoreArguments {
    const std::vector<Tensor>& parameters;
    const std::vector<Tensor>& running;
    const std::vector<int64_t>& layers;
    const std::vector<double>& epsilons;
    bool training;
};

template <typename T>
class ScoreMLP {
  public:
    std::vector<LayerParameters<T>> layers;
    const T *last = nullptr, *last_bias = nullptr;  // of the last product
    int64_t depth = 0;
    bool batch_statistics = false;  // whether a normalisation uses those of the batch

    ScoreMLP(const ScoreArguments& arguments, int64_t depth) : depth(depth), a_(arguments) {
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
        return data<T>("parameters", a_.parameters[parameter_++], shape);
    }
    const T* take_running(int64_t width) {
        STD_TORCH_CHECK(statistic_ < a_.running.size(), "running must hold two tensors a normalisation, got ",
                        a_.running.size());
        return data<T>("running", a_.running[statistic_++], {width});
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
    size_t parameter_ = 0, statistic_ = 0, epsilon_ = 0;  // the next ones to take
};

// What turns a channel's numbers into y and p, see interest.h, and what the gradients need of how that came
// about.
struct Channel {
    double mean = 0, variance = 0, rstd = 1, gamma = 1, scale = 1, shift = 0;
    double gate_mean = 0, gate_variance = 0, gate_rstd = 0, gate_gamma = 0, gate_scale = 0, gate_shift = 0;
};

// Channel c of a layer. mean and variance are the batch's where `batch`, else unused.
template <typename T>
Channel channel(const LayerParameters<T>& l, bool batch, int64_t c, double mean, double variance) {
    Channel out;
    if (batch && l.has_statistics()) {
        out.mean = mean;
        out.variance = variance;
    } else if (l.norm) {
        out.mean = l.norm.mean[c];
        out.variance = l.norm.variance[c];
    }
    out.shift = out.mean;  // without normalisation y = x
    if (l.norm) {
        out.rstd = 1 / std::sqrt(out.variance + l.norm.epsilon);
        out.gamma = l.norm.gamma[c];
        out.scale = out.gamma * out.rstd;
        out.shift = l.norm.beta[c];
    }
    if (l.gate) {
        // The statistics of y: in a batch its mean is shift.
        out.gate_mean = batch ? out.shift : l.gate.mean[c];
        out.gate_variance = batch ? out.scale * out.scale * out.variance : l.gate.variance[c];
        out.gate_rstd = 1 / std::sqrt(out.gate_variance + l.gate.epsilon);
        out.gate_gamma = l.gate.gamma[c];
        out.gate_scale = out.gate_gamma * out.gate_rstd * out.scale;
        out.gate_shift = l.gate.beta[c] + out.gate_gamma * out.gate_rstd * (out.shift - out.gate_mean);
    }
    return out;
}

struct ChannelGradients {
    double gamma = 0, beta = 0, gate_gamma = 0, gate_beta = 0, mean = 0, variance = 0;
};
// The gradients of a channel's numbers, from its sums over rows, by Reduction.
template <typename T>
ChannelGradients gradients(const LayerParameters<T>& l, bool batch, const Channel& v,
                           const double (&sums)[kReductions]) {
    const double dy = sums[kDy], dy_centred = sums[kDyCentred];
    const double dgate = sums[kDgate], dgate_centred = sums[kDgateCentred];
    ChannelGradients out;
    const double gate = v.gate_gamma * v.gate_rstd;
    out.gamma = v.rstd * (dy_centred + gate * dgate_centred);
    out.beta = dy;
    out.gate_beta = dgate;
    out.gate_gamma = v.gate_rstd * (v.scale * dgate_centred + (v.shift - v.gate_mean) * dgate);
    if (!batch) {
        out.beta += gate * dgate;
        return out;
    }
    // scale acts through y, through the gate's argument, and through the gate's variance, scale^2 variance.
    double dscale = dy_centred + gate * dgate_centred;
    if (l.gate) {
        const double drstd = v.gate_gamma * v.scale * dgate_centred;
        const double dvariance = -0.5 * v.gate_rstd * v.gate_rstd * v.gate_rstd * drstd;
        dscale += 2 * v.scale * v.variance * dvariance;
        out.variance = v.scale * v.scale * dvariance;
        out.mean = -v.gate_scale * dgate;
    }
    if (l.norm) {
        out.gamma = v.rstd * dscale;
        out.variance += -0.5 * v.rstd * v.rstd * v.rstd * v.gamma * dscale;
        out.mean -= v.scale * dy;
    }
    return out;
}

}  // namespace dien_fast
