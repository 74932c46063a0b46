// Matrix products whose factors may stand anywhere: C[i, j] = the sum over k of A[i, k] B[k, j], in float or
// double.
//
// A block of 256 threads computes 128 x 64 numbers of C; each thread keeps 8 x 4 of them in registers. The
// block goes through k in steps of 16: the numbers of a step pass through shared memory, and those of the
// next step are fetched while this one is multiplied. What A, B and C are is a policy, a class with these
// members:
//
//     W                            type of the numbers
//     Row                          what a thread keeps of a row of A, such as its address
//     kAAlongK, kBAlongK           whether neighbours in k are neighbours in the memory of A, of B
//     rows(), cols()               of C; rows() may read a number that only the device knows
//     kTiles, locate()             if kTiles, there is no rows(), and locate() returns which rows of C this
//     block
//                                  computes, kGemmRows at most; it may keep what the block's rows have in
//                                  common
//     depth_begin(), depth_end()   range of k of this block, which may depend on blockIdx.z
//     prepare(i)                   the Row of row i, computed once
//     a(row, i, k), b(k, j)        a number of A, of B; called with indices inside C and the range of k
//     store(i, j, value)           takes a number of C
//     kSums, store_sum(i, value)   whether, and where, the sum over k of A[i, k] is wanted too

#pragma once

#include "numbers.cuh"
#include "ragged.cuh"

