// The instruction set that a kernel is compiled for: the namespace, the vectors, and how many sums fit the
// registers.

#pragma once

#include <math.h>
#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include <cstdint>
#include <cstring>

#if defined(DIEN_FAST_HALF_VECTORS)  // AVX-512's 32 registers, half as wide
#define DIEN_FAST_ISA avx512vl
#elif defined(__AVX512F__)
#define DIEN_FAST_ISA avx512
#elif defined(__AVX2__)
#define DIEN_FAST_ISA avx2
#else
#define DIEN_FAST_ISA baseline
#endif

namespace dien_fast {
namespace DIEN_FAST_ISA {
namespace {

// kRows: histories whose sums stay in registers in the forward pass of the attention GRU. kGemmRows and
// kGemmVectors: rows and vectors of a matrix product's sums that do. kLastVectors: see panel_vectors.
//
// Sanitizers check every access of the unrolled loops. With fewer rows they check the same code in minutes
// less.
#if defined(DIEN_FAST_SANITIZED)
constexpr int rows(int) { return 2; }
#else
constexpr int rows(int registers_hold) { return registers_hold; }
#endif
#if defined(DIEN_FAST_HALF_VECTORS)
constexpr int kVectorBytes = 32, kRows = rows(6), kGemmRows = rows(8), kGemmVectors = 3, kLastVectors = 2;
#elif defined(__AVX512F__)
constexpr int kVectorBytes = 64, kRows = rows(6), kGemmRows = rows(8), kGemmVectors = 3, kLastVectors = 2;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32, kRows = rows(4), kGemmRows = rows(6), kGemmVectors = 2, kLastVectors = 3;
#else
constexpr int kVectorBytes = 16, kRows = rows(4), kGemmRows = rows(6), kGemmVectors = 2, kLastVectors = 3;
#endif

// Longer sums are added up in parts of this many terms, as rounding grows with the length of a sum.
constexpr int kSumLength = 96;

}  // namespace
}  // namespace DIEN_FAST_ISA
}  // namespace dien_fast
