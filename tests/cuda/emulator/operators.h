// What ../../support/cuda_operators.h wants to know, for the operators over the emulated launchers.

#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstring>
#include <optional>
#include <vector>

#include "emulator.h"

namespace memory {

using torch::stable::Tensor;

// Memory whose guard zones the next run looks at lives until then.
inline std::vector<Tensor>& guarded() {
    static auto* tensors = new std::vector<Tensor>;
    return *tensors;
}
inline void check() {
    emulator::check_guards();
    guarded().clear();
}
inline int64_t most_chunk_bytes() { return emulator::settings().chunk_bytes; }

}  // namespace memory

namespace torch::stable {
inline Tensor guarded_empty(const Tensor& like, torch::headeronly::IntHeaderOnlyArrayRef size,
                            std::optional<torch::headeronly::ScalarType> dtype = std::nullopt) {
    constexpr int64_t kGuard = 64;  // numbers
    int64_t count = 1;
    for (const int64_t length : size) count *= length;
    Tensor flat = new_empty(like, {count + 2 * kGuard}, dtype);
    auto* bytes = static_cast<char*>(flat.mutable_data_ptr());
    const int64_t number = flat.element_size();
    std::memset(bytes, emulator::kPoison, flat.numel() * number);
    emulator::guard(bytes, kGuard * number);
    emulator::guard(bytes + (kGuard + count) * number, kGuard * number);
    memory::guarded().push_back(flat);
    return view(narrow(flat, 0, kGuard, count), size);
}
}  // namespace torch::stable

#define OPERATORS dien_fast_emulated
#include "../../support/cuda_operators.h"
