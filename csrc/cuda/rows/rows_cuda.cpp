// The operators on ragged rows on CUDA: weighted_sum, weighted_sum_backward and padded_from_rows. Checks the
// tensors and makes the outputs; the launchers that rows_cuda.h declares do the rest.
//
// What differs from the operators on the CPU: the values of the offsets are not read here. So
// rows_from_padded has no kernel: the host would have to wait for the device to learn how many rows its
// output has.

#include "rows_cuda.h"

#include <tuple>
#include <vector>

#include "../common/operator.h"

namespace dien_fast::cuda {
namespace {

Ragged ragged(const Checks& check, const Tensor& offsets, int64_t rows) {
    return {check.size_of(offsets), rows, check.integers("offsets", offsets, {-1})};
}

template <typename T>
Tensor sum_rows(const Tensor& values, const Tensor& weights, const Tensor& offsets) {
    const Checks check{values, "values"};
    const int64_t rows = values.size(0), depth = values.size(1);
    WeightedSum<T> p{};
    p.rows = ragged(check, offsets, rows);
    p.depth = depth;
    p.values = check.numbers<T>("values", values, {rows, depth});
    p.weights = check.numbers<T>("weights", weights, {rows});
    const Tensor sums = torch::stable::new_empty(values, {p.rows.size, depth});
    p.sums = output<T>(sums);
    on_device_of(values, [&](void* stream) { run(p, stream); });
    return sums;
}

template <typename T>
std::tuple<Tensor, Tensor> sum_rows_backward(const Tensor& dsum, const Tensor& values, const Tensor& weights,
                                             const Tensor& offsets) {
    const Checks check{values, "values"};
    const int64_t rows = values.size(0), depth = values.size(1);
    WeightedSumBackward<T> p{};
    p.rows = ragged(check, offsets, rows);
    p.depth = depth;
    p.dsums = check.numbers<T>("dsum", dsum, {p.rows.size, depth});
    p.values = check.numbers<T>("values", values, {rows, depth});
    p.weights = check.numbers<T>("weights", weights, {rows});
    const Tensor dvalues = torch::stable::new_empty(values, {rows, depth});
    const Tensor dweights = torch::stable::new_empty(values, {rows});
    p.dvalues = output<T>(dvalues);
    p.dweights = output<T>(dweights);
    on_device_of(values, [&](void* stream) { run(p, stream); });
    return {dvalues, dweights};
}

Tensor weighted_sum(Tensor values, Tensor weights, Tensor offsets) {
    check_sizes("values", values, {-1, -1});
    return is_single("values", values) ? sum_rows<float>(values, weights, offsets)
                                       : sum_rows<double>(values, weights, offsets);
}
std::tuple<Tensor, Tensor> weighted_sum_backward(Tensor dsum, Tensor values, Tensor weights, Tensor offsets) {
    check_sizes("values", values, {-1, -1});
    return is_single("values", values) ? sum_rows_backward<float>(dsum, values, weights, offsets)
                                       : sum_rows_backward<double>(dsum, values, weights, offsets);
}

Tensor padded_from_rows(Tensor values, Tensor offsets, int64_t steps) {
    STD_TORCH_CHECK(values.dim() >= 1, "values must have shape (N, ...), got ()");
    STD_TORCH_CHECK(values.is_contiguous(), "values must be contiguous");
    STD_TORCH_CHECK(steps >= 0, "steps must be at least 0, got ", steps);
    PadRows p{};
    p.rows = ragged(Checks{values, "values"}, offsets, values.size(0));
    p.steps = steps;
    p.row_bytes = values.element_size();
    std::vector<int64_t> shape{p.rows.size, steps};
    for (int64_t i = 1; i < values.dim(); ++i) {
        p.row_bytes *= values.size(i);
        shape.push_back(values.size(i));
    }
    const Tensor padded = torch::stable::new_empty(values, {shape.data(), shape.size()});
    p.values = values.const_data_ptr();
    p.padded = pointer(padded);
    on_device_of(values, [&](void* stream) { run(p, stream); });
    return padded;
}

}  // namespace
}  // namespace dien_fast::cuda

STABLE_TORCH_LIBRARY_IMPL(dien_fast, CUDA, m) {
    m.impl("padded_from_rows", TORCH_BOX(&dien_fast::cuda::padded_from_rows));
    m.impl("weighted_sum", TORCH_BOX(&dien_fast::cuda::weighted_sum));
    m.impl("weighted_sum_backward", TORCH_BOX(&dien_fast::cuda::weighted_sum_backward));
}
