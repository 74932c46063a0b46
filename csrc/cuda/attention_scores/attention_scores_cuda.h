// The attention scores on CUDA: the interface between the entry points and the launchers, in raw pointers to
// device memory, sizes and a stream. ../../interest.h has the equations.
//
// The files, in the order of a run: attention_scores_cuda.cpp checks tensors; forward.cuh and backward.cuh
// enqueue the kernels, which are products of matrices (terms.cuh and ../common/layers.cuh), sums over the
// rows of each channel (channels.cuh), and softmax (softmax.cuh). scores_float.cu and scores_double.cu
// compile these for one type each.
//
// Rows of the kernels' own arrays: row b < B stands for the padding of history b, row B + i for row i of the
// ragged arrays.

#pragma once

#include <cstdint>

#include "../../attention_scores_layers.h"
#include "../common/ragged.h"

namespace dien_fast::cuda {

template <typename T>
struct ScoreCall {
    Ragged rows;               // of scores and of their gradients
    const int64_t* key_start;  // [B] first row of keys, or null: those of the scores
    int64_t key_rows;          // of keys
    int64_t depth;             // D
    int64_t max_length;        // T of the batch statistics
    const T* query;            // [B, D]
    const T* keys;             // rows of D
    bool batch_statistics;
    int64_t layer_count;
    LayerParameters<T> layers[kMaxLayers];
    const T *last, *last_bias;  // of the last product: [C_L] and one number
    const int64_t* seed;        // of dropout, or null: none
    uint32_t keep;              // as Scores has these
    T kept;
};

template <typename T>
struct ScoreForward : ScoreCall<T> {
    T* scores;      // output [N]
    T* statistics;  // output [2 sum of C] of the normalisations that use the batch's, or null
    T* saved;       // output [2 sum of C of the layers]: mean and variance of every layer's x, or null
};

template <typename T>
struct ScoreLayerGradients {
    T *weight, *bias, *gamma, *beta, *slope, *gate_gamma, *gate_beta;  // in the shapes of the parameters
};

template <typename T>
struct ScoreBackward : ScoreCall<T> {
    const T* scores;                               // [N]
    const T* dscores;                              // [N]
    const T* saved;                                // from the forward run
    T* dquery;                                     // output [B, D]
    T* dkeys;                                      // output [N, D]
    ScoreLayerGradients<T> gradients[kMaxLayers];  // outputs
    T *dlast, *dlast_bias;                         // outputs
    // Memory that the gradients of the histories' matrices may take at once.
    int64_t chunk_bytes = int64_t(64) << 20;
};

// Bytes of device memory that a run needs beside its arguments, aligned to 256.
int64_t workspace_bytes(const ScoreForward<float>&);
int64_t workspace_bytes(const ScoreForward<double>&);
int64_t workspace_bytes(const ScoreBackward<float>&);
int64_t workspace_bytes(const ScoreBackward<double>&);

// Enqueue the kernels on a stream (cudaStream_t) of the current device; nothing waits for the device.
void run(const ScoreForward<float>&, void* workspace, void* stream);
void run(const ScoreForward<double>&, void* workspace, void* stream);
void run(const ScoreBackward<float>&, void* workspace, void* stream);
void run(const ScoreBackward<double>&, void* workspace, void* stream);

}  // namespace dien_fast::cuda
