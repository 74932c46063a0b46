// Ragged rows in device memory.

#pragma once

#include <cstdint>

namespace dien_fast::cuda {

// B histories: history b has rows offsets[b] .. offsets[b + 1] of N. Offsets are not checked on the host; the
// kernels cut them to what lies inside the N rows.
struct Ragged {
    int64_t size;            // B
    int64_t rows;            // N
    const int64_t* offsets;  // [B + 1]
};

}  // namespace dien_fast::cuda
