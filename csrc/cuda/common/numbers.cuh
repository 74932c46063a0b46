// The numbers that kernels compute with: wide ones, vectors of them, and functions on them.

#pragma once

#include <platform.h>

namespace dien_fast::cuda {

// Arithmetic is in float, or in double for double.
template <typename T>
struct WideOf {
    using type = float;
};
template <>
struct WideOf<double> {
    using type = double;
};
template <typename T>
using Wide = typename WideOf<T>::type;

// Neighbours in shared memory that are read and written at once. They must be aligned, which the compiler
// cannot see.
template <typename W, int kCount>
struct alignas(sizeof(W) * kCount < 16 ? sizeof(W) * kCount : 16) Vector {
    W values[kCount];
};

__device__ inline float hyperbolic_tangent(float v) { return tanhf(v); }
__device__ inline double hyperbolic_tangent(double v) { return tanh(v); }
__device__ inline double sigmoid(double v) { return 1 / (1 + exp(-v)); }
__device__ inline float exponential(float v) { return expf(v); }
__device__ inline double exponential(double v) { return exp(v); }
__device__ inline float logarithm_plus_one(float v) { return log1pf(v); }
__device__ inline double logarithm_plus_one(double v) { return log1p(v); }

}  // namespace dien_fast::cuda
