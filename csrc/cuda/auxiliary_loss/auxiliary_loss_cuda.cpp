// The auxiliary loss on CUDA: the operator auxiliary_loss. Checks the tensors and makes outputs and
// workspace; the launchers that auxiliary_loss_cuda.h declares do the rest.
//
// What differs from the operator on the CPU: the values of the offsets, in device memory, are not read here.

#include "auxiliary_loss_cuda.h"

#include <tuple>
#include <vector>

#include "../../auxiliary_loss_mlp.h"
#include "../common/operator.h"

namespace dien_fast::cuda {
namespace {

template <typename T>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> run_with(const Tensor& states, const Tensor& events,
                                                            const Tensor& negatives, const Tensor& offsets,
                                                            const std::vector<Tensor>& parameters,
                                                            bool save) {
    const Checks check{states, "states"};
    const int64_t rows = states.size(0), depth = states.size(1);
    const AuxiliaryParameters<T> mlp(parameters, depth,
                                     [&](const char* name, const Tensor& value, Shape shape) {
                                         return check.numbers<T>(name, value, shape);
                                     });
    AuxiliaryCall<T> call{};
    call.rows = {check.size_of(offsets), rows, check.integers("offsets", offsets, {-1})};
    call.depth = depth;
    call.states = check.numbers<T>("states", states, {rows, depth});
    call.events = check.numbers<T>("events", events, {rows, depth});
    call.negatives = check.numbers<T>("negatives", negatives, {rows, depth});
    call.layer_count = mlp.layers();
    std::copy(mlp.widths.begin(), mlp.widths.end(), call.widths);
    std::copy(mlp.weights.begin(), mlp.weights.end(), call.weights);
    std::copy(mlp.biases.begin(), mlp.biases.end(), call.biases);
    auto gradient = [&] {
        return save ? torch::stable::new_empty(states, {rows, depth}) : torch::stable::new_empty(states, {0});
    };
    const Tensor loss = torch::stable::new_empty(states, {});
    const Tensor dstates = gradient(), devents = gradient(), dnegatives = gradient();
    const Tensor dparameters = torch::stable::new_empty(states, {save ? mlp.size : 0});
    call.loss = output<T>(loss);
    call.dstates = output<T>(dstates);
    call.devents = output<T>(devents);
    call.dnegatives = output<T>(dnegatives);
    call.dparameters = output<T>(dparameters);
    run_in_workspace(call, states);
    return {loss, dstates, devents, dnegatives, dparameters};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> auxiliary_loss(Tensor states, Tensor events,
                                                                  Tensor negatives, Tensor offsets,
                                                                  std::vector<Tensor> parameters, bool save) {
    check_sizes("states", states, {-1, -1});
    const auto chosen = is_single("states", states) ? run_with<float> : run_with<double>;
    return chosen(states, events, negatives, offsets, parameters, save);
}

}  // namespace
}  // namespace dien_fast::cuda

STABLE_TORCH_LIBRARY_IMPL(dien_fast, CUDA, m) {
    m.impl("auxiliary_loss", TORCH_BOX(&dien_fast::cuda::auxiliary_loss));
}
