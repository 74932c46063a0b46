// Operators on ragged rows on CUDA: the interface between the entry points and the launchers, in raw pointers
// to device memory, sizes and a stream (cudaStream_t) of the current device. Nothing waits for the device.

#pragma once

#include <cstdint>

#include "../common/ragged.h"

namespace dien_fast::cuda {

// Writes the sum of each history's rows times their weights.
template <typename T>
struct WeightedSum {
    Ragged rows;
    int64_t depth;     // D
    const T* values;   // [N, D]
    const T* weights;  // [N]
    T* sums;           // output [B, D]
};

template <typename T>
struct WeightedSumBackward {
    Ragged rows;
    int64_t depth;
    const T* dsums;  // [B, D]
    const T* values;
    const T* weights;
    T* dvalues;   // output [N, D]
    T* dweights;  // output [N]
};

// Copies row t of history b to padded[b, t], and writes zeros behind each history. Rows are of any type; only
// their size matters.
struct PadRows {
    Ragged rows;
    int64_t steps;      // T
    int64_t row_bytes;  // of a row
    const void* values;
    void* padded;  // output [B, T]
};

void run(const WeightedSum<float>&, void* stream);
void run(const WeightedSum<double>&, void* stream);
void run(const WeightedSumBackward<float>&, void* stream);
void run(const WeightedSumBackward<double>&, void* stream);
void run(const PadRows&, void* stream);

}  // namespace dien_fast::cuda
