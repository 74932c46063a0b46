// The layers of the attention's MLP: their arguments, checked, and everything that is about channels alone,
// the coefficients of a layer from its statistics and their gradients, in double.

#pragma once

#include <cmath>
#include <vector>

#include "ragged.h"

namespace dien_fast {

constexpr int64_t kNormalised = 8;  // added to a layer's activation

// The arguments of a layer, and where its parameters' gradients go among all of them.
template <typename T>
struct LayerArguments {
    Activation activation;
    int64_t inputs, width, index;
    const T *weight, *bias;
    const T *gamma = nullptr, *beta = nullptr, *mean = nullptr, *variance = nullptr;  // of the normalisation
    double epsilon = 0;
    int64_t slopes = 0;  // 0, 1 or C
    const T* slope = nullptr;
    const T *gate_gamma = nullptr, *gate_beta = nullptr, *gate_mean = nullptr, *gate_variance = nullptr;
    double gate_epsilon = 0;

    bool gated() const { return activation == Activation::kDice; }
    bool has_statistics() const { return gamma != nullptr || gated(); }
};

template <typename T>
class Arguments {
  public:
    std::vector<LayerArguments<T>> layers;
    const T *last = nullptr, *last_bias = nullptr;
    int64_t depth = 0;
    bool batch_statistics = false;

    Arguments(const std::vector<Tensor>& parameters, const std::vector<Tensor>& running,
              const std::vector<int64_t>& codes, const std::vector<double>& epsilons, bool training,
              int64_t depth)
        : depth(depth), parameters_(parameters), running_(running), epsilons_(epsilons), training_(training) {
        STD_TORCH_CHECK(!codes.empty() && codes.size() <= size_t(kMaxLayers), "layers must hold 1 to ",
                        kMaxLayers, " layers, got ", codes.size());
        STD_TORCH_CHECK(depth > 0, "query must have at least one channel, got 0");
        int64_t inputs = 4 * depth;
        for (int64_t code : codes) {
            STD_TORCH_CHECK(
                code >= 0 && code % kNormalised <= int64_t(Activation::kDice) && code < 2 * kNormalised,
                "layers must hold codes of activations, got ", code);
            LayerArguments<T> l;
            l.activation = Activation(code % kNormalised);
            l.index = next_;
            STD_TORCH_CHECK(next_ < parameters_.size() && parameters_[next_].dim() == 2,
                            "parameters must hold a matrix for every layer");
            l.inputs = layers.empty() ? depth : inputs;
            l.width = parameters_[next_].size(0);
            STD_TORCH_CHECK(l.width > 0, "parameters must have at least one output a layer");
            l.weight = take({l.width, inputs});
            l.bias = take({l.width});
            if (code >= kNormalised) normalisation(l.width, l.gamma, l.beta, l.mean, l.variance, l.epsilon);
            if (l.activation == Activation::kPrelu || l.gated()) {
                l.slopes = l.gated() ? l.width : 1;
                l.slope = take({l.slopes});
            }
            if (l.gated())
                normalisation(l.width, l.gate_gamma, l.gate_beta, l.gate_mean, l.gate_variance,
                              l.gate_epsilon);
            batch_statistics |= training && l.has_statistics();
            layers.push_back(l);
            inputs = l.width;
        }
        last = take({1, inputs});
        last_bias = take({1});
        STD_TORCH_CHECK(
            next_ == parameters_.size() && statistic_ == running_.size() && norm_ == epsilons_.size(),
            "parameters, running and epsilons must be those of the layers, got ", parameters_.size(), ", ",
            running_.size(), " and ", epsilons_.size(), " for ", next_, ", ", statistic_, " and ", norm_);
    }

    std::vector<int64_t> widths() const {
        std::vector<int64_t> out;
        for (const auto& l : layers) out.push_back(l.width);
        return out;
    }

