// The layers of the attention's MLP, for CPU and CUDA alike: the arithmetic on channels that the kernels'
// passes over rows leave to be done between them. In double, as it costs nothing there.

#pragma once

#include <cmath>

#include "cells.h"
#include "interest.h"

namespace dien_fast {

// A batch normalisation: scale and shift, and in evaluation the running mean and variance.
template <typename T>
struct Normalisation {
    const T *gamma = nullptr, *beta = nullptr, *mean = nullptr, *variance = nullptr;
    double epsilon = 0;
    DIEN_FAST_HOST_DEVICE explicit operator bool() const { return gamma != nullptr; }
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

    DIEN_FAST_HOST_DEVICE bool has_statistics() const { return norm || gate; }
};

// What turns a channel's numbers into y and p, see interest.h, and what the gradients need of how that came
// about.
struct Channel {
    double mean = 0, variance = 0, rstd = 1, gamma = 1, scale = 1, shift = 0;
    double gate_mean = 0, gate_variance = 0, gate_rstd = 0, gate_gamma = 0, gate_scale = 0, gate_shift = 0;
};

// Channel c of a layer. mean and variance are the batch's where `batch`, else unused.
template <typename T>
static DIEN_FAST_HOST_DEVICE Channel channel(const LayerParameters<T>& l, bool batch, int64_t c, double mean,
                                             double variance) {
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
        out.rstd = 1 / sqrt(out.variance + l.norm.epsilon);
        out.gamma = l.norm.gamma[c];
        out.scale = out.gamma * out.rstd;
        out.shift = l.norm.beta[c];
    }
    if (l.gate) {
        // The statistics of y: in a batch its mean is shift.
        out.gate_mean = batch ? out.shift : l.gate.mean[c];
        out.gate_variance = batch ? out.scale * out.scale * out.variance : l.gate.variance[c];
        out.gate_rstd = 1 / sqrt(out.gate_variance + l.gate.epsilon);
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
static DIEN_FAST_HOST_DEVICE ChannelGradients gradients(const LayerParameters<T>& l, bool batch,
                                                        const Channel& v, const double (&sums)[kReductions]) {
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
