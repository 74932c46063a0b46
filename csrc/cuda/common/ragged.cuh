// Ragged rows on the device.

#pragma once

#include <platform.h>

#include "ragged.h"

namespace dien_fast::cuda {

__device__ inline int64_t clamped(int64_t value, int64_t low, int64_t high) {
    return value < low ? low : value > high ? high : value;
}

// Rows [begin, end).
struct RowRange {
    int64_t begin, end;

    __device__ int64_t size() const { return end - begin; }
};

// The rows of history b, cut to the rows that exist.
__device__ inline RowRange history_rows(const Ragged& r, int64_t b) {
    const int64_t begin = clamped(r.offsets[b], 0, r.rows);
    return {begin, clamped(r.offsets[b + 1], begin, r.rows)};
}

}  // namespace dien_fast::cuda
