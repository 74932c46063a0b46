// The auxiliary loss on CUDA: the interface between the entry point and the launcher, in raw pointers to
// device memory, sizes and a stream. ../../interest.h has the equations.
//
// auxiliary_loss_cuda.cpp checks tensors; loss.cuh enqueues the kernels, which are products of matrices
// (../common/layers.cuh) and those of pairs.cuh. loss_float.cu and loss_double.cu compile these for one type
// each.

#pragma once

#include <cstdint>

#include "../../interest.h"
#include "../common/ragged.h"

namespace dien_fast::cuda {

template <typename T>
struct AuxiliaryCall {
    Ragged rows;
    int64_t depth;                         // D
    const T *states, *events, *negatives;  // [N, D]
    int64_t layer_count;                   // without the last product
    int64_t widths[kMaxLayers];            // of these layers
    const T* weights[kMaxLayers + 1];      // [C_l, C_{l-1}], the first [C_1, 2 D], the last [1, C_L]
    const T* biases[kMaxLayers + 1];       // [C_l]
    T* loss;                               // output, one number
    T *dstates, *devents, *dnegatives;     // outputs [N, D]
    T* dparameters;  // output, all one behind the other; null if no gradients are wanted
    // Memory that the rows of one chunk may take. The rows run in as many chunks as that makes necessary.
    int64_t chunk_bytes = int64_t(256) << 20;
};

// Bytes of device memory that a run needs beside its arguments, aligned to 256.
int64_t workspace_bytes(const AuxiliaryCall<float>&);
int64_t workspace_bytes(const AuxiliaryCall<double>&);

// Enqueue the kernels on a stream (cudaStream_t) of the current device; nothing waits for the device.
void run(const AuxiliaryCall<float>&, void* workspace, void* stream);
void run(const AuxiliaryCall<double>&, void* workspace, void* stream);

}  // namespace dien_fast::cuda