  private:
    const T* take(std::initializer_list<int64_t> shape) {
        STD_TORCH_CHECK(next_ < parameters_.size(), "parameters must be those of the layers, got ",
                        parameters_.size());
        return data<T>("parameters", parameters_[next_++], shape);
    }
    const T* take_running(int64_t width) {
        STD_TORCH_CHECK(statistic_ < running_.size(), "running must hold two tensors a normalisation, got ",
                        running_.size());
        return data<T>("running", running_[statistic_++], {width});
    }
    void normalisation(int64_t width, const T*& gamma, const T*& beta, const T*& mean, const T*& variance,
                       double& epsilon) {
        gamma = take({width});
        beta = take({width});
        if (!training_) {
            mean = take_running(width);
            variance = take_running(width);
        }
        STD_TORCH_CHECK(norm_ < epsilons_.size(), "epsilons must hold one number a normalisation, got ",
                        epsilons_.size());
        epsilon = epsilons_[norm_++];
    }

    const std::vector<Tensor>&parameters_, &running_;
    const std::vector<double>& epsilons_;
    bool training_;
    size_t next_ = 0, statistic_ = 0, norm_ = 0;
};

// How a channel's number becomes y and the gate's argument, and the parts that gradients need.
struct Channel {
    double mean = 0, variance = 0, rstd = 1, gamma = 1, scale = 1, shift = 0;
    double gate_mean = 0, gate_variance = 0, gate_rstd = 0, gate_gamma = 0, gate_scale = 0, gate_shift = 0;
};

// mean and variance are the batch's, not used where the running ones are.
template <typename T>
Channel channel(const LayerArguments<T>& l, bool batch, int64_t c, double mean, double variance) {
    Channel out;
    if (batch && l.has_statistics()) {
        out.mean = mean;
        out.variance = variance;
    } else if (l.gamma != nullptr) {
        out.mean = l.mean[c];
        out.variance = l.variance[c];
    }
    out.shift = out.mean;  // y = x
    if (l.gamma != nullptr) {
        out.rstd = 1 / std::sqrt(out.variance + l.epsilon);
        out.gamma = l.gamma[c];
        out.scale = out.gamma * out.rstd;
        out.shift = l.beta[c];
    }
    if (l.gated()) {
        // Of y: in a batch its mean is shift.
        out.gate_mean = batch ? out.shift : l.gate_mean[c];
        out.gate_variance = batch ? out.scale * out.scale * out.variance : l.gate_variance[c];
        out.gate_rstd = 1 / std::sqrt(out.gate_variance + l.gate_epsilon);
        out.gate_gamma = l.gate_gamma[c];
        out.gate_scale = out.gate_gamma * out.gate_rstd * out.scale;
        out.gate_shift = l.gate_beta[c] + out.gate_gamma * out.gate_rstd * (out.shift - out.gate_mean);
    }
    return out;
}

struct ChannelGradients {
    double gamma = 0, beta = 0, gate_gamma = 0, gate_beta = 0, mean = 0, variance = 0;
};
// From the sums of Reduction.
template <typename T>
ChannelGradients gradients(const LayerArguments<T>& l, bool batch, const Channel& v, double dy,
                           double dy_centred, double dgate, double dgate_centred) {
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
    // of scale, through y and the gate, and of the gate's variance = scale^2 variance
    double dscale = dy_centred + gate * dgate_centred;
    if (l.gated()) {
        const double drstd = v.gate_gamma * v.scale * dgate_centred;
        const double dvariance = -0.5 * v.gate_rstd * v.gate_rstd * v.gate_rstd * drstd;
        dscale += 2 * v.scale * v.variance * dvariance;
        out.variance = v.scale * v.scale * dvariance;
        out.mean = -v.gate_scale * dgate;
    }
    if (l.gamma != nullptr) {
        out.gamma = v.rstd * dscale;
        out.variance += -0.5 * v.rstd * v.rstd * v.rstd * v.gamma * dscale;
        out.mean -= v.scale * dy;
    }
    return out;
}

}  // namespace dien_fast
