// The operators of csrc/cuda/attention_gru/attention_gru_cuda.cpp over the emulated launchers:
// torch.ops.dien_fast_emulated, for tensors on the CPU. The source is compiled as it is; the names of what
// only torch with CUDA has are given others.

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstring>
#include <optional>
#include <tuple>
#include <vector>

namespace torch::stable::accelerator {
struct NoGuard {
    explicit NoGuard(int32_t) {}
};
}  // namespace torch::stable::accelerator

static AOTITorchError no_stream(int32_t, void** stream) {
    *stream = nullptr;
    return AOTI_TORCH_SUCCESS;
}

#include "../../../csrc/checks.h"
#include "../../../csrc/cuda/attention_gru/attention_gru_cuda.h"
#include "emulator.h"

namespace dien_fast_emulated {
using namespace dien_fast;
namespace cuda {
using dien_fast::cuda::Backward, dien_fast::cuda::Call, dien_fast::cuda::Forward, dien_fast::cuda::Layout;
using dien_fast::cuda::Type, dien_fast::cuda::workspace_bytes;

template <typename Direction>
void run_poisoned(const Direction& call, void* workspace, void* stream) {
    std::memset(workspace, emulator::kPoison, workspace_bytes(call));
    dien_fast::cuda::run(call, workspace, stream);
    emulator::check_guards();
}
}  // namespace cuda
}  // namespace dien_fast_emulated

#define aoti_torch_get_current_cuda_stream no_stream
#define DeviceGuard NoGuard
#define run run_poisoned
#define is_cuda is_cpu
#define CUDA CPU
#define dien_fast dien_fast_emulated

#include "../../../csrc/cuda/attention_gru/attention_gru_cuda.cpp"
#include "../../../csrc/library.cpp"