namespace dien_fast::cuda {

constexpr int kGemmThreads = 256;
constexpr int kGemmRows = 128;
constexpr int kGemmColumns = 64;
constexpr int kGemmDepth = 16;
constexpr int kGemmRowStride = kGemmRows + 4;
constexpr int kGemmColumnStride = kGemmColumns + 4;

template <typename W>
constexpr int gemm_shared_bytes() {
    return kGemmDepth * (kGemmRowStride + kGemmColumnStride) * int(sizeof(W));
}

template <typename P>
__global__ void __launch_bounds__(kGemmThreads, sizeof(typename P::W) == 4 ? 2 : 1) gemm_kernel(P p) {
    using W = typename P::W;
    constexpr int kALoads = kGemmRows * kGemmDepth / kGemmThreads;
    constexpr int kBLoads = kGemmColumns * kGemmDepth / kGemmThreads;
    constexpr int kOwnRows = 8, kOwnColumns = 4;
    const int64_t columns = p.cols(), first_column = int64_t(blockIdx.y) * kGemmColumns;
    int64_t first_row = int64_t(blockIdx.x) * kGemmRows, rows;
    if constexpr (P::kTiles) {
        const RowRange tile = p.locate();
        first_row = tile.begin;
        rows = tile.end;
    } else {
        rows = p.rows();
    }
    if (first_row >= rows) return;
    const int64_t begin = p.depth_begin(), end = p.depth_end();

    SharedMemory shared;
    W* a_tile = shared.take<W>(kGemmDepth * kGemmRowStride);
    W* b_tile = shared.take<W>(kGemmDepth * kGemmColumnStride);
    const int thread = threadIdx.x;
    // Which numbers this thread fetches: row or column, and k, of its first one; the others are at fixed
    // distances.
    const int a_row = P::kAAlongK ? thread / kGemmDepth : thread % kGemmRows;
    const int a_k = P::kAAlongK ? thread % kGemmDepth : thread / kGemmRows;
    constexpr int kARowStep = P::kAAlongK ? kGemmThreads / kGemmDepth : 0;
    constexpr int kAKStep = P::kAAlongK ? 0 : kGemmThreads / kGemmRows;
    const int b_column = P::kBAlongK ? thread / kGemmDepth : thread % kGemmColumns;
    const int b_k = P::kBAlongK ? thread % kGemmDepth : thread / kGemmColumns;
    constexpr int kBColumnStep = P::kBAlongK ? kGemmThreads / kGemmDepth : 0;
    constexpr int kBKStep = P::kBAlongK ? 0 : kGemmThreads / kGemmColumns;

    typename P::Row a_rows[P::kAAlongK ? kALoads : 1];
    if constexpr (P::kAAlongK) {
#pragma unroll
        for (int e = 0; e < kALoads; ++e) {
            const int64_t row = first_row + a_row + e * kARowStep;
            a_rows[e] = p.prepare(row < rows ? row : rows - 1);
        }
    }
    W a_next[kALoads], b_next[kBLoads];
    auto fetch = [&](int64_t k) {
#pragma unroll
        for (int e = 0; e < kALoads; ++e) {
            const int64_t row = first_row + a_row + e * kARowStep, at = k + a_k + e * kAKStep;
            a_next[e] = row < rows && at < end ? p.a(a_rows[P::kAAlongK ? e : 0], row, at) : W(0);
        }
#pragma unroll
        for (int e = 0; e < kBLoads; ++e) {
            const int64_t column = first_column + b_column + e * kBColumnStep, at = k + b_k + e * kBKStep;
            b_next[e] = column < columns && at < end ? p.b(at, column) : W(0);
        }
    };

    const int own_row = thread / 16 * kOwnRows, own_column = thread % 16 * kOwnColumns;
    W sums[kOwnRows][kOwnColumns] = {};
    W row_sums[kOwnRows] = {};
    fetch(begin);
    for (int64_t k = begin; k < end; k += kGemmDepth) {
        __syncthreads();
#pragma unroll
        for (int e = 0; e < kALoads; ++e)
            a_tile[(a_k + e * kAKStep) * kGemmRowStride + a_row + e * kARowStep] = a_next[e];
#pragma unroll
        for (int e = 0; e < kBLoads; ++e)
            b_tile[(b_k + e * kBKStep) * kGemmColumnStride + b_column + e * kBColumnStep] = b_next[e];
        __syncthreads();
        if (k + kGemmDepth < end) fetch(k + kGemmDepth);
        W step_sums[kOwnRows] = {};  // sums of sums, so that none has as many terms as there are rows
#pragma unroll
        for (int i = 0; i < kGemmDepth; ++i) {
            const auto a =
                *reinterpret_cast<const Vector<W, kOwnRows>*>(a_tile + i * kGemmRowStride + own_row);
            const auto b =
                *reinterpret_cast<const Vector<W, kOwnColumns>*>(b_tile + i * kGemmColumnStride + own_column);
#pragma unroll
            for (int r = 0; r < kOwnRows; ++r)
#pragma unroll
                for (int c = 0; c < kOwnColumns; ++c) sums[r][c] += a.values[r] * b.values[c];
            if constexpr (P::kSums) {
                if (blockIdx.y == 0)
#pragma unroll
                    for (int r = 0; r < kOwnRows; ++r) step_sums[r] += a.values[r];
            }
        }
        if constexpr (P::kSums)
#pragma unroll
            for (int r = 0; r < kOwnRows; ++r) row_sums[r] += step_sums[r];
    }
#pragma unroll
    for (int r = 0; r < kOwnRows; ++r) {
        const int64_t row = first_row + own_row + r;
        if (row >= rows) continue;
#pragma unroll
        for (int c = 0; c < kOwnColumns; ++c)
            if (first_column + own_column + c < columns)
                p.store(row, first_column + own_column + c, sums[r][c]);
        if constexpr (P::kSums)
            if (blockIdx.y == 0 && own_column == 0) p.store_sum(row, row_sums[r]);
    }
}

inline dim3 gemm_blocks(int64_t rows, int64_t columns, int64_t splits = 1) {
    return dim3(unsigned((rows + kGemmRows - 1) / kGemmRows),
                unsigned(columns > 0 ? (columns + kGemmColumns - 1) / kGemmColumns : 1), unsigned(splits));
}

}  // namespace dien_fast::cuda
