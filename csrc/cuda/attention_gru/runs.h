// A run of the attention GRU with numbers of one type T, forward or backward: the memory that it needs, and
// the launch of its kernels. forward.cuh and backward.cuh define these, kernels_*.cu compile them,
// dispatch.cu chooses among them.

#pragma once

#include "attention_gru_cuda.h"

namespace dien_fast::cuda {

template <typename T>
int64_t forward_bytes(const Forward&);
template <typename T>
int64_t backward_bytes(const Backward&);
template <typename T>
void run_forward(const Forward&, void* workspace, void* stream);
template <typename T>
void run_backward(const Backward&, void* workspace, void* stream);

}  // namespace dien_fast::cuda
