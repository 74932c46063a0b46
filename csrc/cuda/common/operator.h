// What the operators on CUDA share: checks of tensors, and runs of the launchers in a workspace.

#pragma once

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <optional>

#include "../../checks.h"

namespace dien_fast::cuda {

// The dtype of arithmetic.
inline ScalarType wide(ScalarType type) { return type == ScalarType::Double ? type : ScalarType::Float; }

// Whether `value` has dtype float32; dtypes other than float32 and float64 are refused.
inline bool is_single(const char* name, const Tensor& value) {
    const bool single = value.scalar_type() == ScalarType::Float;
    STD_TORCH_CHECK(single || value.scalar_type() == ScalarType::Double, name,
                    " must have dtype float32 or float64");
    return single;
}

// Checks that an argument has the device of another one, x, a shape and a dtype, and returns its address.
struct Checks {
    const Tensor& x;
    const char* x_name = "x";

    const void* data(const char* name, const Tensor& value, Shape expected, ScalarType type,
                     const std::string& type_name) const {
        check_sizes(name, value, expected);
        STD_TORCH_CHECK(value.is_cuda() && value.get_device_index() == x.get_device_index(), name,
                        " must be on the device of ", x_name);
        STD_TORCH_CHECK(value.is_contiguous(), name, " must be contiguous");
        STD_TORCH_CHECK(value.scalar_type() == type, name, " must have ", type_name);
        return value.const_data_ptr();
    }
    const void* stored(const char* name, const std::optional<Tensor>& value, Shape expected) const {
        const std::string type_name = std::string("the dtype of ") + x_name;
        return value ? data(name, *value, expected, x.scalar_type(), type_name) : nullptr;
    }
    const void* widened(const char* name, const std::optional<Tensor>& value, Shape expected) const {
        const std::string type_name = std::string("dtype float32, or float64 as ") + x_name;
        return value ? data(name, *value, expected, wide(x.scalar_type()), type_name) : nullptr;
    }
    const int64_t* integers(const char* name, const std::optional<Tensor>& value, Shape expected) const {
        if (!value) return nullptr;
        return static_cast<const int64_t*>(data(name, *value, expected, ScalarType::Long, "dtype int64"));
    }
    // Numbers of x's dtype, which is T.
    template <typename T>
    const T* numbers(const char* name, const Tensor& value, Shape expected) const {
        return static_cast<const T*>(stored(name, value, expected));
    }
    // B, from offsets [B + 1].
    int64_t size_of(const Tensor& offsets) const {
        check_sizes("offsets", offsets, {-1});
        STD_TORCH_CHECK(offsets.size(0) > 0, "offsets must have at least one element, got 0");
        return offsets.size(0) - 1;
    }
};

// The address of an output; null where it has no elements.
inline void* pointer(const Tensor& value) { return value.numel() > 0 ? value.mutable_data_ptr() : nullptr; }
template <typename T>
T* output(const Tensor& value) {
    return static_cast<T*>(pointer(value));
}

// Calls f with the current stream of x's device, which is the current device meanwhile. Otherwise the kernels
// would run on the current device, whichever the tensors are on.
template <typename F>
void on_device_of(const Tensor& x, const F& f) {
    const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
    void* stream = nullptr;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(x.get_device_index(), &stream));
    f(stream);
}

// Runs a call that workspace_bytes() and run() take.
template <typename Call>
void run_in_workspace(const Call& call, const Tensor& x) {
    on_device_of(x, [&](void* stream) {
        const Tensor workspace =
            torch::stable::new_empty(x, {std::max<int64_t>(workspace_bytes(call), 1)}, ScalarType::Byte);
        run(call, workspace.mutable_data_ptr(), stream);
    });
}

}  // namespace dien_fast::cuda
