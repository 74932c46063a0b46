// Checks of tensor arguments, before any memory is touched. Messages name the argument, what was expected and
// what came, as those of dien_fast/functional.py do.

#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <initializer_list>
#include <optional>
#include <string>

#include "attention_gru.h"

namespace dien_fast {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

template <typename T>
constexpr ScalarType kType = sizeof(T) == 4 ? ScalarType::Float : ScalarType::Double;

template <typename Sizes>
std::string shape_text(const Sizes& sizes) {
    std::string text = "(";
    for (int64_t size : sizes)
        text += (text.size() > 1 ? ", " : "") + (size < 0 ? "*" : std::to_string(size));
    return text + (sizes.size() == 1 ? ",)" : ")");
}

// Raises unless the tensor is of the shape, where -1 stands for any size, and on the CPU.
inline void check_shape(const char* name, const Tensor& value, std::initializer_list<int64_t> shape) {
    const auto sizes = value.sizes();
    bool equal = sizes.size() == shape.size();
    for (size_t i = 0; equal && i < shape.size(); ++i)
        equal = shape.begin()[i] < 0 || shape.begin()[i] == sizes[i];
    STD_TORCH_CHECK(equal, name, " must have shape ", shape_text(shape), ", got ", shape_text(sizes));
    STD_TORCH_CHECK(value.is_cpu(), name, " must be on the CPU");
}

template <typename T>
const T* data(const char* name, const Tensor& value, std::initializer_list<int64_t> shape) {
    check_shape(name, value, shape);
    STD_TORCH_CHECK(value.is_contiguous(), name, " must be contiguous");
    STD_TORCH_CHECK(value.scalar_type() == kType<T>, name, " must have the dtype of x");
    return static_cast<const T*>(value.const_data_ptr());
}
template <typename T>
const T* data(const char* name, const std::optional<Tensor>& value, std::initializer_list<int64_t> shape) {
    return value ? data<T>(name, *value, shape) : nullptr;
}

// Whether `value` says float32; other dtypes than float32 and float64 are refused.
inline bool is_single(const char* name, const Tensor& value) {
    const bool single = value.scalar_type() == ScalarType::Float;
    STD_TORCH_CHECK(single || value.scalar_type() == ScalarType::Double, name,
                    " must have dtype float32 or float64");
    return single;
}

template <typename T>
Weights<T> check_weights(int64_t cell, const Tensor& weight_ih, const Tensor& weight_hh,
                         const std::optional<Tensor>& bias_ih, const std::optional<Tensor>& bias_hh) {
    STD_TORCH_CHECK(cell >= 0 && cell <= int64_t(Cell::kGru), "cell must lie in [0, 4], got ", cell);
    check_shape("weight_hh", weight_hh, {-1, -1});
    const int64_t hidden = weight_hh.size(1), rows = (Cell(cell) == Cell::kAgru ? 2 : 3) * hidden;
    check_shape("weight_ih", weight_ih, {rows, -1});
    const int64_t input = weight_ih.size(1);
    STD_TORCH_CHECK(hidden > 0, "weight_hh must have at least one column, got 0");
    return {Cell(cell),
            input,
            hidden,
            data<T>("weight_ih", weight_ih, {rows, input}),
            data<T>("weight_hh", weight_hh, {rows, hidden}),
            data<T>("bias_ih", bias_ih, {rows}),
            data<T>("bias_hh", bias_hh, {rows}),
            false};
}

}  // namespace dien_fast
