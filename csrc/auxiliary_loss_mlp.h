// The parameters of the auxiliary loss's MLP, checked and read, for CPU and CUDA alike.

#pragma once

#include <functional>
#include <vector>

#include "checks.h"
#include "interest.h"

namespace dien_fast {

template <typename T>
struct AuxiliaryParameters {
    std::vector<int64_t> widths;            // of the hidden layers
    std::vector<const T*> weights, biases;  // of these and of the last product
    int64_t operations = 0;                 // that a row costs forward
    int64_t size = 0;                       // numbers in all parameters

    int64_t layers() const { return int64_t(widths.size()); }  // without the last product

    // `data` checks that one of the tensors, named first, has a shape and is where and as it should be, and
    // returns its address.
    using Data = std::function<const T*(const char*, const Tensor&, Shape)>;

    AuxiliaryParameters(const std::vector<Tensor>& parameters, int64_t depth, const Data& data) {
        const int64_t layers = int64_t(parameters.size()) / 2 - 1;
        STD_TORCH_CHECK(parameters.size() % 2 == 0 && layers >= 1 && layers <= kMaxLayers,
                        "parameters must hold weight and bias of 2 to ", kMaxLayers + 1, " layers, got ",
                        parameters.size(), " tensors");
        int64_t inputs = 2 * depth;
        for (int64_t l = 0; l <= layers; ++l) {
            const Tensor& weight = parameters[2 * l];
            check_sizes("parameters", weight, {l == layers ? 1 : -1, inputs});
            const int64_t width = weight.size(0);
            STD_TORCH_CHECK(width > 0, "parameters must have at least one output a layer");
            weights.push_back(data("parameters", weight, {width, inputs}));
            biases.push_back(data("parameters", parameters[2 * l + 1], {width}));
            if (l < layers) widths.push_back(width);
            operations += 4 * inputs * width;
            size += (inputs + 1) * width;
            inputs = width;
        }
    }
};

}  // namespace dien_fast
