// Arguments of the CPU's operators: tensors checked and read.

#pragma once

#include <optional>

#include "../checks.h"

namespace dien_fast {

template <typename T>
constexpr ScalarType kType = sizeof(T) == 4 ? ScalarType::Float : ScalarType::Double;

// Raises unless the tensor has the shape and is on the CPU.
inline void check_shape(const char* name, const Tensor& value, Shape shape) {
    check_sizes(name, value, shape);
    STD_TORCH_CHECK(value.is_cpu(), name, " must be on the CPU");
}

template <typename T>
const T* data(const char* name, const Tensor& value, Shape shape) {
    check_shape(name, value, shape);
    STD_TORCH_CHECK(value.is_contiguous(), name, " must be contiguous");
    STD_TORCH_CHECK(value.scalar_type() == kType<T>, name, " must have the dtype of x");
    return static_cast<const T*>(value.const_data_ptr());
}
template <typename T>
const T* data(const char* name, const std::optional<Tensor>& value, Shape shape) {
    return value ? data<T>(name, *value, shape) : nullptr;
}

// The address of an output of the operator; null where it has no elements.
template <typename T>
T* output_data(const Tensor& value) {
    return value.numel() > 0 ? static_cast<T*>(value.mutable_data_ptr()) : nullptr;
}

// Raises unless the tensor is a contiguous int64 vector of the size, where -1 stands for any.
inline const int64_t* integer_data(const char* name, const Tensor& value, int64_t size) {
    check_shape(name, value, {size});
    STD_TORCH_CHECK(value.scalar_type() == ScalarType::Long && value.is_contiguous(), name,
                    " must be contiguous int64");
    return static_cast<const int64_t*>(value.const_data_ptr());
}

// Whether `value` has dtype float32; dtypes other than float32 and float64 are refused.
inline bool is_single(const char* name, const Tensor& value) {
    const bool single = value.scalar_type() == ScalarType::Float;
    STD_TORCH_CHECK(single || value.scalar_type() == ScalarType::Double, name,
                    " must have dtype float32 or float64");
    return single;
}

}  // namespace dien_fast
