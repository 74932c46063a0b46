// Makes of the operators of csrc/cuda those of torch.ops.OPERATORS, a name that the includer defines, for
// tensors that torch takes for the CPU's. Their sources, included after this file, are compiled as they are:
// the names of what only torch with CUDA has are given others.
//
// The includer defines before, in torch::stable, guarded_empty(like, size, dtype), which makes outputs and
// workspaces that begin as NaN and have guard zones; and in a namespace memory, check(), which looks at the
// zones after a run, and most_chunk_bytes(), for operators, whose callers do not choose the size of a chunk.

#pragma once

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <tuple>

namespace torch::stable::accelerator {
struct NoGuard {
    explicit NoGuard(int32_t) {}
};
}  // namespace torch::stable::accelerator

inline AOTITorchError no_stream(int32_t, void** stream) {
    *stream = nullptr;
    return AOTI_TORCH_SUCCESS;
}

#include "../../csrc/checks.h"
#include "../../csrc/cuda/attention_gru/attention_gru_cuda.h"
#include "../../csrc/cuda/attention_scores/attention_scores_cuda.h"
#include "../../csrc/cuda/auxiliary_loss/auxiliary_loss_cuda.h"
#include "../../csrc/cuda/rows/rows_cuda.h"

namespace OPERATORS {
using namespace dien_fast;
namespace cuda {
using namespace dien_fast::cuda;
using dien_fast::cuda::Backward, dien_fast::cuda::Forward;  // not those of the CPU

template <typename Call>
void run_checked(const Call& call, void* stream) {
    dien_fast::cuda::run(call, stream);
    memory::check();
}
template <typename Call>
void run_checked(const Call& call, void* workspace, void* stream) {
    dien_fast::cuda::run(call, workspace, stream);
    memory::check();
}
// In chunks as small as was asked for, in the workspace of larger ones.
template <typename Call>
void run_in_chunks(Call call, void* workspace, void* stream) {
    call.chunk_bytes = std::min(call.chunk_bytes, memory::most_chunk_bytes());
    dien_fast::cuda::run(call, workspace, stream);
    memory::check();
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
}  // namespace OPERATORS

#define aoti_torch_get_current_cuda_stream no_stream
#define DeviceGuard NoGuard
#define new_empty guarded_empty
#define run run_checked
#define is_cuda is_cpu
#define CUDA CPU
#define dien_fast OPERATORS
