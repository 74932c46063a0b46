// Matrix products whose factors may stand anywhere: C[i, j] = the sum over k of A[i, k] B[k, j], in float or
// double.
//
// A block of 128 threads computes 64 x 64 numbers of C; each thread keeps 8 x 4 of them in registers. The
// block goes through k in steps of 16: the numbers of a step pass through shared memory, which has room for
// two steps, so that one barrier a step is enough. Those of the next step are fetched before this one is
// multiplied, and used after it; so a policy's a() and b() only load, and what is to be computed with the
// numbers is left to late_a() and late_b(). What A, B and C are is a policy, a class with these members:
//
//     W                            type of the numbers
//     Row, RowOfB                  what a thread keeps of a row of A, and of a row of B while it fetches
//     RawA, RawB                   what a thread fetches of a number of A, of B
//     Column                       what a thread needs of its columns of C
//     kAAlongK, kBAlongK           whether neighbours in k are neighbours in the memory of A, of B
//     rows(), cols()               of C; rows() may read a number that only the device knows
//     kTiles, locate()             if kTiles, there is no rows(), and locate() returns which rows of C this
//                                  block computes, kGemmRows at most; it may keep what the block's rows have
//                                  in common
//     depth_begin(), depth_end()   range of k of this block, which may depend on blockIdx.z
//     prepare(i)                   the Row of row i, computed once, if kAAlongK
//     row_of_b(begin, k)           the RowOfB of row k, if not kBAlongK
//     a(row, i, begin, k),
//     b(row, begin, k, j)          fetch a number; called with indices inside C and the range of k
//     late_a(raw, at, values),
//     late_b(raw, at, values)      the numbers of A, of B, of what a thread fetched at `at`
//     column(j, count)             the Column of columns [j, j + count)
//     store(i, j, values, count,
//           column)                takes numbers of C: row i, columns [j, j + count)
//     kSums, store_sum(i, value)   whether, and where, the sum over k of A[i, k] is wanted too; not kAAlongK
//
// k is counted from `begin` = depth_begin(), so that it and what is computed with it has 32 bits.

#pragma once

#include <type_traits>

#include "numbers.cuh"
#include "ragged.cuh"

namespace dien_fast::cuda {

constexpr int kGemmThreads = 128;
constexpr int kGemmRows = 64;
constexpr int kGemmColumns = 64;
constexpr int kGemmDepth = 16;
constexpr int kGemmRowStride = kGemmRows + 4;
constexpr int kGemmColumnStride = kGemmColumns + 4;
constexpr int kOwnRows = 8, kOwnColumns = 4;  // of C, that a thread computes

// Blocks that a multiprocessor is to have room for.
template <typename W>
constexpr int kGemmBlocks = sizeof(W) == 4 ? 4 : 2;

template <typename W>
constexpr int gemm_shared_bytes() {
    return 2 * kGemmDepth * (kGemmRowStride + kGemmColumnStride) * int(sizeof(W));
}

// What most policies need none of.
struct Nothing {};

// Where the numbers are that a thread has fetched: number e of A in row line + e line_step, of B in that
// column; and k + e k_step.
template <bool kWhole>
struct Fetched {
    int64_t line;
    int line_step, lines;  // how many more lines there are
    int64_t begin;
    int k, k_step, depth;

