// The activations of the attention's MLP and its dropout, on a number or on a vector of numbers V: interest.h
// has the equations. Shared by the kernels of CPU and CUDA.
//
// Everything here has internal linkage and is inlined: a function that instruction sets shared could be
// linked from the wrong one.

#pragma once

#include "cells.h"
#include "interest.h"

#define DIEN_FAST_SHARED static inline __attribute__((always_inline)) DIEN_FAST_HOST_DEVICE

namespace dien_fast {

// What the rows of a channel, or of a vector of channels, share.
template <typename V>
struct ChannelNumbers {
    V mean, scale, shift, gate_scale, gate_shift, slope;
};

// f of x, before dropout. T is the type of a number. `sigmoid` maps a V to a V.
template <typename T, Activation A, typename V, typename Sigmoid>
DIEN_FAST_SHARED V activated(const ChannelNumbers<V>& c, V x, const Sigmoid& sigmoid) {
    const V none = {}, centred = x - c.mean, y = c.scale * centred + c.shift;
    if constexpr (A == Activation::kRelu) return y < T(0) ? none : y;
    if constexpr (A == Activation::kPrelu) return y > T(0) ? y : c.slope * y;
    if constexpr (A == Activation::kSigmoid) return sigmoid(y);
    if constexpr (A == Activation::kDice) {
        const V p = sigmoid(c.gate_scale * centred + c.gate_shift);
        return y * (c.slope + (T(1) - c.slope) * p);
    }
    if constexpr (A == Activation::kIdentity) return y;
}

// c of x, and what the gradient d of f gives for y, for the gate's argument and for the slope.
template <typename V>
struct Derivatives {
    V centred, dy, dgate, dslope;
};
template <typename T, Activation A, typename V, typename Sigmoid>
DIEN_FAST_SHARED Derivatives<V> derivatives(const ChannelNumbers<V>& c, V x, V d, const Sigmoid& sigmoid) {
    const V none = {}, centred = x - c.mean, y = c.scale * centred + c.shift;
    if constexpr (A == Activation::kRelu) return {centred, y <= T(0) ? none : d, none, none};
    if constexpr (A == Activation::kPrelu)
        return {centred, y > T(0) ? d : c.slope * d, none, y > T(0) ? none : d * y};
    if constexpr (A == Activation::kSigmoid) {
        const V p = sigmoid(y);
        return {centred, d * p * (T(1) - p), none, none};
    }
    if constexpr (A == Activation::kDice) {
        const V p = sigmoid(c.gate_scale * centred + c.gate_shift), q = T(1) - p;
        const V dp = d * y * q;  // of the slope; times (1 - slope) p, of the gate's argument
        return {centred, d * (c.slope + (T(1) - c.slope) * p), dp * (T(1) - c.slope) * p, dp};
    }
    if constexpr (A == Activation::kIdentity) return {centred, d, none, none};
}

// Dropout draws a number from the seed, the layer, the row and the channel: backward draws the same again,
// and the number of threads does not matter. The numbers are mixed as splitmix64 does for a row and lowbias32
// for a channel.
DIEN_FAST_SHARED uint64_t row_key(uint64_t seed, int64_t layer, int64_t row) {
    uint64_t z = seed + 0x9E3779B97F4A7C15u * uint64_t(row * kMaxLayers + layer + 1);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}
template <typename U>
DIEN_FAST_SHARED U channel_bits(U channel, uint64_t key) {
    U h = channel * 0x9E3779B1u + uint32_t(key);
    h = (h ^ (h >> 16)) * 0x7FEB352Du;
    h = ((h ^ (h >> 15)) + uint32_t(key >> 32)) * 0x846CA68Bu;
    return h ^ (h >> 16);
}

}  // namespace dien_fast
