// What makes of the operators of csrc/cuda those of torch.ops.dien_fast_emulated, for tensors on the CPU over
// the emulated launchers. operators.cpp includes their sources as they are; the names of what only torch with
// CUDA has are given others.
//
// Outputs and workspaces begin as NaN and have guard zones.

#pragma once

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstring>
#include <optional>
#include <tuple>
#include <vector>

#include "emulator.h"

namespace torch::stable {
namespace accelerator {
struct NoGuard {
    explicit NoGuard(int32_t) {}
};
}  // namespace accelerator

// Memory whose guard zones the next run looks at lives until then.
inline std::vector<Tensor>& guarded() {
    static auto* tensors = new std::vector<Tensor>;
    return *tensors;
}
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
    guarded().push_back(flat);
    return view(narrow(flat, 0, kGuard, count), size);
}
}  // namespace torch::stable

inline AOTITorchError no_stream(int32_t, void** stream) {
    *stream = nullptr;
    return AOTI_TORCH_SUCCESS;
}

#include "../../../csrc/checks.h"
#include "../../../csrc/cuda/attention_gru/attention_gru_cuda.h"
#include "../../../csrc/cuda/attention_scores/attention_scores_cuda.h"
#include "../../../csrc/cuda/auxiliary_loss/auxiliary_loss_cuda.h"
#include "../../../csrc/cuda/rows/rows_cuda.h"

namespace dien_fast_emulated {
using namespace dien_fast;
namespace cuda {
using namespace dien_fast::cuda;
using dien_fast::cuda::Backward, dien_fast::cuda::Forward;  // not those of the CPU

inline void check_memory() {
    emulator::check_guards();
    torch::stable::guarded().clear();
}
template <typename Call>
void run_checked(const Call& call, void* stream) {
    dien_fast::cuda::run(call, stream);
    check_memory();
}
template <typename Call>
void run_checked(const Call& call, void* workspace, void* stream) {
    dien_fast::cuda::run(call, workspace, stream);
    check_memory();
}
// In chunks as small as the emulator's settings say, in the workspace of larger ones.
template <typename Call>
void run_in_chunks(Call call, void* workspace, void* stream) {
    call.chunk_bytes = std::min(call.chunk_bytes, emulator::settings().chunk_bytes);
    dien_fast::cuda::run(call, workspace, stream);
    check_memory();
}
template <typename T>
void run_checked(const AuxiliaryCall<T>& call, void* workspace, void* stream) {
    run_in_chunks(call, workspace, stream);
}
template <typename T>
void run_checked(const ScoreBackward<T>& call, void* workspace, void* stream) {
    run_in_chunks(call, workspace, stream);
}
}  // namespace cuda
}  // namespace dien_fast_emulated

#define aoti_torch_get_current_cuda_stream no_stream
#define DeviceGuard NoGuard
#define new_empty guarded_empty
#define run run_checked
#define is_cuda is_cpu
#define CUDA CPU
#define dien_fast dien_fast_emulated