    __device__ int64_t line_of(int e) const { return line + e * line_step; }
    __device__ int k_of(int e) const { return k + e * k_step; }
    // Whether the number exists; nothing was fetched of others.
    __device__ bool has(int e) const { return kWhole || (e * line_step < lines && k_of(e) < depth); }
};

template <typename T>
struct PlainA {
    using RawA = T;
    template <int kCount, typename At>
    __device__ void late_a(const T (&raw)[kCount], const At&, Wide<T> (&values)[kCount]) const {
#pragma unroll
        for (int e = 0; e < kCount; ++e) values[e] = widened(raw[e]);
    }
};
template <typename T>
struct PlainB {
    using RawB = T;
    template <int kCount, typename At>
    __device__ void late_b(const T (&raw)[kCount], const At&, Wide<T> (&values)[kCount]) const {
#pragma unroll
        for (int e = 0; e < kCount; ++e) values[e] = widened(raw[e]);
    }
};
// Rows of B that are found without looking them up.
struct CountedRows {
    using RowOfB = Nothing;
    __device__ Nothing row_of_b(int64_t, int) const { return {}; }
};
struct NoColumns {
    using Column = Nothing;
    __device__ Nothing column(int, int) const { return {}; }
};

// A thread's columns of a row in memory: one access where all are wanted and aligned.
template <typename T>
__device__ void load_columns(const T* from, int count, Wide<T> (&values)[kOwnColumns]) {
    using All = Vector<T, kOwnColumns>;
    if (count == kOwnColumns && reinterpret_cast<uintptr_t>(from) % alignof(All) == 0) {
        const All all = *reinterpret_cast<const All*>(from);
#pragma unroll
        for (int c = 0; c < kOwnColumns; ++c) values[c] = widened(all.values[c]);
    } else {
#pragma unroll
        for (int c = 0; c < kOwnColumns; ++c) values[c] = c < count ? widened(from[c]) : Wide<T>(0);
    }
}
template <typename T>
__device__ void store_columns(T* to, const Wide<T> (&values)[kOwnColumns], int count) {
    using All = Vector<T, kOwnColumns>;
    if (count == kOwnColumns && reinterpret_cast<uintptr_t>(to) % alignof(All) == 0) {
        All all;
#pragma unroll
        for (int c = 0; c < kOwnColumns; ++c) store(all.values[c], values[c]);
        *reinterpret_cast<All*>(to) = all;
    } else {
#pragma unroll
        for (int c = 0; c < kOwnColumns; ++c)
            if (c < count) store(to[c], values[c]);
    }
}
// Sums that grow from chunk to chunk; the first one writes them.
template <typename W>
__device__ void grow_columns(W* to, W (&values)[kOwnColumns], int count, bool first) {
    if (!first) {
        W there[kOwnColumns];
        load_columns(to, count, there);
#pragma unroll
        for (int c = 0; c < kOwnColumns; ++c) values[c] += there[c];
    }
    store_columns(to, values, count);
}
// A bias for each column.
template <typename T>
struct BiasColumns {
    struct Column {
        Wide<T> bias[kOwnColumns];
    };
    template <typename B>
    __device__ static Column bias_columns(const B* bias, int count) {
        Column column;
        load_columns(bias, count, column.bias);
        return column;
    }
};

template <typename P>
__global__ void __launch_bounds__(kGemmThreads, kGemmBlocks<typename P::W>) gemm_kernel(P p) {
    using W = typename P::W;
    constexpr int kALoads = kGemmRows * kGemmDepth / kGemmThreads;
    constexpr int kBLoads = kGemmColumns * kGemmDepth / kGemmThreads;
    constexpr int kATile = kGemmDepth * kGemmRowStride, kBTile = kGemmDepth * kGemmColumnStride;
    static_assert(!P::kSums || !P::kAAlongK);
    int64_t first_row = int64_t(blockIdx.x) * kGemmRows, rows;
    if constexpr (P::kTiles) {
        const RowRange tile = p.locate();
        first_row = tile.begin;
        rows = tile.end;
    } else {
        rows = p.rows();
    }
    if (first_row >= rows) return;
    const int first_column = int(blockIdx.y) * kGemmColumns;
    const int tile_rows = rows - first_row < kGemmRows ? int(rows - first_row) : kGemmRows;
    const int columns_left = int(p.cols()) - first_column;
    const int tile_columns = columns_left < kGemmColumns ? columns_left : kGemmColumns;
    const bool whole_tile = tile_rows == kGemmRows && tile_columns == kGemmColumns;
    const int64_t begin = p.depth_begin();
    const int depth = int(p.depth_end() - begin);

    SharedMemory shared;
    W* a_tiles = shared.take<W>(2 * kATile);
    W* b_tiles = shared.take<W>(2 * kBTile);
    const int thread = threadIdx.x;
    // Which numbers this thread fetches: row or column of the tile, and k, of its first one; the others are
    // at fixed distances.
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
            const int row = a_row + e * kARowStep;
            a_rows[e] = p.prepare(first_row + (row < tile_rows ? row : 0));
        }
    }
    typename P::RawA a_next[kALoads] = {};
    typename P::RawB b_next[kBLoads] = {};
    // Most steps need no comparisons: those of whole tiles that are not the last.
    auto fetch = [&](int first, auto whole) {
        constexpr bool kWhole = decltype(whole)::value;
        typename P::RowOfB b_rows[P::kBAlongK ? 1 : kBLoads];
        if constexpr (!P::kBAlongK) {
#pragma unroll
            for (int e = 0; e < kBLoads; ++e) {
                const int k = first + b_k + e * kBKStep;
                b_rows[e] = p.row_of_b(begin, kWhole || k < depth ? k : depth - 1);
            }
        }
#pragma unroll
        for (int e = 0; e < kALoads; ++e) {
            const int k = first + a_k + e * kAKStep, row = a_row + e * kARowStep;
            if (kWhole || (row < tile_rows && k < depth))
                a_next[e] = p.a(a_rows[P::kAAlongK ? e : 0], first_row + row, begin, k);
        }
#pragma unroll
        for (int e = 0; e < kBLoads; ++e) {
            const int k = first + b_k + e * kBKStep, column = b_column + e * kBColumnStep;
            if (kWhole || (column < tile_columns && k < depth))
                b_next[e] = p.b(b_rows[P::kBAlongK ? 0 : e], begin, k, first_column + column);
        }
    };
    W row_sum = 0;  // over the k that this thread fetches
    auto put = [&](int first, int place, auto whole) {
        constexpr bool kWhole = decltype(whole)::value;
        const Fetched<kWhole> a_at{first_row + a_row, kARowStep, tile_rows - a_row, begin, first + a_k,
                                   kAKStep,           depth};
        W values[kALoads];
        p.late_a(a_next, a_at, values);
        [[maybe_unused]] W sum = 0;  // sums of sums, so that none has as many terms as there are rows
#pragma unroll
        for (int e = 0; e < kALoads; ++e) {
            const W value = a_at.has(e) ? values[e] : W(0);
            a_tiles[place * kATile + (a_k + e * kAKStep) * kGemmRowStride + a_row + e * kARowStep] = value;
            if constexpr (P::kSums) sum += value;
        }
        if constexpr (P::kSums) row_sum += sum;
        const Fetched<kWhole> b_at{first_column + b_column,
                                   kBColumnStep,
                                   tile_columns - b_column,
                                   begin,
                                   first + b_k,
                                   kBKStep,
                                   depth};
        W b_values[kBLoads];
        p.late_b(b_next, b_at, b_values);
#pragma unroll
        for (int e = 0; e < kBLoads; ++e)
            b_tiles[place * kBTile + (b_k + e * kBKStep) * kGemmColumnStride + b_column + e * kBColumnStep] =
                b_at.has(e) ? b_values[e] : W(0);
    };

    const int own_row = thread / 16 * kOwnRows, own_column = thread % 16 * kOwnColumns;
    W sums[kOwnRows][kOwnColumns] = {};
    if (depth > 0) {
        fetch(0, std::false_type());
        put(0, 0, std::false_type());
    }
    __syncthreads();
    int place = 0;
    for (int k = 0; k < depth; k += kGemmDepth, place = 1 - place) {
        const int next = k + kGemmDepth;
        const bool whole_step = whole_tile && next + kGemmDepth <= depth;
        if (whole_step)
            fetch(next, std::true_type());
        else if (next < depth)
            fetch(next, std::false_type());
        const W* a_tile = a_tiles + place * kATile + own_row;
        const W* b_tile = b_tiles + place * kBTile + own_column;
#pragma unroll
        for (int i = 0; i < kGemmDepth; ++i) {
            const auto a = *reinterpret_cast<const Vector<W, kOwnRows>*>(a_tile + i * kGemmRowStride);
            const auto b = *reinterpret_cast<const Vector<W, kOwnColumns>*>(b_tile + i * kGemmColumnStride);
#pragma unroll
            for (int r = 0; r < kOwnRows; ++r)
#pragma unroll
                for (int c = 0; c < kOwnColumns; ++c) sums[r][c] += a.values[r] * b.values[c];
        }
        if (whole_step)
            put(next, 1 - place, std::true_type());
        else if (next < depth)
            put(next, 1 - place, std::false_type());
        __syncthreads();
    }

    const int count = tile_columns - own_column < kOwnColumns ? tile_columns - own_column : kOwnColumns;
    if (count > 0) {
        const typename P::Column column = p.column(first_column + own_column, count);
#pragma unroll
        for (int r = 0; r < kOwnRows; ++r)
            if (own_row + r < tile_rows)
                p.store(first_row + own_row + r, first_column + own_column, sums[r], count, column);
    }
    if constexpr (P::kSums) {
        if (blockIdx.y > 0) return;
        a_tiles[thread] = row_sum;
        __syncthreads();
        W total = 0;
        for (int i = thread; i < kGemmThreads; i += kGemmRows) total += a_tiles[i];
        if (thread < tile_rows) p.store_sum(first_row + thread, total);
    }
}

inline dim3 gemm_blocks(int64_t rows, int64_t columns, int64_t splits = 1) {
    return dim3(unsigned((rows + kGemmRows - 1) / kGemmRows),
                unsigned(columns > 0 ? (columns + kGemmColumns - 1) / kGemmColumns : 1), unsigned(splits));
}

// Into how many parts the `depth` of products [rows, columns] is cut, so that they fill the device.
template <typename W>
int splits_for(int64_t depth, int64_t rows, int64_t columns) {
    const dim3 tiles = gemm_blocks(rows, columns);
    const int64_t places = int64_t(kGemmBlocks<W>) * current_device().multiprocessors;
    const int64_t enough = std::max<int64_t>(1, places / (int64_t(tiles.x) * tiles.y));
    return int(std::min<int64_t>(enough, depth / 128 + 1));
}

}  // namespace dien_fast::cuda
